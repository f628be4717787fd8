"""How the land is divided: roads, towns, blocks and field parcels.

The plane is cut again and again, the largest pieces by major roads, smaller ones by minor roads,
tracks or streets, the smallest by field borders. Every piece is convex. One smooth bend of the
plane then curves all of it alike, so that roads wind and parcels stay beside them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.canvas import Points, inside
from rsfuse.simulate.noise import generator
from rsfuse.simulate.terrain import Terrain

# Half the spread of the bend and the lengths of its waves.
_BEND_M = (26.0, 11.0, 5.0)
_BEND_WAVE_M = (1500.0, 640.0, 330.0)

# Points along a bent line are this far apart.
_STEP_M = 12.0

# A larger road crosses a pond on a dam, unless it would run further from the shore than this.
_DEEPEST_CAUSEWAY_M = 14.0

ROAD_WIDTHS_M = {"major": 13.0, "minor": 7.5, "street": 6.5, "track": 3.2}


@dataclass(frozen=True)
class Bend:
    """A smooth displacement of the plane by sums of sines.

    Attributes:
        waves: One row per wave: wave vector (2), displacement (2), phase.
    """

    waves: NDArray[np.float64]

    def __call__(self, points: Points) -> Points:
        """Where points (N, 2) of the straight plan lie on the ground."""
        phase = points @ self.waves[:, :2].T + self.waves[:, 4]
        return np.asarray(points + np.sin(phase) @ self.waves[:, 2:4])

    def turn_rad(self, point: Points) -> float:
        """How far a direction along +x is turned at a point (2,)."""
        kx, ky, ax, ay, phase = self.waves.T
        slope = np.cos(point[0] * kx + point[1] * ky + phase) * kx
        return float(np.arctan2(slope @ ay, 1.0 + slope @ ax))


def make_bend(rng: np.random.Generator) -> Bend:
    """A bend that turns directions by a few degrees."""
    waves = []
    for spread, length in zip(_BEND_M, _BEND_WAVE_M, strict=True):
        first = rng.uniform(0, 2 * np.pi)
        for angle in (first, first + rng.uniform(1.2, 1.9)):
            k = 2 * np.pi / (length * rng.uniform(0.8, 1.25))
            along = np.array([np.cos(angle), np.sin(angle)])
            across = np.array([-along[1], along[0]]) * spread * rng.uniform(0.6, 1.0)
            waves.append([*(k * along), *across, rng.uniform(0, 2 * np.pi)])
    return Bend(np.array(waves))


class Town(NamedTuple):
    """A town: its centre and how far its houses reach."""

    centre_m: Points
    radius_m: float


class Road(NamedTuple):
    """A road on the ground: its middle (N, 2), width and kind (a key of `ROAD_WIDTHS_M`)."""

    line_m: Points
    width_m: float
    kind: str


class Cell(NamedTuple):
    """A convex piece of the straight plan and what it is used for."""

    polygon: Points
    use: str


@dataclass(frozen=True)
class Land:
    """The divided land.

    Attributes:
        bend: From the straight plan to the ground.
        roads: On the ground, the smallest first.
        cells: Of the straight plan.
        towns: In the straight plan.
    """

    bend: Bend
    roads: tuple[Road, ...]
    cells: tuple[Cell, ...]
    towns: tuple[Town, ...]


def divide_land(
    extent_m: tuple[float, float], terrain: Terrain, *, detail_m: float, seed: int
) -> Land:
    """Divide a scene into cells with a use each, and lay roads between them.

    Args:
        extent_m: (width, height) of the scene.
        terrain: Towns and roads keep off its water; roads bridge its river.
        detail_m: Parcels are at least some 25 times as wide (pixels of a coarse scene).
        seed: Of the scene.
    """
    rng = generator(seed, "land")
    bend = make_bend(rng)
    area = extent_m[0] * extent_m[1]
    towns = _place_towns(extent_m, terrain, rng)
    margin = 90.0
    root = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * (np.asarray(extent_m) + 2 * margin) - margin

    segments: list[tuple[Points, str]] = []
    quarters = list(_cut_until(root, min(1.5e6, area / 2.5), rng, segments, "major", 0.10))
    blocks = [
        block
        for quarter in quarters
        for block in _cut_until(quarter, min(2.6e5, area / 9), rng, segments, "minor", 0.12)
    ]
    cells: list[Cell] = []
    for block in blocks:
        use = _use(block, towns, rng)
        smallest = {"city": 1.3e4, "suburb": 1.5e4, "industry": 3.5e4}.get(use)
        if smallest is not None:
            pieces = _cut_until(block, smallest, rng, segments, "street", 0.02)
            cells.extend(Cell(piece, use) for piece in pieces)
            continue
        piece_area = float(np.clip(area / 25, 1.5e4, 9e4))
        for field in _cut_until(block, piece_area, rng, segments, "track", 0.06):
            target = max(rng.lognormal(np.log(2.2e4), 0.6), (25 * detail_m) ** 2)
            cells.extend(
                Cell(parcel, _rural_use(use, rng))
                for parcel in _cut_until(field, min(target, area / 40), rng, None, "", 0.03)
            )
    return Land(bend, tuple(_roads(segments, bend, terrain)), tuple(cells), towns)


def _place_towns(
    extent_m: tuple[float, float], terrain: Terrain, rng: np.random.Generator
) -> tuple[Town, ...]:
    """The first town near the harbour, others anywhere on land."""
    size = float(np.sqrt(extent_m[0] * extent_m[1]))
    toward = np.array([np.cos(terrain.seaward_rad), np.sin(terrain.seaward_rad)])
    first_radius = float(np.clip(0.24 * size, 60, 1500))
    towns = [Town(np.asarray(terrain.shore_m) - toward * 0.9 * first_radius, first_radius)]
    wanted = int(np.clip(1 + size**2 / 1.8e7, 1, 45))
    for _ in range(20 * wanted):
        if len(towns) == wanted:
            break
        centre = rng.uniform(0.06, 0.94, 2) * extent_m
        radius = float(np.clip(rng.lognormal(np.log(420), 0.5), 180, 1300))
        apart = all(
            np.linalg.norm(centre - town.centre_m) > 1.6 * (radius + town.radius_m)
            for town in towns
        )
        if apart and terrain.wet_m(centre[None])[0] < -0.5 * radius:
            towns.append(Town(centre, radius))
    return tuple(towns)


def _use(polygon: Points, towns: tuple[Town, ...], rng: np.random.Generator) -> str:
    """What a block is used for: town near a centre, country elsewhere."""
    centre = polygon.mean(axis=0)
    near = min(float(np.linalg.norm(centre - t.centre_m)) / t.radius_m for t in towns)
    near *= float(rng.normal(1.0, 0.12))
    if near < 0.50:
        return "city"
    if near < 1.0:
        return "suburb"
    if near < 1.45 and rng.random() < 0.55:
        return "industry"
    return str(rng.choice(["fields", "forest", "meadow"], p=[0.60, 0.25, 0.15]))


def _rural_use(block: str, rng: np.random.Generator) -> str:
    """Use of one parcel: mostly that of its block."""
    shares = {
        "fields": (0.80, 0.05, 0.10, 0.05),
        "forest": (0.08, 0.82, 0.10, 0.00),
        "meadow": (0.22, 0.12, 0.56, 0.10),
    }
    return str(rng.choice(["field", "forest", "meadow", "orchard"], p=shares[block]))


def _cut_until(
    polygon: Points,
    area: float,
    rng: np.random.Generator,
    segments: list[tuple[Points, str]] | None,
    kind: str,
    tilt_rad: float,
) -> Iterator[Points]:
    """Convex pieces of at most about `area`; each cut is noted as a road of a kind."""
    stack = [polygon]
    while stack:
        piece = stack.pop()
        size = polygon_area(piece)
        if size < area * rng.uniform(0.9, 1.5) or len(piece) < 3:
            if size > 30.0:
                yield piece
            continue
        along, low, high = long_axis(piece)
        direction = np.arctan2(along[1], along[0]) + np.pi / 2 + rng.normal(0, tilt_rad)
        place = low + (high - low) * rng.uniform(0.38, 0.62)
        # A point on the cut: on the long axis through the centre of the piece.
        point = piece.mean(axis=0)
        point = point + along * (place - float(point @ along))
        one, other, ends = cut(piece, point, float(direction))
        if ends is None:
            yield piece
            continue
        if segments is not None:
            segments.append((ends, kind))
        stack += [other, one]


def polygon_area(polygon: Points) -> float:
    """Area of a polygon (K, 2)."""
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def long_axis(polygon: Points) -> tuple[Points, float, float]:
    """Unit vector of the long side of the smallest rectangle on a side, and its span along it."""
    best: tuple[float, Points, float, float] | None = None
    for side in np.roll(polygon, -1, axis=0) - polygon:
        length = float(np.hypot(*side))
        if length < 1e-6:
            continue
        along = side / length
        across = np.array([-along[1], along[0]])
        u, v = polygon @ along, polygon @ across
        spans = float(np.ptp(u)), float(np.ptp(v))
        if best is None or spans[0] * spans[1] < best[0]:
            if spans[0] >= spans[1]:
                best = (spans[0] * spans[1], along, float(u.min()), float(u.max()))
            else:
                best = (spans[0] * spans[1], across, float(v.min()), float(v.max()))
    assert best is not None
    return best[1:]


def cut(
    polygon: Points, point: Points, direction_rad: float
) -> tuple[Points, Points, Points | None]:
    """Both parts of a convex polygon beside a line, and the ends of the line inside it."""
    normal = np.array([-np.sin(direction_rad), np.cos(direction_rad)])
    side = (polygon - point) @ normal
    one: list[Points] = []
    other: list[Points] = []
    ends: list[Points] = []
    for k in range(len(polygon)):
        here, there = polygon[k], polygon[(k + 1) % len(polygon)]
        (one if side[k] >= 0 else other).append(here)
        a, b = side[k], side[(k + 1) % len(polygon)]
        if (a >= 0) != (b >= 0):
            crossing = here + (there - here) * (a / (a - b))
            one.append(crossing)
            other.append(crossing)
            ends.append(crossing)
    if len(ends) != 2:
        return polygon, polygon, None
    return np.array(one), np.array(other), np.array(ends)


def densify(line: Points, step: float = _STEP_M, *, closed: bool = False) -> Points:
    """A line with points no further apart than `step`."""
    ring = np.vstack((line, line[:1])) if closed else line
    parts = []
    for a, b in pairwise(ring):
        count = max(1, int(np.ceil(np.hypot(*(b - a)) / step)))
        parts.append(a + (b - a) * (np.arange(count) / count)[:, None])
    if not closed:
        parts.append(ring[-1:])
    return np.vstack(parts)


def _roads(segments: list[tuple[Points, str]], bend: Bend, terrain: Terrain) -> Iterator[Road]:
    """Roads on the ground, cut where they would run into water; larger ones bridge fresh water."""
    order = ("track", "street", "minor", "major")
    for kind in order:
        for ends, its_kind in segments:
            if its_kind != kind:
                continue
            line = bend(densify(ends))
            blocked = terrain.sea_m.at(line) > -9.0
            pond = terrain.pond_m.at(line)
            if kind in ("track", "street"):
                blocked |= np.maximum(terrain.river_m.at(line), pond) > -5.0
            elif pond.max() > _DEEPEST_CAUSEWAY_M:
                blocked |= pond > -9.0
            yield from _pieces(Road(line, ROAD_WIDTHS_M[kind], kind), ~blocked)


def keep_off(roads: tuple[Road, ...], grounds: tuple[Points, ...]) -> tuple[Road, ...]:
    """The parts of roads that lie outside of polygons."""
    kept: list[Road] = []
    for road in roads:
        outside = np.ones(len(road.line_m), bool)
        for ground in grounds:
            outside &= ~inside(road.line_m, ground)
        kept.extend(_pieces(road, outside))
    return tuple(kept)


def _pieces(road: Road, keep: NDArray[np.bool_]) -> Iterator[Road]:
    for run in _runs(keep):
        if run.stop - run.start >= 3:
            yield road._replace(line_m=road.line_m[run])


def _runs(keep: NDArray[np.bool_]) -> Iterator[slice]:
    edges = np.flatnonzero(np.diff(np.r_[False, keep, False].astype(np.int8)))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        yield slice(int(start), int(stop))
