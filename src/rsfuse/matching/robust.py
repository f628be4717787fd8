"""Robust fit: which tie points agree, on which model, and how sure that makes us."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from rsfuse.ops.geometry2d import (
    MINIMUM_POINTS,
    PARAMETERS,
    Transform,
    apply_matrix,
    fit_field,
    fit_matrix,
)

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.intp]

HYPOTHESES = 600
MAX_DEFORMATION = 0.25  # of a consensus against the placement that it starts from
FOLDS = 5
BLOCKS = 6  # along a side, of which folds are made
BLOCK_POINTS = 4  # measured in a block, fewer tell nothing
BARE = 0.3  # of the share that is kept elsewhere: a block with less is bare
NEIGHBOURS = 8  # witnesses of a displacement
NEIGHBOUR_PROBABILITY = 0.3  # of a tie point that may be one
FIELD_POINTS = 80  # fewer tie points do not carry a field
EXPLAINED = 0.5  # of the tolerance: tie points further off are not explained
# A freer model must lower the held-out error below this share. Neighbouring templates overlap, so
# held-out tie points are not quite independent of the fit, and the shares are strict.
# Or it must explain this much more than the stiffer one: where a matrix is far from the truth, the
# few tie points that it keeps fit it well. Why so wide a margin: decision 0020.
EXPLAINS_MORE = {"rigid": 1.5, "similarity": 1.5, "affine": 2.4, "homography": 2.4, "smooth": 2.4}
MODEL_GAIN = {"rigid": 0.8, "similarity": 0.8, "affine": 0.6, "homography": 0.6, "smooth": 0.42}
FIELD_GAIN = 0.72  # over every matrix, not only the one that the field is compared with


class Consensus(NamedTuple):
    """The largest set of displacements that one affine map explains.

    Attributes:
        matrix: (3, 3) on the lattice, from a point to its displaced place.
        inliers: (N,).
        evidence: -log10 of the expected number of equally large sets among random displacements
            (an a-contrario number of false alarms, Moisan and Stival 2004), divided by how often
            the templates cover the same ground; large = not chance.
    """

    matrix: FloatArray
    inliers: BoolArray
    evidence: float


def consensus(
    xy: FloatArray,
    shift: FloatArray,
    weights: FloatArray,
    *,
    radius: float,
    tolerance: float,
    template: float,
    rng: np.random.Generator,
) -> Consensus:
    """Find the displacements that agree on an affine map near the identity.

    Args:
        xy: (N, 2) lattice positions.
        shift: (N, 2) displacements, at most `radius`.
        weights: (N,) in 0..1.
        radius: Search radius: displacements without a cause are uniform within it.
        tolerance: Distance that counts as agreement, pixels.
        template: Side of the templates: those that overlap are no independent witnesses.
        rng: Source of the hypotheses.
    """
    n = len(xy)
    nothing = Consensus(np.eye(3), np.zeros(n, bool), 0.0)
    if n < 6:
        return nothing
    there = xy + shift
    chance = weights + 1e-3
    picks = rng.choice(n, size=(HYPOTHESES, 3), p=chance / chance.sum())
    shifts = np.zeros((HYPOTHESES // 3, 2, 3))
    shifts[:, 0, 0] = shifts[:, 1, 1] = 1.0
    shifts[:, :, 2] = shift[picks[: len(shifts), 0]]
    source = np.concatenate([xy[picks], np.ones((HYPOTHESES, 3, 1))], axis=2)
    usable = np.abs(np.linalg.det(source)) > 1.0
    affine = np.transpose(np.linalg.solve(source[usable], there[picks][usable]), (0, 2, 1))
    bent = np.abs(affine[:, :, :2] - np.eye(2)).max(axis=(1, 2))
    models = np.concatenate([shifts, affine[bent < MAX_DEFORMATION]])
    predicted = np.einsum("mij,nj->mni", models[:, :, :2], xy) + models[:, None, :, 2]
    square = ((predicted - there) ** 2).sum(axis=2) / tolerance**2
    gain = (weights * np.maximum(1 - square, 0)).sum(axis=1)
    best = np.vstack([models[int(gain.argmax())], [0, 0, 1]])
    inliers = np.zeros(n, bool)
    for scale in (1.5, 1.0, 1.0):
        update = _distance(best, xy, there) < scale * tolerance
        if update.sum() < 4:
            break
        inliers = update
        fitted = _stable_affine(xy[inliers], there[inliers], weights[inliers] + 0.05, tolerance)
        if np.abs(fitted[:2, :2] - np.eye(2)).max() > MAX_DEFORMATION:
            break
        best = fitted
    inliers = _distance(best, xy, there) < tolerance
    width, height = np.ptp(xy, axis=0) + template
    overlap = max(1.0, n * template**2 / (width * height))
    return Consensus(best, inliers, float(_evidence(inliers, radius, tolerance) / overlap))


def _stable_affine(
    xy: FloatArray, there: FloatArray, weights: FloatArray, tolerance: float
) -> FloatArray:
    """An affine fit drawn towards a similarity as far as the points leave it open."""
    similar = fit_matrix("similarity", xy, there, weights)
    if len(xy) < 8:
        return similar
    try:
        affine = fit_matrix("affine", xy, there, weights)
    except ValueError:
        return similar
    gain = 1 - _rms(affine, xy, there, weights) / max(_rms(similar, xy, there, weights), 1e-9)
    return affine if gain > 2.0 / len(xy) else similar


def _rms(matrix: FloatArray, xy: FloatArray, there: FloatArray, weights: FloatArray) -> float:
    square = ((apply_matrix(matrix, xy) - there) ** 2).sum(axis=1)
    return float(np.sqrt(np.average(square, weights=weights)))


def _distance(matrix: FloatArray, xy: FloatArray, there: FloatArray) -> FloatArray:
    return np.asarray(np.hypot(*(apply_matrix(matrix, xy) - there).T))


def _evidence(inliers: BoolArray, radius: float, tolerance: float) -> float:
    n, k = len(inliers), int(inliers.sum())
    if k <= 3:
        return 0.0
    by_chance = min(np.pi * tolerance**2 / (2 * radius + 1) ** 2, 0.5)
    tail = float(stats.binom.logsf(k - 4, n - 3, by_chance)) / np.log(10)
    # Where the tail underflows, every agreement by itself: a bound that is good enough there.
    tail = max(tail, (k - 3) * np.log10(by_chance) - 1.0)
    return float(max(0.0, -(tail + np.log10(HYPOTHESES))))


def neighbours_agree(
    xy: FloatArray, shift: FloatArray, weights: FloatArray, *, tolerance: float, apart: float
) -> BoolArray:
    """Which displacements are close to those around them, whatever the global model.

    A smooth deformation moves neighbours alike even where no matrix describes it.

    Args:
        xy: (N, 2) lattice positions.
        shift: (N, 2) displacements.
        weights: (N,) probabilities; doubtful neighbours have no say.
        tolerance: Largest distance to the median of the neighbours.
        apart: Neighbours nearer than this share most of their template and are no witnesses.
    """
    from scipy.spatial import cKDTree

    trusted = np.flatnonzero(weights > NEIGHBOUR_PROBABILITY)
    agree = np.zeros(len(xy), bool)
    if len(trusted) < 2 * NEIGHBOURS:
        return agree
    distance, index = cKDTree(xy[trusted]).query(xy, k=min(6 * NEIGHBOURS, len(trusted)))
    for i, (far, near) in enumerate(zip(distance, index, strict=True)):
        chosen = trusted[near[far >= apart][:NEIGHBOURS]]
        if len(chosen) >= NEIGHBOURS // 2:
            gap = shift[i] - np.median(shift[chosen], axis=0)
            agree[i] = float(np.hypot(*gap)) < tolerance
    return agree


class Fit(NamedTuple):
    """A transform and the tie points behind it.

    Attributes:
        transform: Maps xy0 to xy1.
        inliers: (N,) tie points that the fit rests on.
        residual: (N, 2) measured minus fitted, query pixels.
        held_out: (N,) distance in pixels by a fit without the tie point's fold; NaN for outliers.
        scale: Robust standard deviation of the residuals per axis, pixels.
        covariance: (P, P) of the parameters of the matrix, row by row without the last entry.
        scores: Held-out root mean square of each model that was tried.
    """

    transform: Transform
    inliers: BoolArray
    residual: FloatArray
    held_out: FloatArray
    scale: float
    covariance: FloatArray
    scores: dict[str, float]


def fit_transform(
    xy0: FloatArray,
    xy1: FloatArray,
    weights: FloatArray,
    *,
    area: tuple[float, float, float, float],
    models: Sequence[str],
    tolerance: float,
    start: Transform | None = None,
) -> Fit | None:
    """Fit every allowed model and keep the simplest that predicts held-out tie points best.

    Args:
        xy0: (N, 2) reference pixels.
        xy1: (N, 2) query pixels.
        weights: (N,) probability that a tie point is right.
        area: (x, y, w, h) of the reference, for a field.
        models: Allowed: `shift`, `rigid`, `similarity`, `affine`, `homography`, `smooth`, the
            freest last.
        tolerance: Largest residual of a tie point that may be right, query pixels.
        start: What the tie points were measured through; a field begins with those near it.

    Returns:
        None where no allowed model is determined.
    """
    fits: dict[str, tuple[Transform, BoolArray]] = {}
    inliers = np.ones(len(xy0), bool)
    for model in (m for m in models if m != "smooth"):
        found = _reweighted(model, xy0, xy1, weights, tolerance)
        if found is not None:
            fits[model] = found
    if "smooth" in models:
        # Of the base only the start matters: what is straight in a field costs nothing.
        if start is None:
            whole = fits.get("affine") or _reweighted("affine", xy0, xy1, weights, tolerance)
            start = whole and whole[0]
        if start is not None:
            field = _field_fit(xy0, xy1, weights, start, area, tolerance)
            if field is not None:
                fits["smooth"] = field
    if not fits:
        return None
    # All models are judged on the same tie points: those that any of them explains.
    inliers = np.logical_or.reduce([keep for _, keep in fits.values()])
    fold = _spatial_folds(xy0, area)
    held: dict[str, FloatArray] = {}
    scores: dict[str, float] = {}
    explained: dict[str, float] = {}
    for model in fits:
        held[model] = _held_out(model, xy0, xy1, weights, fits[model][1], inliers, fold, area)
        square = np.minimum(held[model][inliers], tolerance) ** 2
        known = np.isfinite(square)
        if known.any():
            near = np.maximum(1 - square[known] / (EXPLAINED * tolerance) ** 2, 0)
            explained[model] = float((weights[inliers][known] * near).sum())
            share = weights[inliers][known] + 1e-3
            scores[model] = float(np.sqrt(np.average(square[known], weights=share)))
    order = [m for m in (*PARAMETERS, "smooth") if m in scores]
    if not order:
        return None

    def is_clearly_better(freer: str, stiffer: str, gain: float) -> bool:
        sharper = scores[freer] < gain * scores[stiffer]
        return sharper or explained[freer] > EXPLAINS_MORE[freer] * explained[stiffer]

    chosen = order[0]
    for model in order[1:]:
        if is_clearly_better(model, chosen, MODEL_GAIN[model]):
            chosen = model
    if chosen == "smooth":
        # A matrix that was passed over on the way may do nearly as well as the field.
        rivals = (m for m in order[:-1] if not is_clearly_better("smooth", m, FIELD_GAIN))
        chosen = next(rivals, chosen)
    transform, keep = fits[chosen]
    residual = xy1 - transform.apply(xy0)
    spread = 1.4826 * float(np.median(np.abs(residual[keep]))) if keep.any() else float("nan")
    covariance = _covariance(transform, xy0[keep], weights[keep], max(spread, 0.02))
    held_out = np.where(keep, held[chosen], np.nan)
    return Fit(transform, keep, residual, held_out, spread, covariance, scores)


def _reweighted(
    model: str, xy0: FloatArray, xy1: FloatArray, weights: FloatArray, tolerance: float
) -> tuple[Transform, BoolArray] | None:
    """Iteratively reweighted least squares with Tukey's biweight, from a given start set."""
    if len(xy0) < MINIMUM_POINTS[model] + 2:
        return None
    robust = np.ones(len(xy0))
    cut = tolerance
    matrix = None
    for _ in range(12):
        weight = weights * robust
        if (weight > 1e-3).sum() < MINIMUM_POINTS[model] + 2:
            return None
        try:
            matrix = fit_matrix(model, xy0, xy1, weight + 1e-9)
        except (ValueError, np.linalg.LinAlgError):
            return None
        distance = _distance(matrix, xy0, xy1)
        near = distance[distance < tolerance]
        if near.size < MINIMUM_POINTS[model] + 2:
            return None
        cut = float(np.clip(4.0 * np.median(near) + 0.3, 0.8, tolerance))
        robust = np.where(distance < cut, (1 - (distance / cut) ** 2) ** 2, 0.0)
    if matrix is None or not np.isfinite(matrix).all():
        return None
    keep = _distance(matrix, xy0, xy1) < cut
    return Transform(model, matrix), keep


def _lattice(n: int, area: tuple[float, float, float, float]) -> tuple[int, int]:
    """Cells (rows, columns) of a field that n tie points can carry: some eight for each knot."""
    knots = max(4.0, n / 8.0)
    columns = np.sqrt(knots * area[2] / max(area[3], 1.0))
    rows = knots / max(columns, 1e-6)
    return int(np.clip(round(rows), 2, 24)), int(np.clip(round(columns), 2, 24))


def _field_fit(
    xy0: FloatArray,
    xy1: FloatArray,
    weights: FloatArray,
    start: Transform,
    area: tuple[float, float, float, float],
    tolerance: float,
) -> tuple[Transform, BoolArray] | None:
    gap = xy1 - apply_matrix(start.base, xy0)
    robust = (np.hypot(*(xy1 - start.apply(xy0)).T) < 4 * tolerance).astype(float)
    field = None
    keep = robust > 0
    for widest in tolerance * np.geomspace(2.0, 0.25, 8):
        weight = weights * robust
        if (weight > 1e-3).sum() < FIELD_POINTS:
            return None
        field = fit_field(
            xy0, gap, weight, area=area, cells=_lattice(int(keep.sum()), area), stiffness=0.02
        )
        distance = np.hypot(*(gap - field(xy0)).T)
        near = distance[distance < tolerance]
        if near.size < FIELD_POINTS:
            return None
        cut = max(float(np.clip(4.0 * np.median(near) + 0.3, 0.8, tolerance)), widest)
        robust = np.where(distance < cut, (1 - (distance / cut) ** 2) ** 2, 0.0)
        keep = distance < cut
    return Transform("smooth", start.base, field), keep


def _spatial_folds(xy: FloatArray, area: tuple[float, float, float, float]) -> IntArray:
    """Folds of whole blocks, so that a held-out tie point has no neighbour in the fit."""
    column, row = _blocks(xy, area)
    return (column + 2 * row) % FOLDS


def _blocks(xy: FloatArray, area: tuple[float, float, float, float]) -> tuple[IntArray, IntArray]:
    """Column and row of the block that each point lies in."""
    place = (xy - area[:2]) / np.maximum(area[2:], 1.0) * BLOCKS
    column, row = np.clip(place, 0, BLOCKS - 1).astype(np.intp).T
    return column, row


def bare_share(xy: FloatArray, kept: BoolArray, area: tuple[float, float, float, float]) -> float:
    """Share of the blocks in which hardly a tie point was kept: there a field rests on nothing.

    Blocks without enough tie points to tell do not count.

    Args:
        xy: (N, 2) reference pixels.
        kept: (N,) tie points that the fit rests on.
        area: (x, y, w, h) of the reference.
    """
    column, row = _blocks(xy, area)
    block = row * BLOCKS + column
    measured = np.bincount(block, minlength=BLOCKS**2)
    carried = np.bincount(block[kept], minlength=BLOCKS**2)
    seen = measured >= BLOCK_POINTS
    if not seen.any():
        return 0.0
    return float((carried < BARE * kept.mean() * measured)[seen].mean())


def _held_out(
    model: str,
    xy0: FloatArray,
    xy1: FloatArray,
    weights: FloatArray,
    keep: BoolArray,
    judged: BoolArray,
    fold: IntArray,
    area: tuple[float, float, float, float],
) -> FloatArray:
    """Distance of the judged tie points to a fit on kept ones outside their fold; others NaN."""
    result = np.full(len(xy0), np.nan)
    for k in range(FOLDS):
        train, test = keep & (fold != k), judged & (fold == k)
        if not test.any():
            continue
        try:
            if model == "smooth":
                base = fit_matrix("affine", xy0[train], xy1[train], weights[train] + 1e-9)
                gap = xy1 - apply_matrix(base, xy0)
                field = fit_field(
                    xy0[train],
                    gap[train],
                    weights[train] + 1e-9,
                    area=area,
                    cells=_lattice(int(keep.sum()), area),
                    stiffness=0.02,
                )
                result[test] = np.hypot(*(gap[test] - field(xy0[test])).T)
            else:
                matrix = fit_matrix(model, xy0[train], xy1[train], weights[train] + 1e-9)
                result[test] = _distance(matrix, xy0[test], xy1[test])
        except (ValueError, np.linalg.LinAlgError):
            continue
    return result


def design_matrix(transform: Transform, xy: FloatArray) -> FloatArray:
    """(N, 2, P) derivative of the mapped points by the parameters of the matrix."""
    n = len(xy)
    x, y = xy.T
    one, zero = np.ones(n), np.zeros(n)
    if transform.model == "shift":
        return np.tile(np.eye(2), (n, 1, 1))
    if transform.model == "rigid":
        u, v = (xy @ transform.base[:2, :2].T).T
        return np.stack([np.stack([-v, one, zero], 1), np.stack([u, zero, one], 1)], axis=1)
    if transform.model == "similarity":
        return np.stack([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)], axis=1)
    rows_x = np.stack([x, y, one, zero, zero, zero], 1)
    rows_y = np.stack([zero, zero, zero, x, y, one], 1)
    if transform.model != "homography":
        return np.stack([rows_x, rows_y], axis=1)
    m = transform.base
    inv = 1.0 / (xy @ m[2, :2] + m[2, 2])
    mapped = apply_matrix(m, xy)
    rows_x = np.concatenate([rows_x * inv[:, None], (-mapped[:, :1] * xy) * inv[:, None]], 1)
    rows_y = np.concatenate([rows_y * inv[:, None], (-mapped[:, 1:] * xy) * inv[:, None]], 1)
    return np.stack([rows_x, rows_y], axis=1)


def _covariance(
    transform: Transform, xy: FloatArray, weights: FloatArray, sigma: float
) -> FloatArray:
    """Covariance of the matrix parameters from the tie points' common scatter."""
    model = "affine" if transform.model == "smooth" else transform.model
    count = PARAMETERS[model]
    if len(xy) < MINIMUM_POINTS[model]:
        return np.full((count, count), np.nan)
    design = design_matrix(transform, xy)
    normal = np.einsum("n,nip,niq->pq", weights / max(weights.mean(), 1e-9), design, design)
    return np.asarray(sigma**2 * np.linalg.pinv(normal))
