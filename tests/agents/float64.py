"""Agents and rollouts in float64, where what they compute can be compared to the last digits."""

import torch

from rlcore.optim import flat


def as_float64(agent):
    """Let the agent's modules, its vector of parameters and the moments of its optimisers be float64."""
    for module in agent.state.modules().values():
        module.double()
    parameters = list(agent.parameters)
    agent.parameters.vector = flat(x.detach() for x in parameters)
    for x, part in zip(parameters, agent.parameters.parts(agent.parameters.vector, parameters), strict=True):
        x.data = part
    for optimizer in filter(None, (agent.optimizer, agent.critic_optimizer)):
        for name in optimizer.moments:
            setattr(optimizer, name, getattr(optimizer, name).double())
    return agent


def hold(buffer, **fields):
    """Put tensors in the place of the buffer's own, of whatever type; assigning would copy them into these."""
    vars(buffer).update(fields)


def poison(buffer):
    """Let the buffer's numbers be float64 and NaN."""
    for name, x in vars(buffer).items():
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            hold(buffer, **{name: torch.full_like(x, torch.nan, dtype=torch.float64)})


def draw_minibatches(agent):
    """The minibatches of the rollout in the buffer, where no collector drew them."""
    agent.draws.update(agent.sampler.draw(agent.buffer.mask, agent.generator))
