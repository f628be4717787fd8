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
from rsfuse.matching.pipeline import PairReader, SearchRange, Stages, TiePointRows, covered
from rsfuse.matching.reader import SMALLEST_SIDE_PX, compose, pair_reader
from rsfuse.matching.refine import (
    MODELS,
    TEMPLATE_OVERLAP,
    Refined,
    refine,
    unexplained,
)
from rsfuse.matching.results import MatchResult, Reason, TiePoints
from rsfuse.matching.robust import Fit, bare_share
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
    Transform,
    apply_matrix,
    is_invertible,
    rotation_scale_of,
)

if TYPE_CHECKING:
    from rsfuse.geo.raster import RasterSource

METHODS = ("auto", "cstf", "classic")
AUTO = "classic"  # the better one by docs/results.md
CLEAR_EVIDENCE = 6.0  # a placement so well supported is not doubted before refinement
FLAT = 1e-6  # of the largest value: an image that varies less is one flat value
REFINED_MOST = 3  # so many placements are refined where none is clear
# Share of locally consistent tie points beside the model. Pairs that matrices describe have 0 to
# 0.15, most in radar, where roofs and crowns are displaced together; a smooth warp that was missed
# has 0.24. Relief that was missed has 0.13 to 0.14 and is not told apart.
UNEXPLAINED_MOST = 0.18
# Share of the area that may carry no tie point of a field. Simulated warps that a field follows
# have up to 0.09, one that it follows in part 0.22.
BARE_MOST = 0.15


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
        ConfigError: Unknown model or method, a lattice finer than the pixels, a negative seed, or a
            prior that is no invertible matrix.
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
    if seed < 0:
        raise ConfigError(
            f"the seed is {seed}", "A seed is a whole number from 0 on.", "Leave the seed out."
        )
    guess = None if prior is None else np.asarray(prior, np.float64)
    if guess is not None and not is_invertible(guess):
        raise ConfigError(
            "the prior is no transform",
            "It is an invertible (3, 3) matrix from reference pixels to query pixels.",
            "Leave the prior out, or start from np.eye(3).",
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
        guess,
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
    pair, linear_base, problem = pair_reader(
        reference, query, prior=options.prior, max_shift_px=options.max_shift_px
    )
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
        found = refine(
            pair,
            measurer,
            placement.matrix,
            model=options.model,
            finest=options.finest,
            seed=options.seed,
            stages=stages,
        )
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
                f"{len(rows.xy)} tie points could be measured at 1:{rows.factor:.3g}, and too few "
                "of them agree on a transform.",
                {"found": len(rows.xy), "lattice_factor": rows.factor},
            ),
            evidence=best.consensus.evidence,
        )
    transform = compose(fit.transform, pair, linear_base)
    area = covered(pair, best.matrix)
    bent = unexplained(rows, fit, area)
    bare = bare_share(rows.xy, fit.inliers, area) if fit.transform.field else 0.0
    confidence = pair_confidence(evidence, measurer.name)
    points = _tie_points(pair, rows, fit, transform, confidence, measurer.name)
    status, reasons = judge(confidence, evidence, fit, rows.factor, bent, bare, doubted)
    before = np.hypot(*(points.xy1 - pair.base(rows.xy)).T)[points.kept]
    stages.mark("fit")
    return MatchResult(
        status,
        confidence,
        reasons,
        transform,
        None if fit.transform.field else TEMPLATE_OVERLAP * fit.covariance,
        points,
        before if georeferenced or reference.shape == query.shape else None,
        {
            "evidence": evidence._asdict(),
            "model_scores_px": fit.scores,
            "unexplained": bent,
            "bare": bare,
            "lattice_factor": rows.factor,
            "stages": stages.seconds,
        },
        reference,
        query,
        parameters,
        fit.transform,
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
        seen = image[:, valid]
        if not seen.size:
            yield Reason("no_valid_pixels", f"The {name} has no usable pixels: all are nodata.")
        elif not (seen.std(axis=1) > FLAT * np.abs(seen).max(axis=1)).any():
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
    scale = rotation_scale_of(transform.base, rows.xy.mean(axis=0))[1]
    deviation = np.hypot(SCATTER_SHARE * fit.scale, SHARED_PX * rows.factor)
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
        sigma_px=np.full(len(xy1), deviation * scale),
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
