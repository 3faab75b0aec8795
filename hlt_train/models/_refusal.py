"""The refusal of a network that the graph IR has no nodes for: by name, with the models that can be lowered instead."""

from __future__ import annotations

from hlt_train.errors import UsageError

__all__ = ["NoGraph", "no_graph"]


class NoGraph(UsageError):
    """A network that can be trained and evaluated, but neither be exported nor be made fixed point. Distilling it into one of `near` is the way out."""


def no_graph(model: str, what: str, instead: tuple[str, ...], then: str = "") -> NoGraph:
    """The refusal of `model`, because of `what`; `instead`: models for the same inputs that have a graph, the nearest first; `then`: the next command."""
    return NoGraph(
        f"{model} has no graph, neither float nor fixed point: {what}",
        where=f"model '{model}'",
        near=instead,
        then=then or f"hlt-train distil RUN --model {instead[0]} trains a student that can be exported",
    )
