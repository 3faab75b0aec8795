"""Augmentation: what a training batch goes through before it is normalised, anew in every step.

The section `augment` names transforms (`hlt_train.augmentations`, one per file) with their options; they act in alphabetical order of their names, each with a
random key of its own, made from the run's seed, the worker and the step. A run with them resumes to the bit, as any other.

Transforms see the raw features: what they do is physical (an angle, a relative energy), and means the same whatever the normalisation. They see training
batches only: validation, working points and test know nothing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from hlt_train import plugins
from hlt_train.augmentations import Transform
from hlt_train.errors import UsageError
from hlt_train.late_normalisation import normalised
from hlt_train.learning import Learning, Loss
from hlt_train.types import Batch, Features, Inputs

__all__ = ["augmented", "augmenting", "check_augment"]


def check_augment(section: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The section with every option that was given, of its type; unknown transforms and options are refused with the nearest."""
    found = {}
    for name, options in section.items():
        if options is not None and not isinstance(options, Mapping):
            raise UsageError(f"a transform takes options by name, got {options!r}", where=f"augment.{name}", then=f"--set augment.{name}={{}}")
        plugins.parse_options("augmentations", name, dict(options or {}))
        found[name] = dict(options or {})
    return found


def augmenting(section: Mapping[str, Mapping[str, Any]], inputs: Inputs) -> Transform:
    """(raw features, key) -> raw features after every transform of the section.

    Raises:
        UsageError: a transform does not find its columns.
    """
    transforms: list[Transform] = []
    for name in sorted(section):
        options = plugins.parse_options("augmentations", name, dict(section[name]))
        transforms.append(plugins.factory("augmentations", name)(inputs, **options))

    def augment(x: Features, key: Any) -> Features:
        for number, transform in enumerate(transforms):
            x = transform(x, jax.random.fold_in(key, number))
        return x

    return augment


def augmented(section: Mapping[str, Mapping[str, Any]], inputs: Inputs, loss: Loss) -> Learning | None:
    """What is learnt from augmented batches, where the loss itself is the validated one; None without transforms."""
    if not section:
        return None
    augment: Callable[[Features, Any], Features] = augmenting(section, inputs)

    def prepare(batch: Batch, key: Any) -> Batch:
        return batch._replace(x=normalised(inputs, augment(batch.x, key)))

    return Learning(loss, prepare=prepare, raw=True)
