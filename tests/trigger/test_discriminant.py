"""The discriminant against the plain formula."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from hlt_train.errors import UsageError
from hlt_train.trigger.discriminant import Discriminant, discriminant

CLASSES = ("g", "q", "t")


def test_is_the_log_of_the_ratio_of_mixtures() -> None:
    logits = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    p = softmax(logits.astype(np.float64), axis=1)
    spec = Discriminant.of({"t": 2.0}, {"g": 3.0, "q": 1.0}, CLASSES)
    assert spec.document() == {"signal": {"t": 1.0}, "background": {"g": 0.75, "q": 0.25}}
    np.testing.assert_allclose(discriminant(logits, CLASSES, spec), np.log(p[:, 2] / (0.75 * p[:, 0] + 0.25 * p[:, 1])), rtol=1e-12)


def test_two_classes_give_the_exact_difference() -> None:
    logits = np.array([[1.5, -2.25], [1e4, 3.0]])
    found = discriminant(logits, ("qcd", "hh"), Discriminant.of(["hh"], ["qcd"], ("qcd", "hh")))
    assert found.tolist() == [-3.75, 3.0 - 1e4]


def test_large_logits_do_not_overflow() -> None:
    spec = Discriminant.of(["t"], ["g", "q"], CLASSES)
    assert np.isfinite(discriminant(np.array([[3e4, -3e4, 0.0]]), CLASSES, spec)).all()


@pytest.mark.parametrize(
    ("signal", "background", "match"),
    [
        (["T"], ["g"], "no class is called 'T'"),
        ([], ["g"], "names no class"),
        (["t"], ["t", "g"], "both signal and background"),
        ({"t": 0.0}, ["g"], "above zero"),
    ],
)
def test_refusals(signal: object, background: object, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Discriminant.of(signal, background, CLASSES)


def test_shape_is_checked() -> None:
    with pytest.raises(UsageError, match=r"\[n, 3\]"):
        discriminant(np.zeros((4, 2)), CLASSES, Discriminant.of(["t"], ["g"], CLASSES))
