"""From candidates to tie points: global search, verification, measuring on lattices.

Words: the *lattice* is the pixel grid of the reference, reduced by a factor; a *placement* C maps
reference pixels to where their content really lies, as reference pixels of the query's own
georeference; `base` maps those to query pixels. Without georeference `base` is the identity and C
alone is the transform.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsfuse.matching.fine import Displacements, detect_keypoints
from rsfuse.matching.measurer import AnyMeasurer
from rsfuse.matching.robust import Consensus, consensus
from rsfuse.matching.search import Candidate, View, search
from rsfuse.matching.structure import FloatImage, Mask
from rsfuse.ops.geometry2d import Transform, apply_matrix

FloatArray = npt.NDArray[np.float64]
Points = Callable[[FloatArray], FloatArray]
Rect = tuple[float, float, float, float]

VERIFY_SIDE_PX = 288  # long side at which candidates are verified
SMALLEST_COVERED_PX = 48
PART_MOST = 0.5  # of the reference: a query below is verified on the part that it covers
WHOLE_SIDE_PX = 1152  # a lattice up to this long is measured in one piece
TILE_PX = 320  # beyond, scenes are measured in tiles: templates and their surroundings fit in
MAX_TILES = 144  # measured at each level of a scene; spread evenly
LEVEL_STEP = 3.3  # between the levels of a scene
LEVEL_SPARED = 1.2  # a level so close to the finest is spared
CANDIDATES = 8
VERIFY_CELLS = 14  # keypoints along the long side when candidates are verified
CLEAR_EVIDENCE = 15.0  # agreement beyond which further candidates are not looked at
SOME_EVIDENCE = 0.3  # agreement below which nothing is corrected by it
FEWEST_VERIFIED = 3  # but so many always are: the rest of the pair is its null distribution


@dataclass(frozen=True)
class PairReader:
    """How the matcher gets at pixels; it never sees a file.

    Attributes:
        shape0: (h, w) of the reference.
        read0: (rect in reference pixels, (h, w)) -> image (C, h, w) and valid (h, w).
        read1: ((h, w), mapping of lattice pixels to query pixels) -> image and valid.
        base: Reference pixels -> query pixels by georeference, or the identity.
        shape1: (h, w) of the query.
        area1: (x, y, w, h) that the query covers by `base`, reference pixels.
    """

    shape0: tuple[int, int]
    read0: Callable[[Rect, tuple[int, int]], tuple[FloatImage, Mask]]
    read1: Callable[[tuple[int, int], Points], tuple[FloatImage, Mask]]
    base: Points
    shape1: tuple[int, int]
    area1: Rect


@dataclass(frozen=True)
class SearchRange:
    """What the global search may try.

    Attributes:
        rotations_deg: Smallest and largest rotation.
        scales: Smallest and largest scale.
        max_shift_px: Largest shift of the centre in reference pixels; None for no limit.
        again: A second look, on larger images and in finer steps of rotation.
    """

    rotations_deg: tuple[float, float] = (-180.0, 180.0)
    scales: tuple[float, float] = (0.5, 2.0)
    max_shift_px: float | None = None
    again: bool = False


class Verified(NamedTuple):
    """A candidate after a look at its tie points."""

    matrix: FloatArray
    consensus: Consensus
    candidate: Candidate
    measured: int


@dataclass
class Stages:
    """Times of the stages, for the run record."""

    seconds: list[dict[str, Any]] = field(default_factory=list)
    _last: float = field(default_factory=time.perf_counter)

    def mark(self, name: str) -> None:
        """The stage `name` ends now."""
        now = time.perf_counter()
        self.seconds.append({"name": name, "seconds": round(now - self._last, 3)})
        self._last = now


def translation(x: float, y: float) -> FloatArray:
    """A (3, 3) shift."""
    matrix = np.eye(3)
    matrix[:2, 2] = (x, y)
    return matrix


def find_candidates(pair: PairReader, range_: SearchRange, *, threads: int) -> list[Candidate]:
    """Placements worth a closer look, matrices from reference pixels to placed pixels."""
    from rsfuse.matching import search as settings

    h0, w0 = pair.shape0
    x1, y1, w1, h1 = pair.area1
    side, step = settings.SECOND_LOOK if range_.again else settings.FIRST_LOOK
    longest = max(w0, h0, w1, h1)
    factor = longest / max(settings.FIRST_LOOK[0], min(side, longest))
    small0 = (max(8, round(h0 / factor)), max(8, round(w0 / factor)))
    small1 = (max(8, round(h1 / factor)), max(8, round(w1 / factor)))
    step0 = (w0 / small0[1], h0 / small0[0])
    step1 = (w1 / small1[1], h1 / small1[0])
    image0, valid0 = pair.read0((0, 0, w0, h0), small0)
    image1, valid1 = pair.read1(
        small1, lambda p: pair.base(p * np.array(step1) + np.array([x1, y1]))
    )
    low, high = range_.rotations_deg
    count = max(1, round((high - low) / step))
    full_turn = high - low >= 360
    rotations = np.linspace(low, high, count + 1)[: count if full_turn else None]
    logs = np.log(range_.scales)
    steps = max(0, round((logs[1] - logs[0]) / np.log(settings.SCALE_STEP)))
    scales = np.exp(np.linspace(logs[0], logs[1], steps + 1))
    found = search(
        View(image0, valid0, step0),
        View(image1, valid1, step1),
        rotations_deg=rotations,
        scales=scales,
        keep=CANDIDATES,
        threads=threads,
        max_shift=None if range_.max_shift_px is None else range_.max_shift_px / factor,
        origin=(x1 / step1[0], y1 / step1[1]),
    )
    moved = translation(x1, y1)
    return [c._replace(matrix=moved @ c.matrix) for c in found]


def covered(pair: PairReader, matrix: FloatArray) -> Rect:
    """Part of the reference that the placed query covers, as (x, y, w, h) in whole pixels.

    All of it where that is next to nothing, or the query reaches beyond the horizon.
    """
    h, w = pair.shape0
    low, high = (np.clip(side, 0, [w, h]) for side in _footprint(pair, matrix))
    if not (high - low >= SMALLEST_COVERED_PX).all():
        return 0.0, 0.0, float(w), float(h)
    return float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])


def verified_part(pair: PairReader, matrix: FloatArray) -> Rect:
    """What of the reference is looked at to verify a placement."""
    h, w = pair.shape0
    low, high = _footprint(pair, matrix)
    is_part = (high - low).max() < PART_MOST * max(h, w)
    return covered(pair, matrix) if is_part else (0.0, 0.0, float(w), float(h))


def _footprint(pair: PairReader, matrix: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(2,) smallest and (2,) largest reference pixel of the placed query, beyond its edges too."""
    x1, y1, w1, h1 = pair.area1
    corners = np.array([[x1, y1], [x1 + w1, y1], [x1 + w1, y1 + h1], [x1, y1 + h1]])
    back = apply_matrix(np.linalg.inv(matrix), corners)
    return np.floor(back.min(axis=0)), np.ceil(back.max(axis=0))


def read_lattice(
    pair: PairReader, measurer: AnyMeasurer, rect: Rect, shape: tuple[int, int], placement: Points
) -> tuple[Any, Any]:
    """Both images on a window of the lattice as `measurer` sees them, the query placed."""
    x, y, w, h = rect
    step = np.array([w / shape[1], h / shape[0]])
    corner = np.array([x, y])
    image0, valid0 = pair.read0(rect, shape)
    image1, valid1 = pair.read1(shape, lambda p: pair.base(placement(p * step + corner)))
    return measurer.prepare(image0, valid0), measurer.prepare(image1, valid1)


def verify_all(
    pair: PairReader,
    measurer: AnyMeasurer,
    candidates: list[Candidate],
    rng: np.random.Generator,
) -> list[Verified]:
    """Verify candidates in order until one is clear."""
    looked: list[Verified] = []
    for candidate in candidates:
        looked.append(verify(pair, measurer, candidate, rng))
        best = max(v.consensus.evidence for v in looked)
        if len(looked) >= FEWEST_VERIFIED and best > CLEAR_EVIDENCE:
            break
    return looked


def verify(
    pair: PairReader, measurer: AnyMeasurer, candidate: Candidate, rng: np.random.Generator
) -> Verified:
    """Measure tie points on a reduced lattice and ask whether they agree."""
    matrix = candidate.matrix
    x, y, w, h = rect = verified_part(pair, matrix)
    factor = max(1.0, max(h, w) / VERIFY_SIDE_PX)
    shape = (max(16, round(h / factor)), max(16, round(w / factor)))
    lift = translation(x, y) @ np.diag([w / shape[1], h / shape[0], 1.0])
    best: Verified | None = None
    for radius, template in ((12, 48), (8, 48)):
        placement = Transform("affine", matrix).apply
        own, other = read_lattice(pair, measurer, rect, shape, placement)
        side = min(template, 2 * (min(shape) // 5))
        points = detect_keypoints(
            own.structure, spacing=max(8, int(max(shape) / VERIFY_CELLS)), margin=side // 3
        )
        columns, rows = points.astype(int).T
        points = points[other.structure.valid[rows, columns]]
        moved, _ = measurer.measure(own, other, points, points[:0], template=side, radius=radius)
        agreed = consensus(
            moved.xy,
            moved.shift,
            moved.probability,
            radius=radius,
            tolerance=2.0,
            template=side,
            rng=rng,
        )
        result = Verified(matrix, agreed, candidate, len(moved.xy))
        if best is None:
            best = result
        if agreed.evidence < SOME_EVIDENCE:
            break
        if agreed.evidence >= 0.8 * best.consensus.evidence:
            matrix = matrix @ lift @ agreed.matrix @ np.linalg.inv(lift)
            best = result._replace(matrix=matrix)
    assert best is not None
    return best


class TiePointRows(NamedTuple):
    """Tie points in reference pixels and placed pixels.

    Attributes:
        xy: (N, 2) reference pixels.
        placed: (N, 2) where the content lies, reference pixels before `base`.
        measured: Evidence, in pixels of the lattice.
        backward: (N,) whether the keypoint came from the query.
        factor: Reference pixels per lattice pixel.
    """

    xy: FloatArray
    placed: FloatArray
    measured: Displacements
    backward: npt.NDArray[np.bool_]
    factor: float


def tie_points_in(
    pair: PairReader,
    measurer: AnyMeasurer,
    rect: Rect,
    shape: tuple[int, int],
    placement: Points,
    *,
    spacing: int,
    template: int,
    radius: int,
) -> TiePointRows:
    """Measure one window of the lattice, with keypoints of the reference and of the query."""
    own, other = read_lattice(pair, measurer, rect, shape, placement)
    step = np.array([rect[2] / shape[1], rect[3] / shape[0]])
    corner = np.array(rect[:2])
    points = [
        detect_keypoints(view.structure, spacing=spacing, margin=template // 4)
        for view in (own, other)
    ]
    forward, back = measurer.measure(own, other, *points, template=template, radius=radius)
    # A query keypoint at p was found in the reference at p + shift.
    parts = [
        (forward, forward.xy, forward.xy + forward.shift, False),
        (back, back.xy + back.shift, back.xy, True),
    ]
    xy = np.concatenate([p[1] for p in parts]) * step + corner
    there = np.concatenate([p[2] for p in parts]) * step + corner
    measured = Displacements(
        *(np.concatenate([c1, *rest]) for c1, *rest in zip(*(p[0] for p in parts), strict=True))
    )
    backward = np.concatenate([np.full(len(p[1]), p[3]) for p in parts])
    return TiePointRows(xy, placement(there), measured, backward, float(step.mean()))


def spread_tiles(rect: Rect, side: float, most: int) -> list[Rect]:
    """Square tiles of a side on a rectangle, at most so many, evenly spread, in whole pixels."""
    x, y, w, h = rect
    side = round(side)
    across, down = max(1, int(np.ceil(w / side))), max(1, int(np.ceil(h / side)))
    shrink = np.sqrt(across * down / most)
    if shrink > 1:
        across, down = (max(1, int(n / shrink + 1e-9)) for n in (across, down))
        across = min(across, most // down)
        down = min(down, most // across)
    tile = (float(min(side, w)), float(min(side, h)))
    xs = np.round(np.linspace(x, x + w - tile[0], across))
    ys = np.round(np.linspace(y, y + h - tile[1], down))
    return [(float(left), float(top), *tile) for top in ys for left in xs]


def join(rows: list[TiePointRows]) -> TiePointRows:
    """Rows of several windows in one table."""
    measured = Displacements(
        *(np.concatenate(columns) for columns in zip(*(r.measured for r in rows), strict=True))
    )
    return TiePointRows(
        np.concatenate([r.xy for r in rows]),
        np.concatenate([r.placed for r in rows]),
        measured,
        np.concatenate([r.backward for r in rows]),
        rows[0].factor,
    )


def join_none() -> TiePointRows:
    """No tie points."""
    pair = np.zeros((0, 2))
    return TiePointRows(pair, pair, Displacements.none(), np.zeros(0, bool), 1.0)


def each(step: Callable[[Rect], TiePointRows], tiles: list[Rect]) -> list[TiePointRows]:
    """`step` on every tile, in order, on two threads: reading overlaps with computing."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(step, tiles))
