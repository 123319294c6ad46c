"""`rlcore.tracing.loop`: Python's `for`, the same as recorded operations, and the same as a scan."""

import pytest
import torch

from rlcore.optim import Adam, Parameters, gradient_of
from rlcore.programs.passes import hoisted
from rlcore.programs.program import Program, for_compiler_whole, loops_of
from rlcore.programs.recording import NotRecordable, ParametersPlace, record
from rlcore.state import State
from rlcore.tracing import Constant, is_recording, leaves_of, loop, recording

TEN = Constant(torch.tensor(10.0))


class Owner:
    """Declared: a tensor, a number, and parameters of a layer."""

    def __init__(self, xs):
        torch.manual_seed(0)
        self.state = State(self)
        self.state.register("total", torch.zeros(2))
        self.state.register("coefs", {"rate": 0.5})
        self.state.register("layer", torch.nn.Linear(2, 2))
        self.state.register("xs", xs)
        self.parameters = Parameters(self.state.modules)
        self.state.register("optimizer", Adam(self.parameters, 0.1, 1e-5))

    def places(self):
        return [ParametersPlace(self.parameters), *self.state.places(skip=list(self.parameters))]


def plain(o):
    return loop(lambda c, x: (c + x, c * x), o.xs[0] * 0, o.xs)


def trees(o):
    def body(carry, x):
        total = carry["sum"] + x["row"]
        return {"sum": total, "flags": [x["flag"], *carry["flags"][:1]]}, {
            "sum": total,
            "any": {"flag": x["flag"].any()},
            "up": x["row"] > 0,
        }

    start = {"sum": torch.zeros(2), "flags": [o.xs[0] > 0, o.xs[0] < 0]}
    return loop(body, start, {"row": o.xs, "flag": o.xs > 0.1})


def writes_state(o):
    def body(carry, x):
        o.total = o.total * o.coefs["rate"] + o.layer(x).detach()
        o.coefs["rate"] = o.coefs["rate"] * 0.9
        return carry, o.total.sum()

    return loop(body, None, o.xs)


def in_place(o):
    def body(carry, x):
        with torch.no_grad():
            o.total.add_(x * TEN.like(x))
        return carry, o.total * 2

    return loop(body, None, o.xs)


def turns(o):
    def body(carry, _):
        o.total = o.total + carry
        return carry * 0.5 + o.xs[1], carry

    return loop(body, o.xs[0], 6)


def only_state(o):
    def body(carry, x):
        o.total = o.total + x
        return carry, {}

    return loop(body, None, o.xs)


def until_far(o):
    def body(carry, x):
        o.total = o.total + x
        return {"sum": carry["sum"] + x.abs().sum(), "turn": carry["turn"] + 1}, {"total": o.total, "up": x > 0}

    start = {"sum": torch.zeros(()), "turn": torch.zeros((), dtype=torch.int64)}
    return loop(body, start, o.xs, until=lambda carry: carry["sum"] > 4)


def until_at_once(o):
    return loop(lambda c, x: (c + x, c), o.xs[0], o.xs, until=lambda c: c.isfinite().all())


def until_never(o):
    return loop(lambda c, x: (c + x, c), o.xs[0], o.xs, until=lambda c: c.isnan().all())


def unrolled(o):
    def body(carry, x):
        o.total = o.total + x
        return carry * 0.5 + x, carry + o.total

    return loop(body, o.xs[0], o.xs, unroll=4)


def one_row(o):
    return loop(lambda c, x: (c + x, c * x), o.xs[0], o.xs[:1])


def one_turn(o):
    return loop(lambda c, _: (c + o.total, c), o.xs[0], 1)


def nested(o):
    def body(carry, x):
        inner, ys, _ = loop(lambda c, y: (c + x * y, c), carry, o.xs)
        o.total = o.total + ys.sum(0)
        return inner * 0.1, inner

    return loop(body, o.xs[0], o.xs)


def two_in_a_row(o):
    carry, ys, count = plain(o)
    after, rows, more = loop(lambda c, x: (c - x, c), carry, ys)
    return after, rows, count + more


def gradients(o):
    """A step of gradient descent each turn, what a loop of an agent is."""

    def body(carry, x):
        loss = ((o.layer(x) - 1) ** 2).sum() + carry
        gradient = gradient_of(loss, o.parameters)
        o.optimizer.step(gradient)
        return loss.detach() * 0.1, gradient

    return loop(body, torch.zeros(()), o.xs)


FUNCTIONS = [
    plain, trees, writes_state, in_place, turns, only_state, until_far, until_at_once, until_never, unrolled, one_row,
    one_turn, nested, two_in_a_row, gradients,
]  # fmt: skip


def rows(seed=0, length=8):
    return torch.randn(length, 2, generator=torch.Generator().manual_seed(seed))


def by_python(function, xs):
    owner = Owner(xs)
    return function(owner), owner


def by_program(function, xs, rewriting=None):
    """Recorded with other rows than it is run with."""
    owner = Owner(rows(99, len(xs)))

    def run():
        *result, count = function(owner)
        return [*result, torch.as_tensor(count)]

    program = Program(run, owner.places, owner=owner)
    program.prepare(None, compiled=False)
    if rewriting is not None:
        graph = rewriting(record(program.function, owner.places(), owner=owner).graph)
        program.run = lambda leaves: graph(*leaves)
    owner.xs = xs
    return program(), owner


def assert_same(ours, theirs):
    (carry, ys, count), owner = ours
    (their_carry, their_ys, their_count), other = theirs
    assert int(count) == int(their_count)
    for x, y in zip(leaves_of(carry), leaves_of(their_carry), strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(y, x)
    for x, y in zip(leaves_of(ys), leaves_of(their_ys), strict=True):
        assert x.dtype == y.dtype and not y[len(x) :].any()  # after the end there is nothing
        torch.testing.assert_close(y[: len(x)], x)
    torch.testing.assert_close(other.total, owner.total)
    torch.testing.assert_close(other.parameters.vector, owner.parameters.vector)
    torch.testing.assert_close(other.optimizer.state_dict(), owner.optimizer.state_dict())
    assert float(other.coefs["rate"]) == pytest.approx(float(owner.coefs["rate"]))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_recorded_loops_do_what_python_does(function):
    for seed in (1, 2):
        assert_same(by_python(function, rows(seed)), by_program(function, rows(seed)))


def test_turns_after_the_end_of_a_loop_are_not_run_where_python_runs_the_operations():
    owner, turns = Owner(rows()), []
    program = Program(lambda: list(until_far(owner)[:2]), owner.places, owner=owner)
    program.prepare(None, compiled=False)
    (recorded,) = loops_of(program.recorded.graph)
    recorded.body.register_forward_hook(lambda *_: turns.append(1))
    program()
    assert len(turns) == until_far(Owner(rows()))[2] < len(rows())


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_scans_do_what_python_does(function):
    """What the compiler is given: hoisted, rewritten, and loops as scans."""
    assert_same(by_python(function, rows(1)), by_program(function, rows(1), for_compiler_whole))


def test_compiled_loops_do_what_python_does():
    """All in one program, since the compiler takes long for each."""
    together = [trees, writes_state, turns, until_far, until_at_once, unrolled, one_row, gradients]

    def results(owner):
        found = [function(owner) for function in together]
        return [[carry, ys, torch.as_tensor(count)] for carry, ys, count in found]

    ours, theirs = Owner(rows(1)), Owner(rows(99))
    program = Program(lambda: results(theirs), theirs.places, owner=theirs)
    program.prepare(None, compiled=True)
    assert "recorded" in vars(program)
    theirs.xs.copy_(rows(1))
    for _ in range(2):
        for expected, found in zip(results(ours), program(), strict=True):
            assert_same((expected, ours), (found, theirs))
        assert_same((expected, ours), (found, theirs))


def test_unrolling_divides_what_it_can():
    for length in (1, 6, 7):  # by 3, and not at all
        ours = by_python(unrolled, rows(3, length))
        assert_same(ours, by_program(unrolled, rows(3, length), for_compiler_whole))


def test_a_recording_holds_a_body_once():
    sizes = []
    for length in (3, 50):
        owner = Owner(rows(0, length))
        graph = record(lambda owner=owner: writes_state(owner)[1], owner.places(), owner=owner).graph
        (found,) = loops_of(graph)
        sizes.append((len(graph.graph.nodes), len(found.body.graph.nodes)))
    assert sizes[0] == sizes[1]


def test_a_loop_that_may_end_early_changes_nothing_in_place():
    owner = Owner(rows())

    def function():
        def body(carry, x):
            owner.total.add_(x)
            return carry + x, {}

        loop(body, owner.xs[0], owner.xs, until=lambda c: c.sum() > 1)

    with pytest.raises(NotRecordable, match="'total' is changed in place in a loop that may end early"):
        record(function, owner.places(), owner=owner)


def test_what_stays_the_same_is_taken_out_of_a_loop():
    owner = Owner(rows())

    def function():
        def body(carry, x):
            return torch.tanh(x @ (owner.layer.weight * 2).T + carry), carry

        return loop(body, owner.total, owner.xs)[:2]

    graph = record(function, owner.state.places(), owner=owner).graph
    (found,) = loops_of(graph)
    count = len([n for n in found.body.graph.nodes if n.op == "placeholder"]) - 1  # the weight is the last
    inputs = [torch.randn(2), torch.randn(2), torch.randn(2, 2)]
    expected = found.body(*inputs)
    before, rest = hoisted(found.body, count)
    fixed = before(*inputs[count:])
    assert all(x.is_contiguous() for x in fixed)
    torch.testing.assert_close(rest(*inputs[:count], *fixed), expected)
    names = [str(node.target) for node in rest.graph.nodes if node.op == "call_function"]
    assert not any("aten.mul" in name or "permute" in name for name in names)
    assert any("aten.mul" in str(node.target) for node in before.graph.nodes)


def test_nothing_random_and_nothing_undeclared_is_recorded():
    owner, other = Owner(rows()), torch.ones(2)
    for function, words in (
        (lambda: loop(lambda c, x: (c + torch.randn(2), c), owner.total, owner.xs), "random numbers are drawn"),
        (lambda: loop(lambda c, x: (c + other, c), owner.total, owner.xs), "not declared"),
        (lambda: owner.total + other, "not declared"),
        (lambda: owner.total * float(owner.xs.sum()), "Python looks at the value"),
    ):
        with pytest.raises(NotRecordable, match=words):
            record(function, owner.places(), owner=owner)


def test_a_recording_ends_with_its_block():
    with recording():
        assert is_recording()
    assert not is_recording()


def test_constants_are_copied_once_and_gradients_may_pass_them():
    constant = Constant(torch.arange(3.0, dtype=torch.float64))
    x = torch.ones(3, requires_grad=True)
    with torch.inference_mode():
        first = constant.like(x)
    assert constant.like(x) is first and first.dtype == torch.float32
    (x * x * first).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 2.0, 4.0]))
    assert constant.like(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_a_constant_that_is_first_met_while_recording_is_one_in_every_call():
    owner, constant = Owner(rows()), Constant(torch.tensor([3.0, 4.0]))
    program = Program(lambda: owner.total + constant.like(owner.total), owner.places, owner=owner)
    program.prepare(None, compiled=False)
    owner.total = torch.tensor([1.0, 2.0])
    assert program().tolist() == [4, 6]
    assert (owner.total + constant.like(owner.total)).tolist() == [4, 6]
