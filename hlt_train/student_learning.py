"""What a student learns besides the loss that is validated: hints, a rate-aware objective, the teacher's answers on augmented rows; put together for one stage.

step = mean of training weights times (answers [+ hint])  [+ rate objective, with rate weights of its own]
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train.augmentation import augmenting
from hlt_train.beside import Beside, Companion
from hlt_train.distillation_loss import LOGITS, MATCHED, head_of
from hlt_train.errors import UsageError
from hlt_train.hints import HINT, Hint, Hints, hidden_layers, layer_of
from hlt_train.late_normalisation import normalised
from hlt_train.learning import Learning
from hlt_train.rate_objective import RateObjective, discriminant_in
from hlt_train.restore import MODEL_ACTOR
from hlt_train.scorers import discriminant_of
from hlt_train.study import Study, losses_of
from hlt_train.task import weighted_mean
from hlt_train.teacher_in_loop import Frozen, frozen, joint_logits
from hlt_train.transports.lockstep import INIT, actor_key
from hlt_train.types import Batch

__all__ = ["hint_columns", "student_learning"]

HINT_KEY = 0x417


def student_learning(study: Study, network: eqx.Module, *, steps: int, hinted: bool) -> Learning | None:
    """What the gradients of one stage are taken of; None where that is the validated loss.

    Args:
        study: the student's.
        network: of this stage, for its shapes and formats.
        steps: of this stage.
        hinted: whether hints belong to it. Only the first stage has them: the regressor is not kept, and a second one would begin with a random one.
    """
    config = study.config
    hints = Hints.from_config(config.hints) if config.hints is not None and hinted else None
    objective = None if config.objective is None else RateObjective.from_config(config.objective)
    if hints is None and objective is None and not config.augment:
        return None
    companions: dict[str, Companion] = {}
    hint, layer, cached = None, "", False
    if hints is not None:
        hint, layer = _hint(study, hints, _only(study), network, steps)
        cached = hints.cached and not config.augment
        companions |= hint.companions(jax.random.fold_in(actor_key(config.seed, MODEL_ACTOR, INIT), HINT_KEY))
    if objective is not None:
        companions |= objective.companions()
    losses, mean_weight = losses_of(study, network), float(study.dataset.mean_weight)
    static = eqx.filter(network, eqx.is_inexact_array, inverse=True)
    sides = discriminant_of(study.dataset.card)
    head = None if sides is None else head_of(study.inputs.classes, sides.signal, sides.background)

    def loss(params: Beside, batch: Batch, key: Any) -> jax.Array:
        rows, _ = losses(params.network, batch, key)
        whole: Any = eqx.combine(params.network, static)
        if hint is not None:
            rows = hint.joined(rows, hint.rows(whole, params.others, batch.x, batch.extra[HINT]), params.others)
        value = weighted_mean(rows, batch, mean_weight)
        if hint is not None:
            value = value + hint.counts(params.others)
        if objective is not None:
            assert head is not None
            signal, background = np.array(head.signal, np.float32), np.array(head.background, np.float32)
            # The same forward pass as above: the compiler computes it once.
            score = discriminant_in(whole(batch.x, key=key), study.classes, signal, background, head=study.head is not None)
            value = value + objective.loss(score, batch, params.others)
        return value

    if not config.augment and (hint is None or cached):
        return Learning(loss, companions)
    answers = bool(config.augment) and config.share > 0
    teachers = _teachers(study, "an augmented batch" if config.augment else "a hint") if answers or hint is not None else []
    augment = augmenting(config.augment, study.inputs)

    def prepare(batch: Batch, key: Any) -> Batch:
        raw = augment(batch.x, key)
        extra = dict(batch.extra)
        if answers:
            extra |= {LOGITS: joint_logits(teachers, config.weights, config.mean, raw), MATCHED: jnp.ones_like(batch.extra[MATCHED])}
        if hint is not None:
            extra[HINT] = teachers[0].hidden(raw, layer)
        return batch._replace(x=normalised(study.inputs, raw), extra=extra)

    return Learning(loss, companions, prepare, raw=True)


def hint_columns(study: Study) -> Study:
    """The study with the teacher's hidden layer among the columns of the training split, where hints are cached."""
    config = study.config
    hints = None if config.hints is None else Hints.from_config(config.hints)
    if hints is None or not hints.cached or config.augment:
        return study
    teacher = _only(study)
    layer = layer_of(hints.teacher, hidden_layers(teacher.network, teacher.inputs, "teacher"), "teacher")
    hidden = teacher.hidden_rows(study.dataset, "train", layer)
    return study._replace(extra={**study.extra, "train": {**study.extra.get("train", {}), HINT: hidden}})


def _teachers(study: Study, why: str) -> list[Frozen]:
    return [frozen(teacher, study.dataset.card, study.inputs, study.inputs.classes, why) for teacher in study.teachers]


def _only(study: Study) -> Frozen:
    """The teacher that hints come from."""
    if len(study.teachers) > 1:
        raise UsageError(f"hints come from one teacher, here are {len(study.teachers)}", where="hints", then="distil from one of them, or without hints")
    return _teachers(study, "a hint")[0]


def _hint(study: Study, hints: Hints, teacher: Frozen, network: eqx.Module, steps: int) -> tuple[Hint, str]:
    """The hint, and the teacher's layer."""
    theirs = hidden_layers(teacher.network, teacher.inputs, "teacher")
    ours = hidden_layers(network, study.inputs, "student")
    taught, learnt = layer_of(hints.teacher, theirs, "teacher"), layer_of(hints.student, ours, "student")
    first = round(hints.first * steps)
    if hints.weight == 0 and first == 0:
        raise UsageError(f"a share of {hints.first:g} of {steps} steps leaves no step for the hint", where="hints.first", then="more steps, or a larger share")
    return Hint(learnt, ours[learnt], theirs[taught], hints.weight, first), taught
