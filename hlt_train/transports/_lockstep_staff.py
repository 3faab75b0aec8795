"""A stored state of lockstep for another number of workers, or of a version that counted no messages: arrays by name, as a checkpoint has them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["fitting", "staff"]

WORKER, SERVER, STEP, TRAFFIC = "0/", "1/", "2", "3/"  # parts of `Lockstep.host`
COUNTERS = TRAFFIC + "counters/"


def staff(arrays: Mapping[str, np.ndarray]) -> int | None:
    """Workers of a stored state; None where it does not say."""
    seen = arrays.get(TRAFFIC + "seen")
    return None if seen is None else int(seen.shape[0])


def fitting(stored: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The stored state for the staff of a fresh one, which began at the stored parameters.

    With as many workers as before it is the stored one; what an earlier version did not count starts at 0. With others, workers begin anew at the stored
    parameters; the server goes on, but for what it holds per worker; the counters of workers that are gone are added to the first one's.
    """
    then, now = staff(stored), staff(fresh)
    if then is None or then == now:
        counted = {name: leaf for name, leaf in fresh.items() if name.startswith(TRAFFIC)}
        return {**(counted if then is None else {}), **stored}
    found = dict(fresh)
    for name, leaf in fresh.items():
        if name == STEP or (name.startswith(SERVER) and name in stored and stored[name].shape == leaf.shape):
            found[name] = stored[name]
        elif name.startswith(COUNTERS):
            both = min(len(leaf), len(stored[name]))
            found[name] = np.concatenate([stored[name][:both], leaf[both:]])
            found[name][0] += stored[name][both:].sum(axis=0, dtype=leaf.dtype)
    clock = stored[TRAFFIC + "clock"][0]
    return {**found, TRAFFIC + "clock": np.full_like(fresh[TRAFFIC + "clock"], clock), TRAFFIC + "seen": np.full_like(fresh[TRAFFIC + "seen"], clock)}
