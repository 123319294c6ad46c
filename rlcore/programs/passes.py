"""Rewriting of recorded operations, each equal up to rounding: before they are compiled, what inductor does not do by
itself; before they are run one by one, fewer and cheaper calls."""

from __future__ import annotations

import operator
import types
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from rlcore.programs import matmul

aten = torch.ops.aten
SMALL_BATCH = 8  # rows up to which a layer is faster as multiplications inside a fused kernel than as a call
ARITHMETIC = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
LARGE_TANH = 1024  # elements from which numpy's tanh makes up for the way there and back


def for_compiler(recorded: GraphModule) -> GraphModule:
    """The same function with operations that inductor makes fast."""
    graph = recorded.graph
    _fuse_small_layers(graph)
    if matmul.pays():
        _own_products(graph)
    _faster_tanh(graph)
    graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


def for_python(recorded: GraphModule) -> GraphModule:
    """The same function with calls that are cheap from Python."""
    graph = recorded.graph
    _drop_idle(graph)
    _whole_layers(graph)
    _tanh_by_numpy(graph)
    graph.eliminate_dead_code()
    _tensors_for_numbers(recorded)
    _direct_calls(graph)
    recorded.recompile()
    return recorded


def hoisted(body: GraphModule, count: int) -> tuple[GraphModule, GraphModule]:
    """A loop's body as two functions: what depends on nothing that changes from turn to turn, and the rest.

    Layers of a handful of rows read their weights column by column; transposes taken out of a loop lay them out so.

    Args:
        body: of a loop.
        count: how many of its inputs change from turn to turn; these stand first.

    Returns:
        From the fixed inputs to what the rest takes of them, each in memory of its own; and the rest.
    """
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    known = set(inputs[count:])
    for node in body.graph.nodes:
        if _may_stand_before(node) and all(x in known for x in node.all_input_nodes):
            known.add(node)
    taken = [n for n in body.graph.nodes if n in known and any(user not in known for user in n.users)]
    before, copies = Graph(), {}
    for node in inputs[count:]:
        copies[node] = before.node_copy(node)
    for node in body.graph.nodes:
        if node in known and node.op != "placeholder":
            copies[node] = before.node_copy(node, copies.__getitem__)
    outputs = []
    for node in taken:
        copy = copies[node]
        if node.op != "placeholder":
            copy = before.call_function(aten.clone.default, (copy,), {"memory_format": torch.contiguous_format})
            copy.meta["val"] = node.meta["val"].contiguous()
        outputs.append(copy)
    before.output(outputs)
    for node in taken:
        with body.graph.inserting_before(inputs[0] if inputs else None):
            new = body.graph.placeholder(f"fixed_{node.name}")
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        inputs.append(new)
    last = inputs[count - 1] if count else None
    for new in reversed(inputs[len(inputs) - len(taken) :]):
        if last is not None:
            last.append(new)
    body.graph.eliminate_dead_code()
    for node in [n for n in body.graph.nodes if n.op == "placeholder" and n in known]:
        body.graph.erase_node(node)
    body.graph.lint()
    body.recompile()
    return GraphModule(body, before), body


def _may_stand_before(node: Node) -> bool:
    """Whether an operation gives the same at every turn of a loop, if its inputs do."""
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    if node.target is operator.getitem:
        return True
    pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
    spreads = node.target in (aten.expand.default, aten.clone.default)
    return pure and not spreads and isinstance(node.meta.get("val"), Tensor | tuple | list)


def _replace(graph: Graph, old: Node, make: Callable[..., Node]) -> None:
    """Put the node that `make(call, *arguments)` gives in the place of another, whose arguments these are."""
    with graph.inserting_before(old):
        old.replace_all_uses_with(make(lambda target, *args: graph.call_function(target, args), *old.args))
    graph.erase_node(old)


def _fuse_small_layers(graph: Graph) -> None:
    """Write x W + b for a handful of rows as Σ x · W, which fuses with its neighbours into one kernel."""

    def layer(call: Callable, bias: Node, x: Node, weight: Node) -> Node:
        products = call(aten.mul.Tensor, call(aten.unsqueeze.default, x, -1), weight)
        return call(aten.add.Tensor, call(aten.sum.dim_IntList, products, [1]), bias)

    for node in list(graph.nodes):
        if node.target is aten.addmm.default and node.meta["val"].shape[0] <= SMALL_BATCH:
            _replace(graph, node, layer)


def _own_products(graph: Graph) -> None:
    """Our products of matrices in place of the library's; a bias then fuses with what follows."""
    own = torch.ops.rlcore.matmul_small.default

    def product(call: Callable, a: Node, b: Node) -> Node:
        return call(own, a, b)

    def layer(call: Callable, bias: Node, a: Node, b: Node) -> Node:
        return call(aten.add.Tensor, call(own, a, b), bias)

    ours = {aten.mm.default: product, aten.addmm.default: layer}
    for node in list(graph.nodes):
        if node.target not in ours:
            continue
        value = node.meta["val"]
        if value.dtype == torch.float32 and value.device.type == "cpu":
            _replace(graph, node, ours[node.target])


def _faster_tanh(graph: Graph) -> None:
    """tanh x = 2 σ(2x) − 1, since inductor vectorises the logistic function better."""

    def stretched(call: Callable, x: Node) -> Node:
        logistic = call(aten.sigmoid.default, call(aten.mul.Tensor, x, 2.0))
        return call(aten.sub.Tensor, call(aten.mul.Tensor, logistic, 2.0), 1.0)

    for node in list(graph.nodes):
        if node.target is aten.tanh.default and node.meta["val"].dtype != torch.float64:
            _replace(graph, node, stretched)


def _drop_idle(graph: Graph) -> None:
    """What autograd leaves behind and only gives its input back: detached copies, double transposes, views of the
    shape that was there before."""
    for node in list(graph.nodes):
        idle = node.target is aten.detach.default
        if node.target is aten.view.default:
            idle = list(node.args[0].meta["val"].shape) == node.args[1]
        if idle:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.t.default and node.args[0].target is aten.t.default:
            node.replace_all_uses_with(node.args[0].args[0])
            graph.erase_node(node)


def _whole_layers(graph: Graph) -> None:
    """x Wᵀ + b as one call."""
    for node in list(graph.nodes):
        if node.target is not aten.addmm.default or node.kwargs:
            continue
        bias, x, weight = node.args
        if weight.target is aten.t.default:
            node.target, node.args = F.linear, (x, weight.args[0], bias)


def _tanh_by_numpy(graph: Graph) -> None:
    """numpy's tanh is ten times as fast as torch's on processors with wide vectors."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if node.target is aten.tanh.default and value.device.type == "cpu" and value.dtype == torch.float32:
            size = value.numel()
            if not isinstance(size, int) or size >= LARGE_TANH:
                node.target = _numpy_tanh


def _numpy_tanh(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.numpy()))


def _tensors_for_numbers(recorded: GraphModule) -> None:
    """Numbers in arithmetic as tensors made beforehand, since torch makes one of each number at each call."""
    for node in recorded.graph.nodes:
        if node.target not in ARITHMETIC or not isinstance(node.args[1], int | float):
            continue
        value = node.args[0].meta["val"]
        if value.device.type == "cpu" and value.dtype == torch.float32:
            name = f"number_{node.name}"
            setattr(recorded, name, torch.tensor(node.args[1]))
            with recorded.graph.inserting_before(node):
                node.args = (node.args[0], recorded.graph.create_node("get_attr", name))


def _direct_calls(graph: Graph) -> None:
    """torch's own functions in place of its operators, whose calls from Python take longer."""
    for node in graph.nodes:
        if node.target is aten.index.Tensor and len(node.args[1]) == 1:
            node.target, node.args = operator.getitem, (node.args[0], node.args[1][0])
        elif node.target is aten.view.default:
            node.op, node.target, node.args = "call_method", "view", (node.args[0], *node.args[1])
        elif isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
            node.target = _direct(node.target) or node.target


def _direct(target: torch._ops.OpOverload) -> Callable | None:
    """The function written in C that takes the same arguments, if there is one."""
    name = target._schema.name.removeprefix("aten::")
    function = getattr(torch, name, None)
    if isinstance(function, types.BuiltinFunctionType):
        return function
    method = getattr(torch.Tensor, name, None)
    return method if isinstance(method, types.MethodDescriptorType) else None
