"""The frozen protocols: which cases a matcher sees, what is measured on each, how it is summed up.

Every protocol is three functions: `cases` (pairs -> small picklable descriptions), `measure`
(one case and a matcher -> one flat record; runs in a worker) and `summarise` (records -> one row
per modality, then all). A pair without an answer is a row like any other: it counts.

* `srif`: does it find the pair, and how far off is it? Pairs as on file; a truth that knowing
  nothing meets within 10 px is given a stored motion.
* `mmim`: the same by the corner criterion of the MMIM tables. Pairs as on file.
* `sub`: how precise is it, and does it lock to whole pixels? Queries moved by known sub-pixel
  shifts and smooth fields.
* `loop`: does A -> B -> A close? Pairs as for `srif`; triples of one ground as on file.
* `trust`: does it know when it is wrong? True, unrelated and non-overlapping pairs, mixed.

The sixth, `big`, runs the command line and lives in `big.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rsfuse.matching import metrics
from rsfuse.matching.constructed import (
    Motion,
    SubpixelMotion,
    crop,
    disjoint_windows,
    pair_generator,
    subpixel_motion,
    turned_window,
    upright_motion,
)
from rsfuse.matching.data import ImageArray, MatchPair
from rsfuse.matching.metrics import FloatArray, Transform

NEAR_IDENTITY_PX = 10.0  # a truth that knowing nothing meets this well gets a motion
CORRECT_ANSWER_PX = 5.0  # `trust`: an answer counts as right up to this mean grid error
PUBLISHED_GROUPS = frozenset({"optical-sar", "optical-optical", "optical-infrared"})
SHARES_PX = (10.0, 5.0, 3.0, 2.0)
CORNER_PX = (3.0, 5.0, 10.0)
LOOP_PX = (1.0, 2.0, 3.0)
MMIM_DRAWS = 10_000
SUB_VERSIONS = 4
SUB_OUTLIER_PX = 1.5  # tie points farther off say nothing about phase
TIE_POINTS_KEPT = 200  # per answer, for reliability: no pair outvotes the others
ELLIPSE_LEVEL = 0.9

Record = dict[str, Any]
Status = Literal["ok", "weak", "refused"]


def _no_points() -> FloatArray:
    return np.zeros((0, 2))


@dataclass(frozen=True, eq=False)
class Answer:
    """What a matcher says about two images, in the corner convention.

    Attributes:
        transform: Reference pixels -> query pixels, a (3, 3) matrix or a function; None for none.
        points0: (N, 2) tie points in the reference.
        points1: (N, 2) the same in the query.
        probabilities: (N,) that the tie point is right; empty when the matcher gives none.
        status: `ok`, `weak` or `refused`.
        confidence: Probability that the transform is right; NaN when the matcher gives none.
        seconds: Time that the matcher took; measured from outside when NaN.
        covariances_px2: (N, 2, 2) of the tie points in the query, or None.
    """

    transform: Transform | None
    points0: FloatArray = field(default_factory=_no_points)
    points1: FloatArray = field(default_factory=_no_points)
    probabilities: FloatArray = field(default_factory=lambda: np.zeros(0))
    status: Status = "ok"
    confidence: float = float("nan")
    seconds: float = float("nan")
    covariances_px2: FloatArray | None = None

    @property
    def is_answer(self) -> bool:
        """Whether the matcher stands by a transform."""
        return self.transform is not None and self.status != "refused"


Matcher = Callable[[ImageArray, ImageArray], Answer]


@dataclass(frozen=True, eq=False)
class Case:
    """One task for a matcher, small enough to send to a worker.

    Attributes:
        pair: Where the images and the truth come from.
        kind: `true`, `unrelated` (the query is the partner's), `disjoint` (cut so that nothing is
            shared) or `triple` (a loop through the partner's query).
        partner: The second pair of an unrelated case or of a triple.
        seed: Seed of all motions.
        upright: Take rotation and scale out of the pair.
        as_it_lies: Leave a near-identity truth without a motion.
    """

    pair: MatchPair
    seed: int
    kind: Literal["true", "unrelated", "disjoint", "triple"] = "true"
    partner: MatchPair | None = None
    upright: bool = False
    as_it_lies: bool = False

    @property
    def id(self) -> str:
        """Unique name of the case."""
        return self.pair.id if self.kind == "true" else f"{self.pair.id}#{self.kind}"


class Scene(NamedTuple):
    """The images of a case and what is known about them.

    Attributes:
        image0: Reference.
        image1: Query, moved where the protocol says so.
        truth: (3, 3) as stated by the set.
        best_truth: The same with the measured residual; equal to `truth` where none was measured.
        points: Check points (N, 4) inside both images, or None.
        motion: What was done to the query, or None.
    """

    image0: ImageArray
    image1: ImageArray
    truth: FloatArray
    best_truth: FloatArray
    points: FloatArray | None
    motion: Motion | None

    @property
    def shape0(self) -> tuple[int, int]:
        """(h, w) of the reference."""
        return self.image0.shape[1], self.image0.shape[2]

    @property
    def shape1(self) -> tuple[int, int]:
        """(h, w) of the query."""
        return self.image1.shape[1], self.image1.shape[2]


class Protocol(NamedTuple):
    """Three functions and the columns of the table."""

    cases: Callable[[Sequence[MatchPair], int, bool], list[Case]]
    measure: Callable[[Case, Matcher], Record]
    summarise: Callable[[Sequence[Record], np.random.Generator], list[Record]]
    columns: tuple[tuple[str, str], ...]


# --- loading -----------------------------------------------------------------------------------


def load(case: Case, *, moved: bool = True) -> Scene:
    """Read the case's own pair; with `moved`, give a near-identity truth its stored motion."""
    pair = case.pair
    image0, image1 = pair.read_reference(), pair.read_query()
    shape0, shape1 = image0.shape[1:], image1.shape[1:]
    motion: Motion | None = None
    if case.upright:
        rng = pair_generator(case.seed, pair.id, "upright")
        motion = upright_motion(pair.truth, shape0, shape1, rng)
    elif (
        moved
        and not case.as_it_lies
        and _placement_error(pair.truth, shape0, shape1) < NEAR_IDENTITY_PX
    ):
        motion = turned_window(shape1, pair_generator(case.seed, pair.id, "turned window"))
    best = _translation(pair.residual_px) @ pair.truth
    if motion is None:
        return Scene(image0, image1, pair.truth, best, pair.points, None)
    scene = Scene(
        image0, motion.apply(image1), motion.matrix @ pair.truth, motion.matrix @ best, None, motion
    )
    return scene._replace(points=_moved_points(pair.points, scene))


def _translation(shift: FloatArray | None) -> FloatArray:
    matrix = np.eye(3)
    if shift is not None:
        matrix[:2, 2] = shift
    return matrix


def _placement_error(truth: Transform, shape0: tuple[int, int], shape1: tuple[int, int]) -> float:
    nothing = metrics.centre_placement(shape0, shape1)
    return float(np.mean(metrics.grid_errors(nothing, truth, shape0, shape1)))


def _moved_points(points: FloatArray | None, scene: Scene) -> FloatArray | None:
    if points is None or scene.motion is None:
        return points
    there = metrics.transform_points(scene.motion.matrix, points[:, 2:])
    inside = ((there >= 0) & (there <= [scene.shape1[1], scene.shape1[0]])).all(axis=1)
    return np.column_stack([points[:, :2], there])[inside]


def ask(matcher: Matcher, image0: ImageArray, image1: ImageArray) -> tuple[Answer, str | None]:
    """The matcher's answer; an exception becomes a refusal and its text, so the run goes on."""
    start = time.perf_counter()
    try:
        answer, error = matcher(image0, image1), None
    except Exception as problem:
        answer, error = Answer(None, status="refused"), f"{type(problem).__name__}: {problem}"
    if np.isnan(answer.seconds):
        answer = replace(answer, seconds=time.perf_counter() - start)
    return answer, error


def _base_record(case: Case, answer: Answer, error: str | None) -> Record:
    return {
        "id": case.id,
        "kind": case.kind,
        "group": case.pair.group,
        "category": case.pair.category,
        "status": answer.status,
        "confidence": answer.confidence,
        "seconds": answer.seconds,
        "exception": error,
        "matches": len(answer.points0),
        "answered": answer.is_answer,
    }


def _grid_error(answer: Answer, truth: Transform, scene: Scene) -> float | None:
    """Mean grid error of an answer; None when there is none or it is not finite somewhere."""
    if answer.transform is None or not answer.is_answer:
        return None
    errors = metrics.grid_errors(answer.transform, truth, scene.shape0, scene.shape1)
    return float(errors.mean())


# --- srif --------------------------------------------------------------------------------------


def true_cases(pairs: Sequence[MatchPair], seed: int, upright: bool) -> list[Case]:
    """Every pair once."""
    return [Case(pair, seed, upright=upright) for pair in pairs]


def measure_srif(case: Case, matcher: Matcher) -> Record:
    """NCM, RMSE and success of the SRIF authors; grid, corner and check point errors."""
    return measure_srif_scene(case, load(case), matcher)


def measure_srif_scene(case: Case, scene: Scene, matcher: Matcher) -> Record:
    """`measure_srif` on images that are loaded already."""
    answer, error = ask(matcher, scene.image0, scene.image1)
    correct = metrics.correct_matches(answer.points0, answer.points1, scene.truth)
    offsets = metrics.match_errors(answer.points0[correct], answer.points1[correct], scene.truth)
    grid = _grid_error(answer, scene.truth, scene)
    best = _grid_error(answer, scene.best_truth, scene)
    placement = _placement_error(scene.truth, scene.shape0, scene.shape1)
    counted = metrics.counted_error(grid, placement_px=placement, shape1=scene.shape1)
    is_success = answer.status != "refused" and int(correct.sum()) >= metrics.CORRECT_NEEDED
    record = _base_record(case, answer, error)
    record.update(
        ncm=int(correct.sum()),
        success=is_success,
        rmse_px=metrics.match_rmse(offsets) if is_success else metrics.FAILED_RMSE_PX,
        grid_error_px=grid,
        best_truth_error_px=best,
        counted_error_px=counted,
        nothing_error_px=metrics.counted_error(None, placement_px=placement, shape1=scene.shape1),
        corner_error_px=None,
        checkpoint_rmse_px=None,
        motion=None if scene.motion is None else scene.motion.record(),
    )
    if answer.transform is not None and answer.is_answer:
        record["corner_error_px"] = metrics.corner_error(
            answer.transform, scene.truth, scene.shape0
        )
        if scene.points is not None and len(scene.points):
            record["checkpoint_rmse_px"] = metrics.checkpoint_rmse(answer.transform, scene.points)
    return record


def summarise_srif(records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """One row per modality, then all pairs; intervals by bootstrap over pairs.

    Where SAR, optical and infrared are part of a larger set, their sum gets a row: published
    tables on SRIF use these three.
    """
    groups = _groups(records)
    names = {name for name, _ in groups[:-1]}
    if names > PUBLISHED_GROUPS:
        three = [r for r in records if r["group"] in PUBLISHED_GROUPS]
        groups.insert(-1, ("sar + optical + infrared", three))
    return [_srif_row(name, rows, rng) for name, rows in groups]


def _srif_row(name: str, records: Sequence[Record], rng: np.random.Generator) -> Record:
    errors = _errors(records, "grid_error_px")
    best = _errors(records, "best_truth_error_px")
    corners = _errors(records, "corner_error_px")
    counted = _numbers(records, "counted_error_px")
    success = _numbers(records, "success")
    checks = _numbers([r for r in records if r["checkpoint_rmse_px"] is not None], _CHECKS)
    solved = errors[np.isfinite(errors)]
    row: Record = {
        "group": name,
        "pairs": len(records),
        "answered": _share([r["answered"] for r in records]),
        "refused": _share([r["status"] == "refused" for r in records]),
        "exceptions": sum(r["exception"] is not None for r in records),
        "success": _interval(success, metrics.mean, rng),
        "ncm_median": _median(_numbers(records, "ncm")),
        "rmse_px": _mean(_numbers(records, "rmse_px")),
        "mean_solved_px": _mean(solved),
        "mean_counted_px": _interval(counted, metrics.mean, rng),
        "median_px": _interval(errors, metrics.median, rng),
        "median_best_truth_px": _interval(best, metrics.median, rng),
        "nothing_px": _mean(_numbers(records, "nothing_error_px")),
        "checkpoint_rmse_px": _mean(checks),
        "seconds_median": _median(_numbers(records, "seconds")),
    }
    for threshold in SHARES_PX:
        row[f"within_{threshold:g}"] = _interval(errors, metrics.share(threshold), rng)
        row[f"within_{threshold:g}_best_truth"] = metrics.share_within(best, threshold)
    for threshold in CORNER_PX:
        row[f"auc_{threshold:g}"] = float(metrics.error_auc(corners, threshold))
    return row


_CHECKS = "checkpoint_rmse_px"

SRIF_COLUMNS = (
    ("group", "modality"),
    ("pairs", "pairs"),
    ("success", "success %"),
    ("within_10", "<10 px %"),
    ("within_5", "<5 px %"),
    ("within_3", "<3 px %"),
    ("within_2", "<2 px %"),
    ("within_2_best_truth", "<2 px % residual-corrected"),
    ("mean_solved_px", "mean solved px"),
    ("mean_counted_px", "mean counted px"),
    ("nothing_px", "knowing nothing px"),
    ("median_px", "median px"),
    ("median_best_truth_px", "median px residual-corrected"),
    ("auc_5", "AUC@5 %"),
    ("ncm_median", "NCM"),
    ("refused", "refused %"),
    ("seconds_median", "s/pair"),
)


# --- mmim --------------------------------------------------------------------------------------


def measure_mmim(case: Case, matcher: Matcher) -> Record:
    """Corner errors as MINIMA's script takes them, and of the matcher's own transform.

    MINIMA fits OpenCV's default RANSAC homography to the raw matches and sorts the corners before
    comparing. Both are kept for standing beside its table; the unsorted error and that of the
    matcher's own transform are what a user gets.
    """
    scene = load(case, moved=False)
    answer, error = ask(matcher, scene.image0, scene.image1)
    record = _base_record(case, answer, error)
    record.update(sorted_px=None, unsorted_px=None, own_px=None)
    homography = _opencv_homography(answer)
    if homography is not None:
        for key, is_sorted in (("sorted_px", True), ("unsorted_px", False)):
            record[key] = metrics.corner_error(
                homography, scene.truth, scene.shape0, is_sorted=is_sorted
            )
    if answer.transform is not None and answer.is_answer:
        record["own_px"] = metrics.corner_error(answer.transform, scene.truth, scene.shape0)
    nothing = metrics.centre_placement(scene.shape0, scene.shape1)
    record["nothing_px"] = metrics.corner_error(nothing, scene.truth, scene.shape0)
    return record


def _opencv_homography(answer: Answer) -> FloatArray | None:
    if not answer.is_answer or len(answer.points0) < 4:
        return None
    import cv2

    found: Any = cv2.findHomography(answer.points0, answer.points1, cv2.RANSAC)[0]
    return None if found is None else np.asarray(found, dtype=np.float64)


def summarise_mmim(records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """AUC per modality, then the plain mean over modalities, as in the published tables."""
    groups = _groups(records)[:-1]
    rows: list[Record] = []
    draws: dict[str, list[FloatArray]] = {}
    for name, members in groups:
        row: Record = {"group": name, "pairs": len(members)}
        for kind in ("sorted", "unsorted", "own", "nothing"):
            errors = _errors(members, f"{kind}_px")
            for threshold in CORNER_PX:
                key = f"{kind}_auc_{threshold:g}"
                sample = metrics.bootstrap_draws(
                    errors,
                    partial(metrics.error_auc, threshold_px=threshold),
                    rng,
                    draws=MMIM_DRAWS,
                )
                value = float(metrics.error_auc(errors, threshold))
                row[key] = metrics.percentile_interval(value, sample)
                draws.setdefault(key, []).append(sample)
        rows.append(row)
    overall: Record = {"group": "mean of modalities", "pairs": len(records)}
    for key, samples in draws.items():
        value = float(np.mean([row[key].value for row in rows]))
        overall[key] = metrics.percentile_interval(value, np.mean(samples, axis=0))
    return [*rows, overall]


MMIM_COLUMNS = (
    ("group", "modality"),
    ("pairs", "pairs"),
    *((f"sorted_auc_{t:g}", f"AUC@{t:g} %") for t in CORNER_PX),
    *((f"unsorted_auc_{t:g}", f"unsorted @{t:g} %") for t in CORNER_PX),
    *((f"own_auc_{t:g}", f"own transform @{t:g} %") for t in CORNER_PX),
    ("nothing_auc_10", "knowing nothing @10 %"),
)


# --- sub ---------------------------------------------------------------------------------------


def measure_sub(case: Case, matcher: Matcher) -> Record:
    """Sub-pixel precision on one pair moved in `SUB_VERSIONS` known ways.

    A real pair's own registration is known to a few pixels only, so each answer is taken back
    through its known motion and compared with the median of the other versions' answers: what is
    left is the error of recovering the motion, whatever the pair's own offset is. The comparison
    carries the others' noise, so it overstates the error by about 15 % for four versions.

    Being wrong in the same way every time is not precision: a version counts, and serves others
    for comparison, only if its median distance from the stated truth is at most
    `CORRECT_ANSWER_PX`. One that does not, has no answer, or nobody to compare with, is infinite.
    """
    scene = load(case, moved=False)
    rng = pair_generator(case.seed, case.pair.id, "sub-pixel")
    motions = [
        subpixel_motion(k, SUB_VERSIONS, rng, is_smooth=k % 2 == 1) for k in range(SUB_VERSIONS)
    ]
    replies = [ask(matcher, scene.image0, motion.apply(scene.image1)) for motion in motions]
    homes = [_way_home(motion, a) for motion, (a, _) in zip(motions, replies, strict=True)]
    border = motions[0].border_px
    inner = (scene.shape1[0] - 2 * border, scene.shape1[1] - 2 * border)
    frame = _translation(np.array([-border, -border], dtype=np.float64)) @ scene.truth
    nodes = metrics.grid_nodes(frame, scene.shape0, inner)
    truth = metrics.transform_points(scene.best_truth, nodes)
    nowhere = np.full(len(nodes), np.inf)
    absolute = [nowhere if go is None else metrics.distances(go(nodes), truth) for go in homes]
    right = [float(np.median(errors)) <= CORRECT_ANSWER_PX for errors in absolute]
    repeat = [nowhere] * SUB_VERSIONS
    phase_sums = np.zeros((2, 3, 4))
    for k, go in enumerate(homes):
        others = [h for j, h in enumerate(homes) if j != k and right[j] and h is not None]
        if go is None or not right[k] or not others:
            continue
        agreed = np.median([other(nodes) for other in others], axis=0)
        repeat[k] = metrics.distances(go(nodes), agreed)
        points0, points1 = replies[k][0].points0, replies[k][0].points1
        if len(points0):
            there = np.median([other(points0) for other in others], axis=0)
            phase_sums += _phase_sums(points0, points1, motions[k].target(there))
    record = _base_record(case, replies[0][0], next((e for _, e in replies if e is not None), None))
    record.update(
        answered=all(go is not None for go in homes),
        versions_answered=sum(go is not None for go in homes),
        versions_right=sum(right),
        seconds=float(np.mean([answer.seconds for answer, _ in replies])),
        repeat_px=[_finite_or_none(float(np.median(e))) for e in repeat],
        repeat_p90_px=[_finite_or_none(metrics.quantile_of(e, 0.9)) for e in repeat],
        absolute_px=[_finite_or_none(float(np.median(e))) for e in absolute],
        phase_sums=phase_sums,
        motions=[motion.record() for motion in motions],
    )
    return record


def _way_home(motion: SubpixelMotion, answer: Answer) -> Callable[[FloatArray], FloatArray] | None:
    """From reference pixels to the query as it was before the motion, by the answer."""
    transform = answer.transform
    if transform is None or not answer.is_answer:
        return None
    return lambda xy: motion.source(metrics.transform_points(transform, xy))


def _phase_sums(points0: FloatArray, points1: FloatArray, expected: FloatArray) -> FloatArray:
    """Normal equations, per axis, of error = c + a sin(2 pi phase) + b cos(2 pi phase).

    (2, 3, 4): the 3 x 3 matrix and, in the last column, the right-hand side. The phase is the
    fraction of a pixel in the true displacement: an estimator that locks to whole pixels has an
    error that follows it.
    """
    errors = points1 - expected
    near = np.hypot(*errors.T) < SUB_OUTLIER_PX
    sums = np.zeros((2, 3, 4))
    for axis in range(2):
        phase = 2 * np.pi * (expected - points0)[near, axis]
        basis = np.column_stack([np.ones(len(phase)), np.sin(phase), np.cos(phase)])
        sums[axis, :, :3] = basis.T @ basis
        sums[axis, :, 3] = basis.T @ errors[near, axis]
    return sums


def phase_bias(sums: FloatArray) -> float:
    """Amplitude of the phase-dependent error, mean of both axes, from summed normal equations."""
    amplitudes = []
    for axis in range(2):
        if np.linalg.matrix_rank(sums[axis, :, :3]) < 3:
            return float("nan")
        _, sine, cosine = np.linalg.solve(sums[axis, :, :3], sums[axis, :, 3])
        amplitudes.append(float(np.hypot(sine, cosine)))
    return float(np.mean(amplitudes))


def summarise_sub(records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """Medians over pairs and versions, P90 over the versions' P90, bias from all tie points."""
    rows = []
    for name, members in _groups(records):
        repeat = _flat_errors(members, "repeat_px")
        absolute = _flat_errors(members, "absolute_px")
        versions = SUB_VERSIONS * len(members)
        rows.append(
            {
                "group": name,
                "pairs": len(members),
                "answered": sum(r["versions_answered"] for r in members) / versions,
                "right": sum(r["versions_right"] for r in members) / versions,
                "median_px": _interval(repeat, metrics.median, rng),
                "p90_px": metrics.quantile_of(repeat, 0.9),
                "node_p90_median_px": metrics.quantile_of(
                    _flat_errors(members, "repeat_p90_px"), 0.5
                ),
                "absolute_median_px": metrics.quantile_of(absolute, 0.5),
                "phase_bias_px": phase_bias(np.sum([r["phase_sums"] for r in members], axis=0)),
                "seconds_median": _median(_numbers(members, "seconds")),
            }
        )
    return rows


SUB_COLUMNS = (
    ("group", "modality"),
    ("pairs", "pairs"),
    ("answered", "answered %"),
    ("right", f"within {CORRECT_ANSWER_PX:g} px %"),
    ("median_px", "median px"),
    ("p90_px", "P90 px"),
    ("node_p90_median_px", "P90 inside a scene px"),
    ("absolute_median_px", "against stated truth px"),
    ("phase_bias_px", "phase bias px"),
    ("seconds_median", "s/pair"),
)


# --- loop --------------------------------------------------------------------------------------


def loop_cases(pairs: Sequence[MatchPair], seed: int, upright: bool) -> list[Case]:
    """Every pair once, and every two pairs that share their reference as a triple."""
    cases = true_cases(pairs, seed, upright)
    for i, first in enumerate(pairs):
        for second in pairs[i + 1 :]:
            same = first.reference == second.reference
            if same and first.reference_bands == second.reference_bands:
                cases.append(Case(first, seed, kind="triple", partner=second))
    return cases


def measure_loop(case: Case, matcher: Matcher) -> Record:
    """How far a point is from itself after A -> B -> A, or A -> B -> C -> A.

    A loop needs no truth and cannot see an error that undoes itself on the way back, so whether
    the first leg is right by the stated truth is kept beside it.
    """
    scene = load(case, moved=case.kind == "true")
    images = [scene.image0, scene.image1]
    if case.partner is not None:
        images.append(case.partner.read_query())
    nodes = metrics.grid_nodes(scene.truth, scene.shape0, scene.shape1)
    at: FloatArray | None = nodes
    seconds, errors, matches = 0.0, [], 0
    answer = Answer(None, status="refused")
    first: float | None = None
    for start, end in zip(images, [*images[1:], images[0]], strict=True):
        answer, error = ask(matcher, start, end)
        seconds += answer.seconds
        matches += len(answer.points0)
        errors.append(error)
        if answer.transform is None or not answer.is_answer:
            at = None
            break
        assert at is not None
        if at is nodes:
            first = _grid_error(answer, scene.best_truth, scene)
        at = metrics.transform_points(answer.transform, at)
    record = _base_record(case, answer, next((e for e in errors if e is not None), None))
    closure = None if at is None else float(np.mean(metrics.distances(at, nodes)))
    group = f"{case.pair.group} (triples)" if case.kind == "triple" else case.pair.group
    record.update(
        group=group,
        answered=at is not None,
        seconds=seconds / len(images),
        matches=matches,
        closure_px=None if closure is None or not np.isfinite(closure) else closure,
        first_leg_px=first,
        motion=None if scene.motion is None else scene.motion.record(),
    )
    return record


def summarise_loop(records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """Median and P90 of the closure error with failures infinite."""
    rows = []
    for name, members in _groups(records):
        closure = _errors(members, "closure_px")
        row: Record = {
            "group": name,
            "pairs": len(members),
            "answered": _share([r["answered"] for r in members]),
            "median_px": _interval(closure, metrics.median, rng),
            "p90_px": metrics.quantile_of(closure, 0.9),
            "closed_wrong": _share(
                [
                    r["first_leg_px"] is None or r["first_leg_px"] > CORRECT_ANSWER_PX
                    for r in members
                    if r["closure_px"] is not None and r["closure_px"] <= LOOP_PX[-1]
                ]
            ),
            "seconds_median": _median(_numbers(members, "seconds")),
        }
        for threshold in LOOP_PX:
            row[f"within_{threshold:g}"] = _interval(closure, metrics.share(threshold), rng)
        rows.append(row)
    return rows


LOOP_COLUMNS = (
    ("group", "modality"),
    ("pairs", "loops"),
    ("answered", "closed %"),
    ("median_px", "median px"),
    ("p90_px", "P90 px"),
    *((f"within_{t:g}", f"<{t:g} px %") for t in LOOP_PX),
    ("closed_wrong", "closed on a wrong answer %"),
    ("seconds_median", "s/match"),
)


# --- trust -------------------------------------------------------------------------------------


def trust_cases(pairs: Sequence[MatchPair], seed: int, upright: bool) -> list[Case]:
    """Every pair as it is, with a stranger's query, and cut so that nothing is shared.

    The stranger comes from the same modality, a quarter to three quarters of the list away,
    because neighbours in a list often show the same place; a modality with fewer than four pairs
    borrows from the whole set. A pair without a possible stranger goes without.
    """
    cases = true_cases(pairs, seed, upright)
    rng = np.random.default_rng([seed, 1])
    for pair in pairs:
        peers = [other for other in pairs if other.group == pair.group]
        if len(peers) < 4:
            peers = list(pairs)
        offset = int(rng.integers(len(peers) // 4, max(3 * len(peers) // 4, 1) + 1))
        here = next(i for i, other in enumerate(peers) if other is pair)
        turned = peers[(here + offset) % len(peers) :] + peers[: (here + offset) % len(peers)]
        known = {pair.reference, pair.query}
        stranger = next((o for o in turned if not known & {o.reference, o.query}), None)
        if stranger is not None:
            cases.append(Case(pair, seed, kind="unrelated", partner=stranger))
    cases.extend(Case(pair, seed, kind="disjoint") for pair in pairs)
    return cases


def measure_trust(case: Case, matcher: Matcher) -> Record:
    """Status, confidence and tie-point probabilities beside what is true."""
    if case.kind == "unrelated" and case.partner is not None:
        image0 = case.pair.read_reference()
        image1 = load(Case(case.partner, case.seed)).image1
        answer, error = ask(matcher, image0, image1)
        return _false_record(case, answer, error)
    if case.kind == "disjoint":
        scene = load(case, moved=False)
        windows = disjoint_windows(scene.truth, scene.shape0, scene.shape1)
        parts = crop(scene.image0, windows[0]), crop(scene.image1, windows[1])
        answer, error = ask(matcher, *parts)
        return {**_false_record(case, answer, error), "windows": windows}
    scene = load(case)
    answer, error = ask(matcher, scene.image0, scene.image1)
    grid = _grid_error(answer, scene.best_truth, scene)
    record = _base_record(case, answer, error)
    offsets = metrics.match_errors(answer.points0, answer.points1, scene.best_truth)
    record.update(
        grid_error_px=grid,
        correct=grid is not None and grid <= CORRECT_ANSWER_PX,
        motion=None if scene.motion is None else scene.motion.record(),
        **_tie_point_evidence(answer, offsets, scene.best_truth),
    )
    return record


def _false_record(case: Case, answer: Answer, error: str | None) -> Record:
    record = _base_record(case, answer, error)
    record.update(grid_error_px=None, correct=False)
    record.update(_tie_point_evidence(answer, np.full(len(answer.points0), np.inf), None))
    return record


def _tie_point_evidence(
    answer: Answer, offsets: FloatArray, truth: FloatArray | None
) -> dict[str, Any]:
    """At most `TIE_POINTS_KEPT` probabilities with right or wrong, and the ellipses' hits."""
    none: dict[str, Any] = {"tie_probability": [], "tie_correct": [], "ellipse_hits": []}
    count = len(answer.points0)
    if not answer.is_answer or not count:
        return none
    kept = np.unique(np.linspace(0, count - 1, min(count, TIE_POINTS_KEPT)).astype(int))
    correct = offsets < metrics.CORRECT_WITHIN_PX
    if len(answer.probabilities) == count:
        none["tie_probability"] = answer.probabilities[kept].tolist()
        none["tie_correct"] = correct[kept].tolist()
    if answer.covariances_px2 is not None and truth is not None:
        residuals = answer.points1 - metrics.transform_points(truth, answer.points0)
        none["ellipse_hits"] = [
            metrics.ellipse_coverage(
                residuals[i : i + 1], answer.covariances_px2[i : i + 1], level=ELLIPSE_LEVEL
            )
            for i in kept[correct[kept]]
        ]
    return none


def summarise_trust(records: Sequence[Record], rng: np.random.Generator) -> list[Record]:
    """False accepts, refusals and calibration per modality, then over all."""
    return [_trust_row(name, members, rng) for name, members in _groups(records)]


def _trust_row(name: str, records: Sequence[Record], rng: np.random.Generator) -> Record:
    kinds = {
        kind: [r for r in records if r["kind"] == kind]
        for kind in ("true", "unrelated", "disjoint")
    }
    false = kinds["unrelated"] + kinds["disjoint"]
    rated = [r for r in records if np.isfinite(r["confidence"])]
    confidence = np.array([r["confidence"] for r in rated])
    correct = np.array([r["correct"] for r in rated], dtype=bool)
    tie_probability = np.array([p for r in records for p in r["tie_probability"]])
    tie_correct = np.array([c for r in records for c in r["tie_correct"]], dtype=bool)
    hits = [hit for r in records for hit in r["ellipse_hits"]]
    accepted = [r for r in kinds["true"] if r["status"] == "ok" and r["answered"]]
    return {
        "group": name,
        "pairs": len(kinds["true"]),
        "false_pairs": len(false),
        "false_accept": _interval(_oks(false), metrics.mean, rng),
        "false_accept_unrelated": _mean(_oks(kinds["unrelated"])),
        "false_accept_disjoint": _mean(_oks(kinds["disjoint"])),
        "false_weak": _share([r["status"] == "weak" and r["answered"] for r in false]),
        "true_accept": _interval(_oks(kinds["true"]), metrics.mean, rng),
        "true_refused": _share([not r["answered"] for r in kinds["true"]]),
        "accepted_wrong": _share([not r["correct"] for r in accepted]),
        "rated": len(rated),
        "ece": metrics.expected_calibration_error(confidence, correct),
        "brier": metrics.brier_score(confidence, correct),
        "auroc": metrics.auroc(confidence, correct),
        "reliability": [b._asdict() for b in metrics.reliability_bins(confidence, correct)],
        "tie_points": len(tie_probability),
        "tie_ece": metrics.expected_calibration_error(tie_probability, tie_correct),
        "tie_brier": metrics.brier_score(tie_probability, tie_correct),
        "tie_auroc": metrics.auroc(tie_probability, tie_correct),
        "tie_reliability": [
            b._asdict() for b in metrics.reliability_bins(tie_probability, tie_correct)
        ],
        "ellipse_coverage": _mean(hits),
        "seconds_median": _median(_numbers(records, "seconds")),
    }


def _oks(records: Sequence[Record]) -> FloatArray:
    return np.array([r["status"] == "ok" and r["answered"] for r in records], dtype=np.float64)


TRUST_COLUMNS = (
    ("group", "modality"),
    ("pairs", "true pairs"),
    ("false_pairs", "false pairs"),
    ("false_accept", "false accepted %"),
    ("false_accept_unrelated", "unrelated %"),
    ("false_accept_disjoint", "no overlap %"),
    ("false_weak", "false as weak %"),
    ("true_accept", "true accepted %"),
    ("true_refused", "true refused %"),
    ("accepted_wrong", "accepted but wrong %"),
    ("ece", "ECE"),
    ("brier", "Brier"),
    ("auroc", "AUROC"),
    ("tie_ece", "ECE tie points"),
    ("ellipse_coverage", "90 % ellipse %"),
    ("seconds_median", "s/pair"),
)


# --- sums over records -------------------------------------------------------------------------


def _groups(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Records by modality in order of appearance, then all of them."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record["group"], []).append(record)
    return [*groups.items(), ("all", list(records))]


def _errors(records: Sequence[Record], key: str) -> FloatArray:
    """Errors with failures as infinity."""
    return np.array([np.inf if r[key] is None else r[key] for r in records], dtype=np.float64)


def _flat_errors(records: Sequence[Record], key: str) -> FloatArray:
    return np.array(
        [np.inf if value is None else value for r in records for value in r[key]],
        dtype=np.float64,
    )


def _numbers(records: Sequence[Record], key: str) -> FloatArray:
    return np.array([r[key] for r in records], dtype=np.float64)


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: npt.ArrayLike) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else float("nan")


def _median(values: npt.ArrayLike) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(np.median(array)) if array.size else float("nan")


def _share(claims: Iterable[bool]) -> float:
    return _mean([float(claim) for claim in claims])


def _interval(
    values: FloatArray, statistic: Callable[[FloatArray], FloatArray], rng: np.random.Generator
) -> metrics.Interval:
    return metrics.bootstrap_interval(values, statistic, rng)


PROTOCOLS: Mapping[str, Protocol] = {
    "srif": Protocol(true_cases, measure_srif, summarise_srif, SRIF_COLUMNS),
    "mmim": Protocol(true_cases, measure_mmim, summarise_mmim, MMIM_COLUMNS),
    "sub": Protocol(true_cases, measure_sub, summarise_sub, SUB_COLUMNS),
    "loop": Protocol(loop_cases, measure_loop, summarise_loop, LOOP_COLUMNS),
    "trust": Protocol(trust_cases, measure_trust, summarise_trust, TRUST_COLUMNS),
}
