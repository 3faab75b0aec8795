"""The mean of the workers' bodies, where a rule needs no more of them (after Theano-MPI: Ma, Mao, Taylor 2016, "Theano-MPI", section 3.2).

"allreduce" leaves the sum to the collective. "alltoall" (their ASA) cuts every body over the devices, exchanges the parts, adds them in the order of the
workers and gathers the parts of the mean; with a narrower `wire` (their ASA16) numbers are narrow on both ways, and sums are float32.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from hlt_train.devices import AXIS
from hlt_train.precision import wire as wires
from hlt_train.strategies import PyTree

__all__ = ["mean", "ordered_mean"]


def mean(body: PyTree, pushes: Any, me: Any, *, certain: bool, exchange: str, wire: str) -> tuple[PyTree, Any]:
    """The mean of the bodies that are pushed, on every device.

    Args:
        body: this worker's.
        pushes: bool `[n]`, whose bodies count.
        me: this worker's index.
        certain: all of them do.
        exchange: "allreduce" or "alltoall".
        wire: number format in "alltoall".

    Returns:
        The mean, and (messages that were narrowed, sum of their relative errors), float32 `[2]`.
    """
    n, exact = pushes.shape[0], jnp.zeros(2)
    if n == 1:
        return body, exact
    if exchange == "alltoall":
        found, error = _alltoall(body, pushes, certain, wires.check(wire))
    elif certain:
        found, error = lax.pmean(body, AXIS), exact
    else:
        count = jnp.maximum(pushes.sum(), 1)
        found, error = jax.tree.map(lambda leaf: lax.psum(jnp.where(pushes[me], leaf, 0), AXIS) / count, body), exact
    return lax.optimization_barrier(found), error  # what comes after is compiled alike for all exchanges, to the bit


def ordered_mean(stacked: Any, pushes: Any, *, certain: bool) -> Any:
    """The mean over axis 0 of what is pushed, added in order."""
    n = pushes.shape[0]
    parts = [stacked[k] if certain else jnp.where(pushes[k], stacked[k], 0) for k in range(n)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / (n if certain else jnp.maximum(pushes.sum(), 1))


def _alltoall(body: PyTree, pushes: Any, certain: bool, wire: wires.Wire) -> tuple[PyTree, Any]:
    n = pushes.shape[0]
    vector, unravel = ravel_pytree(body)
    size = vector.shape[0]
    parts = jnp.pad(vector, (0, -size % n)).reshape(n, -1)
    received = lax.all_to_all(jax.vmap(lambda part: wires.encode(part, wire))(parts), AXIS, 0, 0, tiled=True)
    part = ordered_mean(jax.vmap(wires.decode)(received), pushes, certain=certain)
    gathered = jax.vmap(wires.decode)(lax.all_gather(wires.encode(part, wire), AXIS))
    error = jnp.zeros(2) if wire == "float32" else jnp.stack([jnp.float32(2), wires.error(vector, wire) + wires.error(part, wire)])
    return unravel(gathered.reshape(-1)[:size]), error
