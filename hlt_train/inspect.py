"""`inspect`: look into a ROOT file, open a data card and count, or show what the workers of a run did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hlt_train.data.card import load_card
from hlt_train.data.dataset import open_dataset
from hlt_train.data.draft import draft
from hlt_train.data.survey import ENTRIES, survey
from hlt_train.errors import UsageError
from hlt_train.files import read_document
from hlt_train.report.table import table
from hlt_train.report.traffic import traffic_text
from hlt_train.run import check_is_run, read_config

__all__ = ["card_text", "draft_card", "file_text", "inspect_card", "inspect_file", "inspect_run", "is_card", "run_text"]


def is_card(source: str) -> bool:
    """Whether `source` is a card: YAML by its name, or no file at all and not the name of a ROOT file. Everything else is opened as a ROOT file."""
    path = Path(source)
    return path.suffix in (".yaml", ".yml") or (not path.exists() and path.suffix != ".root" and "://" not in source)


def inspect_file(path: str, tree: str | None = None, *, entries: int = ENTRIES) -> dict[str, Any]:
    """Describe a ROOT file (`survey`), with warnings about what often goes wrong."""
    found = survey(path, tree, entries=entries)
    branches = found["branches"]
    warnings = []
    constant = [b["name"] for b in branches if b.get("constant")]
    if constant:
        warnings.append(f"{len(constant)} branches are constant in these entries (no input can learn from them): {_some(constant)}")
    bad = [f"{b['name']} ({b['nan']} NaN, {b['inf']} infinite)" for b in branches if b.get("nan") or b.get("inf")]
    if bad:
        warnings.append(f"{len(bad)} branches hold values that are not finite: {_some(bad)}")
    unreadable = [b["name"] for b in branches if b["dtype"] is None]
    if unreadable:
        warnings.append(f"{len(unreadable)} branches are not numbers: {_some(unreadable)}")
    header = str(found["compression"]).partition("(")[0]
    other = {codec.strip("()"): n for codec, n in found["codecs"].items() if codec.strip("()") not in (header, "none")}
    if other:
        warnings.append(f"the file says {found['compression']}, its baskets are {', '.join(f'{n} x {codec}' for codec, n in other.items())}")
    return {"kind": "file", **found, "warnings": warnings}


def inspect_card(source: str, files: Mapping[str, Sequence[str]] | None = None, *, check: bool = False) -> dict[str, Any]:
    """Open a card and count; with `check` every row is read too, and values that are not finite are counted instead of refused."""
    card = load_card(source)
    if check and card.nan == "refuse":
        opened = card.model_copy(update={"nan": 0.0})
    else:
        opened = card
    with open_dataset(opened, files, training=False) as dataset:
        if check:
            for split in dataset.counts:
                for _ in dataset.iterate(split):
                    pass
        report = dataset.report
    return {"kind": "card", **report, "checked": check, "example": card.example, "card_document": card.model_dump(mode="json")}


def inspect_run(run: Path) -> dict[str, Any]:
    """What the workers of a finished run by messages did."""
    check_is_run(run, then="hlt-train inspect FILE, CARD or RUN")
    if not (run / "transport.json").is_file():
        what = "the run sent no messages (transport lockstep), or is not finished"
        verb = read_config(run).get("verb", "fit")
        raise UsageError(what, where=str(run), then=f"hlt-train evaluate {run} shows what was learnt; hlt-train {verb} --resume {run} finishes it")
    traffic = read_document(run / "transport.json", "hlt-train/transport", 1)
    return {"kind": "run", "run": str(run), "traffic": traffic, "coverage": read_document(run / "coverage.json", "hlt-train/coverage", 1)}


def run_text(found: Mapping[str, Any]) -> str:
    """What the workers of a run did, for people."""
    return traffic_text(found["traffic"], found["coverage"]) + f"\n\ntimeline: open {found['run']}/timeline.json in https://ui.perfetto.dev"


def draft_card(path: str, tree: str | None = None, *, entries: int = ENTRIES) -> str:
    """A first card for a file, as YAML."""
    return draft(survey(path, tree, entries=entries))


def file_text(found: Mapping[str, Any]) -> str:
    """A file's description for people."""
    lines = [f"{found['file']}: {found['bytes']:,} bytes, UUID {found['uuid']}" if found["bytes"] is not None else f"{found['file']}: UUID {found['uuid']}"]
    if found["origin"]:
        lines.append(f"origin: {found['origin']}" + (" (a reproducible exercise, not validated physics)" if found["origin"] == "toy" else ""))
    lines += [
        "",
        table([[t["name"], t["kind"], t["entries"], t["branches"], t["title"]] for t in found["trees"]], ["tree", "kind", "entries", "branches", "title"]),
    ]
    if found["tree"] is None:
        return "\n".join([*lines, "", "Several trees: choose one with --tree NAME to see its branches."])
    codecs = ", ".join(f"{codec} ({n})" for codec, n in sorted(found["codecs"].items()))
    inside = "; in brackets: baskets kept in the tree's header, by their setting" if "(" in "".join(found["codecs"]) else ""
    lines += ["", f"tree {found['tree']}: values of the first {found['inspected_entries']:,} entries; codecs of the baskets: {codecs or 'none'}{inside}", ""]
    lines.append(table([_row(b) for b in found["branches"]], ["branch", "type", "codec", "per entry", "min", "max", "NaN", "inf", ""]))
    return "\n".join([*lines, *_warnings(found["warnings"])])


def _row(b: Mapping[str, Any]) -> list[object]:
    numbers = b.get("multiplicity")
    many = f"{numbers['min']}-{numbers['max']}" if numbers else "" if b["dtype"] is None else "1"
    low, high = (f"{b[key]:.6g}" if key in b else "" for key in ("min", "max"))
    return [b["name"], b["type"], b["codec"], many, low, high, b.get("nan") or "", b.get("inf") or "", "constant" if b.get("constant") else ""]


def card_text(found: Mapping[str, Any]) -> str:
    """A card's description for people."""
    unit = {"event": "events", "object": "objects"}.get(found["example"], f"{found['example']} objects")
    samples = [[name, len(s["files"]), s["entries"], s["selected"], *s["rows"].values(), s["unused"], s["duplicates"]] for name, s in found["samples"].items()]
    header = ["sample", "files", "entries", "selected", *found["rows"], "in no split", "duplicates"]
    classes = [[name, *c["rows"].values(), f"{c['weight']['train']:.6g}"] for name, c in found["classes"].items()]
    groups = []
    for name, group in found["card_document"]["inputs"].items():
        length = "scalars" if group["length"] is None else f"up to {group['length']}"
        groups.append([name, length, group["available"], ", ".join(group["vars"])])
    lines = [
        f"card {found['card']}: one row is one of the {unit}",
        "",
        table(samples, header),
        "",
        table(classes, ["class", *found["rows"], "training weight"]),
    ]
    lines += ["", table(groups, ["input group", "length", "available", "variables"])]
    if found["checked"]:
        bad = ", ".join(f"{name}: {count}" for name, count in found["nonfinite"].items())
        lines += ["", f"Every row was read; NaN or infinite values: {bad or 'none'}."]
    return "\n".join([*lines, *_warnings(found["warnings"])])


def _warnings(warnings: Sequence[str]) -> list[str]:
    return ["", *(f"Note: {warning}" for warning in warnings)] if warnings else []


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
