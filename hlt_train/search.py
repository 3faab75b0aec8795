"""The search within a budget: candidates that may fit are trained a little, the best of them longer, the last are measured, and RUN becomes the best that fits.

    RUN/search/config.yaml, normalisation.json   the search itself: `--config RUN/search/config.yaml` runs it again
    RUN/search/journal.log                       Optuna's study
    RUN/search/search.json                       everything that was tried and decided (`hlt_train.search_record`)
    RUN/search/candidates/<number>/<steps>       a run directory for each rung of each candidate
    RUN/search/latency_table.json, lut_surrogate.json
    RUN/search/front_<limit>.svg                 efficiency against cost
    RUN                                          the chosen student, a run like any other
    RUN/export                                   it, exported and certified, the budget and what was measured in the certificate

A proposal whose predicted cost exceeds a limit is never trained. What is proposed depends on the seed, the tables and the data, not on how fast a machine is:
only the choice among finalists rests on measured times. A candidate that reached a rung is never trained to it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from hlt_train import halving
from hlt_train.adoption import adopt
from hlt_train.appraisal import code_path, measure, predict, refuse_missing
from hlt_train.candidates import Candidates
from hlt_train.distil import total_steps
from hlt_train.errors import UsageError
from hlt_train.files import write_bytes
from hlt_train.hunt import Hunt, Work
from hlt_train.preparation import assemble, describe
from hlt_train.progress import Progress
from hlt_train.restore import build_model, load_run, parameters
from hlt_train.run import Run, read_config
from hlt_train.sampling import Trials
from hlt_train.scorers import discriminant_of
from hlt_train.search_outcome import outcome
from hlt_train.search_record import Record
from hlt_train.search_space import Space, propose, space_of
from hlt_train.search_tables import tables
from hlt_train.signals import StopRequest
from hlt_train.study import Study, float_form, losses_of

__all__ = ["home", "refuse", "search"]

Restore = Literal["same", "extended"] | None


def home(run: Path) -> Path:
    """Where the configuration and the normalisation that a run resumes with are: of a search not in the run itself, which becomes a student."""
    return run / "search" if (run / "search" / "config.yaml").is_file() else run


def refuse(study: Study) -> None:
    """Refuse, before a run is begun, a search that could not go on or could not measure its finalists."""
    budget = study.config.budget
    assert budget is not None
    if discriminant_of(study.dataset.card) is None:
        raise UsageError("a search compares at a working point, but the card tells no signal from background", where="trigger.discriminant")
    for split in ("validation", "test"):
        if study.dataset.size(split) == 0:
            raise UsageError(f"a search compares on the validation split and reports on the test split; the {split} split is empty", where="splits")
    _space(study)
    refuse_missing(budget)
    if budget.isa is not None:
        code_path(budget.isa)


def _space(study: Study) -> Space:
    config = study.config
    assert config.search is not None
    assert config.budget is not None
    return space_of(config.search, {g.name: g.length for g in study.inputs.groups}, config.budget, config.precision or {})


def search(study: Study, run: Run, progress: Progress, stop: StopRequest, *, restore: Restore, inexact: bool) -> dict[str, Any]:
    """Find the best student within the budget and make RUN it. Returns the figures of that student with `search`.

    Raises:
        BudgetNotMet: nothing fits; the message has the nearest miss.
    """
    config = study.config
    assert config.search is not None
    assert config.budget is not None
    budget = config.budget
    space = _space(study)
    _begin(study, run, new=restore is None)
    rungs = halving.rung_steps(total_steps(config, study), config.search.rungs, config.search.factor)
    with Candidates(study, run, progress, stop, inexact=inexact) as candidates:
        found = tables(budget, candidates, space, run, progress)
        head = {"space": {k: list(v) if isinstance(v, tuple) else v for k, v in space._asdict().items()}, "budget": budget.model_dump(mode="json")}
        record = Record(run.path / "search" / "search.json", {**head, "isa": found.isa, "rungs": rungs, "factor": config.search.factor, "seed": config.seed})
        work = Work(
            lambda proposal: predict(budget, found, *candidates.graph(proposal)),
            candidates.advance,
            lambda number, proposal: measure(budget, found.isa, load_run(candidates.folder(number)), candidates.study(proposal).dataset),
        )
        hunt = Hunt(budget, config.search, rungs, record, work, progress)
        hunt.first_rung(Trials(run.path / "search" / "journal.log", config.seed), lambda choose: propose(space, choose))
        for rung in range(1, len(rungs)):
            hunt.next_rung(rung)
        chosen = hunt.finalist()
        if record.content["chosen"] is None:
            record.content["chosen"] = chosen
            record.save()
        folder = candidates.folder(chosen)
        adopt(run.path, folder)
        run.write_config({**read_config(folder), "budget": budget.model_dump(mode="json")})
        return outcome(study, candidates.study(hunt.proposal(chosen)), budget, record, run, progress)


def _begin(study: Study, run: Run, *, new: bool) -> None:
    """The directory of the search, and its configuration where RUN's own will be that of the student."""
    if new:
        spec = float_form(study.spec)
        network = build_model(spec, study.inputs, study.config.seed)
        ready = assemble(study.config, study.dataset, study.inputs, spec, parameters(network), losses_of(study, network), study.mesh, None, study.extra)
        stored = study.config.model_copy(update={"devices": ready.config.devices})
        describe(ready._replace(config=stored, spec=study.spec), study.mesh, run, {"teacher": study.figures})
    if home(run.path) == run.path:
        for name in ("normalisation.json", "config.yaml"):  # config.yaml last: with it, it is a search
            write_bytes(run.path / "search" / name, (run.path / name).read_bytes())
