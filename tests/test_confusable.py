"""Groups of confusable classes: planted ones are found, and what makes no sense is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import softmax

from hlt_train.confusable import Predictions, clusters, confusable_sets
from hlt_train.errors import UsageError


def planted(groups: list[list[int]], order: np.ndarray, seed: int = 0, n: int = 4000) -> Predictions:
    """A network that knows the group of every row and guesses the class within it; class c is called order[c]."""
    rng = np.random.default_rng(seed)
    classes = sum(len(g) for g in groups)
    label = rng.integers(0, classes, n)
    logits = rng.normal(0, 1, (n, classes))
    for group in groups:
        logits[np.ix_(np.isin(label, group), group)] += 6
    found = Predictions(classes)
    for part in np.array_split(np.arange(n), 3):
        probability = np.empty((len(part), classes))
        probability[:, order] = softmax(logits[part], axis=1)
        found.add(probability, order[label[part]], np.ones(len(part)))
    return found


def named(groups: list[list[int]], order: np.ndarray) -> list[tuple[int, ...]]:
    return sorted(tuple(sorted(int(order[c]) for c in g)) for g in groups if len(g) > 1)


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3], [4]], [[0, 1, 2], [3, 4], [5, 6], [7]], [[0, 1], [2]], [[0, 3, 5], [1, 2, 4]]])
def test_planted_groups_are_found_whatever_the_classes_are_called(groups: list[list[int]]) -> None:
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(sum(len(g) for g in groups))
        wanted = named(groups, order)
        assert confusable_sets(planted(groups, order, seed).covariance, len(wanted)) == wanted


def test_sums_over_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(1)
    p, label, w = softmax(rng.normal(0, 1, (500, 4)), axis=1), rng.integers(0, 4, 500), rng.uniform(0, 2, 500)
    found = Predictions(4)
    for part in np.array_split(np.arange(500), 7):
        found.add(p[part], label[part].astype(np.int32), w[part])
    np.testing.assert_allclose(found.mean, np.average(p, axis=0, weights=w))
    np.testing.assert_allclose(found.covariance, np.cov(p, rowvar=False, aweights=w, ddof=0), atol=1e-14)
    assert found.share((0, 2)) == pytest.approx(w[np.isin(label, (0, 2))].sum() / w.sum())
    inside, guess = np.isin(label, (1, 3)), p.argmax(axis=1)
    confused = found.confused((1, 3))
    assert confused["within"] == pytest.approx(w[inside & (guess != label) & np.isin(guess, (1, 3))].sum() / w[inside].sum())
    assert confused["outside"] == pytest.approx(w[inside & ~np.isin(guess, (1, 3))].sum() / w[inside].sum())


def test_the_best_partition_of_few_points_is_found() -> None:
    """Against all partitions of seven points into three clusters."""

    def spread(points: np.ndarray, member: np.ndarray) -> float:
        return sum(float(((points[member == k] - points[member == k].mean(axis=0)) ** 2).sum()) for k in np.unique(member))

    for seed in range(5):
        points = np.random.default_rng(seed).normal(0, 1, (7, 2))
        best = min(spread(points, np.array(member)) for member in itertools.product(range(3), repeat=7))
        assert spread(points, clusters(points, 3)[0]) == pytest.approx(best)


def test_sets_of_one_size_overlap() -> None:
    """Classes in a row, each confused with its neighbours: the middle one is near both ends."""
    rng = np.random.default_rng(0)
    found, place = Predictions(5), rng.uniform(0, 4, 4000)
    found.add(softmax(-2 * np.abs(place[:, None] - np.arange(5)), axis=1), place.round().astype(int), np.ones(4000))
    first, second = confusable_sets(found.covariance, 2, size=3)
    assert (len(first), len(second)) == (3, 3)
    assert set(first) & set(second)
    disjoint = confusable_sets(found.covariance, 2)
    assert not set(disjoint[0]) & set(disjoint[1])


@pytest.mark.parametrize(
    ("classes", "count", "size", "says"),
    [
        (2, 1, None, "nothing to specialise in"),
        (5, 3, None, "do not fall into 3 distinct sets of two or more"),
        (5, 2, 5, "a set of 5 of 5 classes"),
        (5, 2, 1, "a set of 1 of 5 classes"),
        (3, 9, 2, "do not fall into 9 distinct sets of 2"),
    ],
)
def test_what_makes_no_sense(classes: int, count: int, size: int | None, says: str) -> None:
    covariance = np.cov(np.random.default_rng(0).dirichlet(np.ones(classes), 200), rowvar=False)
    with pytest.raises(UsageError, match=says):
        confusable_sets(covariance, count, size)
