"""How sparse a problem is, in the three numbers of Hogwild (Niu, Recht, Re, Wright 2011, section 2), from the hypergraph of examples and parameters.

A loss f(x) = sum over e of f_e(x_e), where example e touches the parameters x_e. The parameters are the vertices of a hypergraph, every x_e is an edge:

- Omega = max over e of |e|: most parameters that an edge touches;
- Delta = max over v of |{e: v in e}| / |E|: the share of the edges that touch the most touched parameter;
- rho = max over e of |{e': e' and e share a parameter}| / |E|: the share of the edges that meet the one that meets most, itself included.

Omega and Delta are of the edges given. rho takes the maximum over a sample of edges, each compared with all. NumPy only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Edges", "Sparsity", "edges", "joined", "measure", "split_common"]


class Edges(NamedTuple):
    """Edges of a hypergraph: edge k holds the vertices `vertices[offsets[k] : offsets[k + 1]]`, sorted, each once.

    Attributes:
        offsets: int64 `[edges + 1]`.
        vertices: int64 `[sum of sizes]`, within 0 and `size`.
        size: number of vertices, touched or not.
    """

    offsets: np.ndarray
    vertices: np.ndarray
    size: int

    def __len__(self) -> int:  # edges, not fields
        return len(self.offsets) - 1

    def owner(self) -> np.ndarray:
        """Edge of every entry of `vertices`."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


class Sparsity(NamedTuple):
    """The three numbers.

    Attributes:
        omega: most vertices of an edge.
        delta: share of the edges that hold the most common vertex.
        rho: share of the edges that meet the edge of the sample that meets most; 0 where no edge of the sample has a vertex.
        edges: edges looked at.
        sampled: edges of which `rho` is the maximum; a lower bound of the maximum over all where fewer than `edges`.
        size: number of vertices.
    """

    omega: int
    delta: float
    rho: float
    edges: int
    sampled: int
    size: int


def edges(owner: np.ndarray, vertex: np.ndarray, n: int, size: int) -> Edges:
    """Edges from pairs in any order, also repeated ones.

    Args:
        owner: `[m]`, the edge of each pair, within 0 and `n`.
        vertex: `[m]`, its vertex, within 0 and `size`.
        n: number of edges.
        size: number of vertices.
    """
    pairs = np.unique(owner.astype(np.int64) * size + vertex.astype(np.int64))
    offsets = np.searchsorted(pairs, np.arange(n + 1, dtype=np.int64) * size)
    return Edges(offsets.astype(np.int64), pairs % size, size)


def joined(of: Edges, batch: int) -> Edges:
    """The edges of batches: unions of `batch` consecutive edges. A last, smaller batch is left out unless it is the only one."""
    whole = max(len(of) // batch, min(len(of), 1))
    owner = of.owner() // batch
    return edges(owner[owner < whole], of.vertices[owner < whole], whole, of.size)


def split_common(of: Edges) -> tuple[Edges, int]:
    """The edges without the vertices that every edge holds, and how many these are."""
    common = np.bincount(of.vertices, minlength=of.size) == len(of)
    kept = ~common[of.vertices]
    return edges(of.owner()[kept], of.vertices[kept], len(of), of.size), int(common.sum()) if len(of) else 0


def measure(of: Edges, *, sample: int = 1000, seed: int = 0) -> Sparsity:
    """Omega, Delta and rho; `sample` edges, chosen with `seed`, for rho (all of them where there are no more)."""
    n = len(of)
    if n == 0:
        return Sparsity(0, 0.0, 0.0, 0, 0, of.size)
    touched = np.bincount(of.vertices, minlength=of.size)
    chosen = np.arange(n) if n <= sample else np.sort(np.random.default_rng(seed).choice(n, sample, replace=False))
    return Sparsity(
        omega=int(np.diff(of.offsets).max()),
        delta=float(touched.max(initial=0) / n),
        rho=_most_met(of, touched, chosen) / n,
        edges=n,
        sampled=len(chosen),
        size=of.size,
    )


def _most_met(of: Edges, touched: np.ndarray, chosen: np.ndarray) -> int:
    """Most edges that an edge of `chosen` meets."""
    order = np.argsort(of.vertices, kind="stable")
    edge_of = of.owner()[order]  # edges of vertex v: edge_of[starts[v] : starts[v] + touched[v]]
    starts = np.cumsum(touched) - touched
    most = 0
    for k in chosen:
        mine = of.vertices[of.offsets[k] : of.offsets[k + 1]]
        if not len(mine):
            continue
        if touched[mine].max() == len(of):  # it shares this vertex with everyone
            return len(of)
        met = np.zeros(len(of), np.bool_)
        for v in mine:
            met[edge_of[starts[v] : starts[v] + touched[v]]] = True
        most = max(most, int(met.sum()))
    return most
