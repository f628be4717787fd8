"""`rsfuse.match`: rasters in, a transform with tie points and an honest confidence out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsfuse.errors import ConfigError
from rsfuse.matching import pipeline
from rsfuse.matching.measurer import AnyMeasurer, TemplateMeasurer
from rsfuse.matching.overlay import correlate, views
from rsfuse.matching.pipeline import PairReader, SearchRange, Stages, TiePointRows
from rsfuse.matching.results import MatchResult, Reason, TiePoints
from rsfuse.matching.robust import Fit, bare_share, consensus, fit_transform, neighbours_agree
from rsfuse.matching.trust import (
    FEW_TIE_POINTS,
    OK_CONFIDENCE,
    SCATTER_SHARE,
    SHARED_PX,
    WEAK_CONFIDENCE,
    Evidence,
    Status,
    pair_confidence,
    tie_point_probability,
)
from rsfuse.ops.geometry2d import (
    FloatArray,
    SplineField,
    Transform,
    apply_matrix,
    fit_field,
    fit_matrix,
)

if TYPE_CHECKING:
    from rsfuse.geo.raster import RasterSource

MODELS = ("shift", "rigid", "similarity", "affine", "homography", "smooth")
METHODS = ("auto", "cstf", "classic")
AUTO = "classic"  # the better one by docs/results.md
SMALLEST_SIDE_PX = 32
CLEAR_EVIDENCE = 6.0  # a placement so well supported is not doubted before refinement
REFINED_MOST = 3  # so many placements are refined where none is clear
KEYPOINTS = 500  # per image and pass; a scene spreads them over its tiles
SCENE_KEYPOINTS = 2400
FIRST_RADIUS_PX = 10
LAST_RADIUS_PX = 5
FIELD_PASSES = 5  # at most, in which a field grows
FIELD_GROWTH = 1.03  # in tie points, below which it has grown enough
TEMPLATE_PX = 64
TEMPLATE_OVERLAP = 8.0  # so many overlapping templates say what one independent one says
# Share of locally consistent tie points beside the model. Pairs that matrices describe have 0 to
# 0.15, most in radar, where roofs and crowns are displaced together; a smooth warp that was missed
# has 0.24. Relief that was missed has 0.13 to 0.14 and is not told apart.
UNEXPLAINED_MOST = 0.18
# Share of the area that may carry no tie point of a field. Simulated warps that a field follows
# have up to 0.09, one that it follows in part 0.22.
BARE_MOST = 0.15
# Share of the tie points that has to agree with a model where their agreement is not beyond doubt.
# Simulated shear in radar has shares of 0.55 and more, or an agreement of 50; mountains that were
# taken for shear 0.28 to 0.48 and 7 to 26, one 0.59 and 20; for a field 0.36 to 0.46 and 12 to 26.
# A field over a scene that changed in part keeps half: it stays, in doubt.
DOUBTED_SHARE = 0.5
DOUBTED_EVIDENCE = 30.0
FIELD_SHARE = 0.4
STIFF = ("shift", "rigid", "similarity")  # what is fitted instead
# Scatter of the tie points, pixels of their lattice, at which the peak of the whole images says as
# much as they do about where the query lies: two estimates that err differently (decision 0024).
WHOLE_PX = 1.0
LINEAR_BASE_PX = 0.05  # a georeference this straight is a matrix


class Options(NamedTuple):
    """What the caller may narrow down.

    Attributes:
        model: `auto` or one of `MODELS`.
        method: `auto`, `cstf` or `classic`.
        weights: Bundle of the CSTF matcher; None for the one that comes with rsfuse.
        max_shift_px: Largest shift to consider, reference pixels.
        upright: The query is not turned: search only within 6 degrees.
        prior: (3, 3) first guess, reference pixels -> query pixels.
        threads: For the global search.
        seed: Of the random hypotheses.
        finest: Reference pixels per pixel of the finest lattice.
    """

    model: str = "auto"
    method: str = "auto"
    weights: str | None = None
    max_shift_px: float | None = None
    upright: bool = False
    prior: FloatArray | None = None
    threads: int = 1
    seed: int = 0
    finest: float = 1.0


def match(
    reference: Any,
    query: Any,
    *,
    prior: npt.ArrayLike | None = None,
    model: str = "auto",
    method: str = "auto",
    weights: str | os.PathLike[str] | None = None,
    max_shift_px: float | None = None,
    upright: bool = False,
    bands_reference: Sequence[str | int] | None = None,
    bands_query: Sequence[str | int] | None = None,
    mask_reference: Any = None,
    mask_query: Any = None,
    threads: int | None = None,
    seed: int = 0,
    finest: float = 1.0,
) -> MatchResult:
    """Find where the query lies on the reference.

    Args:
        reference: What `open_raster` takes: a path, an array (C, H, W) or (H, W), a `Raster`, or an
            open `RasterSource`.
        query: The same; another sensor, date, CRS, pixel size and number of bands are fine.
        prior: (3, 3) first guess, reference pixels -> query pixels; the search stays near it.
        model: `shift`, `rigid`, `similarity`, `affine`, `homography` or `smooth`; by default,
            `auto`, the tie points decide.
        method: `cstf` for the trained matcher, `classic` for the one without training, `auto` for
            the better one of them by docs/results.md.
        weights: Bundle of a CSTF matcher of your own; it makes the method `cstf`.
        max_shift_px: Largest shift against the georeference, reference pixels. By default up to
            half the image.
        upright: The query is not turned; faster, and safer on repetitive ground.
        bands_reference: Bands to use; all (at most four, evenly) by default.
        bands_query: The same for the query.
        mask_reference: Mask of usable pixels, see `open_raster`.
        mask_query: The same for the query.
        threads: Threads for the search; all cores by default.
        seed: Seed of the random hypotheses: the same input gives the same answer.
        finest: Reference pixels per pixel of the finest lattice, at least 1. Noise averages out on
            a coarser one, and so does detail.

    Raises:
        RasterError, BandError, GridError: An input is unusable.
        ConfigError: Unknown model or method, or a lattice finer than the pixels.
        InputError: The weights are not those of a CSTF matcher.
    """
    from rsfuse.geo.raster import RasterSource, open_raster

    if model != "auto" and model not in MODELS:
        raise ConfigError(
            f"there is no model {model!r}",
            f"The models are auto, {', '.join(MODELS)}.",
            "Leave the model out to let the tie points decide.",
        )
    if method not in METHODS:
        raise ConfigError(
            f"there is no method {method!r}",
            f"The methods are {', '.join(METHODS)}.",
            "Leave the method out.",
        )
    if not finest >= 1.0:
        raise ConfigError(
            f"the finest lattice has {finest} reference pixels per pixel",
            "It is at least 1: the pixels of the reference themselves.",
            "Use 2 or 4 for noisy images, or leave it out.",
        )
    sources = []
    for given, bands, mask in (
        (reference, bands_reference, mask_reference),
        (query, bands_query, mask_query),
    ):
        if isinstance(given, RasterSource):
            sources.append(given)
        else:
            chosen = None if bands is None else tuple(bands)
            sources.append(open_raster(given, bands=chosen, mask=mask))
    options = Options(
        model,
        method,
        None if weights is None else os.fspath(weights),
        max_shift_px,
        upright,
        None if prior is None else np.asarray(prior, np.float64).reshape(3, 3),
        threads or os.cpu_count() or 1,
        seed,
        finest,
    )
    return match_sources(sources[0], sources[1], options)


def match_sources(reference: RasterSource, query: RasterSource, options: Options) -> MatchResult:
    """`match` on open rasters."""
    stages = Stages()
    measurer = choose_measurer(options)
    parameters: dict[str, Any] = {
        "method": measurer.name,
        "weights": measurer.weights,
        "model": options.model,
        "max_shift_px": options.max_shift_px,
        "upright": options.upright,
        "seed": options.seed,
        "finest": options.finest,
    }

    def refuse(*reasons: Reason, confidence: float = 0.0, **diagnostics: Any) -> MatchResult:
        return MatchResult(
            "refused",
            confidence,
            reasons,
            None,
            None,
            TiePoints.none(),
            None,
            {**diagnostics, "stages": stages.seconds},
            reference,
            query,
            parameters,
        )

    too_small = next(_too_small(reference, query), None)
    if too_small is not None:
        return refuse(too_small)
    pair, linear_base, problem = pair_reader(reference, query, options)
    if pair is None:
        return refuse(problem or Reason("no_overlap", "The two rasters share no ground."))
    featureless = next(_featureless(pair), None)
    if featureless is not None:
        return refuse(featureless)
    stages.mark("open")
    rng = np.random.default_rng(options.seed)
    georeferenced = reference.is_georeferenced and query.is_georeferenced
    verified, unclear = _placements(pair, measurer, options, georeferenced, rng, stages)
    most = verified[0].consensus.evidence if verified else 0.0
    if most < pipeline.SOME_EVIDENCE:
        return refuse(
            Reason(
                "no_agreement",
                "No placement of the query was found on which the tie points agree more than by "
                f"chance (evidence {most:.1f}).",
                {"evidence": most},
            ),
            candidates=len(verified),
        )
    refined = []
    for placement in unclear:
        found = refine(pair, measurer, placement.matrix, options, rng, stages)
        refined.append((placement, found, _evidence(placement, found)))
    refined.sort(key=lambda r: -pair_confidence(r[2], measurer.name))
    best, (rows, fit, _, doubted, _), evidence = refined[0]
    agreements = [(v, v.consensus.evidence) for v in verified if v is not best]
    agreements += [(v, other.agreement) for v, _, other in refined[1:]]
    evidence = evidence._replace(
        runner_up=max((a for v, a in agreements if _differ(v, best, pair.shape0)), default=0.0),
        search_margin=_search_margin(best, verified, pair.shape0),
    )
    if fit is None:
        return refuse(
            Reason(
                "few_tie_points",
                f"Only {len(rows.xy)} tie points could be measured at full resolution.",
                {"found": len(rows.xy)},
            ),
            evidence=best.consensus.evidence,
        )
    transform = compose(fit.transform, pair, linear_base)
    overlap = _overlap(pair, best.matrix)
    unexplained = _unexplained(rows, fit, _template(overlap, rows.factor))
    bare = bare_share(rows.xy, fit.inliers, overlap) if fit.transform.field else 0.0
    confidence = pair_confidence(evidence, measurer.name)
    points = _tie_points(pair, rows, fit, transform, confidence, measurer.name)
    status, reasons = judge(confidence, evidence, fit, rows.factor, unexplained, bare, doubted)
    before = np.hypot(*(points.xy1 - pair.base(rows.xy)).T)[points.kept]
    stages.mark("fit")
    return MatchResult(
        status,
        confidence,
        reasons,
        transform,
        fit.covariance if fit.transform.model != "smooth" else None,
        points,
        before if georeferenced or reference.shape == query.shape else None,
        {
            "evidence": evidence._asdict(),
            "model_scores_px": fit.scores,
            "unexplained": unexplained,
            "bare": bare,
            "lattice_factor": rows.factor,
            "stages": stages.seconds,
        },
        reference,
        query,
        parameters,
    )


def _too_small(reference: RasterSource, query: RasterSource) -> Iterator[Reason]:
    """Why images cannot be matched, by their sizes."""
    for name, source in (("reference", reference), ("query", query)):
        if min(source.shape) < SMALLEST_SIDE_PX:
            yield Reason(
                "too_small",
                f"The {name} is {source.shape[1]} x {source.shape[0]} pixels; matching needs "
                f"at least {SMALLEST_SIDE_PX} on both sides.",
                {"width": source.shape[1], "height": source.shape[0]},
            )


def _featureless(pair: PairReader) -> Iterator[Reason]:
    """Why images cannot be matched, by their pixels."""
    for name, (image, valid) in (
        ("reference", pair.read0((0, 0, pair.shape0[1], pair.shape0[0]), _small(pair.shape0))),
        ("query", _whole_query(pair)),
    ):
        if float(valid.mean()) < 0.02:
            yield Reason("no_valid_pixels", f"The {name} has no usable pixels: all are nodata.")
        elif float(image[:, valid].std(axis=1).max()) < 1e-6:
            yield Reason(
                "no_structure", f"The {name} is one flat value: there is nothing to match."
            )


def _placements(
    pair: PairReader,
    measurer: AnyMeasurer,
    options: Options,
    georeferenced: bool,
    rng: np.random.Generator,
    stages: Stages,
) -> tuple[list[pipeline.Verified], list[pipeline.Verified]]:
    """Verified placements of the query, best first; and those that full resolution has to judge."""
    verified: list[pipeline.Verified] = []
    looked: list[pipeline.Verified] = []
    for range_ in _ranges(options, georeferenced, pair.shape0):
        candidates = pipeline.find_candidates(pair, range_, threads=options.threads)
        stages.mark("global search")
        looked = pipeline.verify_all(pair, measurer, candidates, rng)
        stages.mark("verification")
        verified = sorted(verified + looked, key=lambda v: -v.consensus.evidence)
        # Of the many candidates of a second look one may agree as well by chance.
        if verified and verified[0].consensus.evidence > CLEAR_EVIDENCE and not range_.again:
            return verified, verified[:1]
    return verified, _close(verified, looked)


def _search_margin(
    best: pipeline.Verified, verified: list[pipeline.Verified], shape0: tuple[int, int]
) -> float:
    """See `Evidence.search_margin`."""
    here: list[float] = [best.candidate.score]
    elsewhere: list[float] = []
    for other in verified:
        scores = elsewhere if _differ(other, best, shape0) else here
        scores.append(other.candidate.score)
    return float(np.log(max(here) / max(elsewhere))) if elsewhere else 0.0


def _unexplained(rows: TiePointRows, fit: Fit, template: int) -> float:
    """Share of the tie points that agree with their neighbours, but not with the fit."""
    agree = neighbours_agree(
        rows.xy / rows.factor,
        (fit.transform.invert(rows.placed) - rows.xy) / rows.factor,
        rows.measured.probability,
        tolerance=2.0,
        apart=0.5 * template,
    )
    return float((agree & ~fit.inliers).sum()) / max(int(agree.sum()), 1)


def _tie_points(
    pair: PairReader,
    rows: TiePointRows,
    fit: Fit,
    transform: Transform,
    confidence: float,
    method: str,
) -> TiePoints:
    """Tie points with their errors and probabilities, in pixels of both images."""
    xy1 = pair.base(rows.placed)
    residual = xy1 - transform.apply(rows.xy)
    scale = _query_scale(transform, pair.shape0)
    return TiePoints(
        xy0=rows.xy,
        xy1=xy1,
        probability=tie_point_probability(
            rows.measured.probability,
            rows.measured.height,
            np.hypot(*residual.T),
            confidence=confidence,
            method=method,
        ),
        score=rows.measured.score,
        sigma_px=np.full(len(xy1), np.hypot(SCATTER_SHARE * fit.scale, SHARED_PX) * scale),
        residual=residual,
        kept=fit.inliers,
        held_out_px=fit.held_out * scale,
        from_query=rows.backward,
    )


def _close(
    verified: list[pipeline.Verified], looked: list[pipeline.Verified]
) -> list[pipeline.Verified]:
    """Where the reduced lattice does not decide, full resolution does: these are refined.

    Args:
        verified: Placements, best first.
        looked: Those of the last search, in its order.
    """
    close = verified[:REFINED_MOST]
    return close + [v for v in looked[:1] if not any(v is c for c in close)]


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


def _evidence(verified: pipeline.Verified, refined: Refined) -> Evidence:
    """What speaks for a refined placement, without the others."""
    measured = len(refined.rows.xy)
    if refined.fit is None:
        return Evidence(0.0, 0.0, 0.0, measured, 0, 0.0)
    return Evidence(
        max(verified.consensus.evidence, refined.agreement),
        refined.share,
        0.0,
        measured,
        refined.kept,
        refined.standing_out,
    )


def choose_measurer(options: Options) -> AnyMeasurer:
    """What measures displacements."""
    method = AUTO if options.method == "auto" else options.method
    if options.weights is None and method == "classic":
        return TemplateMeasurer()
    from rsfuse.matching.learned import SHIPPED, load_measurer

    return load_measurer(options.weights or SHIPPED)


def judge(
    confidence: float,
    evidence: Evidence,
    fit: Fit,
    factor: float,
    unexplained: float,
    bare: float,
    doubted: tuple[str, float] | None = None,
) -> tuple[Status, tuple[Reason, ...]]:
    """Status and reasons from the numbers."""
    reasons = []
    if confidence < OK_CONFIDENCE:
        reasons.append(
            Reason(
                "low_confidence",
                f"The probability that the transform is right is {confidence:.2f}: {evidence.kept} "
                f"of {evidence.measured} tie points agree (evidence {evidence.agreement:.1f}, next "
                f"best placement {evidence.runner_up:.1f}), the correlation of the images "
                f"stands {evidence.standing_out:.1f} deviations out of that around it, and the "
                f"search scored it {np.exp(evidence.search_margin):.2f} times the next placement.",
                {"confidence": confidence, **{k: float(v) for k, v in evidence._asdict().items()}},
            )
        )
    if evidence.kept < FEW_TIE_POINTS:
        reasons.append(
            Reason(
                "few_tie_points",
                f"Only {evidence.kept} tie points agree; {FEW_TIE_POINTS} are needed.",
                {"found": evidence.kept, "needed": FEW_TIE_POINTS},
            )
        )
    imprecise = fit.scale / np.sqrt(max(evidence.kept / TEMPLATE_OVERLAP, 1.0))
    if imprecise > 1.0 * factor:
        reasons.append(
            Reason(
                "imprecise",
                f"Tie points scatter by {fit.scale:.1f} px and {evidence.kept} of them do not "
                f"average that out: expect errors of {imprecise:.1f} px.",
                {"scatter_px": fit.scale, "expected_px": float(imprecise)},
            )
        )
    if unexplained > UNEXPLAINED_MOST:
        reasons.append(
            Reason(
                "unmodelled_deformation",
                f"{100 * unexplained:.0f} % of the tie points that agree with their neighbours do "
                f"not fit the {fit.transform.model}: the ground is bent in a way it cannot follow. "
                "Ask for the model smooth to follow it.",
                {"unexplained": unexplained},
            )
        )
    if doubted is not None:
        freer, share = doubted
        model = fit.transform.model
        other = "similarity" if freer == model else freer
        reasons.append(
            Reason(
                "doubtful_model",
                f"Only {100 * share:.0f} % of the tie points agree with the best {freer}: slopes "
                f"that a sensor displaces look like that too. This is the best {model}; ask for "
                f"the model {other} to compare.",
                {"share": share},
            )
        )
    if bare > BARE_MOST:
        reasons.append(
            Reason(
                "unsupported_field",
                f"In {100 * bare:.0f} % of the area hardly a tie point agrees with the smooth "
                "field: it is a guess there.",
                {"bare": bare},
            )
        )
    if confidence < WEAK_CONFIDENCE:
        return "refused", tuple(reasons)
    return ("weak", tuple(reasons)) if reasons else ("ok", ())


def refine(
    pair: PairReader,
    measurer: AnyMeasurer,
    matrix: FloatArray,
    options: Options,
    rng: np.random.Generator,
    stages: Stages,
) -> Refined:
    """From the verified placement to the finest lattice.

    Shear, perspective or a field that few tie points agree with is in doubt, and is set aside for a
    stiffer model.
    """
    models = MODELS if options.model == "auto" else (options.model,)
    found = _follow(pair, measurer, matrix, models, options.finest, rng, stages)
    freer = None if found.fit is None else found.fit.transform.model
    is_doubtful = found.share < DOUBTED_SHARE and found.agreement < DOUBTED_EVIDENCE
    if freer and freer not in STIFF and options.model == "auto" and is_doubtful:
        doubted = freer, found.share
        if freer != "smooth" or found.share < FIELD_SHARE:
            stiffer = _follow(pair, measurer, matrix, STIFF, options.finest, rng, stages)
            found = found if stiffer.fit is None else stiffer
        found = found._replace(doubted=doubted)
    settled = _settled(pair, found)
    stages.mark("whole images")
    return settled


def _settled(pair: PairReader, refined: Refined) -> Refined:
    """How far a fit stands out in the whole images, and the fit moved towards their peak."""
    fit = refined.fit
    if fit is None:
        return refined
    # Without the field: that bends to whatever the tie points of a wrong placement say.
    stiff = fit.transform.base
    seen = views(
        pair,
        lambda p: pair.base(apply_matrix(stiff, p)),
        factors=(refined.rows.factor,),
        area=_overlap(pair, stiff),
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
    finest: float,
    rng: np.random.Generator,
    stages: Stages,
) -> Refined:
    """Measure and fit from the coarsest lattice to the finest, each through the fit before."""
    h, w = pair.shape0
    rect = _overlap(pair, matrix)
    scale = _query_scale(Transform("affine", _affine_of(pair, matrix)), pair.shape0)
    finest = max(finest, 1.0 / scale)
    factor = max(1.0, max(h, w) / pipeline.VERIFY_SIDE_PX)
    factors = []
    while factor > finest * 1.01:
        factor /= pipeline.LEVEL_STEP
        factor = factor if factor > pipeline.LEVEL_SPARED * finest else finest
        factors.append(factor)
    factors = factors or [finest]
    placement: Transform = Transform("affine", matrix)
    rows, fit, agreement = None, None, 0.0
    rough = ("similarity", "affine", "smooth") if models == MODELS else models
    passes = [(f, FIRST_RADIUS_PX) for f in factors] + [(factors[-1], LAST_RADIUS_PX)]
    # Ground that is bent by more than the radius shows on the lattice of the verification only.
    bends_at = max(h, w) / pipeline.VERIFY_SIDE_PX
    if "smooth" in models and bends_at > 1.5 * factors[0]:
        passes.insert(0, (bends_at, FIRST_RADIUS_PX))
    grown, kept = 0, 0
    while passes:
        factor, radius = passes.pop(0)
        tried = rough if passes else models
        level = _fit_level(pair, measurer, rect, placement, tried, factor, radius, rng)
        is_look_for_bends = factor > factors[0]
        if is_look_for_bends and (level is None or level[1].transform.model != "smooth"):
            continue
        if level is None:
            break
        if placement.model != "smooth":
            # A field bends to where the last measurement was: that the next one agrees is no news.
            agreement = max(agreement, level[2])
        rows, fit = level[:2]
        placement = fit.transform
        if len(passes) == 1 and placement.model == "smooth" and grown < FIELD_PASSES:
            # A field grows into places that its last fit did not reach.
            reached, kept = kept, int(fit.inliers.sum())
            if kept > FIELD_GROWTH * reached:
                grown += 1
                passes.insert(0, (factor, FIRST_RADIUS_PX))
        stages.mark(f"refinement at 1:{factor:.3g}")
    if rows is None:
        return Refined(pipeline.join_none(), None, 0.0)
    if fit is not None:
        fit = fit._replace(inliers=fit.inliers & (rows.measured.probability > 0.05))
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
) -> tuple[TiePointRows, Fit, float] | None:
    """Tie points of one lattice through a placement, the fit to them, and how far they agree."""
    rows = _measure_level(pair, measurer, rect, placement, factor, radius)
    if rows is None:
        return None
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
    if agreed.inliers.sum() < 6:
        return None
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
    return None if fit is None else (rows, fit, agreed.evidence)


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
) -> TiePointRows | None:
    w, h = rect[2:]
    lattice = (max(16, round(h / factor)), max(16, round(w / factor)))
    template = _template(rect, factor)
    if max(lattice) <= pipeline.WHOLE_SIDE_PX:
        spacing = max(10, int(np.sqrt(lattice[0] * lattice[1] / KEYPOINTS)))
        rows = pipeline.tie_points_in(
            pair,
            measurer,
            rect,
            lattice,
            placement.apply,
            spacing=spacing,
            template=template,
            radius=radius,
        )
        return rows if len(rows.xy) else None
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
    return pipeline.join(found) if found else None


def _overlap(pair: PairReader, matrix: FloatArray) -> pipeline.Rect:
    """Part of the reference that the placed query covers, as (x, y, w, h)."""
    x1, y1, w1, h1 = pair.area1
    corners = np.array([[x1, y1], [x1 + w1, y1], [x1 + w1, y1 + h1], [x1, y1 + h1]])
    back = apply_matrix(np.linalg.inv(matrix), corners)
    h, w = pair.shape0
    low = np.clip(np.floor(back.min(axis=0)), 0, [w, h])
    high = np.clip(np.ceil(back.max(axis=0)), 0, [w, h])
    if (high - low < 48).any():
        return 0.0, 0.0, float(w), float(h)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def _affine_of(pair: PairReader, matrix: FloatArray) -> FloatArray:
    h, w = pair.shape0
    centre = np.array([[w / 2, h / 2], [w / 2 + 8, h / 2], [w / 2, h / 2 + 8]])
    return fit_matrix("affine", centre, pair.base(apply_matrix(matrix, centre)))


def _query_scale(transform: Transform, shape0: tuple[int, int]) -> float:
    """Query pixels per reference pixel."""
    return float(np.sqrt(abs(np.linalg.det(transform.base[:2, :2])))) or 1.0


def compose(placed: Transform, pair: PairReader, linear_base: FloatArray | None) -> Transform:
    """Reference pixels -> query pixels from a placement and the georeference after it."""
    if linear_base is not None:
        base = linear_base @ placed.base
        if placed.field is None:
            return Transform(placed.model, base / base[2, 2])
        turned = placed.field.coefficients @ linear_base[:2, :2].T
        field = SplineField(placed.field.origin, placed.field.spacing, turned)
        return Transform("smooth", base, field)
    # The georeference bends: the whole mapping becomes a matrix and a field through its samples.
    h, w = pair.shape0
    grid = np.stack(np.meshgrid(np.linspace(0, w, 41), np.linspace(0, h, 41)), axis=-1).reshape(
        -1, 2
    )
    there = pair.base(placed.apply(grid))
    known = np.isfinite(there).all(axis=1)
    grid, there = grid[known], there[known]
    base = fit_matrix("affine", grid, there)
    field = fit_field(
        grid,
        there - apply_matrix(base, grid),
        np.ones(len(grid)),
        area=(0.0, 0.0, float(w), float(h)),
        cells=(16, 16),
        stiffness=1e-9,
    )
    return Transform("smooth", base, field)


def _differ(a: pipeline.Verified, b: pipeline.Verified, shape0: tuple[int, int]) -> bool:
    """Whether two placements put the corners of the reference at different places."""
    h, w = shape0
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], float)
    gap = np.abs(apply_matrix(a.matrix, corners) - apply_matrix(b.matrix, corners)).mean()
    return not gap < 0.06 * max(h, w)


def _ranges(options: Options, georeferenced: bool, shape0: tuple[int, int]) -> list[SearchRange]:
    """Search ranges in the order in which they are tried."""
    half = max(shape0) / 2
    limit = options.max_shift_px
    near = SearchRange((-6.0, 6.0), (0.9, 1.11), half if limit is None else limit)
    if options.prior is not None:
        return [near]
    if options.upright:
        upright = SearchRange((-6.0, 6.0), (0.5, 2.0), limit)
        return [near, upright] if georeferenced else [upright]
    whole = SearchRange(max_shift_px=limit)
    again = replace(whole, again=True)
    return [near, whole, again] if georeferenced else [whole, again]


def _small(shape: tuple[int, int], side: int = 64) -> tuple[int, int]:
    factor = max(1.0, max(shape) / side)
    return max(1, round(shape[0] / factor)), max(1, round(shape[1] / factor))


def _whole_query(pair: PairReader) -> tuple[Any, Any]:
    small = _small(pair.shape1)
    step = np.array([pair.shape1[1] / small[1], pair.shape1[0] / small[0]])
    return pair.read1(small, lambda p: p * step)


def pair_reader(
    reference: RasterSource, query: RasterSource, options: Options
) -> tuple[PairReader | None, FloatArray | None, Reason | None]:
    """Readers of both rasters, the matrix of the georeference where it is one, or the problem."""
    from rsfuse.geo.grid import Window, pixel_mapping
    from rsfuse.geo.warp import read_mapped

    reference, query = reference.in_colours(), query.in_colours()
    bands0, bands1 = _some_bands(reference), _some_bands(query)
    h0, w0 = reference.shape
    h1, w1 = query.shape
    linear: FloatArray | None = np.eye(3)
    base: pipeline.Points
    if options.prior is not None:
        prior = options.prior
        linear = prior

        base = Transform("homography", prior).apply
    elif (
        reference.is_georeferenced
        and query.is_georeferenced
        and ((reference.geobox.crs is None) == (query.geobox.crs is None))
    ):
        base = pixel_mapping(reference.geobox, query.geobox)
        linear = _straight(base, (h0, w0))
    else:
        base = Transform("shift", np.eye(3)).apply
    edge = np.linspace(0, 1, 9)
    one, zero = np.ones(9), np.zeros(9)
    border = np.concatenate(
        [
            np.stack([edge, zero], 1),
            np.stack([edge, one], 1),
            np.stack([zero, edge], 1),
            np.stack([one, edge], 1),
        ]
    ) * np.array([w1, h1])
    if linear is not None:
        back = apply_matrix(np.linalg.inv(linear), border)
    else:
        back = pixel_mapping(query.geobox, reference.geobox)(border)
    back = back[np.isfinite(back).all(axis=1)]
    if len(back) == 0:
        return (
            None,
            None,
            Reason("no_overlap", "The query's CRS cannot be mapped to the reference."),
        )
    low, high = back.min(axis=0), back.max(axis=0)
    if reference.is_georeferenced and query.is_georeferenced and options.prior is None:
        reach = options.max_shift_px if options.max_shift_px is not None else max(h0, w0) / 2
        low = np.maximum(low, [-reach, -reach])
        high = np.minimum(high, [w0 + reach, h0 + reach])
        if (high - low < SMALLEST_SIDE_PX).any():
            gap = float(np.max(np.maximum(low - [w0, h0], -high)))
            return (
                None,
                None,
                Reason(
                    "no_overlap",
                    "By their georeference the two rasters lie too far apart to match: the query "
                    f"is beyond {reach:.0f} reference pixels from the reference.",
                    {"reach_px": float(reach), "gap_px": gap},
                ),
            )

    def read0(rect: pipeline.Rect, shape: tuple[int, int]) -> tuple[Any, Any]:
        x, y, w, h = (round(v) for v in rect)
        whole = (h, w) == shape
        raster = reference.read(Window(x, y, w, h), shape=None if whole else shape, bands=bands0)
        return raster.data, raster.valid

    def read1(shape: tuple[int, int], mapping: pipeline.Points) -> tuple[Any, Any]:
        raster = read_mapped(query, shape, mapping, bands=bands1)
        return raster.data, raster.valid

    area = (float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1]))
    return PairReader((h0, w0), read0, read1, base, (h1, w1), area), linear, None


def _some_bands(source: RasterSource) -> tuple[str | int, ...] | None:
    """At most four bands, evenly spread: more cost time and add little structure."""
    count = len(source.bands)
    if count <= 4:
        return None
    return tuple(source.bands[int(i)] for i in np.round(np.linspace(0, count - 1, 4)))


def _straight(base: pipeline.Points, shape: tuple[int, int]) -> FloatArray | None:
    """The matrix of a mapping, if it is affine to within `LINEAR_BASE_PX`."""
    h, w = shape
    grid = np.stack(np.meshgrid(np.linspace(0, w, 9), np.linspace(0, h, 9)), -1).reshape(-1, 2)
    there = base(grid)
    if not np.isfinite(there).all():
        return None
    matrix = fit_matrix("affine", grid, there)
    gap = np.abs(apply_matrix(matrix, grid) - there).max()
    return matrix if gap < LINEAR_BASE_PX else None
