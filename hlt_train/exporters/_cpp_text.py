"""C++ source text: identifiers, literals, integer types, arrays."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["array", "comment", "float_literal", "identifiers", "int_literal", "int_type", "lines", "string_literal"]

_KEYWORDS = frozenset(  # of C++17 and C++20, and macros of the headers that net.hpp includes
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class co_await co_return co_yield compl
    concept const const_cast consteval constexpr constinit continue decltype default delete do double dynamic_cast else enum explicit export extern
    false float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public
    register reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template this thread_local throw true
    try typedef typeid typename union unsigned using virtual void volatile wchar_t while xor xor_eq linux unix i386 main NAN INFINITY NULL errno EOF
    assert
    """.split()  # noqa: SIM905
)


def identifiers(names: Iterable[str], reserved: Iterable[str] = ()) -> dict[str, str]:
    """A C++ identifier for each name, legible and all different: `pt/GeV` -> `pt_GeV`, a keyword or a clash gets a number."""
    taken = set(_KEYWORDS) | set(reserved)
    made: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"_+", "_", re.sub(r"[^0-9A-Za-z]", "_", name)).strip("_") or "x"
        if stem[0].isdigit():
            stem = f"x{stem}"
        word, count = stem, 1
        while word in taken:
            count += 1
            word = f"{stem}_{count}"
        taken.add(word)
        made[name] = word
    return made


def int_type(lo: int, hi: int, *, least: int = 8) -> str:
    """The narrowest signed integer type of at least `least` bits that holds [lo, hi]."""
    for bits in (8, 16, 32, 64):
        if bits >= least and -(2 ** (bits - 1)) <= lo and hi < 2 ** (bits - 1):
            return f"std::int{bits}_t"
    raise OverflowError(f"[{lo}, {hi}] needs more than 64 bits")


def int_literal(value: int) -> str:
    """An integer constant of C++; wide ones carry the suffix LL, and the two most negative numbers are spelt as sums."""
    value = int(value)
    if value in (-(2**31), -(2**63)):
        return f"({int_literal(value + 1)} - 1)"
    return str(value) if -(2**31) < value < 2**31 else f"{value}LL"


def comment(text: str) -> str:
    """Text that cannot leave a line comment: no line ends, backslashes or trigraphs."""
    return "".join(c if c.isprintable() and c not in "\\?" else "." for c in text)


def float_literal(value: float | np.floating) -> str:
    """A float32 constant of C++ with every bit: hexadecimal, or an infinity."""
    single = np.float32(value)
    if np.isinf(single):
        return ("-" if single < 0 else "") + "std::numeric_limits<float>::infinity()"
    if np.isnan(single):
        return "std::numeric_limits<float>::quiet_NaN()"
    mantissa, _, exponent = float(single).hex().partition("p")
    return f"{mantissa.rstrip('0').removesuffix('.') if '.' in mantissa else mantissa}p{exponent}f"


def string_literal(text: str) -> str:
    """A C++ string constant: printable ASCII as it is, every other byte of UTF-8 in octal, which ends after three digits where hexadecimal goes on."""
    body = "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return f'"{body}"'


def array(type: str, name: str, shape: Sequence[int], literals: Sequence[str], *, aligned: bool = True) -> str:
    """`inline constexpr` array of one or two dimensions; literals in row-major order, one row of a matrix per line."""
    dimensions = "".join(f"[{n}]" for n in shape)
    head = f"{'alignas(64) ' if aligned else ''}inline constexpr {type} {name}{dimensions} = "
    if len(shape) == 1:
        return head + _braced(literals, indent="  ") + ";"
    rows = [literals[k : k + shape[1]] for k in range(0, len(literals), shape[1])]
    return head + "{\n" + ",\n".join("  " + _braced(row, indent="   ") for row in rows) + "};"


def lines(text: str, indent: int) -> str:
    """`text` with every non-empty line indented by `indent` spaces."""
    return "\n".join(" " * indent + line if line else line for line in text.splitlines())


def _braced(literals: Sequence[str], indent: str, width: int = 150) -> str:
    rows: list[str] = [""]
    for literal in literals:
        if len(rows[-1]) + len(literal) + 2 > width:
            rows.append(indent)
        rows[-1] += f"{literal}, "
    return "{" + "\n".join(row.rstrip() for row in rows).removesuffix(",") + "}"
