"""Many programs in one: what was recorded of one agent, mapped over a first axis of everything it reads and writes.

The mapping is torch.func.vmap, once over the operations and once over the body of each loop; products of matrices
become batched products. A loop's rows stay its first axis, with the agents behind it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._C import _functorch as functorch

from rlcore.programs.numbers import numbers_as_inputs
from rlcore.programs.program import Program
from rlcore.programs.recording import Loop, ParametersPlace, Recorded, record, run_loop
from rlcore.state import Place


def stacked(graph: fx.GraphModule, size: int) -> fx.GraphModule:
    """The function of a recorded `graph` for `size` agents at once: each input and output has a first axis of them."""
    from torch.fx.experimental.proxy_tensor import make_fx

    loops = {loop: _stacked_loop(loop, size) for loop in graph.children() if isinstance(loop, Loop)}
    values = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]

    def function(*leaves: Tensor) -> Sequence[Tensor]:
        return torch.vmap(_Stacking(graph, loops, size).run)(*leaves)

    with torch.no_grad():
        examples = [torch.zeros(size, *x.shape, dtype=x.dtype, device=x.device) for x in values]
        made = make_fx(function, tracing_mode="real")(*examples)
    _drop_idle_views(made)
    return made


VIEWS = {
    getattr(torch.ops.aten, name).default
    for name in ("alias", "detach", "expand", "permute", "view", "_unsafe_view", "_reshape_alias")
}


def _drop_idle_views(made: fx.GraphModule) -> None:
    """Leave out views that are laid out as what they are views of. vmap makes many, and torch 2.13's loops in C++ crash
    on one that they are handed."""
    for node in list(made.graph.nodes):
        if node.target in VIEWS and _layout(node) == _layout(node.args[0]):
            node.replace_all_uses_with(node.args[0])
            made.graph.erase_node(node)
    made.graph.eliminate_dead_code()
    made.recompile()


def _layout(node: fx.Node) -> tuple[Any, ...]:
    x = node.meta["val"]
    return x.shape, x.stride(), x.storage_offset()


def _stacked_loop(loop: Loop, size: int) -> Loop:
    return Loop(stacked(loop.body, size), loop.carried, loop.rows, loop.unroll, loop.going)


class _Stacking(fx.Interpreter):
    """Runs a graph under vmap, where a loop is a node of the graph that is being made."""

    def __init__(self, graph: fx.GraphModule, loops: dict[Loop, Loop], size: int):
        super().__init__(graph)
        self.loops, self.size = loops, size

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if target is run_loop:
            return self._loop(self.loops[args[0]], args[1:])
        if target is torch.ops.aten.view.default:  # with the agents between its axes it may be no view
            target = torch.reshape
        return super().call_function(target, args, kwargs)

    def _loop(self, loop: Loop, leaves: Sequence[Tensor]) -> list[Tensor]:
        from torch.fx.experimental.proxy_tensor import get_proxy_mode, track_tensor_tree

        tracer, level = get_proxy_mode().tracer, functorch.maybe_current_level()
        ends = loop.carried, loop.carried + loop.rows
        inputs = [self._with_agents(x, 1 if ends[0] <= i < ends[1] else 0) for i, x in enumerate(leaves)]
        turns = len(inputs[ends[0]])
        name = f"loop_{sum(isinstance(x, Loop) for x in tracer.root.children())}"
        tracer.root.register_module(name, loop)
        node = tracer.create_proxy("get_attr", name, (), {})
        proxy = tracer.create_proxy("call_function", run_loop, (node, *map(tracer.unwrap_proxy, inputs)), {})
        made = next(node for node in loop.body.graph.nodes if node.op == "output").args[0]
        outputs = []
        for i, x in enumerate(node.meta["val"] for node in made):
            shape = x.shape if i < loop.carried else (turns, *x.shape)
            outputs.append(torch.zeros(shape, dtype=x.dtype, device=x.device))
        outputs = track_tensor_tree(outputs, proxy, constant=None, tracer=tracer)
        return [functorch._add_batch_dim(x, int(i >= loop.carried), level) for i, x in enumerate(outputs)]

    def _with_agents(self, x: Tensor, axis: int) -> Tensor:
        """What lies below a mapped tensor, with the agents along `axis`; what is the same for all is repeated."""
        if functorch.is_batchedtensor(x):
            return functorch.get_unwrapped(x).movedim(functorch.maybe_get_bdim(x), axis).contiguous()
        return x.unsqueeze(axis).expand(*x.shape[:axis], self.size, *x.shape[axis:]).contiguous()


class Members:
    """The declared state of several agents side by side, as `tensors` `[K, ...]` by the name of their place.

    Once `take_in` has seen a place, what the agents have there is their part of such a tensor, so that nothing is
    copied from one call of a program to the next. A smaller tensor than the place had at first is filled up with -1,
    which a minibatch takes for no row.
    """

    def __init__(self, places: Sequence[Sequence[Place]]):
        self.places = [{place.name: place for place in own} for own in places]
        self.parts: list[dict[str, Tensor]] = [{} for _ in places]
        self.going = [True] * len(places)
        self.tensors: dict[str, Tensor] = {}
        for name, place in self.places[0].items():
            value = place.get()
            like = value.detach() if isinstance(value, Tensor) else torch.zeros(())
            self.tensors[name] = like.new_zeros(len(places), *like.shape)

    def whole(self) -> list[Place]:
        """The places of the stacked tensors."""
        return [Place(name, self.tensors, name) for name in self.tensors]

    @torch.no_grad()
    def take_in(self, names: Iterable[str]) -> None:
        """Copy in what agents have put into these places since the last time."""
        for name in names:
            whole = self.tensors[name]
            for k, (places, parts) in enumerate(zip(self.places, self.parts, strict=True)):
                if not self.going[k]:
                    continue
                place, part = places[name], parts.get(name)
                now = place.get()
                if now is part:
                    continue
                if isinstance(now, Tensor) and now.shape != whole.shape[1:]:
                    whole[k].fill_(-1)[tuple(slice(n) for n in now.shape)] = now
                    continue
                if part is None:
                    part = parts[name] = whole[k]
                part.copy_(now) if isinstance(now, Tensor) else part.fill_(now)
                _put(place, part)

    def release(self, k: int) -> None:
        """Let an agent have tensors of its own again; nobody's is what is computed in its part from then on."""
        self.going[k] = False
        for name, part in self.parts[k].items():
            if self.places[k][name].get() is part:
                _put(self.places[k][name], part.clone())
        self.parts[k].clear()


class StackedProgram(Program):
    """What the `programs` of several agents compute, each with its own places, in one call; results are `[K, ...]`.

    Args:
        kinds: of each agent; where they are equal, so are the agents' programs.

    Raises:
        NotAlike: when it is recorded, where the programs differ in more than numbers.
    """

    def __init__(self, programs: Sequence[Program], members: Members, kinds: Sequence[Any]):
        first = programs[0]
        super().__init__(first.function, self._places, options=first.options)
        self.programs, self.members, self.kinds = programs, members, kinds
        self.numbers: dict[str, Tensor] = {}  # in which programs differ, [K] each

    def _places(self) -> list[Place]:
        return [*self.members.whole(), *(Place(name, self.numbers, name) for name in self.numbers)]

    @functools.cached_property
    def recorded(self) -> Recorded:
        programs = dict(zip(self.kinds, self.programs, strict=True))
        # Not as they are recorded for themselves: of sizes that are not free.
        each = [record(program.function, program.find_places(), owner=program.owner) for program in programs.values()]
        one, values = each[0], numbers_as_inputs([x.graph for x in each]) if len(each) > 1 else []
        rows = [list(programs).index(kind) for kind in self.kinds]
        self.numbers = {f"number_{i}": x[rows].to(self.device) for i, x in enumerate(values)}
        graph = stacked(one.graph, len(rows))
        return Recorded(graph, [*one.inputs, *self.numbers], one.changed, one.result, one.reads)

    def prepare(self, key: Any, compiled: bool) -> None:
        super().prepare(key, compiled)
        used = dict.fromkeys(place.name for place in (*self._inputs, *self._changed))
        self._used = [name for name in used if name not in self.numbers]

    def __call__(self) -> Any:
        self.members.take_in(self._used)
        return super().__call__()


def _put(place: Place, part: Tensor) -> None:
    """Let a place hold this tensor, which already has the place's values."""
    if isinstance(place, ParametersPlace):
        place.parameters.lie_in(part)
    else:
        place.put(part)
