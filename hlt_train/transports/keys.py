"""Random keys of all transports: `fold_in(fold_in(key(seed), actor), step)`. Nothing is drawn in sequence, so a resumed run draws the same."""

from __future__ import annotations

from typing import Any

import jax

__all__ = ["INIT", "NETWORK_ACTOR", "SERVER_ACTOR", "actor_key"]

SERVER_ACTOR = 0xFFFF_FFFF
NETWORK_ACTOR = 0xFFFF_FFFE  # which messages are lost or late, in what order they arrive
INIT = 0xFFFF_FFFF  # the "step" whose key serves initialisation


def actor_key(seed: int, actor: Any, step: Any) -> jax.Array:
    """The random key of an actor at a step (see the module)."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), actor), step)
