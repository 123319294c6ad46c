"""Recording: a function that reads and writes declared places becomes a graph of tensor operations.

The function is run once. Inputs stand in the declared places meanwhile; what stands there afterwards, and is not what
was put there, are outputs. A loop becomes a `Loop`, whose body is recorded once. What would be frozen without a word
is refused by name: tensors that are not declared, attributes that are set but not declared, random numbers.
"""

from __future__ import annotations

import copy
import math
import operator
import pickle
import random
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.overrides import TorchFunctionMode

from rlcore.errors import UsageError, one_line
from rlcore.optim import Parameters
from rlcore.programs.passes import arrange, hoisted
from rlcore.state import Place
from rlcore.tracing import Tree, in_places, is_recording, leaves_of, numbered, recording

PACKED = 64  # numbers of one environment up to which what a loop hands on is put side by side with the rest
recording_lock = threading.RLock()  # torch records for one thread at a time


class NotRecordable(UsageError):
    """Code that cannot be recorded, or whose recording would not compute what it computes."""


class ParametersPlace(Place):
    """The vector of all parameters, of which the parameters are parts."""

    def __init__(self, parameters: Parameters):
        super().__init__("parameters", vars(parameters), "vector")
        self.parameters = parameters

    def put(self, value: Tensor) -> None:
        self.parameters.hold(value)


class Recorded:
    """A recorded function.

    Attributes:
        graph: from the tensors that stand in `inputs` and those of the arguments, flat, to the new tensors of
            `changed` and those of the result, flat.
        inputs, changed: names of places.
        result: the structure of what the function returns.
        reads: names of the owner's attributes that it read.
    """

    def __init__(self, graph: GraphModule, inputs: list[str], changed: list[str], result: Any, reads: set[str]):
        self.graph, self.inputs, self.changed, self.result, self.reads = graph, inputs, changed, result, reads

    def describe(self) -> dict[str, Any]:
        """All but the graph, as plain data."""
        return {"inputs": self.inputs, "changed": self.changed, "result": self.result}


def record(
    function: Callable[..., Tree], places: Sequence[Place], arguments: Tree = (), owner: Any = None, free: Any = None
) -> Recorded:
    """Run `function(*arguments)` once and write down what it does.

    Args:
        function: reads and writes tensors in `places`; its flow depends on no value.
        places: of declared state.
        arguments: further inputs, a list of trees of tensors.
        owner: whose attributes it may read and, where these are declared, set; they are left as they were.
        free: names of places, with the dimensions in which their tensors may have another size at each call.

    Raises:
        NotRecordable: says what cannot be recorded, and what to do instead.
    """
    with recording_lock, _without_draws(), _untouched(owner, places) as reads:
        return _Recorder(list(places), owner, free or {}).record(function, list(arguments), reads)


class _Recorder:
    def __init__(self, places: list[Place], owner: Any, free: dict[str, Any]):
        self.places, self.owner, self.free, self.loops = places, owner, free, 0
        self.mode: Any = nullcontext()  # fake tensors, where sizes are free

    def record(self, function: Callable[..., Tree], arguments: list[Tree], reads: set[str]) -> Recorded:
        device = _device(map(Place.get, self.places))
        tensors = [place.tensor(device) for place in self.places]
        if self.free:
            tensors, arguments = self._of_free_sizes(tensors, arguments)
        others = [x.detach() for x in leaves_of(arguments)]
        count, structure = len(tensors), numbered(arguments)

        def body(*inputs: Tensor) -> Tree:
            return function(*in_places(structure, inputs))

        with recording(self), torch.enable_grad(), _Guard(), nullcontext() if self.free else _one_fake_mode():
            try:
                piece = self._trace(body, tensors, others)
                self._refuse_unknown(piece.graph)
            except _Unknown as unknown:  # once more, to find the line
                (tensor,) = unknown.args
                with _Finder(tensor) as finder, suppress(NotRecordable, _Unknown):
                    self._trace(body, tensors, others)
                raise NotRecordable(_undeclared(_name_of(tensor, self.owner), finder.line)) from None
        used = [i for i in range(count) if piece.inputs[i].users]
        arrange(piece.graph, [piece.inputs[i] for i in [*used, *range(count, len(piece.inputs))]])
        inputs, changed = ([self.places[i].name for i in which] for which in (used, piece.changed))
        return Recorded(piece.graph, inputs, changed, piece.structure, reads)

    def _of_free_sizes(self, tensors: list[Tensor], arguments: list[Tree]) -> tuple[list[Tensor], list[Tree]]:
        """The inputs as fake tensors, with symbols for sizes that are free."""
        from torch._subclasses import FakeTensorMode
        from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

        def fake(x: Tensor, free: Sequence[int]) -> Tensor:
            sizes = [DimDynamic.DYNAMIC if i in free else DimDynamic.STATIC for i in range(x.ndim)]
            return self.mode.from_tensor(x, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

        tensors = [fake(x, self.free.get(p.name, ())) for x, p in zip(tensors, self.places, strict=True)]
        return tensors, in_places(numbered(arguments), [fake(x, ()) for x in leaves_of(arguments)])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is not recorded."""
        from torch._subclasses.fake_tensor import unset_fake_temporarily
        from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

        with disable_proxy_modes_tracing(), unset_fake_temporarily():
            yield

    def _trace(self, body: Callable[..., Tree], state: list[Tensor], others: list[Tensor]) -> _Piece:
        """Record `body(*others)` with `state` in the places."""
        from torch.fx.experimental.proxy_tensor import make_fx

        piece, count = _Piece(), len(self.places)

        def function(*leaves: Tensor) -> list[Tensor]:
            # Copies, so that changes in place are seen and none reaches what stood there before.
            copies = [x.clone() for x in leaves[:count]]
            for place, x in zip(self.places, copies, strict=True):
                place.put(x)
            versions = [x._version for x in copies]
            result = body(*leaves[count:])
            piece.structure = numbered(result)
            results = [x if isinstance(x, Tensor) else torch.tensor(x) for x in leaves_of(result)]
            now = [_left_in(place, mine) for place, mine in zip(self.places, copies, strict=True)]
            pairs = enumerate(zip(now, copies, versions, strict=True))
            piece.changed = [i for i, (x, mine, version) in pairs if x is not mine or x._version != version]
            piece.outputs = [x.detach() for x in [*(now[i] for i in piece.changed), *results]]
            return piece.outputs

        with ExitStack() as afterwards:
            for place in self.places:
                if isinstance(place, ParametersPlace):
                    afterwards.callback(place.parameters.release, place.get(), [*place.parameters])
                else:
                    afterwards.callback(place.put, place.get())
            try:
                with self.mode:
                    piece.graph = make_fx(function, tracing_mode="real")(*state, *others)
            except (NotRecordable, _Unknown):
                raise
            except Exception as error:
                raise NotRecordable(_explained(error)) from error
        piece.inputs = [node for node in piece.graph.graph.nodes if node.op == "placeholder"]
        _drop_copies(piece.graph, piece.inputs[:count])
        return piece

    # Loops.

    def loop(
        self, body: Callable, carry: Tree, xs: Tree, until: Callable | None, unroll: int, apart: Sequence[str]
    ) -> tuple[Tree, Tree, int | Tensor]:
        """As `rlcore.tracing.loop`: one node of the graph, whose body is recorded once."""
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        tracer = get_proxy_mode().tracer
        outer_state = [place.get() for place in self.places]
        counted, device = isinstance(xs, int), _device([*outer_state, *leaves_of(carry)])
        xs = torch.arange(xs, device=device) if counted else xs  # a scan needs rows to go through
        going = [] if until is None else [torch.ones((), dtype=torch.bool, device=device)]
        start, rows = [*going, *leaves_of(carry)], leaves_of(xs)
        carry_form, x_form, packing = numbered(carry), numbered(xs), _Packing()

        def turn(*leaves: Tensor) -> Tree:
            flag: Any
            flag, mine, x = leaves[: len(going)], leaves[len(going) : len(start)], leaves[len(start) :]
            state = [place.get() for place in self.places]
            versions = [x._version for x in state]
            after, y = body(in_places(carry_form, mine), None if counted else in_places(x_form, x))
            packing.structure = form = numbered(y)
            packed = packing.pack(leaves_of(y), leaves_of([form[name] for name in apart if name in form]))
            leaves_after = leaves_of(after)
            if flag:
                (goes_on,) = flag
                self._keep_unless(goes_on, state, versions)
                leaves_after = [torch.where(goes_on, new, old) for new, old in zip(leaves_after, mine, strict=True)]
                packed = [*(torch.where(goes_on, p, torch.zeros_like(p)) for p in packed), goes_on.float()]
                flag = [goes_on & ~until(after)]
            return [*flag, *leaves_after, *packed]

        with self.paused(), self.mode:
            inputs = [*(x.detach() for x in start), *(x.detach()[0] for x in rows)]
            piece = self._trace(turn, [x.detach() for x in outer_state], inputs)
        outputs = self._as_node(tracer, piece, [*outer_state, *start, *rows], len(start), unroll, bool(going))
        after, ys = outputs[len(going) : len(start)], outputs[len(start) :]
        taken = ys.pop().sum() if going else len(rows[0])
        return in_places(carry_form, after), in_places(packing.structure, packing.unpack(ys)), taken

    def _keep_unless(self, going: Tensor, state: list[Tensor], versions: list[int]) -> None:
        """Turns after the end of a loop change no state."""
        for place, old, version in zip(self.places, state, versions, strict=True):
            now = place.get()
            if now is old and old._version != version:
                raise NotRecordable(
                    f"'{place.name}' is changed in place in a loop that may end early; assign it instead"
                )
            if now is not old:
                place.put(torch.where(going, now, old))

    def _as_node(
        self, tracer: Any, piece: _Piece, outer: list[Tensor], carried: int, unroll: int, may_end: bool
    ) -> list[Tensor]:
        """A loop in the graph around it, which begins with the `outer` state, carry and rows; gives the last carry and
        the ys of all turns."""
        from torch.fx.experimental.proxy_tensor import get_proxy_slot, track_tensor_tree

        count, changed = len(self.places), piece.changed
        self._refuse_unknown(piece.graph, known=lambda x: get_proxy_slot(x, tracer, None) is not None)
        lifted = _lift(piece.graph)
        fixed = [i for i in range(count) if i not in changed and piece.inputs[i].users]
        order = [*changed, *range(count, len(outer)), *fixed]
        arrange(piece.graph, [*(piece.inputs[i] for i in order), *(node for node, _ in lifted)])
        tensors = [*(outer[i] for i in order), *(x for _, x in lifted)]
        seen: set[int] = set()  # a scan takes no two tensors that share their memory
        for i, x in enumerate(tensors):
            lies = x.untyped_storage()._cdata
            tensors[i] = x.clone() if lies in seen else x
            seen.add(lies)
        handed_on, turns = len(changed) + carried, len(outer[count + carried])
        name = f"loop_{self.loops}"
        self.loops += 1
        rows, going = len(outer) - count - carried, len(changed) if may_end else None
        tracer.root.register_module(name, Loop(piece.graph, handed_on, rows, unroll, going))
        node = tracer.create_proxy("get_attr", name, (), {})
        proxy = tracer.create_proxy("call_function", run_loop, (node, *map(tracer.unwrap_proxy, tensors)), {})
        with self.paused(), self.mode:
            outputs = [x.detach().clone() for x in piece.outputs[:handed_on]]
            outputs += [x.detach().expand(turns, *x.shape).clone() for x in piece.outputs[handed_on:]]
        outputs = track_tensor_tree(outputs, proxy, constant=None, tracer=tracer)
        for i, x in zip(changed, outputs, strict=False):
            self.places[i].put(x)
        return outputs[len(changed) :]

    # What is refused.

    def _refuse_unknown(self, graph: GraphModule, known: Callable[[Tensor], bool] = lambda x: False) -> None:
        """Refuse tensors from outside that are not `known` there, and random numbers."""
        for node in graph.graph.nodes:
            if node.op == "get_attr" and isinstance(tensor := getattr(graph, node.target, None), Tensor):
                if node.users and all(u.target is torch.ops.aten.lift_fresh_copy.default for u in node.users):
                    tensor.is_constant = True  # type: ignore[attr-defined]  # written out in the code
                if node.users and not getattr(tensor, "is_constant", False) and not known(tensor):
                    raise _Unknown(tensor)
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise NotRecordable(RANDOM_NUMBERS.format(""))


@contextmanager
def _one_fake_mode() -> Iterator[None]:
    """Torch keeps a fake tensor beside each operation, to tell its shape. Where it is given no mode for them it makes
    one for each, which takes a third of the time that recording takes."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode

    with tracing(TracingContext(FakeTensorMode())):
        yield


def _undeclared(name: str | None, line: str) -> str:
    """What to say of a tensor that was read."""
    return (
        f"{repr(name) if name else 'a tensor'} is read{line}, but not declared: a program would keep its value of now; "
        f"declare it with register('{(name or 'name').partition('.')[0]}', ...), or as an rlcore.tracing.Constant"
    )


def _left_in(place: Place, mine: Tensor) -> Tensor:
    """What a function left in a place where `mine` was put for it."""
    x = place.get()
    if isinstance(x, int | float):  # set to a number, the same at every call
        x = torch.full_like(mine, x)
        place.put(x)
    if not isinstance(x, Tensor):
        raise NotRecordable(f"'{place.name}' was set to a {type(x).__name__} instead of a tensor")
    if x.shape != mine.shape or x.dtype != mine.dtype:
        was, became = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (mine, x))
        raise NotRecordable(f"'{place.name}' was {was} and became {became}; declared state keeps its form")
    return x


def _explained(error: Exception) -> str:
    """What went wrong while recording, in one sentence."""
    where, text = _line(" ({})", traceback.extract_tb(error.__traceback__)), one_line(error)
    if any(mark in text for mark in LOOKING):
        return f"Python looks at the value of a tensor{where}, which a program cannot; use torch.where"
    return f"{type(error).__name__}{where}: {text[:200]}"


LOOKING = ("value out of a tracing tensor", "data-dependent", "Cannot access data pointer")  # torch's errors of this


class _Piece:
    """What one run of a function came to."""

    graph: GraphModule
    inputs: list[Node]
    changed: list[int]  # numbers of places
    outputs: list[Tensor]
    structure: Any  # of the result


class Loop(nn.Module):
    """A recorded body and how often to run it: Python's `for` over its operations, or a scan where it is compiled.

    Args:
        graph: from (carry, row, fixed) to (carry, ys), of which the first two are `carried` and `rows` tensors.
        unroll: turns per step of a scan.
        going: which of the carry tells whether the loop goes on, where it may end early.
    """

    def __init__(self, graph: GraphModule, carried: int, rows: int, unroll: int, going: int | None = None):
        super().__init__()
        self.body, self.carried, self.rows, self.unroll, self.going = graph, carried, rows, unroll, going
        self.before: GraphModule | None = None  # makes of what is fixed what the body takes of it
        self.as_scan = False

    def hoist(self) -> None:
        """Compute once what no turn changes."""
        self.before, self.body = hoisted(self.body, self.carried + self.rows)

    def forward(self, *leaves: Tensor) -> list[Tensor]:
        first, end = self.carried, self.carried + self.rows
        xs = leaves[first:end]
        carry: Sequence[Tensor] = leaves[:first]
        fixed: Sequence[Tensor] = leaves[end:]
        fixed = fixed if self.before is None else self.before(*fixed)
        if self.as_scan and len(xs[0]) > 1:
            return self._scan(carry, xs, fixed)
        carry, ys = self._turns(carry, zip(*(x.unbind() for x in xs), strict=True), fixed)
        return [*carry, *map(torch.stack, zip(*ys, strict=True))]

    def _turns(self, carry: Sequence[Tensor], rows: Iterable, fixed: Sequence[Tensor]) -> tuple[Sequence[Tensor], list]:
        """The last carry of some turns, and the ys of each."""
        ys: list[Any] = []
        for row in rows:
            if ys and self._is_over(carry):
                ys.append([torch.zeros_like(y) for y in ys[-1]])
                continue
            outputs = self.body(*carry, *row, *fixed)
            carry = outputs[: self.carried]
            ys.append(outputs[self.carried :])
        return carry, ys

    def _is_over(self, carry: Sequence[Tensor]) -> bool:
        """Whether the turns that are left would change nothing, where Python may look."""
        return self.going is not None and not self.as_scan and not is_recording() and not carry[self.going].any()

    def _scan(self, carry: Sequence[Tensor], xs: Sequence[Tensor], fixed: Sequence[Tensor]) -> list[Tensor]:
        from torch._higher_order_ops.scan import scan

        unroll = max(n for n in range(1, self.unroll + 1) if len(xs[0]) % n == 0)

        def turns(carry: Any, rows: Any) -> tuple[list[Tensor], list[Tensor]]:
            rows = [rows] if unroll == 1 else [[x[k] for x in rows] for k in range(unroll)]
            carry, ys = self._turns(carry, rows, fixed)
            ys = ys[0] if unroll == 1 else [torch.stack(column) for column in zip(*ys, strict=True)]
            # A scan allows no output that is an input or another's view.
            return [x.clone() for x in carry], [y.clone() for y in ys]

        if unroll > 1:
            xs = [x.unflatten(0, (-1, unroll)) for x in xs]
        carry, ys = scan(turns, list(carry), list(xs))
        return [*carry, *(ys if unroll == 1 else [y.flatten(0, 1) for y in ys])]


def _device(values: Iterable[Any]) -> torch.device:
    return next((x.device for x in values if isinstance(x, Tensor)), torch.device("cpu"))


def run_loop(loop: Loop, *leaves: Tensor) -> list[Tensor]:
    """A loop as one node of a graph."""
    return loop(*leaves)


class _Packing:
    """Small tensors side by side as one float row: each thing that a loop hands on costs microseconds a turn."""

    structure: Any
    forms: list[tuple[torch.Size, torch.dtype]]
    groups: dict[Any, list[int]]  # numbers of the tensors that are packed together

    def pack(self, leaves: list[Tensor], apart: list[Any]) -> list[Tensor]:
        self.forms = [(x.shape, x.dtype) for x in leaves]
        self.groups = {}
        for i, x in enumerate(leaves):
            lead = tuple(x.shape[:1])
            small = x.dtype in (torch.float32, torch.bool) and x.numel() <= PACKED * math.prod(lead)
            self.groups.setdefault(lead if small and i not in apart else i, []).append(i)
        packed = []
        for lead, members in self.groups.items():
            if isinstance(lead, int):
                packed.append(leaves[lead])
                continue
            floats = [leaves[i].detach().float() for i in members]
            packed.append(torch.cat([x.reshape(*lead, -1) for x in floats], -1) if lead else torch.stack(floats))
        return packed

    def unpack(self, packed: list[Tensor]) -> list[Tensor]:
        leaves: dict[int, Tensor] = {}
        for (lead, members), x in zip(self.groups.items(), packed, strict=True):
            if isinstance(lead, int):
                leaves[lead] = x
                continue
            sizes = [self.forms[i][0].numel() // math.prod(lead) for i in members]
            for i, part in zip(members, x.split(sizes, -1), strict=True):
                shape, dtype = self.forms[i]
                part = part.reshape(len(x), *shape)
                leaves[i] = part > 0 if dtype is torch.bool else part.contiguous()
        return [leaves[i] for i in range(len(leaves))]


# Rewriting of what was just recorded.


def _drop_copies(graph: GraphModule, inputs: list[Node]) -> None:
    """Read inputs where they lie, unless they are changed in place."""
    for node in inputs:
        for copy_of in list(node.users):
            if copy_of.target is torch.ops.aten.clone.default and not _is_changed(copy_of):
                copy_of.replace_all_uses_with(node)
                graph.graph.erase_node(copy_of)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _is_changed(node: Node) -> bool:
    """Whether an operation changes this tensor, or a view of it, in place."""
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        aliases = [] if schema is None else [argument.alias_info for argument in schema.arguments]
        pairs = zip(aliases, user.args, strict=False)
        if any(alias is not None and alias.is_write and value is node for alias, value in pairs):
            return True
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if (is_view or user.target is operator.getitem) and _is_changed(user):  # or a part of several views
            return True
    return False


def _lift(graph: GraphModule) -> list[tuple[Node, Tensor]]:
    """Inputs in the place of tensors that a loop's body took from around it."""
    lifted: list[tuple[Node, Tensor]] = []
    for node in list(graph.graph.nodes):
        if node.op != "get_attr" or not isinstance(tensor := getattr(graph, node.target, None), Tensor):
            continue
        with graph.graph.inserting_before(next(iter(graph.graph.nodes))):
            new = graph.graph.placeholder(f"outer_{len(lifted)}")
        new.meta = {**node.meta, "val": node.meta.get("val", tensor)}
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
        lifted.append((new, tensor))
    for name, tensor in list(graph.named_buffers(recurse=False)):
        if any(tensor is x for _, x in lifted):
            delattr(graph, name)
    return lifted


# What the function must leave as it was.


@contextmanager
def _untouched(owner: Any, places: Sequence[Place]) -> Iterator[set[str]]:
    """Leave the attributes of `owner` as they are, and refuse to record what sets one that is not declared; gives the
    names of those that are read."""
    reads: set[str] = set()
    if owner is None:
        yield reads
        return
    kind: Any = type(owner)

    def read(self: Any, name: str) -> Any:
        reads.add(name)
        return kind.__getattribute__(self, name)

    watched = type(kind.__name__, (kind,), {"__getattribute__": read, "__module__": kind.__module__})
    before, declared = dict(vars(owner)), {place.key for place in places if place.holder is vars(owner)}
    kept = {name: _snapshot(value) for name, value in before.items() if name not in declared}
    owner.__class__ = watched
    try:
        yield reads
        owner.__class__ = kind
        for name, value in vars(owner).items():
            is_kept = name in kept and value is before[name] and _is_as(value, kept[name])
            if not is_kept and name not in declared:
                raise NotRecordable(
                    f"'{name}' is set while learning, but not declared: a program would set it once and never again; "
                    f"declare it with register('{name}', ...) as a tensor"
                )
    finally:
        owner.__class__ = kind
        vars(owner).clear()
        vars(owner).update(before)
        for name, snapshot in kept.items():
            if snapshot is not None and not _is_as(before[name], snapshot):
                _restore(before[name], snapshot)


@contextmanager
def _without_draws() -> Iterator[None]:
    """Refuse what draws random numbers from numpy or Python, whose generators are left as they were."""
    own, numpys = random.getstate(), pickle.dumps(np.random.get_state())
    yield
    if random.getstate() != own or pickle.dumps(np.random.get_state()) != numpys:
        random.setstate(own)
        np.random.set_state(pickle.loads(numpys))
        raise NotRecordable("random numbers are drawn by numpy or Python, the same at every call of a program")


def _snapshot(value: Any) -> Any:
    """What a change in place can be seen by and undone with; None for what is not looked at."""
    if isinstance(value, Tensor) and not value.is_inference():
        return (value._version, value.detach().clone())
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return copy.copy(value) if all(isinstance(x, bool | int | float | str) for x in items) else None
    return None


def _is_as(value: Any, snapshot: Any) -> bool:
    if isinstance(value, Tensor):
        return snapshot is None or value._version == snapshot[0]
    return _snapshot(value) == snapshot


def _restore(value: Any, snapshot: Any) -> None:
    if isinstance(value, Tensor):
        with torch.no_grad():
            value.copy_(snapshot[1])
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = snapshot
    else:
        value.clear()
        value.update(snapshot) if isinstance(value, dict) else value.extend(snapshot)


def _name_of(tensor: Tensor, owner: Any) -> str | None:
    """The name of a tensor among the attributes of an object and of the modules among these."""
    for name, value in vars(owner).items() if owner is not None else ():
        if value is tensor:
            return name
        for path, module in value.named_modules() if isinstance(value, nn.Module) else ():
            for key, x in {**vars(module), **module._parameters, **module._buffers}.items():
                if x is tensor:
                    return ".".join(filter(None, (name, path, key)))
    return None


class _Unknown(Exception):
    """A tensor that is not declared was read: this one."""


class _Finder(TorchFunctionMode):
    """Finds the line of the user's code in which a tensor is read."""

    def __init__(self, tensor: Tensor):
        super().__init__()
        self.tensor, self.line = tensor, ""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.line and any(x is self.tensor for x in (*args, *kwargs.values())):
            self.line = _line()
        return function(*args, **kwargs)


class _Guard(TorchFunctionMode):
    """Refuses, where it stands, what no recording can hold."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in RANDOM:
            raise NotRecordable(RANDOM_NUMBERS.format(_line()))
        if name in PICKING or (name == "__getitem__" and _picks(args[1])) or (name == "where" and len(args) == 1):
            raise NotRecordable(
                f"how much is picked{_line()} depends on the values of a tensor, and a program has fixed shapes; "
                "weigh with a mask, or use torch.where"
            )
        return function(*args, **(kwargs or {}))


RANDOM = (
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "normal_", "bernoulli",
    "bernoulli_", "multinomial", "dropout", "dropout_", "alpha_dropout", "feature_dropout", "poisson", "exponential_",
    "uniform_", "random_", "cauchy_", "geometric_",
)  # fmt: skip
RANDOM_NUMBERS = "random numbers are drawn{}, which a program would draw otherwise; draw them outside"
PICKING = ("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive")


def _picks(index: Any) -> bool:
    """Whether an index is a mask, which picks as many rows as are true in it."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in parts)


def _line(form: str = " in {}", frames: Sequence[traceback.FrameSummary] | None = None) -> str:
    """Where the user's code stands, now or in the frames of an error; nothing where none of it is there."""
    for frame in reversed(frames or traceback.extract_stack()):
        name = frame.filename.rpartition("/")[2]
        if name not in ("recording.py", "tracing.py") and "/torch/" not in frame.filename and name[:1] != "<":
            return form.format(f"line {frame.lineno} of {name}")
    return ""
