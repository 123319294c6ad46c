"""Exported policies: that they act as the agent does on what an environment shows, without rlcore, or are refused."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import nn

import rlcore
from rlcore.agents import export
from rlcore.errors import RlcoreError, UsageError
from rlcore.networks import Transformer
from tests.environments import vectorize
from tests.test_masks import forbidding
from tests.test_reward_model import made_up

EXAMPLE = Path(__file__).parents[2] / "benchmarks" / "examples" / "run_policy.py"
SMALL = dict(num_steps=8, num_minibatches=1, update_epochs=1, hidden_sizes=(16,), seed=1, compile=False)
NUMBERS = spaces.Box(-3, 3, (4,), np.float32)
PARTS = spaces.Dict(
    camera=spaces.Box(0, 255, (3, 8, 8), np.uint8),
    robot=spaces.Dict(joints=spaces.Box(-np.inf, np.inf, (2,)), mode=spaces.Discrete(3, start=4)),
    rest=spaces.Tuple((spaces.MultiDiscrete([2, 3], start=[5, -1]), spaces.MultiBinary(3), spaces.Box(0, 9, ()))),
)


class Showing(gymnasium.Env):
    """Draws an observation in each of 5 steps; all actions of these spaces are the same to it."""

    def __init__(self, observation_space, action_space, masks=None):
        self.observation_space, self.action_space, self.masks = observation_space, action_space, masks

    def _shown(self):
        return self.observation_space.sample(), {} if self.masks is None else {"action_mask": self.masks}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self._shown()

    def step(self, action):
        assert self.action_space.contains(action)
        self.t += 1
        obs, info = self._shown()
        return obs, float(self.t), self.t == 5, False, info


def agent_for(observation_space, action_space, masks=None, gain=100.0, **options):
    """One that has learned from a rollout, and then wants what it wants `gain` times as much."""
    envs = vectorize(lambda n: Showing(observation_space, action_space, masks), 2, AutoresetMode.DISABLED)
    agent = rlcore.PPO(envs, **{**SMALL, **options})
    agent.learn(16)
    with torch.no_grad():
        agent.network.policy_head.weight.mul_(gain)
    return agent


def convolution(shape):
    """A small one for images, and what an MLP does for all else."""
    if len(shape) < 3:
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 8), nn.Tanh())
    return nn.Sequential(nn.Conv2d(shape[0], 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(8), nn.Tanh())


def drawn(space, count, seed=7):
    space = batch_space(space, count)
    space.seed(seed)
    return space.sample()


def tensors(obs):
    return export._mapped(lambda x: torch.from_numpy(np.array(x)), obs)


def masks_for(nvec, count):
    """`[count, P]` bool, half of all allowed, and the first of each dimension."""
    masks = np.random.default_rng(3).random((count, sum(nvec))) < 0.5
    masks[:, np.cumsum(nvec) - nvec] = True
    return masks


def exported(agent, tmp_path):
    agent.export(tmp_path / "policy.pt2")
    return torch.export.load(tmp_path / "policy.pt2")


def assert_acts_as(agent, policy, obs, **mask):
    action = policy(tensors(obs), **{name: torch.from_numpy(x) for name, x in mask.items()}).numpy()
    expected = agent.act(obs, deterministic=True, **mask)
    assert action.dtype == expected.dtype
    np.testing.assert_allclose(action, expected, rtol=0, atol=1e-5 if action.dtype.kind == "f" else 0)
    assert len(np.unique(action, axis=0)) > 1
    assert all(agent.envs.single_action_space.contains(x) for x in action)
    return action


def test_normalised_numbers_and_a_start_of_the_actions(tmp_path):
    agent = agent_for(NUMBERS, spaces.Discrete(4, start=3), norm_obs=True)
    program, obs = exported(agent, tmp_path), drawn(NUMBERS, 40)
    assert not any("critic" in name or "value" in name for name in program.state_dict)
    policy = program.module()
    action = assert_acts_as(agent, policy, obs)
    alone = [policy(tensors(obs[n : n + 1])).numpy() for n in range(40)]
    np.testing.assert_array_equal(np.concatenate(alone), action)


def test_images_are_scaled_and_convolved(tmp_path):
    images = spaces.Box(0, 255, (3, 16, 16), np.uint8)
    agent = agent_for(images, spaces.MultiBinary((2, 3)), torso=convolution)
    assert_acts_as(agent, exported(agent, tmp_path).module(), drawn(images, 7))


def test_all_kinds_of_parts(tmp_path):
    actions = spaces.MultiDiscrete([[3, 2], [4, 2]], start=[[1, 0], [-2, 7]])
    agent = agent_for(PARTS, actions, torso=convolution, norm_obs=True)
    action = assert_acts_as(agent, exported(agent, tmp_path).module(), drawn(PARTS, 7))
    assert action.shape == (7, 2, 2)


@pytest.mark.parametrize("squash", [False, True])
def test_box_actions_are_clipped_or_squashed(tmp_path, squash):
    box = spaces.Box(np.float32([[-1, -2], [0, 1]]), np.float32([[1, 3], [0.5, 4]]))
    agent = agent_for(NUMBERS, box, squash=squash, state_dependent_std=squash)
    action = assert_acts_as(agent, exported(agent, tmp_path).module(), drawn(NUMBERS, 20))
    at_bounds = (action == box.low) | (action == box.high)
    assert at_bounds.any() != squash and not at_bounds.all()
    # What the exporter had before its eyes was not taken for the bounds themselves.
    assert type(agent.adapter.action_spec.to_env_tensor(torch.zeros(1, 4))) is torch.Tensor


def test_masks_beside_the_observation(tmp_path):
    agent = agent_for(NUMBERS, spaces.Discrete(4, start=3), np.ones(4, np.int8), mask_actions=True)
    masks = masks_for([4], 20)
    action = assert_acts_as(agent, exported(agent, tmp_path).module(), drawn(NUMBERS, 20), action_mask=masks)
    assert masks[np.arange(20), action - 3].all()


def test_masks_in_the_observation(tmp_path):
    space = spaces.MultiDiscrete([3, 2], start=[5, 0])
    envs = vectorize(lambda n: forbidding(source="observation", space=space), 2, AutoresetMode.DISABLED)
    agent = rlcore.PPO(envs, **SMALL)
    masks = masks_for([3, 2], 20)
    obs = {**drawn(envs.single_observation_space, 20), "action_mask": (masks[:, :3] * 2, masks[:, 3:].astype(np.int8))}
    action = assert_acts_as(agent, exported(agent, tmp_path).module(), obs)
    assert masks[np.arange(20), action[:, 0] - 5].all() and masks[np.arange(20), 3 + action[:, 1]].all()


def attention(in_features):
    return Transformer(in_features, size=8, context=3, layers=1, heads=2)


@pytest.mark.parametrize(("memory", "shared"), [("lstm", False), (attention, True)], ids=["lstm", "attention"])
def test_a_memory_is_carried_from_call_to_call(tmp_path, memory, shared):
    agent = agent_for(NUMBERS, NUMBERS, memory=memory, shared=shared, memory_size=8)
    program = exported(agent, tmp_path)
    policy, count = program.module(), 5
    start = {name: 0 * x[:1] for name, x in program.example_inputs[1]["carry"].items()}
    carry = {name: x.expand(count, *x.shape[1:]) for name, x in start.items()}
    assert not any("critic" in name for name in carry)
    for row in range(5):
        first = np.arange(count) < (count if row == 0 else 2 * (row == 3))
        for x in carry.values() if row == 3 else ():
            x[:2] = 0
        obs = drawn(NUMBERS, count, seed=row)
        action, carry = policy(tensors(obs), carry=carry)
        np.testing.assert_allclose(action.numpy(), agent.act(obs, deterministic=True, first=first), atol=1e-5)
    alone, _ = policy(tensors(obs), carry={name: 0 * x for name, x in carry.items()})
    assert (alone - action).abs().max() > 1e-3


def test_everything_at_once_in_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    agent = agent_for(
        PARTS, spaces.MultiDiscrete([3, 2]), np.ones(5, np.int8), mask_actions=True, torso=convolution, memory="gru",
        memory_size=8, norm_obs=True,
    )  # fmt: skip
    agent.export(tmp_path / "policy.onnx")
    session, count = runtime.InferenceSession(tmp_path / "policy.onnx"), 6
    shapes = {x.name: x.shape for x in session.get_inputs()}
    assert shapes["obs/robot/joints"] == ["batch", 2] and shapes["carry/actor_h"] == ["batch", 8]
    parts = ["camera", "rest/0", "rest/1", "rest/2", "robot/joints", "robot/mode"]
    assert list(shapes) == [*(f"obs/{part}" for part in parts), "action_mask", "carry/actor_h"]
    carry, masks = np.zeros((count, 8), np.float32), masks_for([3, 2], count)
    for row in range(3):
        obs = drawn(PARTS, count, seed=row)
        feed = {**export._named(tensors(obs), "obs"), "action_mask": masks, "carry/actor_h": carry}
        feed = {name: np.asarray(x) for name, x in feed.items()}
        action, carry = session.run(["action", "next_carry/actor_h"], feed)
        np.testing.assert_array_equal(action, agent.act(obs, True, first=row == 0, action_mask=masks))


def test_an_export_leaves_the_agent_as_it_was(tmp_path):
    box, runs = spaces.Box(-1, 1, (2,), np.float32), []
    for exports in (True, False):
        agent = agent_for(NUMBERS, box, gain=1.0, memory="gru", squash=True, norm_obs=True)
        obs = drawn(NUMBERS, 5)
        actions = [agent.act(obs, first=True)]
        if exports:
            with torch.inference_mode():
                agent.export(tmp_path / "policy.pt2")
        actions.append(agent.act(obs))
        agent.learn(32)
        runs.append([*actions, agent.parameters.vector.detach().numpy()])
    for ours, theirs in zip(*runs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


class Looking(nn.Module):
    """A torso that looks at its numbers, which no program can."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Stubborn(rlcore.PPO):
    """Acts otherwise than its network says."""

    def act(self, obs, *args, **options):
        return 1 - super().act(obs, *args, **options)


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    agent = rlcore.PPO("CartPole-v1", num_envs=1, **SMALL)
    with pytest.raises(UsageError, match=r"the policy file is .*policy\.pt, but its name must end in \.pt2 or \.onnx$"):
        agent.export(tmp_path / "policy.pt")
    with pytest.raises(UsageError, match=r"nowhere/policy\.pt2 cannot be written: No such file"):
        agent.export(tmp_path / "nowhere" / "policy.pt2")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"ONNX needs the package onnxscript: pip install 'rlcore\[onnx\]'"):
        agent.export(tmp_path / "policy.onnx")
    model = rlcore.RewardModel("CartPole-v1", preferences=made_up("CartPole-v1"), num_envs=2, seed=0, compile=False)
    with pytest.raises(UsageError, match="a RewardModel has no policy to export"):
        model.export(tmp_path / "policy.pt2")
    small = dict(num_envs=2, group_size=2, num_minibatches=1, memory="gru", memory_size=8, compile=False)
    writer = rlcore.GRPO("rlcore/Copy-v0", **small)
    with pytest.raises(UsageError, match="a policy over texts cannot be exported"):
        writer.export(tmp_path / "policy.pt2")
    looking = rlcore.PPO("CartPole-v1", num_envs=1, torso=Looking(), **SMALL)
    with pytest.raises(UsageError, match=r"torch cannot export this policy to \.pt2: Could not guard"):
        looking.export(tmp_path / "policy.pt2")
    assert not list(tmp_path.iterdir())


def test_what_acts_otherwise_replaces_no_file_and_what_acts_alike_does(tmp_path):
    file = tmp_path / "policy.pt2"
    file.write_text("older")
    with pytest.raises(RlcoreError, match="chooses other actions than the agent in 4 of 4 rows"):
        Stubborn("CartPole-v1", num_envs=1, **SMALL).export(file)
    assert file.read_text() == "older" and os.listdir(tmp_path) == ["policy.pt2"]
    rlcore.PPO("CartPole-v1", num_envs=1, **SMALL).export(file)
    assert os.listdir(tmp_path) == ["policy.pt2"] and torch.export.load(file)


def test_real_numbers_are_compared_to_rounding():
    spec = rlcore.spaces.action_spec(spaces.Box(-1000, 1000, (2,), np.float32))
    action = np.full((3, 2), 0.5, np.float32)
    export._compare(action, action + np.float32(0.9e-5), spec)
    for other in (action + np.float32(1.2e-5), np.full_like(action, np.nan)):
        with pytest.raises(RlcoreError, match="off by"):
            export._compare(action, other, spec)
    with pytest.raises(RlcoreError, match=r"gives float32 of shape \[3, 2\] where .* float32 of shape \[2, 2\]"):
        export._compare(action, action[:2], spec)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_example_plays_without_rlcore(tmp_path, suffix):
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    agent = rlcore.PPO("CartPole-v1", num_envs=1, **SMALL)
    file = tmp_path / f"policy{suffix}"
    agent.export(file)
    blocked = "torch" if suffix == ".onnx" else "onnxruntime"
    code = f"import runpy, sys; sys.modules |= {{'rlcore': None, {blocked!r}: None}}; runpy.run_path({str(EXAMPLE)!r})"
    command = [sys.executable, "-c", code, str(file), "CartPole-v1"]
    played = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    env, total, over = gymnasium.make("CartPole-v1"), 0.0, False
    obs, _ = env.reset(seed=0)
    while not over:
        obs, reward, terminated, truncated, _ = env.step(agent.act(obs[None], deterministic=True)[0])
        total, over = total + reward, terminated or truncated
    assert float(played.stdout) == total


def test_the_command_writes_it_beside_the_run(tmp_path, capsys):
    from rlcore.cli import main

    make_small = dict(num_envs=2, num_steps=8, num_minibatches=1, hidden_sizes=(4,), seed=0, compile=False)
    rlcore.PPO("CartPole-v1", **make_small).save(tmp_path / "agent.pt")
    assert main(["export", str(tmp_path / "agent.pt")]) == 0 and (tmp_path / "policy.pt2").stat().st_size > 0
    assert f"{tmp_path / 'policy.pt2'}: the greedy policy of" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "agent.pt"), "--out", str(tmp_path / "policy.txt")]) == 2
    assert "its name must end in .pt2 or .onnx" in capsys.readouterr().err
