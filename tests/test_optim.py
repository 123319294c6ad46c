"""Optimisers on one vector do what torch's do, and the vector stays what the parameters are."""

import pytest
import torch
from torch import nn

from rlcore.optim import Adam, Parameters, RMSprop, clipped, flat, gradient_of, make_optimizer

TORCHS = {
    "adam": lambda p, lr, eps: torch.optim.Adam(p, lr, eps=eps),
    "rmsprop": lambda p, lr, eps: torch.optim.RMSprop(p, lr, 0.9, eps),
}


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def parameters_of(module):
    return Parameters(lambda: {"module": module})


@pytest.mark.parametrize("name", TORCHS)
def test_steps_equal_torchs(name):
    """With gradients of many sizes, a rate that changes, and a stop on the way."""
    ours, theirs = layers(), layers()
    parameters = parameters_of(ours)
    optimizer, reference = (
        make_optimizer(parameters, name, 0.01, 1e-5, 0.9),
        TORCHS[name](theirs.parameters(), 0.01, 1e-5),
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(7):
        gradient = torch.randn(24, generator=generator) * 10.0 ** (step - 3)
        optimizer.learning_rate = reference.param_groups[0]["lr"] = 0.01 / (step + 1)
        optimizer.step(gradient)
        for x, part in zip(theirs.parameters(), parameters.parts(gradient, theirs.parameters()), strict=True):
            x.grad = part.clone()
        reference.step()
        torch.testing.assert_close(parameters.vector, flat(theirs.parameters()).detach(), rtol=1e-5, atol=1e-7)
        if step == 3:  # goes on in another optimiser where this one was
            state = optimizer.state_dict()
            optimizer = make_optimizer(parameters, name, 1.0, 1e-5, 0.9)
            optimizer.load_state_dict(state)
    assert optimizer.step_count == 7


def test_an_optimiser_of_some_parameters_moves_no_others():
    module = layers()
    parameters = parameters_of(module)
    before = [x.detach().clone() for x in parameters]
    optimizer = Adam(parameters, 0.1, 1e-5, lambda: [module[1].weight])
    optimizer.step(torch.ones(8))
    after = list(parameters)
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
    torch.testing.assert_close(after[2], before[2] - 0.1, atol=1e-5, rtol=0)
    assert torch.equal(parameters.vector, flat(module.parameters()))


def test_a_learning_rate_that_is_no_number_is_refused():
    optimizer = RMSprop(parameters_of(layers()), 0.1, 1e-5)
    with pytest.raises(ValueError, match="learning rate is nan"):
        optimizer.load_state_dict({**optimizer.state_dict(), "learning_rate": float("nan")})


def test_gradients_are_clipped_by_their_length():
    gradient = torch.tensor([3.0, 4.0])
    for limit, expected in ((None, 5), (10.0, 5), (5.0, 5), (1.0, 1)):
        short, norm = clipped(gradient, limit)
        assert norm == 5 and short.norm().item() == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(short / short.norm(), gradient / 5)


def test_what_a_loss_does_not_depend_on_has_gradient_0():
    module = layers()
    gradient = gradient_of(module[0](torch.ones(3)).sum(), parameters_of(module))
    assert gradient.tolist() == [1.0] * 16 + [0.0] * 8
