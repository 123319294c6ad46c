"""Numbers of a configuration, such as γ or the clip range, as inputs of a program instead of constants in it.

What was recorded of agents that differ in such numbers is the same graph with other constants. Where they differ, the
first graph gets an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from rlcore.programs.recording import Loop, run_loop

aten = torch.ops.aten
Values = list[Tensor]  # of each input more: its value in each of the graphs, [K]


class NotAlike(Exception):
    """Graphs that differ in more than numbers."""


def numbers_as_inputs(graphs: Sequence[fx.GraphModule]) -> Values:
    """Give the first of `graphs` an input, after those that it has, for each number in which they differ; the same
    for the bodies of its loops.

    Raises:
        NotAlike: where they differ in anything else.
    """
    maker = _Maker(graphs)
    columns = [list(graph.graph.nodes) for graph in graphs]
    if len({len(nodes) for nodes in columns}) > 1:
        raise NotAlike
    for nodes in zip(*columns, strict=True):
        maker.visit(nodes)
    graphs[0].recompile()
    return maker.values


class _Maker:
    def __init__(self, graphs: Sequence[fx.GraphModule]):
        self.graphs = graphs
        self.values: list[Any] = []
        self.last = [node for node in graphs[0].graph.nodes if node.op == "placeholder"][-1]
        self.order = [{node: i for i, node in enumerate(graph.graph.nodes)} for graph in graphs]

    def visit(self, nodes: Sequence[fx.Node]) -> None:
        """The same node of all graphs."""
        first = nodes[0]
        if any((node.op, node.target) != (first.op, first.target) for node in nodes):
            raise NotAlike
        if first.op == "get_attr":
            self._constant(nodes)
        elif first.target is run_loop:
            self._loop(nodes)
        elif first.op != "placeholder":
            self._operation(nodes)

    def _constant(self, nodes: Sequence[fx.Node]) -> None:
        things = [getattr(graph, node.target) for graph, node in zip(self.graphs, nodes, strict=True)]
        if isinstance(things[0], Loop) or all(torch.equal(x, things[0]) for x in things):
            return
        if len({(x.shape, x.dtype) for x in things}) > 1:
            raise NotAlike
        mine = self._input(torch.stack(things))
        self.order[0][mine] = self.order[0][nodes[0]]
        nodes[0].replace_all_uses_with(mine)

    def _loop(self, nodes: Sequence[fx.Node]) -> None:
        loops = [getattr(graph, node.args[0].target) for graph, node in zip(self.graphs, nodes, strict=True)]
        if len({(loop.carried, loop.rows, loop.unroll, loop.going) for loop in loops}) > 1:
            raise NotAlike
        self._operands(nodes)
        more = numbers_as_inputs([loop.body for loop in loops])
        nodes[0].args = (*nodes[0].args, *map(self._input, more))

    def _operation(self, nodes: Sequence[fx.Node]) -> None:
        columns, form = self._operands(nodes)
        if all(len(set(column)) == 1 for column in columns if _is_number(column[0])):
            return
        first = nodes[0]
        made = first.meta.get("val")
        dtype = made.dtype if isinstance(made, Tensor) and made.is_floating_point() else torch.float32
        # All floats of it, since an operation takes these or tensors.
        leaves = [self._input(torch.tensor(x, dtype=dtype)) if _is_float(x) else x[0] for x in columns]
        first.args, first.kwargs = pytree.tree_unflatten(leaves, form)
        first.target = WITH_TENSORS.get(first.target, first.target.overloadpacket)

    def _operands(self, nodes: Sequence[fx.Node]) -> tuple[list[Sequence[Any]], Any]:
        """What a node takes, each thing in all graphs, and the form of it."""
        flat = [pytree.tree_flatten((node.args, node.kwargs)) for node in nodes]
        if any(form != flat[0][1] for _, form in flat):
            raise NotAlike
        columns: list[Sequence[Any]] = list(zip(*(leaves for leaves, _ in flat), strict=True))
        for column in columns:
            if isinstance(column[0], fx.Node):
                same = len({self.order[k].get(x) for k, x in enumerate(column)}) == 1
            else:
                same = _is_float(column) or all(type(x) is type(column[0]) and x == column[0] for x in column)
            if not same:
                raise NotAlike
        return columns, flat[0][1]

    def _input(self, values: Tensor) -> fx.Node:
        graph = self.graphs[0].graph
        with graph.inserting_after(self.last):
            self.last = graph.placeholder(f"number_{len(self.values)}")
        self.last.meta["val"] = values[0]
        self.values.append(values)
        return self.last


def _is_number(x: Any) -> bool:
    return type(x) in (int, float)


def _is_float(column: Sequence[Any]) -> bool:
    return all(map(_is_number, column)) and any(type(x) is float for x in column)


def _add(x: Tensor, y: Any, alpha: Any = 1) -> Tensor:
    return x + alpha * y


def _sub(x: Tensor, y: Any, alpha: Any = 1) -> Tensor:
    return x - alpha * y


def _addcmul(x: Tensor, y: Tensor, z: Tensor, value: Any = 1) -> Tensor:
    return x + value * y * z


def _addcdiv(x: Tensor, y: Tensor, z: Tensor, value: Any = 1) -> Tensor:
    return x + value * y / z


def _clamp(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    x = x if low is None else torch.clamp_min(x, low)
    return x if high is None else torch.clamp_max(x, high)


def _full(size: Sequence[int], value: Tensor, **_: Any) -> Tensor:
    return value.expand(size)


def _full_like(x: Tensor, value: Tensor, **_: Any) -> Tensor:
    return value.expand_as(x)


# What takes numbers alone, or no tensor in the place of one of two.
WITH_TENSORS = {
    aten.add.Tensor: _add, aten.sub.Tensor: _sub, aten.addcmul.default: _addcmul, aten.addcdiv.default: _addcdiv,
    aten.clamp.default: _clamp, aten.full.default: _full, aten.full_like.default: _full_like,
    aten.scalar_tensor.default: lambda value, **_: value,
}  # fmt: skip
