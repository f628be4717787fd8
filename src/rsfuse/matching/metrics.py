"""What matching is measured by: pure functions on points, transforms and probabilities.

A transform is a (3, 3) matrix or a function from (N, 2) to (N, 2); it maps reference pixels to
query pixels in the corner convention. Errors are distances in query pixels. No files, no images.

Two ways to treat a pair without an answer stand side by side, because published tables hide it:
the mean over solved pairs, and the mean in which a failure costs what knowing nothing costs
(`counted_error`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsfuse.errors import InputError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Transform = FloatArray | Callable[[FloatArray], FloatArray]

CORRECT_WITHIN_PX = 3.0  # the SRIF authors' threshold for a correct match
CORRECT_NEEDED = 10  # and for a successful pair
FAILED_RMSE_PX = 20.0  # and the RMSE that they give a failed pair
GRID = 20  # nodes a side, as in the rsim benchmark
FEWEST_GRID_NODES = 8


class ReliabilityBin(NamedTuple):
    """One bar of a reliability diagram."""

    lower: float
    upper: float
    members: int
    mean_probability: float
    share_correct: float


class Interval(NamedTuple):
    """A value and its bootstrap interval."""

    value: float
    lower: float
    upper: float


def transform_points(transform: Transform, xy: FloatArray) -> FloatArray:
    """Positions of `xy` (N, 2) in the query; not finite where the transform has no answer."""
    xy = np.asarray(xy, dtype=np.float64)
    if callable(transform):
        return np.asarray(transform(xy), dtype=np.float64)
    homogeneous = np.column_stack([xy, np.ones(len(xy))]) @ np.asarray(transform).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:], dtype=np.float64)


def distances(estimate: FloatArray, truth: FloatArray) -> FloatArray:
    """Lengths of the differences of two (N, 2) arrays; infinite where either is not finite."""
    with np.errstate(invalid="ignore"):
        lengths = np.hypot(*(np.asarray(estimate) - np.asarray(truth)).T)
    return np.where(np.isfinite(lengths), lengths, np.inf)


# --- the SRIF authors' criterion ---------------------------------------------------------------


def match_errors(points0: FloatArray, points1: FloatArray, truth: Transform) -> FloatArray:
    """Distance of every match from the truth, (N,)."""
    return distances(np.asarray(points1), transform_points(truth, points0))


def correct_matches(
    points0: FloatArray,
    points1: FloatArray,
    truth: Transform,
    *,
    within_px: float = CORRECT_WITHIN_PX,
) -> BoolArray:
    """True for each match nearer than `within_px` to the truth, every query point counted once.

    This is NCM of the SRIF programs: strictly nearer, then unique rows of the query's points.
    Of several matches that share a query point the first stays.
    """
    if len(points0) == 0:
        return np.zeros(0, dtype=bool)
    correct = match_errors(points0, points1, truth) < within_px
    candidates = np.flatnonzero(correct)
    _, first = np.unique(np.asarray(points1)[candidates], axis=0, return_index=True)
    unique = np.zeros(len(points0), dtype=bool)
    unique[candidates[first]] = True
    return unique


def match_rmse(errors_px: FloatArray, *, needed: int = CORRECT_NEEDED) -> float:
    """RMSE over the correct matches' errors; `FAILED_RMSE_PX` when there are fewer than `needed`.

    Below 3 px by construction for a successful pair: it mostly measures the failure rate.
    """
    if len(errors_px) < needed:
        return FAILED_RMSE_PX
    return float(np.sqrt(np.mean(np.square(errors_px))))


# --- transforms on a grid ----------------------------------------------------------------------


def grid_nodes(
    truth: Transform, shape0: tuple[int, int], shape1: tuple[int, int], *, side: int = GRID
) -> FloatArray:
    """Nodes of a `side` x `side` grid over the reference whose true position is in the query.

    The grid runs from the centre of the first pixel to the centre of the last. Restricting it to
    common ground keeps extrapolation out of the error.

    Raises:
        InputError: Fewer than eight nodes are left; the truth barely overlaps.
    """
    h0, w0 = shape0
    h1, w1 = shape1
    x, y = np.meshgrid(np.linspace(0.5, w0 - 0.5, side), np.linspace(0.5, h0 - 0.5, side))
    nodes = np.column_stack([x.ravel(), y.ravel()])
    there = transform_points(truth, nodes)
    inside = ((there >= 0) & (there <= [w1, h1])).all(axis=1)
    if inside.sum() < FEWEST_GRID_NODES:
        raise InputError(
            f"only {inside.sum()} of {side * side} grid nodes lie in both images",
            f"An error needs at least {FEWEST_GRID_NODES} nodes on common ground.",
            "Check the direction of the transform: it maps image 1 to image 2 of the index.",
        )
    return nodes[inside]


def grid_errors(
    estimate: Transform,
    truth: Transform,
    shape0: tuple[int, int],
    shape1: tuple[int, int],
    *,
    side: int = GRID,
) -> FloatArray:
    """Distance between estimate and truth at the nodes of `grid_nodes`."""
    nodes = grid_nodes(truth, shape0, shape1, side=side)
    return distances(transform_points(estimate, nodes), transform_points(truth, nodes))


def centre_placement(shape0: tuple[int, int], shape1: tuple[int, int]) -> FloatArray:
    """The answer of somebody who knows nothing: the query's centre on the reference's, no turn."""
    placement = np.eye(3)
    placement[:2, 2] = [(shape1[1] - shape0[1]) / 2, (shape1[0] - shape0[0]) / 2]
    return placement


def counted_error(error_px: float | None, *, placement_px: float, shape1: tuple[int, int]) -> float:
    """The error with which a pair enters a mean that counts failures.

    No answer (None) costs `placement_px`, the mean grid error of `centre_placement`. Every error,
    of an answer or of none, is capped at half the diagonal of the query: no answer is worse than
    that, so that one exploded homography does not decide a mean over a thousand pairs.
    """
    cap = float(np.hypot(*shape1)) / 2
    error = placement_px if error_px is None else error_px
    return min(error, cap) if np.isfinite(error) else cap


def share_within(errors_px: FloatArray, threshold_px: float) -> float:
    """Share of errors at or below the threshold; failures enter as infinity."""
    errors = np.asarray(errors_px, dtype=np.float64)
    return float(np.mean(errors <= threshold_px)) if errors.size else float("nan")


def checkpoint_rmse(transform: Transform, points: FloatArray) -> float:
    """RMSE of the transform at check points (N, 4) x0, y0, x1, y1; infinite if one has none."""
    points = np.asarray(points, dtype=np.float64)
    errors = distances(transform_points(transform, points[:, :2]), points[:, 2:])
    return float(np.sqrt(np.mean(np.square(errors))))


# --- corners and areas under curves ------------------------------------------------------------


def corner_error(
    estimate: Transform, truth: Transform, shape0: tuple[int, int], *, is_sorted: bool = False
) -> float:
    """Mean distance of the reference's four corners under estimate and truth.

    Args:
        estimate: The answer.
        truth: The truth.
        shape0: (h, w) of the reference.
        is_sorted: Order both lists of corners by x, then y, before comparing, as MINIMA's script
            for the multi-modal sets does. A quarter turn then scores 0: only for standing beside
            published rows.
    """
    h, w = shape0
    corners = np.array([[0, 0], [w, 0], [0, h], [w, h]], dtype=np.float64)
    there, here = transform_points(truth, corners), transform_points(estimate, corners)
    if is_sorted:
        there, here = (p[np.lexsort((p[:, 1], p[:, 0]))] for p in (there, here))
    return float(np.mean(distances(here, there)))


def error_auc(errors_px: npt.ArrayLike, threshold_px: float) -> FloatArray:
    """Area under the recall curve up to the threshold, divided by it, over the last axis.

    The exact trapezoids of the SuperGlue, LoFTR and MINIMA programs: recall k/N is reached at the
    k-th smallest error, the curve starts at (0, 0), is linear between errors below the threshold
    and flat from the last of them to the threshold. A failure is an infinite error.
    """
    errors = np.sort(np.asarray(errors_px, dtype=np.float64), axis=-1)
    n = errors.shape[-1]
    if n == 0:
        return np.full(errors.shape[:-1], np.nan)
    below = errors < threshold_px
    reached = np.where(below, errors, 0.0)
    steps = np.diff(reached, axis=-1, prepend=0.0)
    heights = (np.arange(n) + 0.5) / n
    rising = np.sum(np.where(below, steps * heights, 0.0), axis=-1)
    flat = (threshold_px - reached.max(axis=-1)) * below.sum(axis=-1) / n
    return np.asarray((rising + flat) / threshold_px)


# --- probabilities ------------------------------------------------------------------------------


def _probabilities(
    probabilities: npt.ArrayLike, correct: npt.ArrayLike
) -> tuple[FloatArray, BoolArray]:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.size and not (np.isfinite(p).all() and p.min() >= 0 and p.max() <= 1):
        raise InputError(
            f"probabilities run from {p.min()} to {p.max()}", "They must lie between 0 and 1."
        )
    return p, np.asarray(correct, dtype=bool)


def reliability_bins(
    probabilities: npt.ArrayLike, correct: npt.ArrayLike, *, bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Bars of equal width over [0, 1]; empty ones are left out. Probability 1 is in the last."""
    p, y = _probabilities(probabilities, correct)
    number = np.minimum((p * bins).astype(int), bins - 1)
    return tuple(
        ReliabilityBin(
            lower=b / bins,
            upper=(b + 1) / bins,
            members=int((number == b).sum()),
            mean_probability=float(p[number == b].mean()),
            share_correct=float(y[number == b].mean()),
        )
        for b in range(bins)
        if (number == b).any()
    )


def expected_calibration_error(
    probabilities: npt.ArrayLike, correct: npt.ArrayLike, *, bins: int = 10
) -> float:
    """Mean gap between stated probability and share correct, weighted by the bars' counts."""
    bars = reliability_bins(probabilities, correct, bins=bins)
    total = sum(bar.members for bar in bars)
    if not total:
        return float("nan")
    gaps = (bar.members * abs(bar.mean_probability - bar.share_correct) for bar in bars)
    return float(sum(gaps) / total)


def brier_score(probabilities: npt.ArrayLike, correct: npt.ArrayLike) -> float:
    """Mean squared difference between the probability and what happened; 0.25 knows nothing."""
    p, y = _probabilities(probabilities, correct)
    return float(np.mean((p - y) ** 2)) if p.size else float("nan")


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Chance that a positive scores above a negative, ties half; NaN without one of either."""
    s = np.asarray(scores, dtype=np.float64)
    y = np.asarray(positive, dtype=bool)
    if not y.any() or y.all():
        return float("nan")
    _, number, count = np.unique(s, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(count) - (count - 1) / 2)[number]
    n1, n0 = int(y.sum()), int((~y).sum())
    return float((mean_rank[y].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def ellipse_coverage(
    residuals_px: FloatArray, covariances_px2: FloatArray, *, level: float = 0.9
) -> float:
    """Share of residuals (N, 2) inside their own error ellipse (N, 2, 2) of that probability.

    Honest covariances give `level`. Singular ones count as missed.
    """
    r = np.asarray(residuals_px, dtype=np.float64)
    c = np.asarray(covariances_px2, dtype=np.float64)
    if len(r) == 0:
        return float("nan")
    a, b, d = c[:, 0, 0], c[:, 0, 1], c[:, 1, 1]
    determinant = a * d - b * b
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = (d * r[:, 0] ** 2 - 2 * b * r[:, 0] * r[:, 1] + a * r[:, 1] ** 2) / determinant
    limit = -2.0 * np.log1p(-level)  # quantile of chi-square with two degrees of freedom
    return float(np.mean((determinant > 0) & (a > 0) & (squared <= limit)))


# --- uncertainty of a summary -------------------------------------------------------------------


def bootstrap_draws(
    values: npt.ArrayLike,
    statistic: Callable[[FloatArray], npt.ArrayLike],
    rng: np.random.Generator,
    *,
    draws: int = 2000,
) -> FloatArray:
    """The statistic of `draws` samples with replacement.

    Args:
        values: (N,) one value per pair.
        statistic: Reduces the last axis of (draws, N), such as `np.mean` with axis -1.
        rng: Source of randomness.
        draws: How many samples.
    """
    v = np.asarray(values, dtype=np.float64)
    if v.size == 0:
        return np.full(draws, np.nan)
    block = max(1, 4_000_000 // v.size)  # at most 32 MB at a time
    parts = [
        np.asarray(statistic(v[rng.integers(0, v.size, (min(block, draws - start), v.size))]))
        for start in range(0, draws, block)
    ]
    return np.concatenate(parts)


def percentile_interval(value: float, draws: FloatArray, *, level: float = 0.95) -> Interval:
    """The value with the percentile interval of its bootstrap draws."""
    tail = (1 - level) / 2
    return Interval(float(value), quantile_of(draws, tail), quantile_of(draws, 1 - tail))


def bootstrap_interval(
    values: npt.ArrayLike,
    statistic: Callable[[FloatArray], npt.ArrayLike],
    rng: np.random.Generator,
    *,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval:
    """The statistic of the values with its percentile bootstrap interval."""
    v = np.asarray(values, dtype=np.float64)
    value = float(np.asarray(statistic(v[None])).reshape(-1)[0]) if v.size else float("nan")
    return percentile_interval(value, bootstrap_draws(v, statistic, rng, draws=draws), level=level)


def mean(values: FloatArray) -> FloatArray:
    """Mean over the last axis: the statistic most intervals need."""
    return np.asarray(np.mean(values, axis=-1))


def median(values: FloatArray) -> FloatArray:
    """Median over the last axis."""
    return np.asarray(np.median(values, axis=-1))


def share(thresholds_px: float) -> Callable[[FloatArray], FloatArray]:
    """The statistic "share at or below the threshold" over the last axis."""
    return lambda values: np.asarray(np.mean(values <= thresholds_px, axis=-1))


def quantile_of(errors_px: Sequence[float] | FloatArray, q: float) -> float:
    """A quantile in which infinite errors (failures) stay infinite instead of becoming NaN."""
    errors = np.sort(np.asarray(errors_px, dtype=np.float64))
    if errors.size == 0 or np.isnan(errors).any():
        return float("nan")
    position = q * (errors.size - 1)
    low, high = int(np.floor(position)), int(np.ceil(position))
    if low == high or errors[low] == errors[high]:
        return float(errors[low])
    return float(errors[low] + (position - low) * (errors[high] - errors[low]))
