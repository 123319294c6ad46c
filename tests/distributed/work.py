"""What ranks do in the tests, and one process alone for comparison."""

import warnings

import torch

import rlcore
from tests.agents.float64 import as_float64, hold

BOX = "Pendulum-v1"
SMALL = dict(num_envs=4, num_steps=16, seed=3, hidden_sizes=(8,), backend="native", compile=False, device="cpu")
WHOLE = dict(num_steps=24, group_size=2)


def make(algorithm, env_id="CartPole-v1", **settings):
    warnings.simplefilter("ignore")
    return getattr(rlcore, algorithm)(env_id, **{**SMALL, **settings})


def first_gradients(algorithm, env_id, settings):
    """The flat gradient of each step of the first iteration in float64, and the parameters after it."""
    agent = make(algorithm, env_id, **settings)
    agent.collect()
    as_float64(agent)
    buffer = agent.buffer
    for name, x in vars(buffer).items():
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            hold(buffer, **{name: (x.double() * 256).round() / 256})  # float32 rounds otherwise with other sizes
    gradients, step = [], agent.optimizer.step

    def keep(gradient):
        gradients.append(gradient.clone())
        step(gradient)

    agent.optimizer.step = keep
    metrics = agent.learn_from_buffer()
    metrics = {name: float(x) for name, x in metrics.items()}
    return {"gradients": gradients, "parameters": agent.parameters.vector.clone(), "metrics": metrics}


def train(algorithm, env_id, settings, iterations):
    """Everything a run comes to: parameters, statistics, episodes, steps."""
    agent = make(algorithm, env_id, **settings)
    metrics, episodes = [], []
    run = agent.iterations(10**9)
    for _ in range(iterations):
        numbers, found = next(run)
        numbers.pop("steps_per_second")
        metrics.append(numbers)
        episodes.append(vars(found))
    state = {name: x for name, x in agent.network.state_dict().items() if "norm" in name}
    return {
        "parameters": agent.parameters.vector.clone(), "state": state, "metrics": metrics, "episodes": episodes,
        "steps": agent.global_step, "how": agent.engine.how,
    }  # fmt: skip


GRADIENTS = {
    "ppo": ("PPO", "CartPole-v1", dict(num_minibatches=4, update_epochs=2)),
    "ppo with β": ("PPO", "CartPole-v1", dict(num_minibatches=2, update_epochs=2, objective="kl", target_kl=0.01)),
    "ppo in a box": ("PPO", BOX, dict(norm_reward=True, update_epochs=8, target_kl=0.01)),
    "a2c": ("A2C", "CartPole-v1", dict(norm_adv=True)),
    "reinforce": ("REINFORCE", "CartPole-v1", dict(num_steps=24, norm_adv=True)),
    "reinforce without critic": ("REINFORCE", "CartPole-v1", dict(num_steps=24, baseline="mean")),
    "grpo": ("GRPO", "CartPole-v1", dict(WHOLE, kl_coef=0.1, num_minibatches=3)),
    "dapo": ("GRPO", "CartPole-v1", dict(WHOLE, variant="dapo", update_epochs=1)),
    "gpg": ("GRPO", "CartPole-v1", dict(WHOLE, variant="gpg")),
    "grpo by batch": ("GRPO", "CartPole-v1", dict(WHOLE, length_norm="batch", supervision="aligned", update_epochs=1)),
    "trpo": ("TRPO", "CartPole-v1", dict(fisher_fraction=0.34, update_epochs=2)),
}
RUNS = {
    "ppo": ("PPO", "CartPole-v1", dict(update_epochs=2), 10),
    "ppo recorded": ("PPO", "CartPole-v1", dict(update_epochs=1, compile="record"), 4),
    "ppo row by row": ("PPO", "CartPole-v1", dict(update_epochs=1, num_steps=32, backend="sync"), 4),
    "a2c in a box": ("A2C", BOX, dict(norm_obs=True, norm_reward=True, noise_correlation=0.5, num_steps=70), 10),
    "ppo with a memory": (
        "PPO", "CartPole-v1", dict(memory="gru", sequence_length=8, num_minibatches=2, update_epochs=2, num_steps=24), 2
    ),
    "reinforce": ("REINFORCE", "CartPole-v1", dict(num_steps=24, critic_updates=3), 4),
    "grpo": ("GRPO", "CartPole-v1", dict(WHOLE, backend="sync", num_minibatches=3, update_epochs=2), 4),
    "trpo": ("TRPO", "CartPole-v1", dict(update_epochs=2, num_steps=24), 2),
}  # fmt: skip
RESUMED = {
    "native": ("PPO", BOX, dict(norm_obs=True, norm_reward=True, num_steps=70, update_epochs=1)),
    "sync": ("PPO", "CartPole-v1", dict(update_epochs=1, backend="sync")),
}


def resume(algorithm, env_id, settings, file):
    """Parameters after three iterations and two more, and after as many with a pause between."""
    agent = make(algorithm, env_id, **settings)
    run = agent.iterations(10**9)
    for _ in range(3):
        next(run)
    agent.save(file)
    for _ in range(2):
        next(run)
    return agent.parameters.vector.clone(), go_on(file)


def go_on(file):
    """Parameters after two iterations from a file on."""
    agent = rlcore.load(file)
    run = agent.iterations(10**9)
    for _ in range(2):
        next(run)
    return agent.parameters.vector.clone()


def everything(folder):
    """All that the tests compare, in one go, since a process takes longer to begin than to learn."""
    warnings.simplefilter("ignore")
    return {
        "gradients": {name: first_gradients(*case) for name, case in GRADIENTS.items()},
        "runs": {name: train(*case) for name, case in RUNS.items()},
        "resumed": {name: resume(*case, f"{folder}/{name}.pt") for name, case in RESUMED.items()},
    }
