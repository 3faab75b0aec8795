"""Train a fixed-point student from a teacher run, or from several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hlt_train.cli._config import assignments, card_content, given, override_files
from hlt_train.cli._options import emit, files_option, json_option, quiet_option, set_option
from hlt_train.cli._training import (
    TRAINING_KEYS,
    batch_option,
    checkpoint_every_option,
    devices_option,
    inexact_option,
    keep_option,
    optimizer_option,
    patience_option,
    refuse_beside_resume,
    resident_option,
    threads_option,
)
from hlt_train.errors import UsageError

__all__ = ["command"]

# parameter of the command -> key of the configuration
KEYS = TRAINING_KEYS | {
    "model": "model",
    "temperature": "temperature",
    "share": "lambda",
    "matching": "matching",
    "hints": "hints.weight",
    "rate_aware": "objective.working_point",
    "max_unmatched": "max_unmatched",
    "allow_offline": "allow_offline",
    "seeds": "seeds",
    "mean": "mean",
    "budget_network": "budget.network",
    "budget_path": "budget.path",
    "reached": "budget.reached",
    "budget_luts": "budget.luts",
    "budget_cycles": "budget.cycles",
    "budget_macs": "budget.macs",
    "budget_bits": "budget.bits",
    "isa": "budget.isa",
    "latency_table": "budget.latency_table",
    "trials": "search.trials",
}
WITH_RESUME = {"length", "resume", "inexact", "as_json", "quiet"}


@click.command(short_help="Train a fixed-point student from a teacher run, or from several.")
@click.argument("teachers", metavar="[TEACHER_RUN]...", nargs=-1, type=click.Path(path_type=Path))
@click.option("--run", "run", metavar="DIR", type=click.Path(path_type=Path), help="The run directory to make; it must not exist.")
@click.option("--card", metavar="STUDENT.yaml", help="The student's own card, joined to the teachers by identity.  [default: the first teacher's]")
@files_option
@click.option("--teacher-files", metavar="NAME=GLOB", multiple=True, help="With --card: files of a sample that the teachers read (repeatable).")
@click.option("--mean", type=click.Choice(["geometric", "arithmetic"]), help="Of several teachers' probabilities.  [default: geometric]")
@click.option("--teacher-weights", "weights", metavar="A,B,...", help="Of several teachers in the mean.  [default: all the same]")
@click.option("--for", "length", metavar="LENGTH", help="20epochs, 5000steps or 3e6events, the float warm-up included.  [default: 20epochs]")
@click.option("--model", metavar="NAME", help="Architecture; its options: --set model.OPTION=VALUE.  [default: mlp, widths 32-32]")
@click.option("--temperature", type=float, metavar="T", help="Of the soft targets.  [default: 2]")
@click.option("--lambda", "share", type=float, metavar="L", help="Share of the soft targets: L T^2 KL + (1 - L) cross-entropy.  [default: 0.5]")
@click.option("--matching", type=click.Choice(["soft", "logits"]), help="What the teacher's answers are compared as.  [default: soft]")
@click.option(
    "--hints", type=float, metavar="WEIGHT", help="Learn to predict the teacher's middle layer from the student's, too; --set hints.first=0.25: at first."
)
@click.option("--rate-aware", metavar="POINT", help="Learn the efficiency at this working point's rate, too; its options: --set objective.weight=1.")
@click.option("--learning-rate", type=float, metavar="RATE", help="Peak of the schedule.  [default: 0.01]")
@click.option("--seeds", type=int, metavar="N", help="Compare the student alone and distilled over N seeds; RUN becomes the best distilled one.")
@click.option("--lr-scan", metavar="A,B,C", help="With --seeds: learning rates tried for both arms; each takes its best on validation.")
@click.option("--budget-network", metavar="TIME", help="Search for the best student whose call takes at most TIME (100ns); with --model, hold that one to it.")
@click.option("--budget-path", metavar="TIME", help="The same of an event, from branch values to decision (1ms).")
@click.option("--reached", metavar="A/B", help="With --budget-path: rate at which the path is reached, of the rate that enters (8kHz/100kHz).")
@click.option("--budget-luts", type=int, metavar="N", help="The same of an FPGA's look-up tables, as alkaid estimates them.")
@click.option("--budget-cycles", type=int, metavar="N", help="The same of its clock cycles.  [of 5 ns; --set budget.clock_ns=...]")
@click.option("--budget-macs", type=int, metavar="N", help="The same of multiply-accumulates.")
@click.option("--budget-bits", type=int, metavar="N", help="The same of bit operations: weight bits times activation bits, over all products.")
@click.option("--isa", metavar="PATH", help="Code path of the C++ header that times are of.  [default: the one that this processor takes]")
@click.option("--latency-table", metavar="FILE", help="What `bench --calibrate` wrote; the search predicts times from it.  [default: made first]")
@click.option("--trials", type=int, metavar="N", help="Candidates that a search trains.  [default: 16]")
@batch_option
@optimizer_option
@click.option("--schedule", metavar="NAME", help="By its name in optax, over each stage.  [default: cosine_decay_schedule]")
@devices_option
@click.option("--seed", type=int, metavar="N", help="Of the weights and the order of the rows; the first one with --seeds.  [default: 1]")
@patience_option
@resident_option
@threads_option
@checkpoint_every_option
@keep_option
@click.option("--max-unmatched", type=float, metavar="FRACTION", help="Most rows unknown to a teacher; rows unknown to all learn from labels.  [default: 0.01]")
@click.option("--allow-offline", is_flag=True, help="Let the student use inputs that a trigger does not have.")
@click.option("--resume", metavar="DIR", type=click.Path(path_type=Path), help="Continue a run exactly where it was; with --for, to a later end.")
@inexact_option
@click.option("--dry-run", is_flag=True, help="Open the files, compile, run one step, print shapes, memory and speed; write nothing.")
@click.option(
    "--config", metavar="FILE", type=click.Path(path_type=Path), help="A configuration, for instance RUN/config.yaml; flags and HLT_TRAIN_DISTIL_* win over it."
)
@set_option
@json_option
@quiet_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    """Train a student that imitates the network of TEACHER_RUN (at BEST) in fixed-point arithmetic.

    TEACHER_RUN is a run or an ensemble of specialists; of several, each with its own card, the mean is imitated.

    Formats (docs/formats.md): --set precision.weights='fixed<8,auto>' (also bias, activations, inputs; per layer: precision.layers.dense_0.weights); auto
    chooses the scale after a float warm-up over --set warmup=0.5 of the steps. Weights may be minifloat<E,M,auto>, as activations may, pow2<W,auto>,
    ternary<auto>, binary<auto>; with dynamic<W> the scale follows the values in training. --set precision=null trains a float student.

    What it learns (docs/distillation.md): soft targets or matched logits; --hints, --rate-aware; --set augment.TRANSFORM.OPTION=VALUE changes the rows of
    every batch, and the teacher sees what the student sees.

    Bits that are learned (docs/formats.md): --set widths.share=0.3 leaves a front of students from dear to cheap in RUN/front and goes on with the best, or the
    best within --set widths.budget=4000. Pruning: --set pruning.weights=0.5, --set pruning.units=0.25.
    """
    from hlt_train.progress import Progress

    progress = Progress(quiet=options["quiet"])
    result = _resume(ctx, progress) if options["resume"] is not None else _distil(ctx, progress)
    progress.close()
    emit(result, as_json=options["as_json"], text=_trial if options["dry_run"] else _summary)


def _resume(ctx: click.Context, progress: Any) -> dict[str, Any]:
    options = ctx.params
    refuse_beside_resume(ctx, WITH_RESUME, "run", then="a new --run with --config")
    from hlt_train.distil import resume

    return resume(options["resume"], length=options["length"], inexact=options["inexact"], progress=progress)


def _distil(ctx: click.Context, progress: Any) -> dict[str, Any]:
    from hlt_train.configuration import check, merge
    from hlt_train.run import read_config

    options = ctx.params
    if options["run"] is None and not options["dry_run"]:
        raise UsageError("distil needs a directory to write", then="hlt-train distil TEACHER_RUN --run DIR (or --dry-run)")
    stored = {} if options["config"] is None else read_config(options["config"])
    content = merge(stored, given(ctx, KEYS), assignments(ctx))
    if options["teachers"]:
        paths = [str(path.absolute()) for path in options["teachers"]]
        content["teacher"] = paths[0] if len(paths) == 1 else paths
    if not content.get("teacher"):
        raise UsageError("distil needs a teacher", then="hlt-train distil TEACHER_RUN --run DIR")
    if options["weights"] is not None:
        content["teacher_weights"] = _numbers("--teacher-weights", options["weights"], "2,1,1")
    if options["lr_scan"] is not None:
        content["lr_scan"] = _numbers("--lr-scan", options["lr_scan"], "0.003,0.01,0.03")
    content |= _cards(options, content)
    _search(ctx, content)

    from hlt_train.distil import DistilConfig, distil, dry_run

    config = check(DistilConfig, content, where=str(options["config"] or ""))
    return dry_run(config, progress=progress) if options["dry_run"] else distil(config, options["run"], progress=progress)


def _search(ctx: click.Context, content: dict[str, Any]) -> None:
    """A budget without a model is a search for one."""
    named = "model" in {**given(ctx, KEYS), **assignments(ctx)}
    if "search" in content and content["search"] is not None and named:
        raise UsageError("a search chooses the model: it does not go with --model", near=("--set search.families=[mlp]", "--set search.widths=[16,32]"))
    if content.get("budget") is not None and content.get("seeds") is None and "search" not in content and not named:
        content["search"] = {}
    table = (content.get("budget") or {}).get("latency_table")
    if table is not None:
        content["budget"]["latency_table"] = str(Path(table).expanduser().absolute())


def _cards(options: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """The student's card and, where they are not simply those of their runs, the teachers'."""
    from hlt_train.run import read_config

    paths = [content["teacher"]] if isinstance(content["teacher"], str) else content["teacher"]
    own: list[dict[str, Any]] = [read_config(Path(path)).get("card") or {} for path in paths]
    card = card_content(options["card"], content)
    if options["teacher_files"] and card is None:
        raise UsageError("--teacher-files goes with --card; without it --files are those of teacher and student")
    found: dict[str, Any] = {}
    if options["teacher_files"]:
        found["teacher_card"] = _replaced(own, options["teacher_files"])
    if card is not None:
        found["card"] = override_files(card, options["files"], {})
    elif options["files"]:
        found["teacher_card"] = _replaced(own, options["files"])
        found["card"] = override_files(own[0], options["files"], {})
    return found


def _replaced(cards: list[dict[str, Any]], files: tuple[str, ...]) -> Any:
    """The cards with other files, each of the samples that it has; one card of one teacher, a list of several."""
    known = {name for card in cards for name in card["samples"]}

    def mine(card: dict[str, Any]) -> tuple[str, ...]:
        names = [text.partition("=")[0] for text in files]
        return tuple(text for text, name in zip(files, names, strict=True) if name in card["samples"] or name not in known)

    changed = [override_files(card, mine(card), {}) for card in cards]
    return changed[0] if len(changed) == 1 else changed


def _numbers(option: str, text: str, example: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} takes numbers separated by commas, got '{text}'", then=f"for instance {option} {example}") from error


def _summary(result: dict[str, Any]) -> str:
    from hlt_train.precision.formats import brief
    from hlt_train.report.table import table

    rows = [["run", result["run"]], ["model", f"{result['model']}, {result['parameters']:,} parameters"]]
    rows += _teachers(result["teacher"])
    if "steps" in result:
        warm = f", after {result['warmup_steps']:,} steps of float warm-up" if result["warmup_steps"] else ""
        warm += f" and {result['widths_steps']:,} that learned bits" if result["widths_steps"] else ""
        rows.append(["trained", f"{result['steps']:,} steps ({result['stopped']}){warm}"])
    golden = result["golden"]
    if result["training_only"] is not None:
        rows.append(["for training only", result["training_only"]])
    if golden is not None:
        rows.append(["golden evaluator, validation", f"cross-entropy {golden['cross_entropy']:.5g}, accuracy {golden['accuracy']:.5g}"])
        if (post := result["post_training"]) is not None:
            before = "the warm-up, only quantised" if result["front"] is None else "the chosen point of the front"
            rows.append([before, f"cross-entropy {post['cross_entropy']:.5g}, accuracy {post['accuracy']:.5g}"])
        rows.append(["training forward differs in", f"{golden['differing_rows']:,} of {golden['rows']:,} rows"])
        rows.append(["accumulators", f"{golden['accumulator_bits']} bits{', exact in float32' if golden['float32_exact'] else ''}"])
        for name, roles in result["formats"]["layers"].items():
            beyond = max(result["saturation"].get(name, {"": 0.0}).values())
            rows.append([f"formats of {name}", ", ".join(f"{role} {brief(text)}" for role, text in roles.items()) + f"; {100 * beyond:.2g} % saturate"])
    for point in result.get("working_points") or []:
        efficiency = point["efficiency"]
        rows.append([f"{point['name']} ({point['request']})", f"efficiency {efficiency['value']:.4f} [{efficiency['low']:.4f}, {efficiency['high']:.4f}]"])
    if "budget" in result:
        rows += _budget(result["budget"])
    text = table(rows, ["distil", ""])
    if result["front"] is not None:
        text += f"\n\n{_front(result['front'], result['run'])}"
    if "search" in result:
        return f"{text}\n\n{_searched(result['search'])}"
    return text if "comparison" not in result else f"{text}\n\n{_comparison(result['comparison'])}"


def _teachers(found: dict[str, Any]) -> list[list[str]]:
    """A line per teacher, and one of all together; figures where the student listens to them."""

    def figures(of: dict[str, Any]) -> str:
        if of.get("cross_entropy") is None:
            return ""
        return f"; on the student's validation rows cross-entropy {of['cross_entropy']:.5g}, accuracy {of['accuracy']:.5g}"

    rows = []
    for each in found.get("teachers", [found]):
        where = each["which"] if each["step"] is None else f"step {each['step']:,}"
        weight = f", weight {each['weight']:g}" if "weight" in each else ""
        unmatched = f", {each['unmatched']:,} rows unmatched" if each.get("unmatched") else ""
        rows.append(["teacher", f"{each['path']}, {where}{weight}{unmatched}{figures(each)}"])
    return rows if "teachers" not in found else [*rows, [f"{found['mean']} mean", figures(found).removeprefix("; ")]]


def _budget(found: dict[str, Any]) -> list[list[str]]:
    """Rows: each cost beside its limit, and what a path is made of."""
    from hlt_train.budget import beside, spelt

    known = {"network": "measured", "path": "measured", "luts": "as alkaid estimates", "cycles": "as alkaid estimates"}
    rows = [[f"budget of {name}", f"{beside(name, cost, found['limits'][name])}, {known.get(name, 'counted')}"] for name, cost in found["costs"].items()]
    if (path := found.get("path")) is not None:
        text = f"{spelt('path', path['median_ns'])} median, {spelt('path', path['p99_ns'])} p99 per {path['per']} of {', '.join(path['samples'])}"
        if "reached" in path:
            text += f"; reached {path['reached']}: {100 * path['share_of_300_ms']:.2g} % of 300 ms"
        rows.append(["branch values to decision", text])
        left = [*path["not_timed"]["selections"], *path["not_timed"]["given_by_the_caller"]]
        rows.append(["not in that time", ", ".join(left) or "nothing"])
    return rows


def _searched(found: dict[str, Any]) -> str:
    """The candidates, and the chosen one beside the teacher and the reference cut."""
    from hlt_train.budget import WORDS, spelt
    from hlt_train.report.table import plus_minus, table

    def costs(row: dict[str, Any], name: str) -> str:
        cost = row["costs"][name]
        predicted = "" if cost["predicted"] is None else spelt(name, cost["predicted"]).removesuffix(WORDS.get(name, "")).strip()
        return predicted if cost["measured"] is None else f"{spelt(name, cost['measured']).removesuffix(WORDS.get(name, '')).strip()} ({predicted or '-'})"

    limits = list(found["limits"])
    header = ["candidate", "student", "steps", f"{found['figure']}, validation", *(f"{WORDS.get(name, name)}, measured (predicted)" for name in limits), ""]
    rows = []
    for row in found["rows"]:
        words = [word for word, on in (("chosen", row["chosen"]), ("over budget", row["fits"] is False), ("front", row["front"])) if on]
        figure = plus_minus(row["value"], row["error"])
        rows.append([row["number"], row["what"], f"{row['steps']:,}", figure, *(costs(row, name) for name in limits), ", ".join(words)])
    final = [[f"chosen: {found['what']}", plus_minus(found["value"], found["error"])]]
    if "teacher" in found:
        final.append(["teacher", _pair(found["teacher"])])
    if "ratio_to_teacher" in found:
        final.append(["chosen / teacher", _pair(found["ratio_to_teacher"])])
    if "reference" in found:
        final.append([f"reference cut {found['reference']['cut']}", f"{found['reference']['value']:.4f}"])
    lines = [table(rows, header), "", table(final, [f"{found['figure']} at {found['request']}", f"{found['split']} split"]), ""]
    lines.append(table(_budget(found), ["budget", ""]))
    return "\n".join([*lines, "", f"plots: {', '.join(found['plots'])}"])


def _pair(figure: dict[str, float]) -> str:
    from hlt_train.report.table import plus_minus

    return plus_minus(figure["value"], figure["error"])


def _front(front: dict[str, Any], run: str) -> str:
    from hlt_train.report.table import table

    rows = []
    for point in front["points"]:
        figures = [f"{point['cross_entropy']:.5g}", f"{point['accuracy']:.5g}", f"{point['alive']:,}"]
        rows.append([f"{point['point']}", f"{point['cost']:,.6g}", *figures, "trained on" if point["point"] == front["chosen"] else ""])
    header = ["front", front["unit"].replace("_", " "), "cross-entropy", "accuracy", "weights", ""]
    return table(rows, header) + f"\nhlt-train export {run}/front/N, or evaluate; figures of the golden evaluator, validation\n{run}/front.svg"


def _comparison(found: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    def line(name: str, rate: float | None, figures: dict[str, Any]) -> list[str]:
        seeds = "" if figures.get("seeds_error") is None else f"{figures['seeds_error']:.4f}"
        significance = f"{figures['significance']:.1f}" if figures is found["difference"] and figures["significance"] is not None else ""
        low = "" if figures.get("low") is None else f"{figures['low']:.4f}"
        return [name, "" if rate is None else f"{rate:g}", f"{figures['value']:.4f}", seeds, f"{figures['events_error']:.4f}", low, significance]

    rows = [line(arm, found["learning_rates"][arm], figures) for arm, figures in found["arms"].items()]
    rows.append(line("distilled - alone", None, found["difference"]))
    if found["teacher"] is not None:
        rows.append(line("teacher", None, found["teacher"]))
    if found["ratio"] is not None:
        rows += [line(f"{arm} / teacher", None, figures) for arm, figures in found["ratio"].items()]
    header = [f"{found['figure']} at {found['request']}", "learning rate", "mean", "error (seeds)", "error (events)", "95 % from", "value / error"]
    return table(rows, header) + f"\n{found['seeds']} seeds, {found['split']} split; the run is {found['chosen']}"


def _trial(result: dict[str, Any]) -> str:
    from hlt_train.report.table import table

    rows = [[key.replace("_", " "), value if isinstance(value, str) else f"{value}"] for key, value in result.items() if key != "parameters"]
    rows += [[f"parameter {name}", str(shape)] for name, shape in result["parameters"].items()]
    return table(rows, ["dry run", ""])
