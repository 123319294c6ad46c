"""What ranks do in the tests, and one process alone for comparison."""

import warnings

import torch

import rlcore
from rlcore.optim import gradient_of
from tests.agents.float64 import as_float64, hold

BOX = "Pendulum-v1"
SMALL = dict(num_envs=4, num_steps=16, seed=3, hidden_sizes=(8,), backend="native", compile=False, device="cpu")
WHOLE = dict(num_steps=24, group_size=2)


def make(algorithm, env_id="CartPole-v1", **settings):
    warnings.simplefilter("ignore")
    return getattr(rlcore, algorithm)(env_id, **{**SMALL, **settings})


def first_gradients(cases):
    """The flat gradient of each step of the first iteration in float64, and the parameters after it."""
    return {name: _first_gradient(*case) for name, case in cases.items()}


def _first_gradient(algorithm, env_id, settings):
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
