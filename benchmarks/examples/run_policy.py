"""Plays an episode with an exported policy, without rlcore: python run_policy.py policy.pt2 CartPole-v1

policy.onnx runs in onnxruntime, without torch. Observations without parts and policies without memory are meant here;
rlcore.agents.export tells what others take, such as a policy with memory: `action, carry = policy(obs, carry=carry)`,
which begins an episode with zeros, `{name: 0 * x[:1] for name, x in program.example_inputs[1]["carry"].items()}` of
`program = torch.export.load("policy.pt2")`.
"""

import sys

import gymnasium
import numpy as np


def load(path):
    """A function from observations `[N, ...]` to actions `[N, ...]`, both numpy."""
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return lambda obs: session.run(["action"], {"obs": obs})[0]
    import torch

    policy = torch.export.load(path).module()
    return lambda obs: policy(torch.from_numpy(obs)).numpy()


policy, env = load(sys.argv[1]), gymnasium.make(sys.argv[2])
obs, _ = env.reset(seed=0)
total, over = 0.0, False
while not over:
    obs, reward, terminated, truncated, _ = env.step(policy(np.asarray(obs)[None])[0])
    total, over = total + reward, terminated or truncated
print(total)
