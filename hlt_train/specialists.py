"""`specialists`: find the classes that a generalist confuses, train a specialist on each set of them, and join all to one ensemble.

    DIR/generalist        the generalist's network at BEST, copied: an ensemble needs nothing outside of its directory
    DIR/sets.json         the sets, with their shares, corrections and how often they are confused (format `hlt-train/specialist-sets`)
    DIR/teacher_logits.*  the generalist's logits, where specialists learn from them (`--lambda`)
    DIR/specialists/<k>   one run per set, from 1; `specialist.json` is written last and marks a finished one
    DIR/ensemble.json     what the ensemble consists of: from here on DIR is a teacher, and can be evaluated and predicted with
    DIR/figures.json      generalist, specialists and ensemble compared on the test split

After Hinton, Vinyals, Dean, arXiv:1503.02531, section 5; where we deviate is said in `confusable`, `dustbin` and `combination`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from scipy.special import softmax

from hlt_train import checkpoints, devices
from hlt_train.configuration import check
from hlt_train.confusable import Predictions, confusable_sets, largest_count
from hlt_train.data.card import Card
from hlt_train.data.dataset import Dataset, open_dataset
from hlt_train.distil import leave_if
from hlt_train.dustbin import DUSTBIN, correction
from hlt_train.ensemble import Ensemble, open_ensemble, part_of
from hlt_train.ensemble_document import is_ensemble
from hlt_train.ensemble_document import write as write_ensemble
from hlt_train.errors import HltTrainError, Interrupted, RunFailed, UsageError, nearest
from hlt_train.evaluate import evaluate
from hlt_train.files import check_new, read_document, write_bytes, write_document, write_text
from hlt_train.preparation import check_batch, check_names, check_same, plain, row_counts
from hlt_train.progress import Progress
from hlt_train.restore import Loaded, load_run, parameters, predict_rows
from hlt_train.run import Run, constraints, read_config
from hlt_train.scoring import write_working_points
from hlt_train.signals import StopRequest
from hlt_train.soft_targets import soft_targets
from hlt_train.specialist_figures import specialist_figures
from hlt_train.specialist_training import Shared, SpecialistsConfig, prepare_specialist, specialist_folder, train_specialist
from hlt_train.teachers import open_teacher
from hlt_train.training import Trainer
from hlt_train.trial import trial

__all__ = ["dry_run", "resume", "specialists"]

GENERALIST, SETS, FIGURES = "generalist", "sets.json", "figures.json"


def specialists(config: SpecialistsConfig, path: Path, *, progress: Progress) -> dict[str, Any]:
    """Make a new ensemble in `path`. Returns its figures; raises `Interrupted` after saving when a signal comes."""
    devices.prepare(config.devices)
    mesh = devices.mesh(config.devices)
    check_new(path, option="--run")
    _check(config, mesh)
    with Run.create(path) as run:
        try:
            _adopt(load_run(Path(config.generalist)), run.path / GENERALIST)
            config, dataset = _opened(config, load_run(run.path / GENERALIST), progress)
            with dataset:
                _describe(config, dataset, mesh, run, progress)
        except BaseException:
            run.discard()
            raise
        return _make(config, mesh, run, progress, inexact=False, again=False)


def resume(path: Path, *, inexact: bool = False, progress: Progress) -> dict[str, Any]:
    """Continue an ensemble where it was: specialists that are finished are not trained again."""
    with Run.open(path) as run:
        stored = read_config(run.path)
        if stored.get("verb") == "specialist":
            raise UsageError("one specialist of an ensemble", where=str(run.path), then=f"hlt-train specialists --resume {run.path.parent.parent}")
        if stored.get("verb") != "specialists":
            raise UsageError(f"this run was made by '{stored.get('verb')}'", where=str(run.path), then=f"hlt-train {stored.get('verb')} --resume {path}")
        config = check(SpecialistsConfig, stored, where=str(run.path / "config.yaml"))
        devices.prepare(config.devices, run.provenance()["environment"]["nproc"])
        return _make(config, devices.mesh(config.devices), run, progress, inexact=inexact, again=True)


def dry_run(config: SpecialistsConfig, *, progress: Progress) -> dict[str, Any]:
    """Find the sets, compile the first specialist, run one step. Writes nothing."""
    devices.prepare(config.devices)
    mesh = devices.mesh(config.devices)
    _check(config, mesh)
    generalist = load_run(Path(config.generalist))
    config, dataset = _opened(config, generalist, progress)
    with dataset:
        found = _sets(config, generalist, dataset, progress)
        shared = Shared(config, generalist, dataset, found["sets"], np.array(found["mean"]), _extra(config, generalist, dataset, None, progress), mesh)
        ready = prepare_specialist(shared, 0)
        tried = trial(Trainer(ready.task, ready.plan, ready.strategy, mesh, None, progress, ready.schedule))
    return {"sets": found["sets"], "outputs": list(ready.spec.outputs), "rows": row_counts(dataset), **tried}


def _check(config: SpecialistsConfig, mesh: Mesh) -> None:
    check_batch(config, mesh)
    check_names(config)
    if config.sets is not None and (config.count is not None or config.size is not None):
        raise UsageError("the sets are given, so that --count and --size have nothing to say", where="sets", then="leave them out")
    if config.size is not None and config.count is None:
        raise UsageError("sets of one size may overlap, so that there is no largest number of them", where="size", then="--count N")


def _opened(config: SpecialistsConfig, generalist: Loaded, progress: Progress) -> tuple[SpecialistsConfig, Dataset]:
    """The configuration with its card, and the files, opened."""
    classes = tuple(generalist.card.labels.classes)
    if generalist.spec.precision is not None or generalist.names != classes:
        what = "a generalist is a float network with one output per class; this is a fixed-point student or a specialist"
        raise UsageError(what, where=str(generalist.path), then="hlt-train fit trains one")
    if DUSTBIN in classes:
        raise UsageError(f"a class cannot be called '{DUSTBIN}': that is a specialist's name for all others", where="labels.classes")
    card = generalist.card if config.card is None else config.card
    if card.model_copy(update={"samples": generalist.card.samples}) != generalist.card:
        raise UsageError("specialists read the card of their generalist; only the files can be others", where="card", then="--files NAME=GLOB")
    progress("opening the files")
    return config.model_copy(update={"card": card, "generalist": str(Path(config.generalist).resolve())}), open_dataset(card, threads=config.threads)


def _describe(config: SpecialistsConfig, dataset: Dataset, mesh: Mesh, run: Run, progress: Progress) -> None:
    """Everything that is known before the first step; `config.yaml` last: with it, it is a run."""
    generalist = load_run(run.path / GENERALIST)
    found = _sets(config, generalist, dataset, progress)
    write_document(run.path / SETS, "hlt-train/specialist-sets", 1, found)
    write_text(run.path / "constraints.txt", constraints())
    parent = {"path": config.generalist, "step": generalist.step, "which": generalist.which}
    run.write_provenance({"environment": devices.environment(mesh), "data": plain(dataset.report), "parent": parent})
    run.write_config(config.model_copy(update={"devices": devices.workers(mesh)}).stored())
    for warning in dataset.warnings:
        progress(f"warning: {warning}")
        run.log(f"warning: {warning}")
    run.log(f"specialists: {'; '.join(', '.join(each['classes']) for each in found['sets'])}")


def _adopt(source: Loaded, folder: Path) -> None:
    """A copy of a run's network at BEST that can be evaluated; it cannot be resumed."""
    checkpoint = Path("checkpoints") / str(source.step)
    names = [checkpoint / "weights.npz", checkpoint / "state.json", *map(Path, ("model.json", "normalisation.json", "working_points.json", "BEST"))]
    for name in (*names, Path("config.yaml")):
        if (source.path / name).is_file():
            write_bytes(folder / name, (source.path / name).read_bytes())


def _sets(config: SpecialistsConfig, generalist: Loaded, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """The content of `sets.json`: from the generalist's probabilities on the training split, or as configured."""
    classes = generalist.card.labels.classes
    given = None if config.sets is None else [_indices(names, classes) for names in config.sets]
    predictions, done, total = Predictions(len(classes)), 0, dataset.size("train")
    for rows in dataset.iterate("train", columns="training"):
        predictions.add(softmax(predict_rows(generalist, rows.x).astype(np.float64), axis=1), rows.label, rows.weight)
        done += len(rows)
        progress.update(done, total, "the generalist's predictions")
    if given is None:
        given = confusable_sets(predictions.covariance, config.count or largest_count(predictions.covariance), config.size)
    sets = []
    for members in given:
        share = predictions.share(members)
        names = [classes[c] for c in members]
        sets.append({"classes": names, "share": share, "correction": correction(share), "confused": predictions.confused(members)})
        progress(f"set {len(sets)}: {', '.join(names)}")
    return {"found": config.sets is None, "classes": list(classes), "mean": predictions.mean.tolist(), "sets": sets}


def _indices(names: list[str], classes: list[str]) -> tuple[int, ...]:
    for name in names:
        if name not in classes:
            raise UsageError(f"no class is called '{name}'", where="sets", near=nearest(name, classes) or tuple(classes))
    if not 2 <= len(set(names)) == len(names) < len(classes):
        what = f"'{', '.join(names)}' is no specialist's set: it takes two distinct classes or more, and leaves one or more to the dustbin"
        raise UsageError(what, where="sets", then=f"classes: {', '.join(classes)}")
    return tuple(sorted(classes.index(name) for name in names))


def _extra(config: SpecialistsConfig, generalist: Loaded, dataset: Dataset, folder: Path | None, progress: Progress) -> dict[str, dict[str, np.ndarray]]:
    """The generalist's logits, where specialists learn from them."""
    if config.share == 0:
        return {}
    teacher = open_teacher(generalist.path, dataset.card)
    return soft_targets([teacher], dataset, folder, weights=[1.0], how="geometric", most_unmatched=0.0, progress=progress).extra


def _stored_sets(path: Path) -> tuple[list[dict[str, Any]], np.ndarray]:
    """(sets, mean probabilities) of `sets.json`."""
    content = read_document(path, "hlt-train/specialist-sets", 1)
    try:
        sets = [{"classes": list(s["classes"]), **{key: float(s[key]) for key in ("share", "correction")}, "confused": s["confused"]} for s in content["sets"]]
        return sets, np.array(content["mean"], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFailed(f"damaged sets: {error!r}", where=str(path), then="hlt-train specialists GENERALIST_RUN --run DIR makes new ones") from error


def _make(config: SpecialistsConfig, mesh: Mesh, run: Run, progress: Progress, *, inexact: bool, again: bool) -> dict[str, Any]:
    """Train what is not trained yet, and close the ensemble."""
    generalist, (sets, means) = load_run(run.path / GENERALIST), _stored_sets(run.path / SETS)
    card = config.card
    assert isinstance(card, Card)
    try:
        with StopRequest() as stop, open_dataset(card, threads=config.threads) as dataset:
            if not is_ensemble(run.path):
                extra = _extra(config, generalist, dataset, run.path, progress)
                shared = Shared(config, generalist, dataset, sets, means, extra, mesh)
                if again:
                    check_same(prepare_specialist(shared, 0)._replace(config=config), mesh, run, inexact=inexact)
                for k in range(len(shared.sets)):
                    train_specialist(shared, k, specialist_folder(run.path, k), progress)
                    leave_if(stop, f"specialist {k + 1}")
                _close(shared, run)
            return _report(run, dataset, sets, progress)
    except Interrupted as stopped:
        raise Interrupted(stopped.what, where=stopped.where, then=f"hlt-train specialists --resume {run.path}") from stopped


def _close(shared: Shared, run: Run) -> None:
    """Write `ensemble.json`."""
    parts = [part_of(load_run(specialist_folder(run.path, k)), run.path, tuple(own["classes"]), own["correction"]) for k, own in enumerate(shared.sets)]
    whole = part_of(shared.generalist, run.path, tuple(shared.generalist.card.labels.classes), 0.0)
    write_ensemble(run.path, whole, parts, shared.config.top)
    run.log(f"an ensemble of a generalist and {len(parts)} specialists")


def _at_working_points(run: Run, ensemble: Ensemble, dataset: Dataset, progress: Progress) -> dict[str, Any]:
    """Thresholds of the ensemble, and both networks side by side. What stands in their way (a sample without rate) is said; the ensemble is none the worse."""
    try:
        points = write_working_points(run.path, dataset, progress=progress)
        files = {name: sample.files for name, sample in dataset.card.samples.items()}
        found = evaluate([ensemble.generalist.path, ensemble.path], files=files, latency=False, progress=progress)
    except HltTrainError as error:
        run.log(f"no working points: {error.what}")
        progress(f"no working points: {error}")
        return {}
    return {"working_points": [] if points is None else points["points"], "evaluation": plain(found)}


def _report(run: Run, dataset: Dataset, sets: list[dict[str, Any]], progress: Progress) -> dict[str, Any]:
    """What the command says; the figures are computed once."""
    ensemble = open_ensemble(run.path)
    runs = [ensemble.generalist, *(s.run for s in ensemble.specialists)]
    size = sum(int(np.size(leaf)) for each in runs for leaf in checkpoints.to_arrays(parameters(each.model)).values())
    found: dict[str, Any] = {"run": str(run.path), "generalist": read_config(run.path)["generalist"], "parameters": size, "sets": sets}
    if not (run.path / FIGURES).is_file():
        content: dict[str, Any] = {"figures": None, "evaluation": None, "working_points": []}
        if dataset.size("test"):
            content["figures"] = specialist_figures(ensemble, dataset, "test", progress=progress)
            content |= _at_working_points(run, ensemble, dataset, progress)
        else:
            progress("no figures: the test split is empty")
        write_document(run.path / FIGURES, "hlt-train/specialist-figures", 1, content)
    stored = read_document(run.path / FIGURES, "hlt-train/specialist-figures", 1)
    return {**found, **{key: value for key, value in stored.items() if key not in ("format", "version")}}
