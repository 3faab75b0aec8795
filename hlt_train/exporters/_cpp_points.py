"""`working_points.hpp`: the thresholds of `working_points.json` as constants, beside the network they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from hlt_train.errors import UsageError
from hlt_train.exporters._cpp_text import array, int_literal, string_literal

__all__ = ["working_points_header"]


def working_points_header(points: Sequence[Mapping[str, Any]], namespace: str) -> str:
    """The header's text.

    Args:
        points: each with `name` and `integer_threshold`; null where the request could not be met with an integer score: no event passes.
        namespace: that of net.hpp.

    Raises:
        UsageError: a threshold is not an integer of 64 bits.
    """
    rows = []
    for point in points:
        name, threshold = str(point["name"]), point["integer_threshold"]
        if threshold is not None and (not isinstance(threshold, int) or isinstance(threshold, bool) or not -(2**63) <= threshold < 2**63):
            raise UsageError(f"working point '{name}': its integer_threshold is no integer of 64 bits: {threshold!r}", where="working_points.json")
        rows.append(f"{{{string_literal(name)}, {'false' if threshold is None else 'true'}, {int_literal(threshold or 0)}}}")
    table = array("WorkingPoint", "working_points", (max(len(rows), 1),), rows or ['{"", false, 0}'], aligned=False)
    body = f"""// An event passes when net::score(logits) >= threshold; nothing passes a point that is not reachable.
struct WorkingPoint {{
  const char* name;
  bool reachable;
  std::int64_t threshold;
}};
inline constexpr int n_working_points = {len(rows)};
{table}

constexpr bool passes(const WorkingPoint& point, std::int64_t score) noexcept {{ return point.reachable && score >= point.threshold; }}
"""
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    guard = f"HLT_TRAIN_WORKING_POINTS_{digest.upper()}"
    return f"""// Thresholds of the integer score, from working_points.json. Written by hlt-train; do not edit.
#ifndef {guard}
#define {guard}

#include <cstdint>

namespace {namespace} {{
inline namespace p{digest} {{

{body}
}}  // namespace p{digest}
}}  // namespace {namespace}

#endif  // {guard}
"""
