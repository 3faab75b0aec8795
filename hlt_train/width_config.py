"""The section `widths` of a student's configuration: how the bits of its formats are learned."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

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
        cost: what is to be low: bit operations, LUTs of an FPGA, or ns of the C++ header on a processor (`hlt_train.width_costs`).
        budget: the most that the chosen point may cost, in the unit of the cost; None: the point with the least loss is chosen.
        latency_table: of `bench --calibrate`, for the cost `cpu`; None: one is made.
        isa: code path of the C++ header, for the cost `cpu`; None: the one that the processor takes.
        learning_rate: factor of the student's rate, which is constant in this stage.
    """

    share: float = Field(0.3, gt=0, lt=1)
    weights: Granularity = "element"
    activations: Granularity = "element"
    beta: tuple[PositiveFloat, PositiveFloat] = (0.01, 10.0)
    keep: PositiveInt = 8
    cost: Literal["bit_operations", "luts", "cpu"] = "bit_operations"
    budget: PositiveFloat | None = None
    latency_table: str | None = None
    isa: str | None = None
    learning_rate: PositiveFloat = 1.0

    @field_validator("beta")
    @classmethod
    def _grows(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("beta grows from the first number to the second")
        return value

    @field_validator("latency_table")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        """A run may be resumed from elsewhere."""
        return None if value is None else str(Path(value).expanduser().absolute())

    @model_validator(mode="after")
    def _belongs(self) -> Widths:
        if self.cost != "cpu" and (self.latency_table is not None or self.isa is not None):
            raise ValueError(f"'latency_table' and 'isa' belong to the cost cpu, not to {self.cost}")
        return self
