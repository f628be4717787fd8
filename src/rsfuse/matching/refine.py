"""From a verified placement to the finest lattice: which model the tie points carry, and where.

Each lattice is measured through the fit to the one before. What the tie points of a pair are off by
together they cannot say; the whole images say it in part, and have a share in the shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rsfuse.matching import pipeline
from rsfuse.matching.measurer import AnyMeasurer
from rsfuse.matching.overlay import correlate, views
from rsfuse.matching.pipeline import PairReader, Stages, TiePointRows, covered, verified_part
from rsfuse.matching.robust import Fit, consensus, fit_transform, neighbours_agree
from rsfuse.ops.geometry2d import (
    FloatArray,
    Transform,
    apply_matrix,
    fit_matrix,
    rotation_scale_of,
)

MODELS = ("shift", "rigid", "similarity", "affine", "homography", "smooth")
KEYPOINTS = 500  # per image and pass; a scene spreads them over its tiles
SCENE_KEYPOINTS = 2400
FIRST_RADIUS_PX = 10
LAST_RADIUS_PX = 5
FIELD_PASSES = 5  # at most, in which a field grows
FIELD_GROWTH = 1.03  # in tie points, below which it has grown enough
TEMPLATE_PX = 64
TEMPLATE_OVERLAP = 8.0  # so many overlapping templates say what one independent one says
# Share of the tie points that has to agree with a model where their agreement is not beyond doubt.
# Simulated shear in radar has shares of 0.55 and more, or an agreement of 50; mountains that were
# taken for shear 0.28 to 0.48 and 7 to 26, one 0.59 and 20; for a field 0.36 to 0.46 and 12 to 26.
# A field over a scene that changed in part keeps half: it stays, in doubt.
DOUBTED_SHARE = 0.5
DOUBTED_EVIDENCE = 30.0
FIELD_SHARE = 0.4
FEWEST_AGREEING = 6  # tie points, below which nothing is fitted
STIFF = ("shift", "rigid", "similarity")  # what is fitted instead
# Scatter of the tie points, pixels of their lattice, at which the peak of the whole images says as
# much as they do about where the query lies: two estimates that err differently (decision 0024).
WHOLE_PX = 1.0


class Refined(NamedTuple):
    """A placement followed to the finest lattice.

    Attributes:
        rows: Tie points.
        fit: To the placed pixels; None where there are too few.
        agreement: See `Evidence.agreement`.
        doubted: A model in doubt, and the share of the tie points that agreed with it.
        standing_out: See `Evidence.standing_out`.
    """

    rows: TiePointRows
    fit: Fit | None
    agreement: float
    doubted: tuple[str, float] | None = None
    standing_out: float = 0.0

    @property
    def kept(self) -> int:
        """Tie points that agree."""
        return 0 if self.fit is None else int(self.fit.inliers.sum())

    @property
    def share(self) -> float:
        """Share of the tie points that agree."""
        return self.kept / max(len(self.rows.xy), 1)


def refine(
    pair: PairReader,
    measurer: AnyMeasurer,
    matrix: FloatArray,
    *,
    model: str = "auto",
    finest: float = 1.0,
    seed: int = 0,
    stages: Stages | None = None,
) -> Refined:
    """From the verified placement to the finest lattice.

    Shear, perspective or a field that few tie points agree with is in doubt, and is set aside for a
    stiffer model.

    Args:
        pair: Of the two images.
        measurer: What measures displacements.
        matrix: (3, 3) reference pixels -> placed pixels.
        model: `auto` or one of `MODELS`.
        finest: Reference pixels per pixel of the finest lattice.
        seed: Of the random hypotheses.
        stages: Where the times are kept.
    """
    stages = stages or Stages()

    def follow(models: Sequence[str]) -> Refined:
        return _follow(pair, measurer, matrix, models, finest=finest, seed=seed, stages=stages)

    found = follow(MODELS if model == "auto" else (model,))
    freer = None if found.fit is None else found.fit.transform.model
    is_doubtful = found.share < DOUBTED_SHARE and found.agreement < DOUBTED_EVIDENCE
    if freer and freer not in STIFF and model == "auto" and is_doubtful:
        doubted = freer, found.share
        if freer != "smooth" or found.share < FIELD_SHARE:
            stiffer = follow(STIFF)
            found = found if stiffer.fit is None else stiffer
        found = found._replace(doubted=doubted)
    settled = _settled(pair, found, covered(pair, matrix))
    stages.mark("whole images")
    return settled


def _settled(pair: PairReader, refined: Refined, area: pipeline.Rect) -> Refined:
    """How far a fit stands out in all of an area, and the fit moved towards the peak there."""
    fit = refined.fit
    if fit is None:
        return refined
    # Without the field: that bends to whatever the tie points of a wrong placement say.
    stiff = fit.transform.base
    seen = views(
        pair,
        lambda p: pair.base(apply_matrix(stiff, p)),
        factors=(refined.rows.factor,),
        area=area,
    )
    found = correlate(seen)
    if fit.transform.field is None:
        share = 1.0 / (1.0 + (WHOLE_PX * refined.rows.factor / max(fit.scale, 1e-6)) ** 2)
        moved = stiff @ pipeline.translation(*(share * found.shift))
        transform = Transform(fit.transform.model, moved)
        residual = refined.rows.placed - transform.apply(refined.rows.xy)
        fit = fit._replace(transform=transform, residual=residual)
    return refined._replace(fit=fit, standing_out=found.standing_out)


def _follow(
    pair: PairReader,
    measurer: AnyMeasurer,
    matrix: FloatArray,
    models: Sequence[str],
    *,
    finest: float,
    seed: int,
    stages: Stages,
) -> Refined:
    """Measure and fit from the coarsest lattice to the finest, each through the fit before."""
    rng = np.random.default_rng(seed)
    rect = covered(pair, matrix)
    finest = max(finest, 1.0 / _scale_of(pair, matrix))
    bends_at = max(verified_part(pair, matrix)[2:]) / pipeline.VERIFY_SIDE_PX
    factor = max(1.0, bends_at)
    factors = []
    while factor > finest * 1.01:
        factor /= pipeline.LEVEL_STEP
        factor = factor if factor > pipeline.LEVEL_SPARED * finest else finest
        factors.append(factor)
    factors = factors or [finest]
    placement: Transform = Transform("affine", matrix)
    rows, fit, agreement = pipeline.join_none(), None, 0.0
    rough = ("similarity", "affine", "smooth") if models == MODELS else models
    passes = [(f, FIRST_RADIUS_PX) for f in factors] + [(factors[-1], LAST_RADIUS_PX)]
    # Ground that is bent by more than the radius shows on the lattice of the verification only.
    if "smooth" in models and bends_at > 1.5 * factors[0]:
        passes.insert(0, (bends_at, FIRST_RADIUS_PX))
    grown, kept = 0, 0
    while passes:
        factor, radius = passes.pop(0)
        tried = rough if passes else models
        measured, fitted, agreed = _fit_level(
            pair, measurer, rect, placement, tried, factor, radius, rng
        )
        is_look_for_bends = factor > factors[0]
        if is_look_for_bends and (fitted is None or fitted.transform.model != "smooth"):
            continue
        if fitted is None:
            rows = rows if fit else measured
            break
        if placement.model != "smooth":
            # A field bends to where the last measurement was: that the next one agrees is no news.
            agreement = max(agreement, agreed)
        rows, fit = measured, fitted
        placement = fit.transform
        if len(passes) == 1 and placement.model == "smooth" and grown < FIELD_PASSES:
            # A field grows into places that its last fit did not reach.
            reached, kept = kept, int(fit.inliers.sum())
            if kept > FIELD_GROWTH * reached:
                grown += 1
                passes.insert(0, (factor, FIRST_RADIUS_PX))
        stages.mark(f"refinement at 1:{factor:.3g}")
    if fit is not None:
        sure = fit.inliers & (rows.measured.probability > 0.05)
        fit = fit._replace(inliers=sure, held_out=np.where(sure, fit.held_out, np.nan))
    return Refined(rows, fit, agreement)


def _fit_level(
    pair: PairReader,
    measurer: AnyMeasurer,
    rect: pipeline.Rect,
    placement: Transform,
    models: Sequence[str],
    factor: float,
    radius: int,
    rng: np.random.Generator,
) -> tuple[TiePointRows, Fit | None, float]:
    """Tie points of one lattice through a placement, the fit to them, and how far they agree."""
    rows = _measure_level(pair, measurer, rect, placement, factor, radius)
    if not len(rows.xy):
        return rows, None, 0.0
    xy, template = rows.xy / factor, _template(rect, factor)
    moved = (placement.invert(rows.placed) - rows.xy) / factor
    probability = rows.measured.probability
    agreed = consensus(
        xy,
        moved,
        probability,
        radius=radius,
        tolerance=1.5 if radius == LAST_RADIUS_PX else 2.0,
        template=template,
        rng=rng,
    )
    if agreed.inliers.sum() < FEWEST_AGREEING:
        return rows, None, agreed.evidence
    near = np.hypot(*(apply_matrix(agreed.matrix, xy) - xy - moved).T) < 4.0
    agree = neighbours_agree(xy, moved, probability, tolerance=2.0, apart=0.5 * template)
    fit = fit_transform(
        rows.xy,
        rows.placed,
        np.where(near | agree, probability, 0.0),
        area=rect,
        models=models,
        tolerance=3.0 * factor,
        start=placement if placement.model == "smooth" else None,
    )
    return rows, fit, agreed.evidence


def _template(rect: pipeline.Rect, factor: float) -> int:
    """Side of the templates on a lattice: smaller where the lattice is small."""
    smallest = int(max(16, min(rect[2], rect[3]) / factor))
    return min(TEMPLATE_PX, 2 * max(6, smallest // 5))


def _measure_level(
    pair: PairReader,
    measurer: AnyMeasurer,
    rect: pipeline.Rect,
    placement: Transform,
    factor: float,
    radius: int,
) -> TiePointRows:
    w, h = rect[2:]
    lattice = (max(16, round(h / factor)), max(16, round(w / factor)))
    template = _template(rect, factor)
    if max(lattice) <= pipeline.WHOLE_SIDE_PX:
        spacing = max(10, int(np.sqrt(lattice[0] * lattice[1] / KEYPOINTS)))
        return pipeline.tie_points_in(
            pair,
            measurer,
            rect,
            lattice,
            placement.apply,
            spacing=spacing,
            template=template,
            radius=radius,
        )
    tiles = pipeline.spread_tiles(rect, pipeline.TILE_PX * factor, pipeline.MAX_TILES)
    spacing = int(np.sqrt(pipeline.TILE_PX**2 * len(tiles) / SCENE_KEYPOINTS))

    def one(tile: pipeline.Rect) -> TiePointRows:
        size = (max(16, round(tile[3] / factor)), max(16, round(tile[2] / factor)))
        return pipeline.tie_points_in(
            pair,
            measurer,
            tile,
            size,
            placement.apply,
            spacing=max(24, spacing),
            template=template,
            radius=radius,
        )

    parts = pipeline.each(one, tiles)
    found = [p for p in parts if len(p.xy)]
    return pipeline.join(found or parts)


def unexplained(rows: TiePointRows, fit: Fit, area: pipeline.Rect) -> float:
    """Share of the tie points that agree with their neighbours, but not with the fit."""
    agree = neighbours_agree(
        rows.xy / rows.factor,
        (fit.transform.invert(rows.placed) - rows.xy) / rows.factor,
        rows.measured.probability,
        tolerance=2.0,
        apart=0.5 * _template(area, rows.factor),
    )
    return float((agree & ~fit.inliers).sum()) / max(int(agree.sum()), 1)


def _scale_of(pair: PairReader, matrix: FloatArray) -> float:
    """Query pixels per reference pixel of a placement, in the middle of the reference."""
    h, w = pair.shape0
    near = np.array([[w / 2, h / 2], [w / 2 + 8, h / 2], [w / 2, h / 2 + 8]])
    mapped = pair.base(apply_matrix(matrix, near))
    return rotation_scale_of(fit_matrix("affine", near, mapped))[1] or 1.0
