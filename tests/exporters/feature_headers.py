"""Many feature headers in one shared library, each in its own namespace, and what they give for vectors of branch values."""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hlt_train.data.card import Card
from hlt_train.data.program import Program, compile_program
from hlt_train.exporters._compiler import compile_cpp, find_compiler
from hlt_train.exporters._cpp_features import RELATIVE, ULP, features_header
from hlt_train.feature_vectors import FeatureVectors, feature_vectors, kinds_of
from tests.exporters.cpp_nets import WARNINGS

UNIT = """
#include "K.hpp"
extern "C" void derive_K(const void* const* branch, const std::int32_t* counts, int object, float* const* to, const std::int32_t* sizes, std::int32_t* found) {
  static_cast<void>(object);
  K::Features x{};
  K::derive(K::gather(branch, counts), OBJECTx);
  const float* values[K::n_feature_groups];
  K::view(x, values, found);
  for (int g = 0; g < K::n_feature_groups; ++g)
    for (std::int32_t i = 0; i < sizes[g]; ++i) to[g][i] = values[g][i];
}
"""


class Case(NamedTuple):
    card: Card
    program: Program
    vectors: FeatureVectors


class Found(NamedTuple):
    """Of one variable: its origin, values compared, and those beyond the tolerance."""

    origin: str
    compared: int
    beyond: int


def case(card: Card, columns: Mapping[str, Any], *, special: int = 300, seed: int = 0) -> Case:
    program = compile_program(card, groups(card), kinds_of(columns))
    return Case(card, program, feature_vectors(card, program, columns, special=special, seed=seed))


def groups(card: Card) -> list[tuple[str, int | None, list[str]]]:
    return [(name, group.length, list(group.vars)) for name, group in card.inputs.items()]


def text(card: Card, program: Program, namespace: str) -> str:
    return features_header(groups(card), json.loads(json.dumps(program.document(), allow_nan=False)), namespace)


def build(directory: Path, cases: Sequence[Case], flags: Sequence[str], compiler: Sequence[str] = ()) -> ctypes.CDLL:
    """Every warning is an error."""
    units = []
    for k, one in enumerate(cases):
        (directory / f"f{k}.hpp").write_text(text(one.card, one.program, f"f{k}"))
        units.append(UNIT.replace("K", f"f{k}").replace("OBJECT", "object, " if one.program.object is not None else ""))
    (directory / "all.cpp").write_text("".join(units))
    said = compile_cpp(compiler or find_compiler(), [directory / "all.cpp"], directory / "all.so", [*flags, *WARNINGS, "-Werror", "-shared", "-fPIC"])
    assert said == ""
    return ctypes.CDLL(str(directory / "all.so"))


def deviations(library: ctypes.CDLL, k: int, one: Case) -> dict[str, Found]:
    """What is found of every variable that the header derives."""
    vectors, program = one.vectors, one.program
    derive = getattr(library, f"derive_f{k}")
    starts = [
        np.arange(len(vectors) + 1) if branch["list"] is None else np.concatenate([[0], np.cumsum(vectors.elements[branch["list"]])])
        for branch in program.branches
    ]
    columns = [np.ascontiguousarray(column) for column in vectors.columns]
    described = groups(one.card)
    room = [np.zeros((length or 1) * len(names), np.float32) for _, length, names in described]
    sizes = np.array([len(r) for r in room], np.int32)
    to = (ctypes.c_void_p * len(room))(*(r.ctypes.data for r in room))
    found = np.zeros(len(room), np.int32)
    got: list[list[np.ndarray]] = [[] for _ in room]
    for row in range(len(vectors)):
        branch = (ctypes.c_void_p * (len(columns) + 1))(*(c.ctypes.data + int(s[row]) * c.itemsize for c, s in zip(columns, starts, strict=True)))
        counts = np.array([0 if e is None else e[row] for e in vectors.elements] + [0], np.int32)
        number = int(vectors.object[row]) if vectors.object is not None else 0
        derive(branch, counts.ctypes.data_as(ctypes.c_void_p), number, to, sizes.ctypes.data_as(ctypes.c_void_p), found.ctypes.data_as(ctypes.c_void_p))
        for g, (_, length, names) in enumerate(described):
            if length is not None and vectors.x[g] is not None:
                assert found[g] == vectors.x[g][1][row], f"{names}: {found[g]} constituents in vector {row}, expected {vectors.x[g][1][row]}"
            got[g].append(room[g].reshape(-1, len(names))[: found[g] if length is not None else 1].copy())
    stated = re.findall(r", (\d+), (\d+), Origin::(\w+)\}", text(one.card, one.program, "net"))
    origins = {described[int(g)][2][int(k)]: origin for g, k, origin in stated}
    result = {}
    for g, (_, _, names) in enumerate(described):
        if vectors.x[g] is None:
            continue
        mine, wanted = np.concatenate(got[g]), vectors.x[g][0]
        for column, name in enumerate(names):
            if program.groups[g]["values"][column] is not None:
                wrong = beyond(mine[:, column], wanted[:, column], exact=origins[name] == "exact")
                result[name] = Found(origins[name], len(mine), int(wrong.sum()))
    return result


def beyond(mine: np.ndarray, wanted: np.ndarray, *, exact: bool) -> np.ndarray:
    """Which values differ by more than features.hpp states."""
    with np.errstate(all="ignore"):
        same = (mine == wanted) | (np.isnan(mine) & np.isnan(wanted))
        if exact:
            return ~same
        finite = np.isfinite(wanted) & np.isfinite(mine)
        largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
        place = lambda v: (lambda b: np.where(b < 0, -(b & 0x7FFFFFFF), b))(v.view(np.int32).astype(np.int64))  # noqa: E731
        near = (np.abs(place(np.ascontiguousarray(mine)) - place(np.ascontiguousarray(wanted))) <= ULP) | (
            np.abs(mine.astype(np.float64) - wanted) <= 2.0**-RELATIVE * largest
        )
        return ~(same | (finite & near))
