"""Error of a network against the width of its arithmetic in training: fixed point, dynamic fixed point and minifloat beside float32, on toy jets.

Courbariaux, Bengio, David (arXiv:1412.7024) train maxout networks with W bits in the products of both passes and for the stored parameters, and find that
dynamic fixed point needs 10 and 12. Here the same is asked of an MLP on the high-level features of toy jets: error is the fraction of wrong classes on the
validation split, of the stored parameters in a float32 network, as `fit` reports it; relative errors are to float32 with the same seed, and differences are
paired by seed.

- fixed: fixed<W,5>, the paper's range of +-16, in products and storage.
- dynamic: dynamic<W>, ranges updated every 10,000 examples, overflow rate 0.01 %, in products and storage.
- minifloat: five exponent bits and W - 6 mantissa bits, bias 15: float16 at 16.
- `10 / 12`: products of 10 bits, storage of 12; with storage rounded to the nearest, and at random.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from _fleet import JETS, Clock, arguments, shown

from hlt_train import devices
from hlt_train.configuration import check
from hlt_train.data.card import load_card
from hlt_train.datasets.jets import write_jets
from hlt_train.fit import FitConfig, fit
from hlt_train.progress import Progress
from hlt_train.report.table import table

WIDTHS = (6, 8, 10, 12, 14, 16)
EPOCHS, BATCH = 10, 64


def section(kind: str, products: int, storage: int, round: str) -> dict[str, Any]:
    """The configuration of low precision: W bits in products and in storage."""

    def text(width: int) -> str:
        return {"fixed": f"fixed<{width},5>", "dynamic": f"dynamic<{width}>", "minifloat": f"minifloat<5,{width - 6}>"}[kind]

    return {"forward": text(products), "backward": text(products), "storage": text(storage), "round": round}


def error(folder: Path, low: dict[str, Any] | None, seed: int, epochs: int) -> float:
    """Fraction of wrong classes of a run."""
    card = load_card("toy_jets")
    card.samples["jets"].files = [str(folder / "toy_jets.root")]
    content = {
        "card": card.model_dump(mode="json"),
        "batch": BATCH,
        "for": f"{epochs}epochs",
        "seed": seed,
        "devices": 1,
        "model": {"name": "mlp", "widths": [64, 32]},
        "low_precision": low,
    }
    with tempfile.TemporaryDirectory(dir=folder) as run:
        result = fit(check(FitConfig, content), Path(run) / "run", progress=Progress(quiet=True))
    return 1 - float(result["validation"]["accuracy"])


def main() -> None:
    given = arguments(__doc__, seeds=5).parse_args()
    devices.prepare(1)
    clock = Clock()
    seeds = range(1, 2 if given.quick else given.seeds + 1)
    widths, epochs = (WIDTHS[2:3], 1) if given.quick else (WIDTHS, EPOCHS)
    kinds = [(kind, w, w, "half_even") for kind in ("fixed", "dynamic", "minifloat") for w in widths]
    kinds += [(kind, 10, 12, round) for kind in ("fixed", "dynamic") for round in ("half_even", "stochastic")]
    with tempfile.TemporaryDirectory(prefix="hlt-train-bench-") as name:
        folder = Path(name)
        write_jets(folder / "toy_jets.root", JETS, 1)
        plain = [error(folder, None, seed, epochs) for seed in seeds]
        rows = [["float32", "32", "32", "", shown(plain), "", "1"]]
        for kind, products, storage, round in kinds:
            found = [error(folder, section(kind, products, storage, round), seed, epochs) for seed in seeds]
            difference = shown(f - p for f, p in zip(found, plain, strict=True))
            ratio = shown(f / p for f, p in zip(found, plain, strict=True))
            rows.append([kind, str(products), str(storage), round, shown(found), difference, ratio])
    header = ["format", "products", "storage", "rounding", "error", "error - float32", "relative"]
    print(table(rows, header, title=f"{JETS:,} toy jets, MLP 64-32, {epochs} epochs, {len(seeds)} seeds"))
    clock.close(len(seeds), quick=given.quick)


if __name__ == "__main__":
    main()
