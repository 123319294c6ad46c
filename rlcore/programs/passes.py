"""Rewriting of recorded operations, each equal up to rounding: before they are compiled, what inductor does not do by
itself; before they are run one by one, fewer and cheaper calls."""

import operator
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F

from rlcore.programs import matmul, recurrent

aten = torch.ops.aten
SMALL_BATCH, SMALL_LAYER = 8, 64 * 64  # rows, and weights, of layers for which a call takes longer than the arithmetic
ARITHMETIC = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
LARGE_TANH = 1024  # elements from which numpy's tanh makes up for the way there and back


def for_compiler(recorded: GraphModule) -> GraphModule:
    """The same function with operations that inductor makes fast."""
    graph, own_products = recorded.graph, matmul.pays()
    for node in list(graph.nodes):
        make = _faster(node, own_products)
        if make is not None:
            with graph.inserting_before(node):
                node.replace_all_uses_with(make(lambda target, *args: graph.call_function(target, args), *node.args))
            graph.erase_node(node)
    graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


def for_python(recorded: GraphModule) -> GraphModule:
    """The same function with calls that are cheap from Python."""
    graph = recorded.graph
    _drop_idle(graph)
    _other_kernels(graph)
    graph.eliminate_dead_code()
    _tensors_for_numbers(recorded)
    _direct_calls(graph)
    recorded.recompile()
    return recorded


def hoisted(body: GraphModule, count: int) -> tuple[GraphModule, GraphModule]:
    """A loop's body, whose first `count` inputs change from turn to turn, as two functions: from the fixed inputs to
    what the rest takes of them, each in memory of its own; and the rest.

    Layers of a handful of rows read their weights column by column; transposes taken out of a loop lay them out so.
    """
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    order, fixed = inputs[:count], set(inputs[count:])
    before = Graph()
    copies: dict[Any, Any] = {}  # of what depends on nothing that changes
    for node in body.graph.nodes:
        if node in fixed or (_may_stand_before(node) and all(x in copies for x in node.all_input_nodes)):
            copies[node] = before.node_copy(node, copies.__getitem__)
    outputs = []
    for node in [node for node in copies if any(user not in copies for user in node.users)]:
        copy = copies[node]
        if node.op != "placeholder":
            copy = before.call_function(aten.clone.default, (copy,), {"memory_format": torch.contiguous_format})
            copy.meta["val"] = node.meta["val"].contiguous()
        outputs.append(copy)
        with body.graph.inserting_before(inputs[0]):
            order.append(body.graph.placeholder(f"fixed_{node.name}"))
        order[-1].meta = dict(node.meta)
        node.replace_all_uses_with(order[-1])
    before.output(outputs)
    body.graph.eliminate_dead_code()
    arrange(body, order)
    return GraphModule(body, before), body


def arrange(graph: GraphModule, inputs: list[Node]) -> None:
    """Let a graph take these inputs, in this order; the others are not used."""
    for node in [n for n in graph.graph.nodes if n.op == "placeholder" and n not in inputs]:
        graph.graph.erase_node(node)
    first = next(iter(graph.graph.nodes))
    for node in reversed(inputs):
        if node is not first:
            first.prepend(node)
        first = node
    graph.graph.lint()
    graph.recompile()


def _may_stand_before(node: Node) -> bool:
    """Whether an operation gives the same at every turn of a loop, if its inputs do."""
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    if node.target is operator.getitem:
        return True
    pure = isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable
    spreads = node.target in (aten.expand.default, aten.clone.default)
    return pure and not spreads and isinstance(node.meta.get("val"), Tensor | tuple | list)


def _is_float_on_cpu(node: Node) -> bool:
    value = node.meta["val"]
    return value.dtype == torch.float32 and value.device.type == "cpu"


def _faster(node: Node, own_products: bool) -> Callable[..., Node] | None:
    """What makes another node of (call, *arguments) that takes the place of this one, where there is such a thing."""
    if node.target is aten.addmm.default and _is_small(node, own_products):
        return _fused_layer
    if node.target in OWN_PRODUCTS and own_products and _is_float_on_cpu(node):
        return OWN_PRODUCTS[node.target]
    return _logistic if node.target is aten.tanh.default and node.meta["val"].dtype != torch.float64 else None


def _is_small(layer: Node, own_products: bool) -> bool:
    """Whether a layer is faster as multiplications inside a fused kernel than as a call."""
    few = layer.meta["val"].shape[0] <= SMALL_BATCH
    return few and (not own_products or layer.args[2].meta["val"].numel() <= SMALL_LAYER)


def _fused_layer(call: Callable, bias: Node, x: Node, weight: Node) -> Node:
    """x W + b for a handful of rows as Σ x · W, which fuses with its neighbours into one kernel."""
    products = call(aten.mul.Tensor, call(aten.unsqueeze.default, x, -1), weight)
    return call(aten.add.Tensor, call(aten.sum.dim_IntList, products, [1]), bias)


def _own_product(call: Callable, a: Node, b: Node) -> Node:
    """Our product of matrices in place of the library's."""
    return call(torch.ops.rlcore.matmul_small.default, a, b)


def _own_layer(call: Callable, bias: Node, a: Node, b: Node) -> Node:
    """The same with a bias, which then fuses with what follows."""
    return call(aten.add.Tensor, _own_product(call, a, b), bias)


def _own_products(call: Callable, a: Node, b: Node) -> Node:
    """The same of many pairs."""
    return call(torch.ops.rlcore.matmul_batched.default, a, b)


OWN_PRODUCTS: dict[Any, Callable[..., Node]] = {
    aten.mm.default: _own_product,
    aten.addmm.default: _own_layer,
    aten.bmm.default: _own_products,
}


def _logistic(call: Callable, x: Node) -> Node:
    """tanh x = 2 σ(2x) − 1, since inductor vectorises the logistic function better."""
    logistic = call(aten.sigmoid.default, call(aten.mul.Tensor, x, 2.0))
    return call(aten.sub.Tensor, call(aten.mul.Tensor, logistic, 2.0), 1.0)


def _drop_idle(graph: Graph) -> None:
    """What autograd leaves behind and only gives its input back: detached copies, views of the shape that was there
    before, double transposes."""
    for node in list(graph.nodes):
        x, is_idle = next(iter(node.args), None), node.target is aten.detach.default
        if node.target is aten.view.default:
            is_idle = list(x.meta["val"].shape) == node.args[1]
        elif node.target is aten.t.default and x.target is aten.t.default:
            x, is_idle = x.args[0], True
        if is_idle:
            node.replace_all_uses_with(x)
            graph.erase_node(node)


def _other_kernels(graph: Graph) -> None:
    """x Wᵀ + b as one call; numpy's tanh is ten times as fast as torch's on processors with wide vectors."""
    for node in graph.nodes:
        if node.target is aten.addmm.default and not node.kwargs and node.args[2].target is aten.t.default:
            bias, x, weight = node.args
            node.target, node.args = F.linear, (x, weight.args[0], bias)
        elif node.target is aten.tanh.default and _is_float_on_cpu(node):
            size = node.meta["val"].numel()
            if not isinstance(size, int) or size >= LARGE_TANH:
                node.target = _numpy_tanh


def _numpy_tanh(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.numpy()))


def _tensors_for_numbers(recorded: GraphModule) -> None:
    """Numbers in arithmetic as tensors made beforehand, since torch makes one of each number at each call."""
    for node in recorded.graph.nodes:
        is_number = node.target in ARITHMETIC and isinstance(node.args[1], int | float)
        if is_number and _is_float_on_cpu(node.args[0]):
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
        elif node.target in recurrent.OPERATORS:
            node.target = recurrent.kernel(recurrent.OPERATORS[node.target])


def _direct(target: torch._ops.OpOverload) -> Callable | None:
    """The function written in C that takes the same arguments, if there is one."""
    name = target._schema.name.removeprefix("aten::")
    found = getattr(torch, name, None), getattr(torch.Tensor, name, None)
    return next((f for f in found if isinstance(f, types.BuiltinFunctionType | types.MethodDescriptorType)), None)
