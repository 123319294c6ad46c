"""Numbers in which graphs differ become inputs, and whatever else differs is refused."""

import pytest
import torch

from rlcore.programs.numbers import NotAlike, numbers_as_inputs
from rlcore.programs.recording import record
from rlcore.programs.stacking import stacked
from rlcore.state import Place
from rlcore.tracing import loop

aten = torch.ops.aten


def recorded(function, *numbers, x=None):
    """The graph of `function(x, *numbers)`."""
    holder = {"x": torch.linspace(-1, 1, 6, dtype=torch.float32).view(2, 3) if x is None else x}
    return record(lambda: function(holder["x"], *numbers), [Place("x", holder, "x")]).graph


def discounted(x, c):
    carry, ys = loop(lambda carry, row: (carry * c + row, carry + c), torch.zeros(3), x)[:2]
    return torch.cat([ys, carry[None] - c])


FUNCTIONS = {
    "mul": lambda x, c: x * c,
    "rsub": lambda x, c: c - x,
    "div": lambda x, c: c / (x + 3),
    "pow of a number": lambda x, c: c**x,
    "pow to a number": lambda x, c: (x + 2) ** c,
    "clamp both": lambda x, c: x.clamp(1 - c, 1 + c),
    "clamp one": lambda x, c: x.clamp(0, c),
    "clamp below": lambda x, c: x.clamp(min=c),
    "alpha": lambda x, c: torch.add(x, x.exp(), alpha=c),
    "alpha of sub": lambda x, c: torch.sub(x, x.exp(), alpha=c),
    "addcmul": lambda x, c: torch.addcmul(x, x, x, value=c),
    "addcdiv": lambda x, c: torch.addcdiv(x, x, x + 3, value=c),
    "lerp": lambda x, c: x.lerp(x.exp(), c),
    "full": lambda x, c: torch.full((3,), c) + x,
    "full_like": lambda x, c: torch.full_like(x, c) * x,
    "scalar": lambda x, c: torch.scalar_tensor(c) * x,
    "tensor": lambda x, c: torch.tensor([c, 2 * c, 1.0]) * x,
    "where": lambda x, c: torch.where(x > 0, x, c),
    "compare": lambda x, c: (x > c).float() + x,
    "mask": lambda x, c: (x > 0) * c,
    "masked_fill": lambda x, c: x.masked_fill(x > 0, c),
    "leaky_relu": lambda x, c: torch.where(x > 0, x, x * c),
    "powers": lambda x, c: c ** torch.arange(3) * x,
    "loop": discounted,
    "loop and around": lambda x, c: discounted(x * c, c).sum() * c,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_program_computes_with_each_ones_number(name):
    function, numbers = FUNCTIONS[name], (0.3, 0.75, 0.9)
    graphs = [recorded(function, c) for c in numbers]
    values = numbers_as_inputs(graphs)
    assert values
    together, xs = stacked(graphs[0], 3), torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
    outputs = together(xs, *values)
    for k, c in enumerate(numbers):
        torch.testing.assert_close(outputs[-1][k], function(xs[k], c), rtol=1e-5, atol=1e-6)


def test_equal_numbers_stay_constants():
    graphs = [recorded(lambda x, a, b: x * a + b, a, 0.5) for a in (0.1, 0.2)]
    (values,) = numbers_as_inputs(graphs)
    assert values.tolist() == pytest.approx([0.1, 0.2])
    assert 0.5 in [leaf for node in graphs[0].graph.nodes for leaf in node.args]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x * 0.5, lambda x: x + 0.5),
        (lambda x: x * 0.5, lambda x: x),
        (lambda x: x * 0.5, lambda x: x * 0.5 + 0.1),
        (lambda x: x.sum(0) * 0.5, lambda x: x.sum(1) * 0.5),
        (lambda x: x.exp() * x.sin(), lambda x: x.exp() * x.exp()),
        (lambda x: x.view(3, 2), lambda x: x.view(6)),
        (lambda x: x * 2, lambda x: x * True),
        (lambda x: x * torch.tensor([1.0, 2.0, 3.0]), lambda x: x * torch.tensor([1.0])),
        (lambda x: loop(lambda c, r: (c + r, c), x[0], x)[1], lambda x: loop(lambda c, r: (c * r, c), x[0], x)[1]),
        (lambda x: loop(lambda c, r: (c + r, c), x[0], x)[1], lambda x: loop(lambda c, r: (c + r, r), x[0], x)[1]),
    ],
)  # fmt: skip
def test_graphs_that_differ_otherwise_are_refused(one, other):
    with pytest.raises(NotAlike):
        numbers_as_inputs([recorded(one), recorded(other)])
