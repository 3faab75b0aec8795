"""Numbers as they travel: a float32 vector in fewer bits, and back.

    float32    as it is
    bfloat16   8 bits of significand, the range of float32; rounded half to even
    float16    11 bits of significand, down to 2**-24 and up to 65504; rounded half to even
    int8       blocks of 1024 numbers share a scale 2**k, the smallest with 127 * 2**k >= the largest of them; code n in -127..127 means n * 2**k;
               k from -126 to 121

A power of two as scale costs up to one bit of 8 against scaling by the largest number, and buys this: decoding is exact, a vector that has been decoded
encodes to itself (the second hop of an all-reduce that only passes a sum on loses nothing), and a scale travels in one byte.

A finite number beyond the largest of its format (for int8 127 * 2**121, 0.8 % below that of float32) saturates there, and `saturated` counts those: an
exchange that overflows goes on and is seen. What is not finite stays not finite: NaN and the infinities travel as they are, in int8 as code -128, which is
decoded to NaN. They do not count for the scale.

The functions are pure and deterministic: no bit depends on how they are compiled, on the length of the vector, or on neighbours outside a block. Numbers below
2**-126 may arrive as 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from hlt_train.errors import UsageError, nearest
from hlt_train.precision.grid import power

__all__ = ["BLOCK", "WIRES", "Blocks", "Encoded", "Wire", "check", "decode", "encode", "error", "feedback", "saturated"]

Wire = Literal["float32", "bfloat16", "float16", "int8"]
WIRES: tuple[Wire, ...] = get_args(Wire)
BLOCK = 1024
HIGHEST = 127
NOT_FINITE = -128
EXPONENTS = (-126, 121)  # of a scale: float32 holds 2**-126 without subnormals, which XLA flushes to zero, and 127 * 2**121
LARGEST = {"bfloat16": float.fromhex("0x1.fep127"), "float16": 65504.0, "int8": HIGHEST * 2.0 ** EXPONENTS[1]}


class Blocks(NamedTuple):
    """A vector of n numbers as int8. code: int8 [n]; exponent: int8 [ceil(n / 1024)], the k of each block's scale 2**k."""

    code: jax.Array
    exponent: jax.Array


Encoded = jax.Array | Blocks


def check(wire: str) -> Wire:
    """The wire of that name, or a refusal with the nearest names."""
    if wire not in WIRES:
        raise UsageError(f"no number format for messages is called '{wire}'", near=nearest(wire, WIRES), then=f"one of: {', '.join(WIRES)}")
    return wire


def encode(vector: jax.Array, wire: Wire) -> Encoded:
    """A float32 vector [n] as it travels: an array [n] of the wire's type, or `Blocks`."""
    if wire == "int8":
        return _blocks(vector)
    if wire == "float32":
        return vector
    top = LARGEST[wire]
    return _rounded(jnp.where(jnp.isfinite(vector), jnp.clip(vector, -top, top), vector), wire).astype(wire)


def decode(encoded: Encoded) -> jax.Array:
    """The float32 vector [n] that was sent."""
    if not isinstance(encoded, Blocks):
        return encoded.astype(jnp.float32)
    n = encoded.code.shape[0]
    rows = jnp.pad(encoded.code, (0, -n % BLOCK)).reshape(-1, BLOCK)
    numbers = jnp.where(rows == NOT_FINITE, jnp.nan, rows.astype(jnp.float32) * power(encoded.exponent)[:, None])
    return numbers.reshape(-1)[:n]


def saturated(vector: jax.Array, wire: Wire) -> jax.Array:
    """How many finite numbers of the vector lie beyond the largest of the format: int32."""
    if wire == "float32":
        return jnp.zeros((), jnp.int32)
    return (jnp.isfinite(vector) & (jnp.abs(vector) > LARGEST[wire])).sum(dtype=jnp.int32)


def error(vector: jax.Array, wire: Wire) -> jax.Array:
    """|decoded - vector| / |vector| in the Euclidean norm, float32; 0 for a vector of zeros, NaN where something is not finite."""
    largest = jnp.max(jnp.abs(vector), initial=0)
    unit = jnp.where(largest > 0, largest, 1)  # squares of very large or small numbers stay in the range of float32
    off, whole = (jnp.sqrt(jnp.sum((v / unit) ** 2)) for v in (decode(encode(vector, wire)) - vector, vector))
    return jnp.where(largest == 0, 0.0, off / whole)


def feedback(vector: jax.Array, residual: jax.Array, wire: Wire) -> tuple[Encoded, jax.Array]:
    """Encode with error feedback: what earlier messages lost (`residual`, float32 [n], zeros at first) is sent with this one.

    Returns what travels and the new residual. The sum of all that was decoded plus the last residual is the sum of the vectors, to float32 rounding. Where
    something is not finite the residual is 0.
    """
    wanted = vector + residual
    encoded = encode(wanted, wire)
    left = wanted - decode(encoded)
    return encoded, jnp.where(jnp.isfinite(left), left, 0)


def _rounded(vector: jax.Array, wire: Wire) -> jax.Array:
    """The vector on the grid of the 16-bit format, still as float32. The cast is then exact, so XLA may drop a cast there and back, as it does inside jit."""
    if wire == "bfloat16":
        return jax.lax.reduce_precision(vector, exponent_bits=8, mantissa_bits=7)
    fine = jnp.round(vector * 2.0**24) * 2.0**-24  # the subnormal numbers of float16
    return jnp.where(jnp.abs(vector) < 2.0**-14, fine, jax.lax.reduce_precision(vector, exponent_bits=8, mantissa_bits=10))


def _blocks(vector: jax.Array) -> Blocks:
    n = vector.shape[0]
    rows = jnp.pad(vector, (0, -n % BLOCK)).reshape(-1, BLOCK)
    finite = jnp.isfinite(rows)
    largest = jnp.max(jnp.where(finite, jnp.abs(rows), 0), axis=1)
    bits = jax.lax.bitcast_convert_type(largest, jnp.int32)
    # largest = f 2**e, 1 <= f < 2: k = e - 6 where f <= 127/64, so that f * 64 <= 127, and e - 5 elsewhere. Exact, from the bits.
    exponent = (bits >> 23) - 127 - 6 + ((bits & 0x7FFFFF) > (HIGHEST - 64) << 17).astype(jnp.int32)
    exponent = jnp.clip(exponent, *EXPONENTS)
    code = jnp.where(finite, jnp.clip(jnp.round(rows * power(-exponent)[:, None]), -HIGHEST, HIGHEST), NOT_FINITE)
    return Blocks(code.astype(jnp.int8).reshape(-1)[:n], exponent.astype(jnp.int8))
