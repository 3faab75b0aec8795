"""Does distillation help? The same student trained alone and distilled, with the same steps, over several seeds, compared on the same events.

    RUN/seeds/<k>/{alone,distilled}     full run directories, seed `seed + k`
    RUN/scan/<arm>/<rate>               first seed at the learning rates that were not chosen (`--lr-scan`; each arm's best on validation is)
    RUN                                 the distilled seed that is best on validation
    RUN/seeds.json                      the comparison (format `hlt-train/seeds`)

A student that is finished is never trained again: a resumed comparison goes on with the first one that is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from hlt_train.adoption import adopt
from hlt_train.comparison import Comparison, best_on_validation, compare_runs
from hlt_train.distil import STUDENT, finished, leave_if, train_student
from hlt_train.errors import UsageError
from hlt_train.files import read_document, write_document
from hlt_train.preparation import assemble, describe
from hlt_train.progress import Progress
from hlt_train.restore import build_model, parameters
from hlt_train.run import Run, read_config
from hlt_train.scorers import discriminant_of
from hlt_train.signals import StopRequest
from hlt_train.stage import begun
from hlt_train.study import Study, alone, float_form, losses_of

__all__ = ["ARMS", "FILE", "compare"]

ARMS = ("alone", "distilled")
FORMAT, FILE = "hlt-train/seeds", "seeds.json"
Restore = Literal["same", "extended"] | None


def compare(study: Study, run: Run, progress: Progress, stop: StopRequest, *, restore: Restore, inexact: bool) -> dict[str, Any]:
    """Train both arms for every seed, compare them, make RUN the best distilled student. Returns the comparison."""
    config = study.config
    assert config.seeds is not None
    if discriminant_of(study.dataset.card) is None:
        raise UsageError("--seeds compares at a working point, but the card tells no signal from background", where="trigger.discriminant")
    if config.share == 0:
        raise UsageError("--seeds compares with a distilled student, and --lambda 0 does not listen to the teacher", then="--lambda 1")
    if restore is None:
        _begin(study, run)
    folders: dict[str, list[Path]] = {}
    rates: dict[str, float] = {}
    for arm in ARMS:
        rates[arm] = _rate(study, run, arm, progress, stop, inexact=inexact)
        folders[arm] = [run.path / "seeds" / str(k) / arm for k in range(config.seeds)]
        for k, folder in enumerate(folders[arm]):
            progress(f"{arm}, seed {k + 1} of {config.seeds}, learning rate {rates[arm]:g}")
            _student(study, arm, folder, config.seed + k, rates[arm], progress, stop, inexact=inexact)
    found: Comparison = compare_runs(folders["alone"], folders["distilled"], study, progress)
    best = best_on_validation(folders["distilled"], study, progress)
    adopt(run.path, folders["distilled"][best])
    content = {**found, "learning_rates": rates, "chosen_seed": config.seed + best, "chosen": str(folders["distilled"][best].relative_to(run.path))}
    write_document(run.path / FILE, FORMAT, 1, content)
    run.log(f"comparison over {config.seeds} seeds done; RUN is {content['chosen']}")
    student = {k: v for k, v in read_document(run.path / STUDENT, "hlt-train/student", 1).items() if k not in ("format", "version")}
    return {"run": str(run.path), "model": study.spec.name, "comparison": content, **student}


def _begin(study: Study, run: Run) -> None:
    """The directory of the comparison."""
    spec = float_form(study.spec)
    network = build_model(spec, study.inputs, study.config.seed)
    ready = assemble(study.config, study.dataset, study.inputs, spec, parameters(network), losses_of(study, network), study.mesh, None, study.extra)
    stored = study.config.model_copy(update={"devices": ready.config.devices})
    describe(ready._replace(config=stored, spec=study.spec), study.mesh, run, {"teacher": study.figures})


def _student(study: Study, arm: str, folder: Path, seed: int, rate: float, progress: Progress, stop: StopRequest, *, inexact: bool) -> None:
    """Train one student to its end, or the rest of it."""
    if finished(folder):
        return
    own = alone(study) if arm == "alone" else study
    own = own._replace(config=own.config.model_copy(update={"seed": seed, "learning_rate": rate, "seeds": None, "lr_scan": None}))
    with begun(folder) as (run, again):
        train_student(own, run, progress, stop, restore="same" if again else None, inexact=inexact)
    leave_if(stop, f"'{arm}' with seed {seed}")


def _rate(study: Study, run: Run, arm: str, progress: Progress, stop: StopRequest, *, inexact: bool) -> float:
    """The learning rate of an arm: the one given, or the best of the scan for the first seed on validation; the chosen run becomes that seed's."""
    first = run.path / "seeds" / "0" / arm
    if (first / "config.yaml").is_file():
        return float(read_config(first)["learning_rate"])
    rates = study.config.lr_scan or [study.config.learning_rate]
    if len(rates) == 1:
        return rates[0]
    folders = [run.path / "scan" / arm / f"{rate:g}" for rate in rates]
    for rate, folder in zip(rates, folders, strict=True):
        progress(f"{arm}, learning rate {rate:g} of {', '.join(f'{r:g}' for r in rates)}")
        _student(study, arm, folder, study.config.seed, rate, progress, stop, inexact=inexact)
    best = best_on_validation(folders, study, progress)
    first.parent.mkdir(parents=True, exist_ok=True)
    folders[best].rename(first)
    return rates[best]
