"""The section `widths` of a student's configuration: how the bits of its formats are learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from hlt_train.configuration import Configuration

__all__ = ["Widths"]

Granularity = Literal["tensor", "channel", "element"]


class Widths(Configuration):
    """Keys of `widths`.

    Attributes:
        share: of the student's steps.
        weights: which weights of a layer share their bits: all (tensor), those of an output (channel), none (element).
        activations: likewise; a feature, or an input variable, is both a channel and an element.
        beta: of the relative cost in the loss, at the first and at the last step; it grows by the same factor in every step, and so one run sweeps the front.
        keep: points of the front that are kept at most.
        budget: the most bit operations that the chosen point may have; None: the point with the least loss is chosen.
        learning_rate: factor of the student's rate, which is constant in this stage.
    """

    share: float = Field(0.3, gt=0, lt=1)
    weights: Granularity = "element"
    activations: Granularity = "element"
    beta: tuple[PositiveFloat, PositiveFloat] = (0.01, 10.0)
    keep: PositiveInt = 8
    budget: PositiveFloat | None = None
    learning_rate: PositiveFloat = 1.0

    @field_validator("beta")
    @classmethod
    def _grows(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("beta grows from the first number to the second")
        return value
