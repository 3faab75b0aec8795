"""How long things take in a simulation: a mean, and a random factor for each batch of each worker.

The factor is a function of (seed, worker, batch): nothing is drawn in sequence, so a simulation can be stopped and resumed anywhere. Its mean is 1, whatever
the model, so that the mean of a batch stays `compute`.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hlt_train.errors import UsageError, nearest

__all__ = ["MODELS", "Factor", "factor", "uniform"]

Factor = Callable[[int, int], float]  # (worker, batch) -> factor
MODELS = ("none", "lognormal", "pareto", "trace")
_COMPUTE = 0x5742


def uniform(seed: int, purpose: int, actor: int, count: int) -> float:
    """A number in (0, 1) that belongs to (seed, purpose, actor, count), to 53 bits: from their BLAKE2b hash, the same with every version of everything."""
    bits = hashlib.blake2b(struct.pack("<4Q", seed, purpose, actor, count), digest_size=8).digest()
    return ((int.from_bytes(bits, "little") >> 11) + 0.5) / 2.0**53


def factor(text: str, seed: int) -> Factor:
    """`none`, `lognormal:SIGMA`, `pareto:ALPHA` (ALPHA > 1) or `trace:FILE` as a factor of the computing time.

    - lognormal: exp(sigma z - sigma^2 / 2);
    - pareto: x_m u^(-1/alpha) with x_m = (alpha - 1) / alpha: heavy tails, as of a machine that swaps or shares its cores;
    - trace: a measured time, drawn with replacement from a text file with one number per line, over the mean of the file.
    """
    name, _, value = text.partition(":")
    if name not in MODELS:
        raise UsageError(f"no straggler model is called '{name}'", near=nearest(name, MODELS), then=f"one of: {', '.join(MODELS)}")
    if name == "none":
        if value:
            raise UsageError(f"the straggler model none takes no number, got '{text}'", then="none")
        return lambda _worker, _batch: 1.0
    if name == "trace":
        return _trace(value, seed)
    try:
        parameter = float(value)
    except ValueError as error:
        raise UsageError(f"{name} takes a number, got '{text}'", then=f"for instance {name}:1.5") from error
    if name == "lognormal":
        if not 0 <= parameter < math.inf:
            raise UsageError(f"the width of a lognormal is not negative, got {parameter:g}", then="for instance lognormal:0.5")
        return lambda worker, batch: math.exp(parameter * _normal(seed, worker, batch) - parameter**2 / 2)
    if not 1 < parameter < math.inf:
        raise UsageError(f"a Pareto distribution has a mean only for an exponent above 1, got {parameter:g}", then="for instance pareto:2.5")
    return lambda worker, batch: (parameter - 1) / parameter * uniform(seed, _COMPUTE, worker, batch) ** (-1 / parameter)


def _normal(seed: int, worker: int, batch: int) -> float:
    from scipy.special import ndtri

    return float(ndtri(uniform(seed, _COMPUTE, worker, batch)))


def _trace(path: str, seed: int) -> Factor:
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"no such trace of batch times: {path}", then="a text file with one number of seconds per line")
    try:
        times = np.array([word for line in file.read_text().splitlines() for word in line.partition("#")[0].split()], np.float64)
    except ValueError as error:
        raise UsageError(f"not a trace of batch times: {error}", where=path) from error
    if not times.size or not (np.isfinite(times) & (times > 0)).all():
        raise UsageError("a trace holds at least one time, and all of them are positive", where=path)
    relative = times / times.mean()
    return lambda worker, batch: float(relative[int(uniform(seed, _COMPUTE, worker, batch) * len(relative))])
