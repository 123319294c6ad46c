"""Rewriting of recorded operations before they are compiled: what inductor does not do by itself, each equal up to
rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Graph, GraphModule, Node

from rlcore import matmul

aten = torch.ops.aten
SMALL_BATCH = 8  # rows up to which a layer is faster as multiplications inside a fused kernel than as a call


def rewrite(recorded: GraphModule) -> GraphModule:
    """The same function with faster operations."""
    graph = recorded.graph
    _fuse_small_layers(graph)
    if matmul.pays():
        _own_products(graph)
    _faster_tanh(graph)
    graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


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
