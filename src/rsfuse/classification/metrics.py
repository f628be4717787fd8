"""Accuracy of maps: confusion, agreement, calibration, areas with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Standard normal quantile of two-sided 95 %.
_Z95 = 1.959963984540054

RELIABILITY_BINS = 10


def confusion_matrix(truth: Ints, found: Ints, classes: int) -> Ints:
    """(K, K): rows are the truth, columns the map."""
    return np.bincount(truth * classes + found, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, eq=False)
class Agreement:
    """What follows from a confusion matrix; NaN where a class has no labels or no pixels.

    Attributes:
        matrix: (K, K).
        overall: Share of labels that the map has right.
        kappa: Cohen's: agreement beyond chance.
        producers: (K,) share of each class's labels that the map has right (recall).
        users: (K,) share of the pixels mapped as a class that are it (precision).
        f1: (K,) their harmonic mean.
    """

    matrix: Ints
    overall: float
    kappa: float
    producers: Floats
    users: Floats
    f1: Floats

    @classmethod
    def of(cls, matrix: Ints) -> "Agreement":
        """From a confusion matrix."""
        rows, columns = matrix.sum(axis=1), matrix.sum(axis=0)
        hits, total = np.diag(matrix), matrix.sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            producers, users = hits / rows, hits / columns
            f1 = np.where(rows > 0, 2 * hits / (rows + columns), np.nan)
            overall = float(hits.sum() / total)
            chance = float((rows / total) @ (columns / total))
            kappa = float((overall - chance) / (1 - chance)) if chance < 1 else float("nan")
        return cls(matrix, overall, kappa, producers, users, f1)

    @property
    def average(self) -> float:
        """Mean of the producers' accuracies over classes that have labels (AA)."""
        return _mean(self.producers)

    @property
    def mean_f1(self) -> float:
        """Mean of F1 over classes that have labels."""
        return _mean(self.f1)


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def block_bootstrap(
    truth: Ints, found: Ints, blocks: Ints, classes: int, *, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of overall accuracy, kappa and mean F1 by drawing whole blocks.

    One block says nothing about others: its intervals are NaN.

    Args:
        truth: (N,).
        found: (N,).
        blocks: (N,) number of the block of each label: neighbours are not independent.
        classes: K.
        draws: Bootstrap samples.
        seed: Of the draws.
    """
    ids, place = np.unique(blocks, return_inverse=True)
    names = ("overall", "kappa", "mean_f1")
    if len(ids) < 2:
        return dict.fromkeys(names, (float("nan"), float("nan")))
    flat = (place * classes + truth) * classes + found
    matrices = np.bincount(flat, minlength=len(ids) * classes**2)
    matrices = matrices.reshape(len(ids), classes, classes)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        weights = np.bincount(rng.integers(len(ids), size=len(ids)), minlength=len(ids))
        drawn = Agreement.of(np.tensordot(weights, matrices, axes=1))
        values.append((drawn.overall, drawn.kappa, drawn.mean_f1))
    table = np.array(values, np.float64)
    ends = {}
    for name, column in zip(names, table.T, strict=True):
        known = column[np.isfinite(column)]
        low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
        ends[name] = (float(low), float(high))
    return ends


def reliability(
    confidence: Floats, right: npt.NDArray[np.bool_], bins: int = RELIABILITY_BINS
) -> tuple[float, list[dict[str, float]]]:
    """Expected calibration error, and share right per bin of equal width of the confidence."""
    place = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    rows, error = [], 0.0
    for b in range(bins):
        mine = place == b
        count = int(mine.sum())
        if not count:
            continue
        mean, share = float(confidence[mine].mean()), float(right[mine].mean())
        rows.append({"confidence": mean, "right": share, "pixels": float(count)})
        error += count / len(confidence) * abs(mean - share)
    return error, rows


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """What to divide logits (N, K) by, so that their softmax is likeliest (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        z = logits / np.exp(log_temperature)
        z = z - z.max(axis=1, keepdims=True)
        odds = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return float(-odds[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=(-3.0, 4.0), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True, eq=False)
class AreaEstimate:
    """Areas corrected for the errors of the map (Olofsson et al. 2014, stratified estimator).

    Attributes:
        share: (K,) estimated share of the mapped area that truly is of each class.
        error: (K,) standard error of it.
    """

    share: Floats
    error: Floats

    def interval(self, area: float) -> list[tuple[float, float]]:
        """95 % interval of each class's area, for a mapped area in any unit."""
        low = np.maximum(self.share - _Z95 * self.error, 0.0) * area
        high = np.minimum(self.share + _Z95 * self.error, 1.0) * area
        return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def estimate_areas(matrix: Ints, mapped: Sequence[float]) -> AreaEstimate:
    """Correct the areas of a map by its confusion matrix.

    The strata are the map's classes; labels must be a random sample within each (equations 9 to 11
    of the paper, there with rows and columns exchanged). A class of the map without labels keeps
    its mapped share.

    Args:
        matrix: (K, K): rows are the truth, columns the map.
        mapped: (K,) mapped area of each class, in any unit.
    """
    weight = np.asarray(mapped, np.float64)
    weight = weight / max(weight.sum(), 1e-300)
    counts = matrix.sum(axis=0).astype(np.float64)
    share = np.zeros(len(weight))
    variance = np.zeros(len(weight))
    for i, n in enumerate(counts):
        if n == 0:
            share[i] += weight[i]
            continue
        given = matrix[:, i] / n
        share += weight[i] * given
        if n > 1:
            variance += weight[i] ** 2 * given * (1 - given) / (n - 1)
    return AreaEstimate(share, np.sqrt(variance))


def summary(
    truth: Ints,
    found: Ints,
    names: Sequence[str],
    *,
    blocks: Ints | None = None,
    confidence: Floats | None = None,
) -> dict[str, Any]:
    """All numbers of an evaluation, as stored and printed.

    Args:
        truth: (N,) labels.
        found: (N,) classes of the map.
        names: Of the classes.
        blocks: (N,) for intervals.
        confidence: (N,) of the map.
    """
    measured = Agreement.of(confusion_matrix(truth, found, len(names)))
    result: dict[str, Any] = {
        "labels": len(truth),
        "overall_accuracy": measured.overall,
        "average_accuracy": measured.average,
        "kappa": measured.kappa,
        "mean_f1": measured.mean_f1,
        "classes": list(names),
        "producers_accuracy": measured.producers.tolist(),
        "users_accuracy": measured.users.tolist(),
        "f1": measured.f1.tolist(),
        "confusion": measured.matrix.tolist(),
    }
    if blocks is not None:
        result["intervals"] = block_bootstrap(truth, found, blocks, len(names))
    if confidence is not None:
        error, rows = reliability(confidence, truth == found)
        result["ece"] = error
        result["reliability"] = rows
    return result
