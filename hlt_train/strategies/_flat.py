"""Parameters as one vector: for rules that treat their entries alike, wherever they lie in the network's tree."""

from __future__ import annotations

from typing import cast

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from hlt_train.strategies import Array, Params

__all__ = ["like", "ravel"]


def _is_vector(params: Params) -> bool:
    return isinstance(params, jax.Array | np.ndarray) and params.ndim == 1


def ravel(params: Params) -> Array:
    """All leaves as one vector, in the order of the tree; a vector is itself."""
    return params if _is_vector(params) else ravel_pytree(params)[0]


def like(params: Params, vector: Array) -> Params:
    """The inverse of `ravel` for parameters of this structure; for a vector, or a slice of one, the vector whatever its length."""
    return vector if _is_vector(params) else cast(Params, ravel_pytree(params)[1](vector))
