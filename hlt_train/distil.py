"""`distil`: train a student, fixed point by default, from a teacher run; `resume` continues it, `dry_run` tries it.

A student is trained in stages that share its steps: a float warm-up (in `RUN/warmup`, a run of its own), then training on the grid of its formats from
the warm-up's best weights. Formats that say `auto` are chosen between the two, from the ranges that the warm-up reached. With a section `widths` their bits
are learned there too, in a stage of its own (`RUN/widths`) that leaves a front of students (`RUN/front`). The teacher's logits are computed once, by identity
(`hlt_train.teacher_logits`); the teacher is never part of the student. Every figure of a fixed-point student that is reported comes from the golden evaluator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jax.sharding import Mesh

from hlt_train import checkpoints, devices, front, widths
from hlt_train.calibration import calibrate, needs_calibration
from hlt_train.configuration import check, merge, steps_of
from hlt_train.data import normalise
from hlt_train.data.dataset import Dataset, evenly
from hlt_train.errors import Interrupted, UsageError
from hlt_train.files import check_new, write_document
from hlt_train.following import parts
from hlt_train.hints import HINT
from hlt_train.learning import Rule
from hlt_train.precision.config import Precision
from hlt_train.preparation import Prepared, assemble, check_same, describe, row_counts, train
from hlt_train.progress import Progress
from hlt_train.pruning import pruning, without_bits
from hlt_train.restore import ModelSpec, build_model, load_run, outline, parameters, settled, with_weights, write_model
from hlt_train.run import Run, read_config
from hlt_train.signals import StopRequest
from hlt_train.stage import stage
from hlt_train.student import ROWS, golden_figures, refuse_saturated, saturation, training_only
from hlt_train.student_learning import hint_columns, student_learning
from hlt_train.study import DistilConfig, Study, check_config, float_form, losses_of, open_study, precision_of, without
from hlt_train.training import Trainer
from hlt_train.trial import trial
from hlt_train.types import Features, Inputs
from hlt_train.width_tables import check_cost

__all__ = ["STUDENT", "DistilConfig", "distil", "dry_run", "finished", "leave_if", "resume", "total_steps", "train_student"]

STUDENT = "student.json"
Restore = Literal["same", "extended"] | None


def distil(config: DistilConfig, path: Path, *, progress: Progress) -> dict[str, Any]:
    """Train a new student (or, with `seeds`, all of a comparison) in `path`. Raises `Interrupted` after saving when a signal comes."""
    devices.prepare(config.devices)
    mesh = devices.mesh(config.devices)
    check_new(path, option="--run")
    check_config(config, mesh)
    with Run.create(path) as run:
        try:
            study = _opened(config, mesh, run.path, progress)
            with _closing(study):
                _refuse_over(study, progress)
        except BaseException:
            run.discard()
            raise
        with study.dataset:
            return _train(study, run, progress, restore=None)


def resume(path: Path, *, length: str | None = None, inexact: bool = False, progress: Progress) -> dict[str, Any]:
    """Continue a student, or a comparison, where it was: to its end or to a later one (`length`, not for comparisons)."""
    front.check_not_a_point(path)
    with Run.open(path) as run:
        from hlt_train.search import home

        base = home(run.path)
        stored = read_config(base)
        if stored.get("verb") != "distil":
            raise UsageError(f"this run was made by '{stored.get('verb')}'", where=str(run.path), then=f"hlt-train {stored.get('verb')} --resume {path}")
        config = check(DistilConfig, merge(stored, {} if length is None else {"for": length}), where=str(run.path / "config.yaml"))
        if length is not None and config.seeds is not None:
            raise UsageError("a comparison over seeds has a fixed length", where=str(run.path), then="a new --run with another --for")
        if length is not None and config.search is not None:
            raise UsageError(
                "a search has a fixed length", where=str(run.path), then=f"a new --run with --config {run.path}/search/config.yaml and another --for"
            )
        devices.prepare(config.devices, run.provenance()["environment"]["nproc"])
        mesh = devices.mesh(config.devices)
        study = _opened(config, mesh, run.path, progress, inputs=normalise.load(base / "normalisation.json"))
        with study.dataset:
            return _train(study, run, progress, restore="same" if length is None else "extended", inexact=inexact)


def dry_run(config: DistilConfig, *, progress: Progress) -> dict[str, Any]:
    """Open everything, compile, run one step; the network stays float where its formats are still to be chosen. Writes no run."""
    devices.prepare(config.devices)
    mesh = devices.mesh(config.devices)
    check_config(config, mesh)
    if config.search is not None:
        raise UsageError("a search has no one network to try", where="--dry-run", then="add --model NAME to try that one")
    study = _opened(config, mesh, None, progress)
    with study.dataset:
        precision = precision_of(study.spec)
        spec = float_form(study.spec) if precision is not None and needs_calibration(precision) else study.spec
        network = build_model(spec, study.inputs, config.seed)
        total = total_steps(config, study)
        first = _share_of(config.warmup, total) if config.precision is not None and config.warmup else total
        ready = prepared(study, config, spec, network, steps=first, hinted=True)
        tried = trial(Trainer(ready.task, ready.plan, ready.strategy, mesh, None, progress, ready.schedule))
    groups = {g.name: list(g.shape) for g in study.inputs.groups}
    return {"inputs": groups, "outputs": list(spec.outputs), "rows": row_counts(study.dataset), "teacher": study.figures, **tried}


def _refuse_over(study: Study, progress: Progress) -> None:
    """Before a run is begun: a cost or budget that could not be measured here, a search that could not go on, or one student that cannot keep its budget."""
    if study.config.widths is not None:
        check_cost(study.config.widths, study.spec.name, study.inputs)
    if study.config.search is not None:
        from hlt_train.search import refuse

        refuse(study)
    elif study.config.budget is not None:
        from hlt_train.within_budget import foreseen

        foreseen(study, progress)


def _train(study: Study, run: Run, progress: Progress, restore: Restore, *, inexact: bool = False) -> dict[str, Any]:
    try:
        with StopRequest() as stop:
            if study.config.search is not None:
                from hlt_train.search import search

                return search(study, run, progress, stop, restore=restore, inexact=inexact)
            if study.config.seeds is not None:
                from hlt_train.seeds import compare

                return compare(study, run, progress, stop, restore=restore, inexact=inexact)
            result = train_student(study, run, progress, stop, restore=restore, inexact=inexact)
            if study.config.budget is None:
                return result
            from hlt_train.within_budget import settled

            return settled(study, run, result, progress)
    except Interrupted as stopped:
        raise Interrupted(stopped.what, where=stopped.where, then=f"hlt-train distil --resume {run.path}") from stopped


def leave_if(stop: StopRequest, after: str) -> None:
    """Stop between two trainings, where everything is on disk, when a signal came at the very end of the first."""
    if stop.received:
        raise Interrupted(f"{stop.received}: stopped after {after}")


def train_student(study: Study, run: Run, progress: Progress, stop: StopRequest, *, restore: Restore, inexact: bool = False) -> dict[str, Any]:
    """One student in `run`: warm-up, formats, training on the grid, golden figures."""
    config, spec = study.config, study.spec
    total = total_steps(config, study)
    warm = _stage_steps(run, "warmup", config.warmup, total) if spec.precision is not None else 0
    learn = 0 if config.widths is None else _stage_steps(run, widths.FOLDER, config.widths.share, total)
    last = total - warm - learn
    main = config.model_copy(update={"length": f"{last}steps", "learning_rate": config.learning_rate * (config.fine_tune if warm else 1)})
    network = build_model(float_form(spec) if warm else spec, study.inputs, config.seed)
    if restore is None:
        _write(study, run, main, spec, network, steps=last, hinted=not warm)
    if warm:
        network = _warmed(study, run, network, warm, progress)
        leave_if(stop, "the float warm-up")
        spec = _decided(study, network, spec)
        if config.pruning is not None:
            precision = precision_of(spec)
            assert precision is not None
            spec = spec._replace(precision=without_bits(precision, network).to_config())
        if learn:
            network, spec = widths.learn_widths(study, run, network, spec, learn, progress)
            leave_if(stop, "the bits were learned")
        else:
            network = with_weights(build_model(spec, study.inputs, config.seed), network)
    if parts(network):
        spec = spec._replace(moving=spec.precision)
    if warm or parts(network):
        write_model(run.path, spec)
    still_spec, still = settled(spec, study.inputs, network)
    # What training on the grid starts from: the warm-up's network as it is, in the student's formats.
    only = None if spec.precision is None else training_only(still, study.inputs, spec.outputs)
    if only is not None:
        progress(f"warning: no golden figures, working points and exports: {only}")
    post = golden_figures(load_run(run.path / "warmup")._replace(model=still, spec=still_spec), study.dataset) if warm and only is None else None
    started = checkpoints.pointed(run.path, "LAST") is not None
    if spec.precision is not None and not started:
        _check_saturation(study, still, still_spec)
    ready = prepared(study, main, spec, network, steps=last, hinted=not warm)
    if restore is not None:
        check_same(ready, study.mesh, run, inexact=inexact)
        run.write_config(config.stored())
    summary = train(ready, study.mesh, run, progress, restore=restore if started else None)
    return _report(study, run, {**summary, "warmup_steps": warm, "widths_steps": learn}, post)


def total_steps(config: DistilConfig, study: Study) -> int:
    """Steps of all stages."""
    rows = study.dataset.size("train")
    return steps_of(config.length, rows=rows, steps_per_epoch=-(-rows // config.batch))


def prepared(study: Study, config: DistilConfig, spec: ModelSpec, network: Any, *, steps: int, hinted: bool, around: Rule | None = None) -> Prepared:
    """The parts of one stage: `config` says its length and learning rate; steps, hinted: see `student_learning`; around: see `assemble`."""
    learning = student_learning(study, network, steps=steps, hinted=hinted)
    losses = losses_of(study, network)
    extra = study.extra if hinted else without(study.extra, HINT)
    return assemble(config, study.dataset, study.inputs, spec, parameters(network), losses, study.mesh, None, extra, learning, around)


def _opened(config: DistilConfig, mesh: Mesh, folder: Path | None, progress: Progress, inputs: Inputs | None = None) -> Study:
    """The study; hints, objectives and transforms that this student cannot have are refused before the first step."""
    study = open_study(config, mesh, folder, progress, inputs)
    with _closing(study):
        student_learning(study, outline(float_form(study.spec), study.inputs), steps=total_steps(study.config, study), hinted=True)
        return hint_columns(study)


@contextlib.contextmanager
def _closing(study: Study) -> Iterator[None]:
    """Close its files where it is refused."""
    try:
        yield
    except BaseException:
        study.dataset.close()
        raise


def _write(study: Study, run: Run, main: DistilConfig, spec: ModelSpec, network: Any, *, steps: int, hinted: bool) -> None:
    """The directory before the first step."""
    ready = prepared(study, main, spec, network, steps=steps, hinted=hinted)
    stored = study.config.model_copy(update={"devices": ready.config.devices})
    describe(ready._replace(config=stored), study.mesh, run, {"teacher": study.figures})


def _stage_steps(run: Run, folder: str, share: float, total: int) -> int:
    """Steps of a stage before training on the grid: of the one that is there, else the configured share."""
    if (run.path / folder / "config.yaml").is_file():
        return steps_of(str(read_config(run.path / folder)["for"]), rows=1, steps_per_epoch=1)
    return _share_of(share, total)


def _share_of(share: float, total: int) -> int:
    """Steps of a share, one left for what comes after it."""
    return min(round(share * total), total - 1)


def _warmed(study: Study, run: Run, network: Any, steps: int, progress: Progress) -> Any:
    """The float network at the warm-up's BEST; trains it from `network`, or the rest of it, first."""
    folder = run.path / "warmup"
    if _trained(folder, steps):
        return load_run(folder).model
    config = study.config.model_copy(update={"length": f"{steps}steps", "precision": None, "seeds": None, "lr_scan": None})
    ready = prepared(study, config, float_form(study.spec), network, steps=steps, hinted=True, around=pruning(config.pruning, steps))
    with stage(ready, folder, study.mesh) as (own, again):
        trainer = Trainer(ready.task, ready.plan, ready.strategy, study.mesh, own, progress, ready.schedule)
        if again:
            trainer.restore(extended=False)
        progress(f"float warm-up: {steps:,} steps")
        trainer.train()
    return load_run(folder).model


def _trained(folder: Path, steps: int) -> bool:
    """Whether the training in `folder` came to its end."""
    last = checkpoints.pointed(folder, "LAST")
    return last is not None and (last == steps or bool(checkpoints.document(folder, last)["tally"]["stopped_early"]))


def _decided(study: Study, network: Any, spec: ModelSpec) -> ModelSpec:
    """The student's description with concrete formats."""
    precision = precision_of(spec)
    if precision is None or not needs_calibration(precision):
        return spec

    def build(wanted: Precision | None) -> Any:
        return outline(spec._replace(precision=None if wanted is None else wanted.to_config()), study.inputs)

    rows = normalise.apply(study.inputs, some_rows(study.dataset))
    return spec._replace(precision=calibrate(build, network, precision, rows).to_config())


def some_rows(dataset: Dataset, most: int = ROWS) -> Features:
    """Raw features of at most `most` training rows, spread evenly over the clusters; at most 32 clusters are read."""
    rows = dataset.spread("train", 32)
    return rows.x.take(evenly(len(rows), most))


def _check_saturation(study: Study, network: Any, spec: ModelSpec) -> dict[str, dict[str, float]]:
    found = saturation(network, study.inputs, some_rows(study.dataset))
    precision = precision_of(spec)
    assert precision is not None
    refuse_saturated(found, {layer: {role: str(precision.format(layer, role)) for role in roles} for layer, roles in found.items()})
    return found


def _report(study: Study, run: Run, summary: dict[str, Any], post: dict[str, Any] | None) -> dict[str, Any]:
    """Golden figures at BEST, and those of post-training quantisation beside them; `student.json` is written last and marks a finished student."""
    loaded = load_run(run.path)
    student: dict[str, Any] = {"parameters": summary["parameters"], "teacher": study.figures, "formats": None, "golden": None, "saturation": None}
    student |= {"post_training": post, "training_only": None, "front": front.read_front(run.path)}
    precision = precision_of(loaded.spec)
    if precision is not None:
        saturated = _check_saturation(study, loaded.model, loaded.spec)
        only = training_only(loaded.model, loaded.inputs, loaded.names)
        golden = golden_figures(loaded, study.dataset) if only is None else None
        if loaded.spec.moving is not None:
            write_model(run.path, loaded.spec)  # as it is lowered: BEST with its own exponents
        student |= {"formats": precision.to_config(), "golden": golden, "saturation": saturated, "training_only": only}
    config = study.config
    student |= {"temperature": config.temperature, "lambda": config.share, "matching": config.matching, "learning_rate": config.learning_rate}
    student |= {"hints": config.hints, "objective": config.objective, "augment": config.augment}
    write_document(run.path / STUDENT, "hlt-train/student", 1, student)
    return {**summary, **student}


def finished(path: Path) -> bool:
    """Whether the student in `path` was trained to its end."""
    return (path / STUDENT).is_file()
