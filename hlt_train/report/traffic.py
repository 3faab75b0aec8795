"""What a run by messages did: each worker's time, the staleness of the updates, the coverage of the data, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hlt_train.report.table import table

__all__ = ["brief", "traffic_text"]

BAR = 40  # characters of the longest bar of the histogram
MOST_WORKERS = 32  # lines of the table; of more workers the first and the extremes are shown


def brief(traffic: Mapping[str, Any], coverage: Mapping[str, Any]) -> list[list[object]]:
    """Rows for the summary of a run."""
    stale = traffic["staleness"]["mean"]
    seconds = traffic["seconds"]
    busy, waited = sum(seconds["compute"]), sum(seconds["waiting"])
    total = max(busy + waited, 1e-12)
    rows: list[list[object]] = []
    if stale is not None:
        rows.append(["staleness", f"{stale:.3g} updates on average; applied updates fair to {traffic['fairness']:.3f} (Jain)"])
    rows.append(["time", f"computing {100 * busy / total:.1f} %, exposed communication and waiting {100 * waited / total:.1f} %"])
    rows.append(["messages", f"{sum(traffic['messages']):,}, {sum(traffic['bytes']) / 1e6:,.1f} MB"])
    lost = {name: sum(traffic[name]) for name in ("late", "gated", "lost_datagrams")}
    if any(lost.values()):
        rows.append(["given up", ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in lost.items() if count)])
    if traffic["wire"]["format"] != "float32":
        rows.append(["wire", f"{traffic['wire']['format']}, relative error of a message {traffic['wire']['relative_error']:.2g}"])
    whole = sum(bool(epoch["complete"]) for epoch in coverage["epochs"])
    rows.append(["coverage", f"{whole} of {len(coverage['epochs'])} epochs complete: every entry in exactly one class (coverage.json)"])
    return rows


def traffic_text(traffic: Mapping[str, Any], coverage: Mapping[str, Any]) -> str:
    """Tables of workers, staleness and coverage."""
    return "\n\n".join([_workers(traffic), _staleness(traffic["staleness"]["histogram"]), _coverage(coverage)])


def _workers(traffic: Mapping[str, Any]) -> str:
    seconds = traffic["seconds"]
    count = len(traffic["batches"])
    shown: Sequence[int] = range(count)
    if count > MOST_WORKERS:
        order = sorted(range(count), key=lambda k: seconds["compute"][k] + seconds["waiting"][k])
        shown = sorted({*range(MOST_WORKERS // 2), *order[: MOST_WORKERS // 4], *order[-MOST_WORKERS // 4 :]})
    rows = []
    for k in shown:
        compute, waiting = seconds["compute"][k], seconds["waiting"][k]
        share = 100 * waiting / max(compute + waiting, 1e-12)
        name = f"{k} (died)" if k in traffic.get("dead", ()) else k
        counts = [traffic[key][k] for key in ("batches", "applied", "late", "gated", "messages")]
        rows.append([name, *counts, f"{traffic['bytes'][k] / 1e6:.2f}", f"{compute:.3f}", f"{waiting:.3f}", f"{share:.1f}"])
    header = ["worker", "batches", "applied", "late", "gated", "messages", "MB", "computing/s", "exposed/s", "exposed/%"]
    clock = "virtual time" if traffic["transport"] == "simulate" else "wall time"
    title = f"{count} workers, {clock}; exposed: communication that no computation hides, and waiting"
    return f"{title}\n\n{table(rows, header)}"


def _staleness(histogram: Sequence[int]) -> str:
    total = sum(histogram)
    if not total:
        return "staleness: no update went through a server"
    last = max(k for k, count in enumerate(histogram) if count)
    highest = max(histogram)
    rows = []
    for k in range(last + 1):
        if histogram[k] or last < 24:
            name = f"{k} or more" if k == len(histogram) - 1 else k
            rows.append([name, histogram[k], f"{100 * histogram[k] / total:.1f}", "#" * round(BAR * histogram[k] / highest)])
    return table(rows, ["staleness", "updates", "%", ""])


def _coverage(coverage: Mapping[str, Any]) -> str:
    epochs = coverage["epochs"]
    if not epochs:
        return "coverage: no epoch"
    classes = list(epochs[0]["classes"])
    rows = []
    for epoch in epochs:
        counts = [epoch["classes"][name]["rows"] for name in classes]
        rows.append([epoch["epoch"], epoch["rows"], *counts, epoch["duplicates"], epoch["redealt"], epoch["lost"], "yes" if epoch["complete"] else "NO"])
    return table(rows, ["epoch", "rows", *classes, "duplicates", "redealt", "lost", "complete"])
