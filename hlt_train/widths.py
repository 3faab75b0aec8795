"""The stage in which a student learns the bits of its formats: from the float warm-up's weights to a front of students, and the one to train on.

Bits begin as those of the formats asked for and are parameters beside the weights (`hlt_train.models._widths`). The loss gets beta times the cost relative to
the cost at the beginning; beta grows in every step, so one run goes from the dear end of the front to the cheap one. Every epoch leaves a candidate with the
figures of the training forward (`hlt_train.width_candidates`). At the end the bits of those that may be the front are made formats, the networks are lowered,
and the golden evaluator says what they are worth on the validation split. No figure of a point comes from the training forward.

After Sun et al. (arXiv:2405.00645): per-parameter bits by gradient, a growing beta, every point of the front saved. Their cost is the sum of weight bits times
activation bits over all multiplications, ours by default too (sums and biases, which their count holds, cost nothing here); others are `hlt_train.width_costs`.
The cost enters through its gradient, before the optimiser's step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from hlt_train import front
from hlt_train.answers import weighted_answers
from hlt_train.cost import cost
from hlt_train.data.dataset import Dataset
from hlt_train.errors import HltTrainError, RunFailed, UsageError
from hlt_train.front import Judged, Point
from hlt_train.graph import Affine, Graph, evaluate
from hlt_train.hints import HINT
from hlt_train.models._widths import Learned, learning
from hlt_train.preparation import Prepared, assemble
from hlt_train.progress import Progress
from hlt_train.restore import Loaded, ModelSpec, load_run, lowered, outline, parameters
from hlt_train.run import Run
from hlt_train.scoring import write_working_points
from hlt_train.stage import stage
from hlt_train.student_learning import student_learning
from hlt_train.study import Study, losses_of, precision_of, without
from hlt_train.training import Trainer
from hlt_train.types import Rows
from hlt_train.width_candidates import Candidate, Candidates, pareto, thinned
from hlt_train.width_tables import cost_of

__all__ = ["FOLDER", "costed", "learn_widths"]

FOLDER, CANDIDATES = "widths", "candidates"
MOST = 1 << 18  # validation rows by which points are judged


class _Costed(NamedTuple):
    own: Any
    step: jax.Array


def costed(inner: optax.GradientTransformation, price: Callable[[Any], jax.Array], beta: Callable[[Any], Any]) -> optax.GradientTransformation:
    """The optimiser of loss + beta(step) price(parameters)."""

    def init(params: Any) -> _Costed:
        return _Costed(inner.init(params), jnp.zeros((), jnp.int32))

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        assert params is not None
        factor = beta(state.step)
        total = jax.tree.map(lambda g, c: g + factor * c, gradients, jax.grad(price)(params))
        updates, own = inner.update(total, state.own, params)
        return updates, _Costed(own, state.step + 1)

    return optax.GradientTransformation(init, update)


def learn_widths(study: Study, run: Run, network: Any, spec: ModelSpec, steps: int, progress: Progress) -> tuple[Any, ModelSpec]:
    """Learn the bits, or the rest of them, and publish the front in `run`. Returns the chosen student's float weights and its description.

    Args:
        study: what is learnt.
        run: of the student.
        network: the float warm-up's.
        spec: the student's description with concrete formats, which the bits begin with.
        steps: of this stage.
        progress: where to say how far it is.
    """
    if front.read_front(run.path) is None:
        _sweep(study, run, network, spec, steps, progress)
    found = front.read_front(run.path)
    assert found is not None
    loaded = load_run(run.path / front.FOLDER / str(found["chosen"]))
    return loaded.model, loaded.spec


def _sweep(study: Study, run: Run, network: Any, spec: ModelSpec, steps: int, progress: Progress) -> None:
    config, section = study.config, study.config.widths
    assert section is not None
    learned = learning(network, outline(spec, study.inputs), study.inputs, section.weights, section.activations, pruned=config.pruning is not None)
    params = parameters(learned)

    asked = precision_of(spec)
    assert asked is not None
    unit, priced, figure = cost_of(study, run, learned.fixed(study.inputs, asked)[0].lower(study.inputs, spec.outputs, None), progress)

    @jax.jit
    def price(of: Any) -> jax.Array:
        return priced(_learned(learned, of))

    begin = float(price(params))

    def beta(step: Any) -> Any:
        return section.beta[0] * (section.beta[1] / section.beta[0]) ** (step / steps)

    update = {"length": f"{steps}steps", "seeds": None, "lr_scan": None, "patience": None, "schedule": {"name": "constant_schedule"}}
    own = config.model_copy(update={**update, "learning_rate": config.learning_rate * section.learning_rate})
    around = lambda optimiser: costed(optimiser, lambda of: price(of) / begin, beta)  # noqa: E731
    more = student_learning(study, learned, steps=steps, hinted=False)
    extra = without(study.extra, HINT)
    ready = assemble(own, study.dataset, study.inputs, spec, params, losses_of(study, learned), study.mesh, None, extra, more, around)
    folder = run.path / FOLDER
    with stage(ready, folder, study.mesh) as (held, again):
        trainer = _Sweeper(ready, study, held, progress, lambda of, step: (float(beta(step)), float(price(of))))
        if again:
            trainer.restore(extended=False)
        trainer.candidates = Candidates(folder / CANDIDATES, trainer.tally.step)
        progress(f"learning bits: {steps:,} steps")
        trainer.train()
        judge = _Judge(study, learned, spec, figure, held)
        judged = _golden(trainer.candidates, section.keep, section.budget, judge)
        best = front.chosen([one.point for one in judged], section.budget)
        for path in front.publish(run.path, judged, best, unit, study.inputs, config.stored(), section.budget):
            _working_points(path, study.dataset, held, progress)


def _golden(candidates: Candidates, keep: int, budget: float | None, judge: Callable[[Candidate, Candidates], Judged | None]) -> list[Judged]:
    """The front of those candidates that the training forward would publish, judged; one that cannot be a student makes room for the next."""
    left, known = candidates.all, dict[Candidate, Judged]()
    while left:
        within = [one for one in left if budget is None or one.cost <= budget]
        best = min(within, key=lambda one: one.cross_entropy) if within else min(left, key=lambda one: one.cost)
        wanted = thinned(left, keep, best)
        for one in wanted:
            made = known.get(one) or judge(one, candidates)
            if made is None:
                left = [other for other in left if other != one]
            else:
                known[one] = made
        if all(one in left for one in wanted):
            made_of = {known[one].point: known[one] for one in wanted}
            return [made_of[point] for point in pareto(list(made_of))]
    raise RunFailed(
        "none of the networks whose bits were learned can be a student", where="widths", then="the log of RUN/widths says why; fewer bits in precision"
    )


def _learned(learned: Learned, params: Any) -> Learned:
    made: Learned = eqx.combine(params, eqx.filter(learned, eqx.is_inexact_array, inverse=True))
    return made


def _working_points(path: Path, dataset: Dataset, run: Run, progress: Progress) -> None:
    """Thresholds of a point; what stands in their way is said, as for any run."""
    try:
        write_working_points(path, dataset, progress=progress)
    except HltTrainError as error:
        run.log(f"no working points of {path}: {error.what}")


class _Judge:
    """Makes a student of learned bits and says what it is worth."""

    def __init__(self, study: Study, learned: Learned, spec: ModelSpec, figure: Callable[[Graph], float], run: Run) -> None:
        self._study, self._learned, self._spec, self._figure, self._run = study, learned, spec, figure, run
        self._rows: Rows | None = None

    def __call__(self, candidate: Candidate, candidates: Candidates) -> Judged | None:
        """None, and a line in the log, where its formats cannot be held."""
        params = jax.tree.map(jnp.asarray, candidates.parameters(candidate, parameters(self._learned)))
        own, study = _learned(self._learned, params), self._study
        asked = precision_of(self._spec)
        assert asked is not None
        try:
            network, precision = own.fixed(study.inputs, asked)
            spec = self._spec._replace(precision=precision.to_config())
            graph = lowered(Loaded(Path(), study.dataset.card, study.inputs, network, spec.outputs, spec, {}, 0, ""))
            price = self._figure(graph)
            loss, accuracy = self._worth(graph)
        except UsageError as error:
            self._run.log(f"step {candidate.step}: no student: {error.what}")
            return None
        bits = cost(graph)["bit_operations"]
        alive = sum(int(np.count_nonzero(node.w)) for node in graph.nodes if isinstance(node, Affine))
        self._run.log(f"step {candidate.step}: as a student cost {price:g}, cross-entropy {loss:.5g}, accuracy {accuracy:.5g}")
        point = Point(candidate.step, candidate.beta, price, loss, accuracy, bits, alive)
        return Judged(point, spec, jax.device_get(parameters(network)))

    def _worth(self, graph: Graph) -> tuple[float, float]:
        """Cross-entropy and accuracy with training weights."""
        rows = self._rows = self._rows or _some_of("validation", self._study.dataset)
        f = graph.structure[graph.output.name].f
        assert f is not None
        logits = np.ldexp(evaluate(graph, rows.x).astype(np.float64), -f.astype(np.int32))[:, : self._study.classes]
        loss, right, total = weighted_answers(logits, rows.label, rows.weight)
        return loss / total, right / total


def _some_of(split: str, dataset: Dataset) -> Rows:
    """All rows of a split, or those of clusters spread evenly over it: about `MOST`."""
    share = min(1.0, MOST / max(dataset.size(split), 1))
    return dataset.spread(split, max(1, round(np.count_nonzero(dataset.counts[split]) * share)))


class _Sweeper(Trainer):
    """A trainer that keeps candidates; each is written before the checkpoint of its epoch.

    Args:
        priced: (parameters, step) -> (beta, cost).
    """

    candidates: Candidates

    def __init__(self, ready: Prepared, study: Study, run: Run, progress: Progress, priced: Callable[[Any, int], tuple[float, float]]) -> None:
        super().__init__(ready.task, ready.plan, ready.strategy, study.mesh, run, progress, ready.schedule)
        self._priced = priced

    def _validated(self, figures: dict[str, float]) -> None:
        params, step = self._weights(), self.tally.step
        candidate = Candidate(step, *self._priced(params, step), figures["hard"])
        kept = self.candidates.add(candidate, params)
        self.record.run.log(f"step {step}: cost {candidate.cost:g}, beta {candidate.beta:.3g}{' (candidate)' if kept else ''}")
