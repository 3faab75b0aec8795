"""A graph without what does not matter: features that are always the same number, and features that nobody reads, are taken out exactly.

A feature whose interval in the proof is one number is that number for every event: an `Affine` that reads it has its products in the bias instead. A feature
that no later node needs is left out where it is made. Only an `Affine` can choose its inputs and outputs: all other nodes pass features on one by one, so what
they read and what they yield goes or stays together, and inputs stay as they are, because they are the interface. Logits are the same integers.

Pruned units, activations without bits and weights that are 0 for all outputs make networks smaller in this way, for every exporter.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hlt_train.graph import Add, Affine, Concat, Fixed, Flatten, Graph, Input, Node, Pool, Requant, Window
from hlt_train.nodes import Ints, Quant
from hlt_train.proof import Proof, prove

__all__ = ["without_dead_units"]

Kept = dict[str, np.ndarray]  # node -> bool [features]


def without_dead_units(graph: Graph) -> Graph:
    """The graph without dead features; the same object where there are none, or where it is not exact."""
    if not graph.exact:
        return graph
    proofs = prove(graph)
    kept = _kept(graph, proofs)
    if all(part.all() for part in kept.values()):
        return graph
    return Graph(tuple(_cut(node, kept, proofs) for node in graph.nodes))


def _kept(graph: Graph, proofs: dict[str, Proof]) -> Kept:
    """What stays of each node: the least that holds what is needed and goes together."""
    kept = {name: np.zeros(structure.n, bool) for name, structure in graph.structure.items()}
    for node in graph.nodes:
        if isinstance(node, Input) or node is graph.output:
            kept[node.name][:] = True
    while True:
        before = sum(int(part.sum()) for part in kept.values())
        for node in reversed(graph.nodes):
            _need(graph, node, kept, proofs)
        for part in kept.values():
            if not part.any():
                part[0] = True  # a node yields something
        if sum(int(part.sum()) for part in kept.values()) == before:
            return kept


def _need(graph: Graph, node: Node, kept: Kept, proofs: dict[str, Proof]) -> None:
    """What a node needs of its sources is kept there; where features go together, so is in the node what is kept in a source."""
    own = kept[node.name]
    if isinstance(node, Affine):
        varies = proofs[node.sources[0]].lo != proofs[node.sources[0]].hi
        kept[node.sources[0]] |= (node.w[:, own] != 0).any(axis=1) & varies
        return
    start = 0
    for source in node.sources:
        n = graph.structure[source].n
        part = own[start : start + n] if isinstance(node, Concat) else own.reshape(-1, n)
        both = kept[source] | (part if isinstance(node, Concat) else part.any(axis=0))
        kept[source] = both
        part[...] = both  # a view: of own
        start += n


def _cut(node: Node, kept: Kept, proofs: dict[str, Proof]) -> Node:
    """The node without the features that do not stay."""
    own = kept[node.name]
    if isinstance(node, Affine):
        reads = kept[node.sources[0]]
        gone = ~reads
        constant = proofs[node.sources[0]].lo[gone]  # where it is read at all
        bias = node.b + constant @ node.w[gone]
        return replace(node, w=node.w[np.ix_(reads, own)], b=bias[own], f=node.f[own])
    if isinstance(node, Requant):
        return replace(node, quant=_quant(node.quant, own))
    if isinstance(node, Pool):
        return node if node.quant is None else replace(node, quant=_quant(node.quant, own))
    assert own.all() or isinstance(node, Add | Concat | Flatten | Window)
    return node


def _quant(quant: Quant, own: np.ndarray) -> Quant:
    def some(bits: Ints) -> Ints:
        return bits if np.ndim(bits) == 0 else np.asarray(bits)[own]

    return replace(quant, to=Fixed(quant.to.signed, some(quant.to.i), some(quant.to.f)))
