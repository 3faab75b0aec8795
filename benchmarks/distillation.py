"""What a student learns from, against what it then knows: toy events at 50 Hz of 8 kHz, toy jets (constituents) at 50 % and 30 % efficiency for tops.

    python benchmarks/distillation.py events        # about half an hour on one core
    python benchmarks/distillation.py jets
    python benchmarks/distillation.py jets --quick  # a minute: two seeds, few rows, no meaning

Arms, at equal steps from equal first weights:

    alone         labels
    distilled     soft targets
    half          soft targets with lambda 0.5
    logits        matched logits
    hints         soft targets and a hint of constant weight
    hints first   FitNets: the hint alone for the first quarter of the float stage, then soft targets
    rate          soft targets and the rate-aware objective
    alone, rate   labels and that objective
    specialists   soft targets of the teacher joined by specialists; jets only: two classes have nothing to specialise on
    rounded       soft targets in float for all steps, then rounded to its formats: post-training quantisation

Every arm but the last is trained in float for half of the steps and on its grid for the other half.

Every student has the package's default formats (8-bit weights and activations); its figures come from the golden integer evaluator. Errors hold the spread over
seeds and the paired bootstrap over the common test rows. `of the gap` is the fraction (student - alone) / (teacher - alone).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _students import BATCH, Arm, Data, error, figures, golden_score, load, parameters, recovered, students, take, teacher_of, with_specialists

from hlt_train.distillation_loss import LOGITS, Soft
from hlt_train.hints import HINT
from hlt_train.models.deepsets import deepsets
from hlt_train.models.mlp import mlp
from hlt_train.report.table import plus_minus, table


class Kind(NamedTuple):
    """One problem.

    Attributes:
        rows: of the toy file. sample: training rows of a student.
        sizes: students. teacher, larger: the teacher, and one with four times its parameters.
        steps: of a student. epochs, dropout: of a teacher. rate: learning rate of the students.
    """

    rows: int
    sample: int
    sizes: tuple[tuple[int, ...], ...]
    teacher: tuple[int, ...]
    larger: tuple[int, ...]
    steps: int
    epochs: int
    rate: float
    dropout: float = 0.1


KINDS = {
    "events": Kind(500_000, 100_000, ((40, 16), (16,), (8,)), (192, 128, 64), (416, 272, 128), 1_500, 8, 0.03),
    "jets": Kind(150_000, 20_000, ((12, 12), (6, 6), (3, 3)), (64, 64), (128, 128), 1_000, 20, 0.01, 0.0),
}
QUICK = {
    "events": Kind(20_000, 8_000, ((8,),), (32, 16), (64, 32), 60, 20, 0.03),
    "jets": Kind(6_000, 3_000, ((4, 4),), (12, 12), (24, 24), 40, 20, 0.01),
}
NAMES = {"events": ["efficiency at 50 Hz"], "jets": ["rejection at 50 %", "rejection at 30 %"]}


def network(data: Data, widths: tuple[int, ...], key: Any, outputs: int, precision: Any = None, *, dropout: float = 0.0) -> Any:
    """An mlp on events; on jets a deepsets whose rho has one layer of the width of phi's last."""
    if data.kind == "events":
        return mlp(data.inputs, outputs, key, widths=widths, dropout=dropout, precision=precision)
    return deepsets(data.inputs, outputs, key, phi=widths, rho=widths[-1:], dropout=dropout, precision=precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS, nargs="?", default="events")
    parser.add_argument("--quick", action="store_true", help="that it works, not what it says")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=60)
    parser.add_argument("--steps", type=int, help="of a student, in place of the default")
    parser.add_argument("--rows", type=int, help="of the toy file, in place of the default")
    parser.add_argument("--sample", type=int, help="training rows of a student, in place of the default")
    parser.add_argument("--arms", help="separated by semicolons; `alone` and `distilled` always run")
    parser.add_argument("--sizes", type=int, help="only the first so many sizes")
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--share", type=float, default=1.0, help="lambda")
    parser.add_argument("--rate", type=float, help="learning rate of the students, in place of the default")
    parser.add_argument("--hint-weight", type=float, default=1.0)
    parser.add_argument("--rate-weight", type=float, default=0.1)
    parser.add_argument("--width", type=float, default=1.0, help="of the soft step of the rate-aware objective")
    parser.add_argument("--teachers-only", action="store_true", help="the teacher against one of four times its parameters, 3 seeds, and no students")
    given = parser.parse_args()
    kind = (QUICK if given.quick else KINDS)[given.kind]
    kind = kind._replace(rows=given.rows or kind.rows, steps=given.steps or kind.steps, sample=given.sample or kind.sample)
    kind = kind._replace(rate=given.rate or kind.rate)
    seeds = min(given.seeds, 2) if given.quick else given.seeds
    soft = Soft(given.temperature, given.share)
    arms = {
        "alone": Arm(None),
        "distilled": Arm(soft),
        "half": Arm(soft._replace(share=0.5)),
        "logits": Arm(soft._replace(matching="logits")),
        "hints": Arm(soft, hint=(given.hint_weight, 0.0)),
        "hints first": Arm(soft, hint=(0.0, 0.25)),
        "rate": Arm(soft, rate=given.rate_weight),
        "alone, rate": Arm(None, rate=given.rate_weight),
        "specialists": Arm(soft, specialists=True),
        "rounded": Arm(soft, grid=False),
    }
    if given.kind == "events":
        del arms["specialists"]
    if given.arms is not None:
        chosen = {"alone", "distilled", *(name.strip() for name in given.arms.split(";") if name.strip())}
        if unknown := chosen - arms.keys():
            parser.error(f"no arm is called {', '.join(sorted(unknown))}; arms of {given.kind}: {'; '.join(arms)}")
        arms = {name: arm for name, arm in arms.items() if name in chosen}
    began = time.monotonic()
    note = lambda text: print(f"[{time.monotonic() - began:5.0f} s] {text}", flush=True)  # noqa: E731

    with tempfile.TemporaryDirectory() as folder:
        data = load(given.kind, kind.rows, Path(folder))
    note(f"{given.kind}: {len(data.train.label):,} training rows of the teacher, {len(data.population.event):,} test rows")
    if given.teachers_only:
        compare_teachers(data, kind, given, note)
        return
    grown = lambda key, outputs: network(data, kind.teacher, key, outputs, dropout=kind.dropout)  # noqa: E731
    taught = teacher_of(data, grown, kind.epochs, 1)
    note(f"teacher: {parameters(taught.network):,} parameters")
    pick = np.random.default_rng(0).permutation(len(data.train.label))[: kind.sample]
    answers = {"teacher": taught.logits}
    if "specialists" in arms:
        answers["specialists"], sets = with_specialists(data, taught, grown, kind.epochs)
        note(f"specialists of {' and '.join('/'.join(s) for s in sets)}")
    result: list[list[object]] = []
    for widths in kind.sizes[: given.sizes]:
        scores: dict[str, list[np.ndarray]] = {}
        size = 0
        for name, arm in arms.items():
            rows = take(data.train, pick)
            extra = {**rows.extra, LOGITS: answers["specialists" if arm.specialists else "teacher"][pick]}
            extra |= {HINT: taught.hidden[pick]} if arm.hint is not None else {}
            rows = jax.tree.map(jnp.asarray, rows._replace(extra=extra))
            build = lambda key, outputs, precision, widths=widths: network(data, widths, key, outputs, precision)  # noqa: E731
            found = students(data, rows, build, arm, taught.network, kind.rate, kind.steps, seeds, given.width)
            scores[name] = [golden_score(student, data) for student in found]
            size = parameters(found[0])
            note(f"{size:,} parameters, {name}")
        result += lines(given.kind, size, taught.score, scores, data, given.replicas)
        for row in result[-(len(arms) + 1) * len(NAMES[given.kind]) :]:
            note(" | ".join(str(cell) for cell in row))
    header = ["figure", "parameters", "arm", "value", "- alone", "in errors", "- distilled", "in errors", "of the gap"]
    title = f"{given.kind}: {seeds} seeds, {kind.steps:,} steps of {BATCH} rows out of {len(pick):,}, learning rate {kind.rate:g}, T {soft.temperature:g}, "
    title += f"lambda {soft.share:g}, weights of hint {given.hint_weight:g}, of rate {given.rate_weight:g} (width {given.width:g})"
    print(table(result, header, title=title))


def lines(kind: str, size: int, teacher: np.ndarray, scores: dict[str, list[np.ndarray]], data: Data, replicas: int) -> list[list[object]]:
    """A line for the teacher and one per arm, for each figure."""
    every = [teacher, *(score for found in scores.values() for score in found)]
    value, spread = figures(kind, every, data.population, replicas)
    seeds = len(scores["alone"])
    place = {name: slice(1 + k * seeds, 1 + (k + 1) * seeds) for k, name in enumerate(scores)}
    found: list[list[object]] = []
    for j, figure in enumerate(NAMES[kind]):
        t, st = float(value[0, j]), spread[0, j]
        found.append([figure, f"{size:,}", "teacher", plus_minus(t, float(st.std(ddof=1))), "", "", "", "", ""])
        v = {name: value[where, j] for name, where in place.items()}
        s = {name: spread[where, j] for name, where in place.items()}
        for name in scores:
            row: list[object] = [figure, f"{size:,}", name, plus_minus(float(v[name].mean()), error(v[name], s[name]))]
            for other in ("alone", "distilled"):
                if name in ("alone", other) or (other == "distilled" and name == "alone"):
                    row += ["", ""]
                    continue
                gain, gain_error = float((v[name] - v[other]).mean()), error(v[name] - v[other], s[name] - s[other])
                row += [plus_minus(gain, gain_error), f"{gain / gain_error:.1f}"]
            gap = recovered(v[name], v["alone"], t, (s[name], s["alone"], st))
            found.append([*row, "" if name == "alone" else plus_minus(*gap)])
    return found


def compare_teachers(data: Data, kind: Kind, given: argparse.Namespace, note: Any) -> None:
    """The teacher over one with four times its parameters, 3 seeds of both."""
    pairs, sizes = [], [0, 0]
    for seed in (1, 2, 3):
        for k, widths in enumerate((kind.teacher, kind.larger)):
            made = teacher_of(data, lambda key, outputs, widths=widths: network(data, widths, key, outputs, dropout=kind.dropout), kind.epochs, seed)
            pairs.append(made.score)
            sizes[k] = parameters(made.network)
    value, spread = figures(given.kind, pairs, data.population, given.replicas)
    for j, name in enumerate(NAMES[given.kind]):
        ratio, replicas = value[0::2, j] / value[1::2, j], spread[0::2, j] / spread[1::2, j]
        note(f"{name}: teacher of {sizes[0]:,} parameters over one of {sizes[1]:,}, 3 seeds: {plus_minus(float(ratio.mean()), error(ratio, replicas))}")


if __name__ == "__main__":
    main()
