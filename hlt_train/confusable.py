"""Which classes a network confuses: groups of classes that it predicts together, found from its probabilities alone.

After Hinton, Vinyals, Dean (arXiv:1503.02531, section 5.3): the columns of the covariance matrix of the predicted probabilities are clustered, because classes
that are often predicted together vary alike. The paper runs an on-line K-means; we run Lloyd's from starts that depend on nothing but the matrix: each class in
turn is the first centre, every further centre is the column farthest from those before, and the partition with the smallest sum of squares is kept. The
covariance counts rows by their training weight. A class that is rarely predicted has a small column: rare classes fall together, confused or not.

A cluster of one class is confused with nothing and gets no specialist. The paper does not say what becomes of these (it has 15,000 classes and sets of 300);
we take the smallest number of clusters of which as many as were asked for hold two classes or more. With a `size`, a set is the `size` classes nearest to its
cluster's centre, and sets may overlap, as the paper's do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hlt_train.errors import UsageError

__all__ = ["Predictions", "clusters", "confusable_sets", "largest_count"]

STARTS, ROUNDS = 64, 1000  # first centres tried, at most; rounds of Lloyd's algorithm


class Predictions:
    """Sums over rows of what a network predicts, in float64, in the order of the rows.

    Attributes:
        weight: float64 `[classes]`, sum of the weights of the rows of each class.
        confusion: float64 `[classes, classes]`, sum of the weights of the rows of class i whose most probable class is j.
    """

    def __init__(self, classes: int) -> None:
        self.weight = np.zeros(classes)
        self.confusion = np.zeros((classes, classes))
        self._first = np.zeros(classes)
        self._second = np.zeros((classes, classes))

    def add(self, probability: np.ndarray, label: np.ndarray, weight: np.ndarray) -> None:
        """Rows: float `[n, classes]`, int `[n]`, float `[n]`."""
        classes = len(self.weight)
        p, w = probability.astype(np.float64), weight.astype(np.float64)
        self.weight += np.bincount(label, w, classes)
        self.confusion += np.bincount(label * classes + p.argmax(axis=1), w, classes**2).reshape(classes, classes)
        self._first += w @ p
        self._second += (p * w[:, None]).T @ p

    @property
    def mean(self) -> np.ndarray:
        """float64 `[classes]`: mean probabilities."""
        found: np.ndarray = self._first / self.weight.sum()
        return found

    @property
    def covariance(self) -> np.ndarray:
        """float64 `[classes, classes]`, symmetric."""
        found = self._second / self.weight.sum() - np.outer(self.mean, self.mean)
        symmetric: np.ndarray = (found + found.T) / 2
        return symmetric

    def share(self, members: Sequence[int]) -> float:
        """The fraction of the rows, by weight, that are of these classes."""
        return float(self.weight[list(members)].sum() / self.weight.sum())

    def confused(self, members: Sequence[int]) -> dict[str, float]:
        """Of the rows of these classes, by weight: the fractions taken for another class of the set (`within`) and for one outside (`outside`)."""
        inside = np.isin(np.arange(len(self.weight)), list(members))
        rows, total = self.confusion[inside], self.weight[inside].sum()
        right = np.trace(self.confusion[np.ix_(inside, inside)])
        return {"within": float((rows[:, inside].sum() - right) / total), "outside": float(rows[:, ~inside].sum() / total)}


def clusters(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(int64 `[n]`, the cluster of each point; float64 `[count, d]`, the centres) of K-means on points `[n, d]`; a function of the points alone."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for first in range(min(len(points), STARTS)):
        centres = _farthest(points, first, count)
        for _ in range(ROUNDS):
            member = _distances(points, centres).argmin(axis=1)
            held = [points[member == k].mean(axis=0) if (member == k).any() else centres[k] for k in range(count)]
            moved, centres = not np.array_equal(centres, held), np.array(held)
            if not moved:
                break
        spread = float(((points - centres[member]) ** 2).sum())
        if best is None or spread < best[0] * (1 - 1e-12):
            best = spread, member, centres
    assert best is not None  # there is a point
    return best[1], best[2]


def _farthest(points: np.ndarray, first: int, count: int) -> np.ndarray:
    chosen = [first]
    while len(chosen) < count:
        chosen.append(int(_distances(points, points[chosen]).min(axis=1).argmax()))
    return points[chosen].astype(np.float64)


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squares, `[points, centres]`."""
    return np.stack([((points - centre) ** 2).sum(axis=1) for centre in centres], axis=1)


def largest_count(covariance: np.ndarray) -> int:
    """The largest number of disjoint sets that `confusable_sets` finds among up to 64 clusters; 1 where it finds none."""
    numbers = (clusters(covariance, number)[0] for number in range(2, min(len(covariance), STARTS + 1)))
    return max((int((np.bincount(member) > 1).sum()) for member in numbers), default=1) or 1


def confusable_sets(covariance: np.ndarray, count: int, size: int | None = None) -> list[tuple[int, ...]]:
    """`count` sets of confusable classes, each ascending, ordered by their first classes.

    Args:
        covariance: float64 `[classes, classes]`, of the predicted probabilities.
        count: number of sets.
        size: classes of a set; sets may then overlap. None: the clusters, disjoint.

    Raises:
        UsageError: there are not so many sets of at least two classes that leave at least one to the dustbin.
    """
    classes = len(covariance)
    if classes < 3:
        what = f"{classes} classes leave nothing to specialise in: a specialist tells two classes apart and puts a third into its dustbin"
        raise UsageError(what, where="labels.classes", then="hlt-train distil GENERALIST_RUN, or several generalists as teachers")
    if size is not None and not 2 <= size < classes:
        raise UsageError(f"a set of {size} of {classes} classes is no specialist's", where="size", then=f"between 2 and {classes - 1}")
    if size is not None and count <= classes:
        _, centres = clusters(covariance, count)
        near = np.argsort(_distances(covariance, centres), axis=0, kind="stable")[:size]
        found = {tuple(sorted(chosen)) for chosen in near.T.tolist()}
        if len(found) == count:
            return sorted(found)
    if size is None:
        for number in range(max(2, count), classes):
            member, _ = clusters(covariance, number)
            sets = [tuple(np.flatnonzero(member == k).tolist()) for k in range(number)]
            confused = sorted(members for members in sets if len(members) > 1)
            if len(confused) == count:
                return confused
    what = f"the {classes} classes do not fall into {count} distinct sets of {size or 'two or more'}"
    then = "a smaller --count, or the sets by hand: --set 'sets=[[A,B],[C,D]]'" if size else "a smaller --count, or --size N for sets that overlap"
    raise UsageError(what, where="count", then=then)
