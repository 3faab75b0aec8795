"""The peer of `fit`: the plainest fast training loop in JAX. Data in device memory, one jitted `lax.scan` over the batches of a call, the state donated.

It knows no runs, checkpoints, validation, partial batches or devices; rows of the last partial batch are left out.
"""

from __future__ import annotations

import functools
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax


def train(model: eqx.Module, data, *, batch: int, scan: int, epochs: int, schedule, gather: str) -> list[float]:
    """Train for some epochs; returns rows/s of each. `data`: a Batch of the whole split, on the device. gather: 'step' or 'call', where rows are gathered."""
    tx = optax.adam(schedule)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, rows):
        logits = eqx.combine(params, static)(rows.x)
        return jnp.mean(rows.weight * optax.softmax_cross_entropy_with_integer_labels(logits, rows.label))

    def update(state, rows):
        params, optimiser = state
        value, grads = jax.value_and_grad(loss)(params, rows)
        updates, optimiser = tx.update(grads, optimiser, params)
        return (optax.apply_updates(params, updates), optimiser), value

    @functools.partial(jax.jit, donate_argnums=0)
    def call(state, data, numbers):
        if gather == "call":
            return jax.lax.scan(update, state, jax.tree.map(lambda leaf: leaf[numbers], data))
        return jax.lax.scan(lambda s, n: update(s, jax.tree.map(lambda leaf: leaf[n], data)), state, numbers)

    state = jax.tree.map(jnp.array, (params, tx.init(params)))
    rows, rates = len(data.label), []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(rows).astype(np.int32)
        steps = rows // batch
        began = time.perf_counter()
        for start in range(0, steps - scan + 1, scan):
            state, values = call(state, data, order[start * batch : (start + scan) * batch].reshape(scan, batch))
        jax.block_until_ready((state, values))
        rates.append((steps // scan) * scan * batch / (time.perf_counter() - began))
    return rates
