"""Write a network for the trigger, compare it bit for bit, certify it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._options import emit, files_option, json_option, parse_assignments, parse_files, quiet_option, set_option

__all__ = ["command"]


@click.command(short_help="Write a network for the trigger, compare it bit for bit, certify it.")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--to", "targets", metavar="TARGETS", required=True, help="Comma-separated targets, for instance cpp,onnx.")
@click.option("--out", metavar="DIR", required=True, type=click.Path(path_type=Path), help="The directory to make; it must not exist. One folder per target.")
@click.option("--vectors", "n_vectors", metavar="N", type=click.IntRange(min=1), default=100_000, show_default=True, help="Least number of vectors compared.")
@click.option("--keep", metavar="N", type=click.IntRange(min=0), help="Random and data vectors that ship beside the constructed ones.  [default: about 16 MB]")
@click.option("--profile", metavar="NAME", help="How the onnx target is loaded: plain, cmssw, triton or athena. Short for --set onnx.profile=NAME.")
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Of the vectors.")
@click.option("--emulator", is_flag=True, help="Target hls4ml: write the CMS Level-1 emulator too, as --set hls4ml.emulator=true does.")
@files_option
@set_option
@json_option
@quiet_option
def command(
    run: Path,
    targets: str,
    out: Path,
    n_vectors: int,
    keep: int | None,
    profile: str | None,
    seed: int,
    emulator: bool,
    files: tuple[str, ...],
    assignments: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Write the BEST network of RUN for each target into DIR/<target>, run what was written, and compare it with the golden model on at least N vectors.

    A single differing bit where exactness is promised is an error, and nothing is left behind. Options of a target: --set onnx.opset=17.
    """
    from hlt_train.export import export
    from hlt_train.progress import Progress

    names = list(dict.fromkeys(name.strip() for name in targets.split(",") if name.strip()))
    result = export(
        run,
        names,
        out,
        n_vectors=n_vectors,
        seed=seed,
        keep=keep,
        sample_files=parse_files(files) or None,
        options=_options(names, parse_assignments(assignments), profile=profile, emulator=emulator),
        progress=Progress(quiet=quiet),
    )
    emit(result, as_json=as_json, text=_text)


def _options(targets: list[str], options: dict[str, Any], *, profile: str | None, emulator: bool) -> dict[str, Any]:
    """The options by target, with those that have a flag of their own among them."""
    from hlt_train.errors import UsageError

    for flag, target, name, value in (("--profile", "onnx", "profile", profile), ("--emulator", "hls4ml", "emulator", emulator or None)):
        if value is None:
            continue
        if target not in targets:
            asked = ", ".join(targets) or "none"
            then = f"--to {','.join([*targets, target])}, or leave {flag} out"
            raise UsageError(f"{flag} is of the target {target}, and --to names {asked}", near=(target,), then=then)
        stated = options.get(target, {}).get(name, value)
        if stated != value:
            raise UsageError(f"{flag} and --set {target}.{name}={stated} do not agree", then="give one of them")
        options = {**options, target: {**options.get(target, {}), name: value}}
    return options


def _text(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    rows = [_row(name, certificate) for name, certificate in result["targets"].items()]
    header = ["target", "vectors", "differing logits", "differing decisions", "deviation", "median", "p99", "size"]
    first = next(iter(result["targets"].values()))
    costs = first["cost"]
    flips = first["one_ulp"]
    lines = [
        f"{result['run']} ({result['checkpoint']}) -> {result['out']}",
        "",
        table(rows, header),
        "",
        f"{costs['parameters']:,} parameters, {costs['macs']:,} multiply-accumulates, {costs['bit_operations']:,} bit operations",
    ]
    fpga = first["fpga"]
    lines.append(f"FPGA: {fpga if isinstance(fpga, str) else _fpga(fpga)}")
    if first["proof"]:
        widest = max(first["proof"], key=lambda name: first["proof"][name]["acc_bits"])
        lines.append(f"widest accumulator: {first['proof'][widest]['acc_bits']} bits in {widest}, proved for every input")
    moved = f"; {flips['integer_inputs_flipped']:.2g} of the integer inputs" if "integer_inputs_flipped" in flips else ""
    lines.append(f"inputs moved by one float32 step flip {flips['decisions_flipped']:.2g} of the decisions{moved}")
    for name, certificate in result["targets"].items():
        if "features" in certificate:
            lines.append(f"{name}: {_features(certificate['features'])}")
    return "\n".join(lines)


def _features(found: dict[str, Any]) -> str:
    """How near what a target computes from branch values is to NumPy."""
    same = f"{found['compared'] - found['differing']:,} of {found['compared']:,} features"
    text = f"features.hpp gives {same} as NumPy does, the others within {found['maximal_ulp']} ulp"
    jumped = f" but for {found['jumped']:,}, where libm decides a jump" if found["jumped"] else ""
    given = f"; the caller gives {', '.join(found['given'])}" if found["given"] else ""
    return text + jumped + given


def _fpga(estimate: dict[str, Any]) -> str:
    return f"about {estimate['luts']:,} LUTs, {estimate['cycles']} cycles of {estimate['clock_ns']:g} ns ({estimate['by']})"


def _row(name: str, certificate: dict[str, Any]) -> list[object]:
    latency, logits, decisions = certificate["latency"], certificate["logits"], certificate["decisions"]
    deviation = "0, bit-exact" if certificate["bit_exact"] else f"{certificate['maximal_deviation']:.2g}"
    differing = [f"{part['differing']:,} of {part['compared']:,}" for part in (logits, decisions)]
    times = [f"{latency[key]:,.0f} ns" for key in ("median_ns", "p99_ns")]
    return [name, f"{certificate['vectors']['compared']:,}", *differing, deviation, *times, f"{certificate['bytes'] / 1e6:.1f} MB"]
