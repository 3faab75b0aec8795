"""The result of `evaluate` as text: one table per way of counting (Hz, mistag), then what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hlt_train.report.table import plus_minus, table

__all__ = ["brief", "evaluation_text", "interval_text"]


def evaluation_text(result: Mapping[str, Any]) -> str:
    """Tables and notes."""
    selection = f" after {result['selection']}" if result["selection"] else ""
    parts = [f"{result['rows']:,} rows of the {result['split']} split of card '{result['card']}'{selection}", _networks(result)]
    for section in result["sections"]:
        parts += [_section(section), *_pairs(section), *_samples(section), *_points(section)]
    parts.append("\n".join(f"note: {text}" for text in _notes(result)))
    return "\n\n".join(part for part in parts if part)


def brief(results: Sequence[Mapping[str, Any]]) -> str:
    """One table of several evaluations: a line per network and baseline, at the first request of each card's first way of counting."""
    rows: list[list[str]] = []
    for result in results:
        late = {network["name"]: network["latency"] for network in result["networks"] if network["kind"] == "export"}
        size = {network["name"]: f"{network['parameters']:,}" for network in result["networks"]}
        for section in result["sections"][:1]:
            request = section["networks"][0]["at"][0]["request"]
            pairs = {pair["network"]: pair for pair in section["pairs"]}
            for network in section["networks"]:
                name = network["name"]
                ratio = interval_text(pairs[name]["at"][0]["ratio"]) if name in pairs else ""
                time = _time(late[name]["median_ns"]) if late.get(name) else ""
                rows.append([result["card"], name, size[name], request, interval_text(network["at"][0]["efficiency"]), ratio, time])
            beside = [row for row in section.get("baselines", []) if row["request"] == request]
            rows += [[result["card"], row["name"], "", request, interval_text(row["efficiency"]), "", ""] for row in beside]
    return table(rows, ["card", "network", "parameters", "at", "efficiency", "of the teacher's", "one event"])


def interval_text(interval: Mapping[str, Any] | None, *, scale: float = 1.0, unit: str = "") -> str:
    """A value with its errors; `-` where there is none."""
    if interval is None or interval["value"] is None:
        return "-"
    value, low, high = (scale * float("nan" if interval[k] is None else interval[k]) for k in ("value", "low", "high"))
    return plus_minus(value, max(value - low, 0.0), max(high - value, 0.0), unit=unit)


def _networks(result: Mapping[str, Any]) -> str:
    classes = list(result["networks"][0]["auc"])
    many = len(classes) > 2
    header = ["network", "kind", "parameters", "accuracy", *([f"AUC {c}" for c in classes] if many else []), "latency median", "p99", "of"]
    rows = []
    for network in result["networks"]:
        areas = [f"{network['auc'][c]:.4f}" if network["auc"][c] is not None else "-" for c in classes] if many else []
        late = network["latency"]
        times = [_time(late["median_ns"]), _time(late["p99_ns"]), late["what"].partition(";")[0]] if late else ["-", "-", ""]
        kind = f"{network['kind']} ({network['which']})"
        rows.append([network["name"], kind, f"{network['parameters']:,}", f"{network['accuracy']:.4f}", *areas, *times])
    return table(rows, header)


def _time(nanoseconds: float) -> str:
    return f"{nanoseconds:.0f} ns" if nanoseconds < 1e4 else f"{nanoseconds / 1e3:.1f} us" if nanoseconds < 1e7 else f"{nanoseconds / 1e6:.1f} ms"


def _section(section: Mapping[str, Any]) -> str:
    requests = [row["request"] for row in section["networks"][0]["at"]]
    wanted = [row["request"].removeprefix("eff ") for row in section["networks"][0]["rate_at"]]
    hertz = section["unit"] == "Hz"
    name = "rate" if hertz else "mistag"
    header = ["network", "AUC", *[f"eff at {r}" for r in requests], *[f"{name} at {e}" for e in wanted]]
    rows: list[list[str]] = []
    for network in section["networks"]:
        rates = [_rate(row["rate"], hertz) for row in network["rate_at"]]
        rows.append([network["name"], interval_text(network["auc"]), *[interval_text(row["efficiency"]) for row in network["at"]], *rates])
    beside = section.get("baselines", [])
    for baseline in dict.fromkeys(row["name"] for row in beside):
        mine = {row["request"]: row for row in beside if row["name"] == baseline}
        rows.append([baseline, "", *[interval_text(mine[r]["efficiency"]) for r in requests], *["" for _ in wanted]])
    title = f"eff: efficiency of {section['efficiency_of']}" + ("" if hertz else f"; mistag: of {section['mistag_of']}")
    cuts = [f"  {row['name']} at {row['request']}: {row['cut']}, {_rate(row['rate'] if hertz else row['mistag'], hertz)} here" for row in beside]
    return "\n".join([table(rows, header, title=title), *cuts, *[_rests(network, section) for network in section["networks"]]])


def _rate(interval: Mapping[str, Any], hertz: bool) -> str:
    return interval_text(interval, unit="Hz") if hertz else interval_text(interval, scale=100.0, unit="%")


def _rests(network: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    """How many events a threshold rests on; how coarse an integer score is."""
    above = ", ".join(f"{row['background_events']:,} at {row['request']}" for row in network["at"])
    text = f"  {network['name']}: thresholds rest on so many background {section['of']}: {above}"
    if all(row["integer_threshold"] is not None for row in network["at"]):
        text += f"; distinct rates within a factor of two: {', '.join(str(row['distinct_rates']) for row in network['at'])}"
    return text


def _pairs(section: Mapping[str, Any]) -> list[str]:
    rows = []
    for pair in section["pairs"]:
        for row in pair["at"]:
            bound = "-" if row["ratio"]["low_95"] is None else f"{row['ratio']['low_95']:.4f}"
            rows.append([pair["network"], pair["reference"], row["request"], interval_text(row["ratio"]), bound, interval_text(row["difference"])])
    return [table(rows, ["network", "against", "at", "eff ratio", "95 % lower", "eff difference"], title="paired, on the same events")] if rows else []


def _samples(section: Mapping[str, Any]) -> list[str]:
    """Of the first network, and of the others only what is doubtful."""
    rows = []
    for k, network in enumerate(section["networks"]):
        for row in network["at"]:
            for sample in row.get("samples", []):
                if k == 0 or sample["flags"]:
                    share = f"{100 * sample['share']:.1f} %"
                    numbers = [f"{sample['events']:,}", f"{sample['n_eff']:.6g}", f"{sample['weight_per_event_hz']:.4g} Hz", str(sample["passing"]), share]
                    rows.append([network["name"], row["request"], sample["sample"], *numbers, "; ".join(sample["flags"])])
    header = ["network", "at", "sample", "N", "n_eff", "per event", "passing", "share", "doubt"]
    return [table(rows, header, title="the rate, sample by sample")] if rows else []


def _points(section: Mapping[str, Any]) -> list[str]:
    rows = []
    for network in section["networks"]:
        for point in network["working_points"]:
            threshold = point["integer_threshold"] if point["integer_threshold"] is not None else f"{point['threshold']:.6g}"
            figures = [interval_text(point["rate"], unit="Hz"), interval_text(point["efficiency"]), interval_text(point["mistag"])]
            rows.append([network["name"], point["name"], point["request"], str(threshold), *figures])
    header = ["network", "working point", "asked", "threshold", "rate", "efficiency", "mistag"]
    return [table(rows, header, title="recorded working points (thresholds from the validation split)")] if rows else []


def _notes(result: Mapping[str, Any]) -> list[str]:
    return [*dict.fromkeys(result["notes"]), f"errors are 68.3 % intervals; bootstrap of {result['replicas']} replicas"]
