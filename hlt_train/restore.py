"""Runs read back: the network of a finished or running run with its weights, inputs and card, and its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from hlt_train import checkpoints, devices, following, plugins
from hlt_train.data import normalise
from hlt_train.data.card import Card
from hlt_train.dead_units import without_dead_units
from hlt_train.ensemble_document import is_ensemble
from hlt_train.errors import UsageError
from hlt_train.files import read_document, write_document
from hlt_train.graph import Graph
from hlt_train.precision.config import Precision
from hlt_train.run import read_config
from hlt_train.transports.lockstep import INIT, actor_key
from hlt_train.types import Features, Inputs

__all__ = [
    "MODEL_ACTOR",
    "Loaded",
    "ModelSpec",
    "build_model",
    "load_run",
    "outline",
    "parameters",
    "predict_rows",
    "settled",
    "with_params",
    "with_weights",
    "write_model",
]

MODEL_ACTOR = 0xFFFF_FFFE
FORMAT = "hlt-train/model"


class ModelSpec(NamedTuple):
    """What `model.json` says.

    Attributes:
        name: of the plugin in `hlt_train.models`.
        options: of the plugin, JSON-able, without `precision`.
        outputs: names of the logits, in order.
        precision: `Precision.to_config()`, None for a float network.
        score: the integer combination of logits to cut on, None for float networks.
        moving: the formats as they are trained, where some are dynamic: those of the checkpoints; `precision` has those of BEST then. None elsewhere.
    """

    name: str
    options: dict[str, Any]
    outputs: tuple[str, ...]
    precision: dict[str, Any] | None = None
    score: tuple[int, ...] | None = None
    moving: dict[str, Any] | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], outputs: Sequence[str]) -> ModelSpec:
        """From the `model` section of a configuration: `name` and options. Unknown names and options are refused with the nearest ones."""
        options = {key: value for key, value in config.items() if key not in ("name", "precision")}
        plugins.parse_options("models", config["name"], options)
        precision = config.get("precision")
        return cls(config["name"], options, tuple(outputs), None if precision is None else Precision.from_config(precision).to_config())


class Loaded(NamedTuple):
    """A run, read back. `step` and `which` say which checkpoint the weights are from; `config` is the run's whole configuration."""

    path: Path
    card: Card
    inputs: Inputs
    model: eqx.Module
    names: tuple[str, ...]
    spec: ModelSpec
    config: dict[str, Any]
    step: int
    which: str


def build_model(spec: ModelSpec, inputs: Inputs, seed: int) -> eqx.Module:
    """The network with its initial weights, which depend on the seed alone. Made in one compiled call."""
    model: eqx.Module = devices.once(_maker(spec, inputs))(actor_key(seed, MODEL_ACTOR, INIT))
    return model


def outline(spec: ModelSpec, inputs: Inputs) -> eqx.Module:
    """The network with zeros for weights, made without computing anything: a place for stored weights, or a check of options and formats."""
    shapes = eqx.filter_eval_shape(_maker(spec, inputs), jax.random.key(0))
    model: eqx.Module = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return model


def _maker(spec: ModelSpec, inputs: Inputs) -> Callable[[jax.Array], eqx.Module]:
    """Random key -> network."""
    options = plugins.parse_options("models", spec.name, spec.options)
    if spec.precision is not None:
        options["precision"] = Precision.from_config(spec.precision)
    factory = plugins.factory("models", spec.name)
    return lambda key: factory(inputs, len(spec.outputs), key, **options)


def parameters(model: eqx.Module) -> Any:
    """What is trained: the model's float arrays; everything else is None."""
    return eqx.filter(model, eqx.is_inexact_array)


def with_params(model: eqx.Module, params: Any) -> eqx.Module:
    """The model with other parameters."""
    combined: eqx.Module = eqx.combine(params, eqx.filter(model, eqx.is_inexact_array, inverse=True))
    return combined


def write_model(run: Path, spec: ModelSpec) -> None:
    """Write `model.json`."""
    content = spec._asdict()
    if spec.moving is None:  # what version 1 says
        del content["moving"]
    write_document(run / "model.json", FORMAT, 1 if spec.moving is None else 2, content)


def load_run(path: Path, which: str = "BEST") -> Loaded:
    """Load the network of a run at `BEST` (lowest validation loss) or `LAST`."""
    if is_ensemble(path):
        raise UsageError("an ensemble is not one network", where=str(path), then=f"hlt-train distil {path} --run DIR trains one from it")
    config = read_config(path) if path.is_dir() else None
    if config is None or not (path / "config.yaml").is_file():
        raise UsageError("not a run directory", where=str(path), then="hlt-train fit --run DIR makes one")
    step = checkpoints.pointed(path, which)
    if step is None:
        raise UsageError(f"the run has no {which} checkpoint yet", where=str(path), then=f"hlt-train {config.get('verb', 'fit')} --resume {path}")
    document = {"moving": None, **read_document(path / "model.json", FORMAT, 2)}
    fields = {name: document[name] for name in ModelSpec._fields}
    score = None if fields["score"] is None else tuple(fields["score"])
    spec = ModelSpec(**{**fields, "outputs": tuple(fields["outputs"]), "score": score})
    inputs = normalise.load(path / "normalisation.json")
    model = outline(spec if spec.moving is None else spec._replace(precision=spec.moving), inputs)
    stored = checkpoints.to_tree(checkpoints.load(path, step, "weights"), parameters(model), where=str(path / "checkpoints" / str(step)))
    params = jax.tree.map(jnp.asarray, stored)
    card = Card.model_validate(config["card"])
    spec, model = settled(spec, inputs, with_params(model, params))
    return Loaded(path, card, inputs, model, spec.outputs, spec, config, step, which)


def settled(spec: ModelSpec, inputs: Inputs, model: eqx.Module) -> tuple[ModelSpec, eqx.Module]:
    """The same network with its dynamic formats at the exponents that they have reached, fixed point from now on; `moving` says how they were trained.

    A network without dynamic formats is what it was.
    """
    asked = spec.precision if spec.moving is None else spec.moving
    if asked is None or not following.parts(model):
        return spec, model
    found = spec._replace(precision=following.reached(model, Precision.from_config(asked)).to_config(), moving=asked)
    return found, with_weights(outline(found, inputs), model)


def with_weights(model: eqx.Module, other: eqx.Module) -> eqx.Module:
    """The model with the weights of the same network in other formats; exponents of dynamic formats stay its own."""
    own = parameters(model)
    weights = checkpoints.to_arrays(following.without_exponents(parameters(other)))
    params = checkpoints.to_tree(weights, following.without_exponents(own), where="the weights of a network in other formats")
    return with_params(model, eqx.combine(jax.tree.map(jnp.asarray, params), own))


def lowered(loaded: Loaded) -> Graph:
    """The graph of a run's network, without units that do not matter."""
    score = None if loaded.spec.score is None else np.array(loaded.spec.score, np.int64)
    graph: Graph = loaded.model.lower(loaded.inputs, loaded.names, score)  # type: ignore[attr-defined]
    return without_dead_units(graph)


def predict_rows(loaded: Loaded, x: Features, *, batch: int = 4096) -> np.ndarray:
    """Logits, float32 `[n, outputs]`, of raw features, in padded batches of one size: the bits of a row do not depend on how many rows come with it."""
    n = len(next(iter(x.groups.values())))
    found = np.empty((n, len(loaded.names)), np.float32)
    for start in range(0, n, batch):
        rows = normalise.apply(loaded.inputs, x.take(slice(start, start + batch)))
        part = jax.tree.map(lambda leaf: _padded(leaf, batch), rows)
        stop = min(start + batch, n)
        found[start:stop] = np.asarray(_forward(loaded.model, part))[: stop - start]
    return found


def _padded(leaf: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([leaf, np.zeros((rows - len(leaf), *leaf.shape[1:]), leaf.dtype)]) if len(leaf) < rows else leaf


@eqx.filter_jit
def _forward(model: eqx.Module, x: Features) -> jax.Array:
    logits: jax.Array = model(x)  # type: ignore[operator]
    return logits
