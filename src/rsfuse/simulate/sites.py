"""Harbours, airfields and car parks, and the traffic that belongs to them."""

from typing import NamedTuple

import numpy as np

from rsfuse.simulate.canvas import Canvas, Points, rectangle, ribbon
from rsfuse.simulate.land import Land, Road, densify, long_axis
from rsfuse.simulate.objects import ObjectPainter
from rsfuse.simulate.settlement import Building, erect
from rsfuse.simulate.terrain import Terrain

# A scene smaller than this has no room for a runway.
_SMALLEST_AIRFIELD_M = 400.0

PAVED = ("asphalt", "concrete", "gravel", "road paint")


class Berth(NamedTuple):
    """A place where an object may stand: its centre, heading and most length."""

    at_m: Points
    heading_rad: float
    length_m: float


class Site(NamedTuple):
    """What a site offers: places for ships or planes, its buildings, and the ground it covers."""

    berths: tuple[Berth, ...]
    buildings: tuple[Building, ...]
    ground_m: Points


class Frame:
    """A local frame on the ground: u along a direction, v to its right."""

    def __init__(self, origin: Points, direction_rad: float) -> None:
        self.origin = np.asarray(origin, np.float64)
        self.direction_rad = direction_rad
        self._axes = np.array(
            [
                [np.cos(direction_rad), np.sin(direction_rad)],
                [-np.sin(direction_rad), np.cos(direction_rad)],
            ]
        )

    def __call__(self, u: float, v: float) -> Points:
        """The point (2,) at (u, v)."""
        return np.asarray(self.origin + np.array([u, v]) @ self._axes)

    def box(self, u0: float, u1: float, v0: float, v1: float) -> Points:
        """The rectangle (4, 2) between two corners."""
        corners = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]])
        return np.asarray(self.origin + corners @ self._axes)


def harbour(canvas: Canvas, terrain: Terrain, rng: np.random.Generator) -> Site:
    """Quays, piers, sheds, a breakwater and a marina on the coast; berths for ships."""
    size = float(np.sqrt(np.prod(canvas.extent_m)))
    s = float(np.clip(size / 2000, 0.2, 1.5))
    # u points out to sea.
    frame = Frame(np.asarray(terrain.shore_m), terrain.seaward_rad)
    half = 230 * s
    quay = 30 * s
    yard = frame.box(-120 * s, quay, -half, half)
    canvas.fill(yard, "concrete", 1, height_m=0.0)
    canvas.claim(yard)
    berths: list[Berth] = []
    buildings: list[Building] = []
    width = max(9.0, 24 * s)
    for place in (-0.72, -0.05, 0.62):
        v, length = place * half, 175 * s * float(rng.uniform(0.8, 1.15))
        pier = frame.box(quay - 2, quay + length, v - width / 2, v + width / 2)
        canvas.fill(pier, "concrete", int(rng.choice([0, 3])), height_m=1.0)
        canvas.claim(pier)
        for sign in (-1.0, 1.0):
            longest = 0.88 * length
            beside = v + sign * (width / 2 + longest / 11 + 2.0 * s)
            way = terrain.seaward_rad + (np.pi if rng.random() < 0.5 else 0.0)
            berths.append(Berth(frame(quay + 0.52 * length, beside), way, longest))
        if canvas.step_m * 4 < width and s > 0.4:
            buildings.append(
                _hall(frame(quay + 0.5 * length, v), 0.45 * length, 0.34 * width, frame, rng)
            )
    _breakwater(canvas, frame, s, half, quay)
    for row in np.arange(-0.85 * half, 0.8 * half, 62 * s):
        if 50 * s > 6 * canvas.step_m:
            buildings.append(_hall(frame(-88 * s, row + 26 * s), 40 * s, 48 * s, frame, rng))
    buildings += _containers(frame, s, half, canvas.step_m, rng)
    kept = tuple(b for b in buildings if canvas.contains(b.corners_m))
    for building in kept:
        erect(canvas, building)
    berths += _marina(canvas, frame, s, half, rng)
    return Site(tuple(berths), kept, yard)


def _hall(
    centre: Points, length: float, width: float, frame: Frame, rng: np.random.Generator
) -> Building:
    corners = rectangle((centre[0], centre[1]), length, width, frame.direction_rad)
    return Building(corners, 8.0, 1.5, "metal roof", int(rng.integers(0, 3)))


def _containers(
    frame: Frame, s: float, half: float, step_m: float, rng: np.random.Generator
) -> list[Building]:
    """Stacks of containers on the yard, in blocks with lanes between."""
    if step_m > 1.2 or s < 0.35:
        return []
    stacks = []
    for block in np.arange(-0.8 * half, 0.75 * half, 74):
        for u in np.arange(-52 * s, -14 * s, 3.1):
            for k in range(4):
                if rng.random() < 0.62:
                    box = frame.box(u, u + 2.5, block + 13 * k, block + 13 * k + 12.2)
                    level = 2.6 * float(rng.integers(1, 5))
                    stacks.append(Building(box, level, 0.0, "metal roof", int(rng.integers(4, 9))))
    return stacks


def _breakwater(canvas: Canvas, frame: Frame, s: float, half: float, quay: float) -> None:
    knots = np.array(
        [
            [quay - 20 * s, 1.35 * half],
            [quay + 170 * s, 1.30 * half],
            [quay + 262 * s, 0.95 * half],
            [quay + 285 * s, 0.30 * half],
        ]
    )
    line = densify(np.array([frame(u, v) for u, v in knots]), 8.0)
    canvas.fill(ribbon(line, max(6.0, 13 * s)), "rock", 0, height_m=2.5, only=("water",))
    canvas.fill(ribbon(line, max(2.0, 4 * s)), "concrete", 3, height_m=3.0, only=("rock",))


def _marina(
    canvas: Canvas, frame: Frame, s: float, half: float, rng: np.random.Generator
) -> list[Berth]:
    """Pontoons with boats on both sides, beside the quays."""
    if canvas.step_m > 1.2:
        return []
    berths = []
    for k in range(4):
        v = -1.18 * half - 30 * k
        if not canvas.covers(frame.box(26 * s, 26 * s + 90, v - 14, v + 14), ("water",)):
            continue
        pontoon = frame.box(18 * s, 26 * s + 88, v - 1.2, v + 1.2)
        canvas.fill(pontoon, "concrete", 3, height_m=0.5, only=("water",))
        for u in np.arange(30 * s, 26 * s + 84, 4.6):
            for sign in (-1.0, 1.0):
                if rng.random() < 0.78:
                    length = float(rng.uniform(6.5, 11.5))
                    berths.append(
                        Berth(
                            frame(u, v + sign * (2.0 + length / 2)),
                            frame.direction_rad - sign * np.pi / 2,
                            length,
                        )
                    )
    return berths


def moor(painter: ObjectPainter, berths: tuple[Berth, ...], rng: np.random.Generator) -> None:
    """Put ships at most berths."""
    for berth in berths:
        if berth.length_m < 15:
            painter.ship(berth.at_m, berth.heading_rad + rng.normal(0, 0.02), berth.length_m)
        elif rng.random() < 0.85:
            length = berth.length_m * float(rng.uniform(0.72, 1.0))
            painter.ship(berth.at_m, berth.heading_rad + rng.normal(0, 0.008), length)


def sail(
    canvas: Canvas, painter: ObjectPainter, terrain: Terrain, rng: np.random.Generator
) -> None:
    """Ships under way on open water, with a wake."""
    size = float(np.sqrt(np.prod(canvas.extent_m)))
    s = float(np.clip(size / 2000, 0.25, 1.0))
    for _ in range(int(np.clip(9 * (size / 2000) ** 2, 4, 400))):
        at = rng.uniform(0.02, 0.98, 2) * canvas.extent_m
        length = float(rng.choice([rng.uniform(9, 24), rng.uniform(40, 190) * s]))
        length = max(length, 4.5 * canvas.step_m)
        if terrain.sea_m.at(at[None])[0] < 0.8 * length + 25 * s:
            continue
        heading = float(rng.uniform(0, 2 * np.pi))
        along = np.array([np.cos(heading), np.sin(heading)])
        around = rectangle((at[0], at[1]), 1.5 * length, 0.8 * length, heading)
        if not canvas.covers(around, ("water",)):
            continue
        if rng.random() < 0.6:
            stern = at - along * 0.45 * length
            across = np.array([-along[1], along[0]]) * length * 0.06
            reach = along * length * float(rng.uniform(2.5, 5.0))
            wake = np.array([stern - across, stern + across, stern - reach + 2.2 * across])
            wake = np.vstack((wake, stern - reach - 2.2 * across))
            canvas.fill(wake, "water", 3, only=("water",))
        painter.ship(at, heading, length)


def airfield(canvas: Canvas, terrain: Terrain, land: Land, rng: np.random.Generator) -> Site | None:
    """A runway, a taxiway, an apron with a terminal; places for planes. None where none fits."""
    size = float(np.sqrt(np.prod(canvas.extent_m)))
    if size < _SMALLEST_AIRFIELD_M:
        return None
    length = float(np.clip(0.62 * size, 230, 2400))
    for attempt in range(400):
        length *= 0.995 if attempt else 1.0
        depth = 0.16 * length + 70
        centre = rng.uniform(0.12, 0.88, 2) * canvas.extent_m
        frame = Frame(centre, float(rng.uniform(0, np.pi)))
        outline = frame.box(-length / 2 - 15, length / 2 + 15, -depth / 2, depth / 2)
        if not canvas.contains(outline):
            continue
        around = densify(outline, 20.0, closed=True)
        inner = densify(np.array([frame(-length / 2, 0), frame(length / 2, 0)]), 20.0)
        points = np.vstack((around, inner))
        if terrain.wet_m(points).max() > -12:
            continue
        near = min(
            float(np.linalg.norm(land.bend(t.centre_m[None])[0] - points, axis=1).min())
            / t.radius_m
            for t in land.towns
        )
        if near < 0.75 - 0.001 * attempt or not canvas.is_free(frame.box(-9, 9, -depth / 2, -9)):
            continue
        return _lay_airfield(canvas, frame, length, depth, rng)
    return None


def _lay_airfield(
    canvas: Canvas, frame: Frame, length: float, depth: float, rng: np.random.Generator
) -> Site:
    outline = frame.box(-length / 2 - 15, length / 2 + 15, -depth / 2, depth / 2)
    canvas.fill(outline, "grass", 3, grain_rad=frame.direction_rad, height_m=0.0)
    canvas.claim(outline)
    wide = float(np.clip(0.024 * length, 14, 45))
    v = -depth / 2 + wide
    taxi = v + wide * 2.1
    runway = frame.box(-length / 2, length / 2, v - wide / 2, v + wide / 2)
    canvas.fill(runway, "asphalt", 0)
    for sign in (-1, 1):
        pad = frame.box(
            sign * length / 2 - sign * 0.06 * length, sign * length / 2, v - wide / 2, v + wide / 2
        )
        canvas.fill(pad, "concrete", 1)
    canvas.fill(frame.box(-length / 2, length / 2, taxi - wide / 5, taxi + wide / 5), "asphalt", 1)
    for u in (-0.5 + 0.02, -0.2, 0.1, 0.5 - 0.02):
        canvas.fill(frame.box(u * length - wide / 5, u * length + wide / 5, v, taxi), "asphalt", 1)
    _runway_markings(canvas, frame, length, wide, v)
    apron = frame.box(-0.24 * length, 0.20 * length, taxi + wide * 0.8, depth / 2 - 26)
    canvas.fill(apron, "concrete", 0)
    for u in (-0.16, 0.12):
        canvas.fill(
            frame.box(u * length - wide / 4, u * length + wide / 4, taxi, taxi + wide), "asphalt", 1
        )
    terminal = frame.box(-0.15 * length, 0.08 * length, depth / 2 - 24, depth / 2 - 6)
    hangars = [
        frame.box(u * length, u * length + 0.055 * length, depth / 2 - 30, depth / 2 - 4)
        for u in (0.22, 0.285, 0.35)
    ]
    buildings = [Building(terminal, 11.0, 0.0, "flat roof", 2)]
    buildings += [Building(h, 10.0, 3.0, "metal roof", int(rng.integers(0, 3))) for h in hangars]
    for building in buildings:
        erect(canvas, building)
    deep = depth / 2 - 26 - (taxi + wide * 0.8)
    stands = _stands(frame, length, taxi + wide * 0.8, deep, rng)
    return Site(tuple(stands), tuple(buildings), outline)


def _runway_markings(canvas: Canvas, frame: Frame, length: float, wide: float, v: float) -> None:
    if canvas.step_m > 1.5:
        return
    for u in np.arange(-0.42 * length, 0.42 * length, 50.0):
        canvas.fill(frame.box(u, u + 26, v - 0.5, v + 0.5), "road paint")
    for sign in (-1.0, 1.0):
        for stripe in np.linspace(-0.38, 0.38, 8):
            low, high = sorted((sign * (length / 2 - 8), sign * (length / 2 - 34)))
            at = v + stripe * wide
            canvas.fill(frame.box(low, high, at - 0.022 * wide, at + 0.022 * wide), "road paint")
        low, high = sorted((sign * 0.34 * length, sign * 0.37 * length))
        for side in (-0.2, 0.2):
            at = v + side * wide
            canvas.fill(frame.box(low, high, at - 0.05 * wide, at + 0.05 * wide), "road paint")
    for side in (-0.47, 0.47):
        at = v + side * wide
        canvas.fill(frame.box(-length / 2, length / 2, at - 0.4, at + 0.4), "road paint")


def _stands(
    frame: Frame, length: float, start: float, deep: float, rng: np.random.Generator
) -> list[Berth]:
    """Stands in a row on the apron, noses to the terminal, in two rows where there is room."""
    nose = frame.direction_rad + np.pi / 2
    plane = float(np.clip(0.62 * deep, 11, 58))
    rows = (
        [start + 0.5 * deep] if deep < 2.3 * plane else [start + 0.27 * deep, start + 0.76 * deep]
    )
    stands = []
    for v in rows:
        u = -0.24 * length + 0.6 * plane
        while u < 0.20 * length - 0.6 * plane:
            if rng.random() < 0.85:
                stands.append(Berth(frame(u, v), nose, plane))
            u += plane * 1.16
    return stands


def park_planes(
    painter: ObjectPainter, stands: tuple[Berth, ...], rng: np.random.Generator
) -> None:
    """Planes on most stands."""
    for stand in stands:
        if rng.random() < 0.88:
            size = stand.length_m * float(rng.choice([1.0, 0.86, 0.72]))
            painter.plane(stand.at_m, stand.heading_rad + float(rng.normal(0, 0.03)), size)


def car_parks(canvas: Canvas, land: Land, rng: np.random.Generator) -> list[Berth]:
    """Car parks on cells of towns, before houses take the ground; a berth for each bay."""
    bays: list[Berth] = []
    share = {"industry": 0.55, "city": 0.22, "suburb": 0.05}
    cells = [c for c in land.cells if rng.random() < share.get(c.use, 0.0)]
    if not cells:
        cells = [c for c in land.cells if c.use in share][:1]
    for cell in cells:
        along, low, high = long_axis(cell.polygon)
        middle = cell.polygon.mean(axis=0)
        across = np.array([-along[1], along[0]])
        spread = float(np.ptp(cell.polygon @ across))
        angle = float(np.arctan2(along[1], along[0])) + land.bend.turn_rad(middle)
        length = min(0.55 * (high - low), float(rng.uniform(40, 110)))
        lanes = max(1, int(min(0.6 * spread, rng.uniform(18, 55)) / 17))
        centre = land.bend((middle + along * 0.1 * (high - low))[None])[0]
        ground = rectangle((centre[0], centre[1]), length + 4, 17.0 * lanes + 2, angle)
        if not canvas.contains(ground) or not canvas.is_free(ground):
            continue
        if not canvas.covers(ground, ("grass", "asphalt", "concrete")):
            continue
        canvas.fill(ground, "asphalt", 1, height_m=0.0)
        canvas.claim(ground)
        bays += _bays(canvas, Frame(centre, angle), length, lanes)
    return bays


def _bays(canvas: Canvas, frame: Frame, length: float, lanes: int) -> list[Berth]:
    bays = []
    for lane in range(lanes):
        middle = (lane + 0.5 - lanes / 2) * 17.0
        for sign in (-1.0, 1.0):
            row = middle + sign * 5.7
            for u in np.arange(-length / 2 + 1.25, length / 2, 2.5):
                if canvas.step_m <= 0.6:
                    line = frame.box(u - 1.32, u - 1.18, row - 2.4, row + 2.4)
                    canvas.fill(line, "road paint")
                bays.append(Berth(frame(u, row), frame.direction_rad + np.pi / 2, 5.0))
    return bays


def traffic(
    painter: ObjectPainter,
    roads: tuple[Road, ...],
    bays: list[Berth],
    rng: np.random.Generator,
) -> None:
    """Cars in bays, and cars and lorries on roads, each in its lane."""
    for bay in bays:
        if rng.random() < 0.66:
            at = bay.at_m + rng.normal(0, 0.12, 2)
            turn = np.pi if rng.random() < 0.3 else 0.0
            painter.car(at, bay.heading_rad + turn + rng.normal(0, 0.015), on=PAVED)
    gap_m = {"major": 75.0, "minor": 110.0, "street": 60.0}
    for road in roads:
        if road.kind not in gap_m:
            continue
        line = densify(road.line_m, 2.0)
        place = float(rng.exponential(gap_m[road.kind]))
        while place < 2.0 * (len(line) - 2):
            k = int(place / 2.0)
            direction = line[k + 1] - line[k]
            heading = float(np.arctan2(direction[1], direction[0]))
            right = np.array([-np.sin(heading), np.cos(heading)])
            sign = 1.0 if rng.random() < 0.5 else -1.0
            offset = road.width_m / 4 if road.kind != "street" else road.width_m / 2 - 1.2
            at = line[k] + sign * offset * right
            heading += 0.0 if sign > 0 else np.pi
            if road.kind == "major" and rng.random() < 0.22:
                painter.lorry(at, heading, on=PAVED)
            else:
                painter.car(at, heading, on=PAVED)
            place += max(8.0, float(rng.exponential(gap_m[road.kind])))
