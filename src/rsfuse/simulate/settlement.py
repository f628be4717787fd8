"""Fields, forests, gardens and houses: what stands on the cells of the divided land."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from rsfuse.simulate.canvas import Canvas, Points, inside, rectangle, ribbon
from rsfuse.simulate.land import Cell, Land, Road, densify, long_axis, polygon_area
from rsfuse.simulate.materials import ID
from rsfuse.simulate.noise import fractal, generator
from rsfuse.simulate.terrain import Field, Terrain
from rsfuse.simulate.trees import Trees, grow

# Undergrowth is a forest to be; its variants say which trees grow on it.
FOREST_KINDS = ("broadleaf", "conifer", "mixed", "open")


# With pixels of this size and more, drives, terraces and sheds are not resolved.
_GARDENS_M = 1.6


class Patch(NamedTuple):
    """A piece of ground beside a house: paved or lawn."""

    corners_m: Points
    material: str
    variant: int


class Building(NamedTuple):
    """A building: corners (4, 2), height of its eaves, of its ridge above, its roof and garden."""

    corners_m: Points
    eaves_m: float
    ridge_m: float
    material: str
    variant: int
    garden: tuple[Patch, ...] = ()


def paint_land(canvas: Canvas, land: Land, terrain: Terrain, seed: int) -> list[Trees]:
    """Paint fields, meadows, woods and the ground of towns; return hedges and orchards."""
    rng = generator(seed, "parcels")
    trees: list[Trees] = []
    for cell in land.cells:
        ring = land.bend(densify(cell.polygon, closed=True))
        if _is_outside(canvas, ring):
            continue
        middle = cell.polygon.mean(axis=0)
        along = long_axis(cell.polygon)[0]
        direction = float(np.arctan2(along[1], along[0])) + land.bend.turn_rad(middle)
        trees += _paint_cell(canvas, cell.use, ring, direction, rng)
    _paint_wild(canvas, terrain, seed)
    return trees


def _is_outside(canvas: Canvas, ring: Points) -> bool:
    return bool((ring.max(axis=0) < 0).any() or (ring.min(axis=0) > canvas.extent_m).any())


def _paint_cell(
    canvas: Canvas, use: str, ring: Points, direction: float, rng: np.random.Generator
) -> Iterator[Trees]:
    if use == "forest":
        kind = int(rng.choice(4, p=[0.36, 0.28, 0.30, 0.06]))
        canvas.fill(ring, "undergrowth", kind, grain_rad=direction)
        return
    if use in ("city", "industry"):
        grounds = [("asphalt", 3), ("concrete", 3), ("asphalt", 2), ("gravel", 0)]
        if use == "city":
            grounds = [("grass", 1), ("grass", 1), ("concrete", 3), ("asphalt", 3)]
        canvas.fill(ring, *grounds[int(rng.integers(0, 4))], grain_rad=direction)
        return
    if use == "suburb":
        canvas.fill(ring, "grass", 1, grain_rad=direction)
        return
    if use == "field":
        bare = rng.random() < 0.09
        canvas.fill(
            ring,
            "bare soil" if bare else "crop",
            int(rng.integers(0, 32)) if not bare else int(rng.integers(0, 4)),
            grain_rad=direction + (np.pi / 2 if rng.random() < 0.12 else 0.0),
        )
    else:
        kind = 0 if use == "orchard" else int(rng.choice([0, 3, 0, 2]))
        canvas.fill(ring, "grass", kind + 4 * int(rng.integers(0, 6)), grain_rad=direction)
    if rng.random() < 0.6:
        border = np.vstack((ring, ring[:1]))
        canvas.fill(ribbon(border, float(rng.uniform(1.4, 3.0))), "grass", 2, grain_rad=direction)
    if use == "orchard":
        yield _orchard(ring, direction, rng, canvas.step_m)
    elif rng.random() < 0.30:
        yield _hedge(ring, rng, canvas.step_m)


def _hedge(ring: Points, rng: np.random.Generator, step_m: float) -> Trees:
    """Trees along a part of a border."""
    spacing = max(6.0, 2.4 * step_m)
    line = densify(ring, spacing, closed=True)
    start, length = rng.integers(0, len(line)), int(rng.uniform(0.2, 0.6) * len(line))
    at = line[(start + np.arange(length)) % len(line)]
    at = at[rng.random(length) < 0.8]
    at = at + rng.normal(0, 1.2, at.shape)
    return grow(at, rng, radius_m=max(2.9, 0.6 * spacing), height_m=7.5, conifer_share=0.05)


def _orchard(ring: Points, direction: float, rng: np.random.Generator, step_m: float) -> Trees:
    """Trees in rows along the long side."""
    along = np.array([np.cos(direction), np.sin(direction)])
    across = np.array([-along[1], along[0]])
    spacing = max(5.5, 3.0 * step_m)
    u, v = ring @ along, ring @ across
    grid = np.meshgrid(
        np.arange(u.min() + 4, u.max() - 4, spacing), np.arange(v.min() + 4, v.max() - 4, spacing)
    )
    at = grid[0].reshape(-1, 1) * along + grid[1].reshape(-1, 1) * across
    at = at[inside(at, ring)]
    at = at + rng.normal(0, 0.25, at.shape)
    return grow(at, rng, radius_m=0.36 * spacing, height_m=4.0)


def _paint_wild(canvas: Canvas, terrain: Terrain, seed: int) -> None:
    """Water with its shores, and woods of natural outline on rough pasture and along water."""
    rng = generator(seed, "wild")
    step = max(canvas.step_m, max(canvas.extent_m) / 1500)
    coarse = int(canvas.extent_m[1] / step) + 1, int(canvas.extent_m[0] / step) + 1
    woods = Field(fractal(coarse, 170 / step, rng, octaves=6, persistence=0.55).full(), step)
    shape = canvas.material.shape

    for start in range(0, shape[0], 512):
        stop = min(start + 512, shape[0])
        rows = slice(start, stop)
        material, variant = canvas.material[rows], canvas.variant[rows]
        sea, river, pond = (
            field.rows(shape, canvas.step_m, start, stop)
            for field in (terrain.sea_m, terrain.river_m, terrain.pond_m)
        )
        wood = woods.rows(shape, canvas.step_m, start, stop)
        fresh = np.maximum(river, pond)
        green = np.isin(material, (ID["grass"], ID["crop"], ID["bare soil"]))
        pasture = (material == ID["grass"]) & (variant % 4 == 0)
        cleared = (material == ID["undergrowth"]) & (wood < -1.15)
        material[cleared], variant[cleared] = ID["grass"], 0
        rural = green & (variant % 4 != 1)
        wild = (pasture & (wood > 0.75)) | (rural & (wood > 1.25))
        wild |= green & (fresh > -14) & (fresh + 7 * wood > -5)
        material[wild] = ID["undergrowth"]
        variant[wild] = np.where(wood[wild] > 1.2, 2, 0)
        margin = green & (fresh > -5 - 2 * wood)
        material[margin & ~wild], variant[margin & ~wild] = ID["grass"], 2
        beach = (sea > -9 - 9 * wood) & (sea <= 0)
        material[beach], variant[beach] = ID["sand"], 0
        dune = (sea > -22 - 14 * wood) & ~beach & (sea <= 0)
        material[dune & ~wild], variant[dune & ~wild] = ID["grass"], 2
        for depth, kind in ((pond, 2), (river, 1), (sea, 0)):
            wet = depth > 0
            material[wet], variant[wet] = ID["water"], kind
        surf = (sea > 0) & (sea < 2.5 + 2.5 * wood)
        variant[surf] = 3


def paint_roads(canvas: Canvas, roads: tuple[Road, ...], seed: int) -> list[Trees]:
    """Paint roads with verges, bridges and markings; return the trees of avenues."""
    rng = generator(seed, "roads")
    trees: list[Trees] = []
    for road in roads:
        if road.kind != "track":
            verge = {"major": 9.0, "minor": 4.0, "street": 3.0}[road.kind]
            green = ("crop", "grass", "undergrowth", "bare soil")
            canvas.fill(ribbon(road.line_m, road.width_m + verge), "grass", 2, only=green)
        if road.kind == "street":
            canvas.fill(ribbon(road.line_m, road.width_m + 3.4), "concrete", 1, only=("grass",))
    for road in roads:
        surface = ribbon(road.line_m, road.width_m)
        material = "gravel" if road.kind == "track" else "asphalt"
        fresh = int(rng.choice([0, 0, 1, 2]))
        canvas.claim(ribbon(road.line_m, road.width_m + 1.0))
        if road.kind in ("major", "minor"):
            canvas.fill(
                ribbon(road.line_m, road.width_m + 2.4),
                "concrete",
                0,
                height_m=5.0,
                only=("water",),
            )
        canvas.fill(surface, material, fresh)
        if road.kind == "major":
            for offset in (-road.width_m / 2 + 0.7, road.width_m / 2 - 0.7):
                _mark(canvas, ribbon(road.line_m, 0.25, offset=offset), 0.25)
            _dashes(canvas, road.line_m)
        if road.kind in ("major", "minor") and rng.random() < 0.35:
            trees.append(_avenue(road, rng, canvas.step_m))
    return trees


def _dashes(canvas: Canvas, line: Points) -> None:
    """A broken middle line."""
    if canvas.step_m > 0.6:
        return
    points = densify(line, 4.0)
    for k in range(0, len(points) - 2, 3):
        _mark(canvas, ribbon(points[k : k + 2], 0.2), 0.2)


def _mark(canvas: Canvas, polygon: Points, width_m: float) -> None:
    """Paint on a road; a line narrower than the pixels it falls on is diluted by the asphalt."""
    share = width_m / (1.6 * canvas.step_m)
    canvas.fill(polygon, "road paint", int(np.clip(round(4 * (1 - share)), 0, 3)))


def _avenue(road: Road, rng: np.random.Generator, step_m: float) -> Trees:
    line = densify(road.line_m, max(11.0, 3 * step_m))
    sides = []
    for sign in (-1.0, 1.0):
        if rng.random() < 0.75:
            strip = ribbon(line, 2 * (road.width_m / 2 + 3.2))
            sides.append(strip[: len(line)] if sign < 0 else strip[len(line) :])
    at = np.vstack(sides) if sides else np.zeros((0, 2))
    at = at[rng.random(len(at)) < 0.85]
    return grow(at, rng, radius_m=max(3.2, 1.3 * step_m), height_m=10.0)


def build(canvas: Canvas, land: Land, seed: int) -> tuple[list[Building], list[Trees]]:
    """Put houses, blocks and halls on the cells of towns, and farms into the country."""
    rng = generator(seed, "buildings")
    buildings: list[Building] = []
    trees: list[Trees] = []
    for cell in land.cells:
        if _is_outside(canvas, land.bend(cell.polygon)):
            continue
        if cell.use == "suburb":
            plans = _houses(cell, rng, canvas.step_m)
        elif cell.use == "city":
            plans = _city_block(cell, rng, canvas.step_m)
        elif cell.use == "industry":
            plans = _halls(cell, rng)
        elif cell.use in ("field", "meadow") and rng.random() < 0.035:
            plans = _farm(cell, rng)
        else:
            continue
        for plan in plans:
            building = plan._replace(corners_m=_on_ground(plan.corners_m, land))
            if not canvas.is_free(building.corners_m):
                continue
            if canvas.touches(building.corners_m, ("water",)):
                continue
            for patch in building.garden if canvas.step_m < _GARDENS_M else ():
                ground = _on_ground(patch.corners_m, land)
                canvas.fill(ground, patch.material, patch.variant, only=("grass",))
            erect(canvas, building)
            buildings.append(building)
        if cell.use in ("suburb", "city"):
            trees.append(_garden_trees(canvas, land, cell, rng))
    return buildings, trees


def _on_ground(corners: Points, land: Land) -> Points:
    """A footprint of the straight plan moved to the ground, rigidly."""
    centre = corners.mean(axis=0)
    turn = land.bend.turn_rad(centre)
    spin = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray((corners - centre) @ spin.T + land.bend(centre[None]))


def erect(canvas: Canvas, building: Building) -> None:
    """Paint a building and claim its ground."""
    corners = building.corners_m
    canvas.claim(corners)
    centre = corners.mean(axis=0)
    side = corners[1] - corners[0]
    along = side / np.hypot(*side)
    across = np.array([-along[1], along[0]])
    half = float(np.abs((corners - centre) @ across).max())

    def roof(points: Points) -> Points:
        away = np.abs((points - centre) @ across)
        return np.asarray(building.eaves_m + building.ridge_m * np.clip(1 - away / half, 0, 1))

    canvas.fill(
        corners,
        building.material,
        building.variant,
        height_m=roof if building.ridge_m else building.eaves_m,
    )


def _edges(polygon: Points) -> Iterator[tuple[Points, Points, Points, float]]:
    """Start, unit direction, unit inward normal and length of each side."""
    middle = polygon.mean(axis=0)
    for a, b in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        length = float(np.hypot(*(b - a)))
        if length < 1e-6:
            continue
        along = (b - a) / length
        inward = np.array([-along[1], along[0]])
        if (middle - a) @ inward < 0:
            inward = -inward
        yield a, along, inward, length


def _houses(cell: Cell, rng: np.random.Generator, step_m: float) -> Iterator[Building]:
    """Houses along the streets around a block, with lawns, drives and terraces."""
    style = int(rng.integers(0, 6))
    lot = max(float(rng.uniform(15, 24)), 5 * step_m)
    setback = float(rng.uniform(8, 12))
    rows = rng.random() < 0.25
    for start, along, inward, length in _edges(cell.polygon):
        angle = float(np.arctan2(along[1], along[0]))
        place = setback + 5 + rng.uniform(0, 4)
        while place < length - setback - 5:
            wide = float(rng.uniform(9, 13)) if not rows else lot * 0.98
            deep = float(rng.uniform(8, 10.5))
            wide, deep = max(wide, 2.2 * step_m), max(deep, 2.2 * step_m)
            at = start + along * place + inward * (setback + deep / 2 + rng.normal(0, 0.6))
            turned = angle + (np.pi / 2 if not rows and rng.random() < 0.3 else 0.0)
            garden = _lot(at, along, inward, (lot, wide, deep, setback), rng)
            alike = rng.random() < 0.7
            variant = style + 6 * int(rng.integers(0, 5)) if alike else int(rng.integers(0, 32))
            yield Building(
                rectangle((at[0], at[1]), wide, deep, turned + float(rng.normal(0, 0.015))),
                float(rng.uniform(3.2, 6.0)),
                float(rng.uniform(2.4, 3.8)),
                "tile roof",
                variant % 32,
                garden,
            )
            if step_m < _GARDENS_M and rng.random() < 0.35:
                shed = at + inward * (deep / 2 + rng.uniform(8, 14)) + along * rng.uniform(-5, 5)
                yield Building(
                    rectangle((shed[0], shed[1]), 4.5, 3.2, angle), 2.5, 0.0, "flat roof", 1
                )
            place += lot + max(0.0, wide - 13)


def _lot(
    at: Points,
    along: Points,
    inward: Points,
    sizes: tuple[float, float, float, float],
    rng: np.random.Generator,
) -> tuple[Patch, ...]:
    """The lawn of a house, the drive to its street and the terrace behind it."""
    lot, wide, deep, setback = sizes
    angle = float(np.arctan2(along[1], along[0]))
    front = at - inward * (deep / 2 + setback / 2) + along * 0.3 * wide
    back = at + inward * (deep / 2 + 1.6) - along * 0.2 * wide
    middle = at + inward * 8
    lawn = 1 + 4 * int(rng.integers(0, 8)) if rng.random() < 0.8 else 4 * int(rng.integers(0, 8))
    paving = int(rng.choice([1, 3]))
    return tuple(
        Patch(rectangle((centre[0], centre[1]), length, width, angle), material, variant)
        for centre, length, width, material, variant in (
            (middle, lot, 42.0, "grass", lawn),
            (front, 3.0, setback + 1, "concrete", paving),
            (back, 5.0, 3.2, "concrete", 0),
        )
    )


def _city_block(cell: Cell, rng: np.random.Generator, step_m: float) -> Iterator[Building]:
    """A closed row of houses around a courtyard, or free slabs."""
    if polygon_area(cell.polygon) < 900:
        return
    height = float(rng.uniform(11, 20))
    depth = max(float(rng.uniform(11, 14)), 2.2 * step_m)
    if rng.random() < 0.3:
        yield from _slabs(cell, rng, height * 1.3)
        return
    for start, along, inward, length in _edges(cell.polygon):
        angle = float(np.arctan2(along[1], along[0]))
        place = 6.5
        while place < length - 14:
            wide = float(min(rng.uniform(14, 32), length - 6.5 - place))
            at = start + along * (place + wide / 2) + inward * (6.5 + depth / 2)
            gable = rng.random() < 0.62
            yield Building(
                rectangle((at[0], at[1]), wide, depth, angle),
                height * float(rng.uniform(0.8, 1.2)),
                float(rng.uniform(2.5, 4.0)) if gable else 0.0,
                "tile roof" if gable else "flat roof",
                int(rng.integers(32)),
            )
            place += wide + (0.3 if rng.random() < 0.85 else rng.uniform(4, 10))
    along, low, high = long_axis(cell.polygon)
    middle = cell.polygon.mean(axis=0)
    if high - low > 75 and rng.random() < 0.7:
        yield Building(
            rectangle(
                (middle[0], middle[1]),
                0.35 * (high - low),
                11,
                float(np.arctan2(along[1], along[0])),
            ),
            float(rng.uniform(4, 9)),
            0.0,
            "flat roof",
            int(rng.integers(32)),
        )


def _slabs(cell: Cell, rng: np.random.Generator, height: float) -> Iterator[Building]:
    """Parallel apartment blocks on a lawn."""
    along, low, high = long_axis(cell.polygon)
    across = np.array([-along[1], along[0]])
    middle = cell.polygon.mean(axis=0)
    angle = float(np.arctan2(along[1], along[0]))
    spread = float(np.ptp(cell.polygon @ across))
    for offset in np.arange(-spread / 2 + 18, spread / 2 - 12, max(34.0, 1.6 * height)):
        at = middle + across * offset + along * rng.normal(0, 3)
        length = float(min(0.72 * (high - low), rng.uniform(45, 80)))
        yield Building(
            rectangle((at[0], at[1]), length, 12.0, angle),
            height,
            0.0,
            "flat roof",
            int(rng.integers(32)),
        )


def _halls(cell: Cell, rng: np.random.Generator) -> Iterator[Building]:
    """Halls beside each other on a yard."""
    along, low, high = long_axis(cell.polygon)
    across = np.array([-along[1], along[0]])
    middle = cell.polygon.mean(axis=0)
    angle = float(np.arctan2(along[1], along[0]))
    spread = float(np.ptp(cell.polygon @ across))
    u = -(high - low) / 2 + 14
    while u < (high - low) / 2 - 30:
        length = float(min(rng.uniform(28, 85), (high - low) / 2 - 14 - u))
        v = -spread / 2 + 14
        while v < spread / 2 - 24:
            width = float(min(rng.uniform(22, 50), spread / 2 - 14 - v))
            if rng.random() < 0.86 and length > 12 and width > 10:
                at = middle + along * (u + length / 2) + across * (v + width / 2)
                metal = rng.random() < 0.55
                yield Building(
                    rectangle((at[0], at[1]), length * 0.94, width * 0.88, angle),
                    float(rng.uniform(6, 13)),
                    float(rng.uniform(1.0, 2.4)) if metal else 0.0,
                    "metal roof" if metal else "flat roof",
                    int(rng.integers(32)),
                )
            v += width + float(rng.uniform(8, 18))
        u += length + float(rng.uniform(9, 20))


def _farm(cell: Cell, rng: np.random.Generator) -> Iterator[Building]:
    """A farmhouse, a barn and sheds around a yard."""
    start, along, inward, length = max(_edges(cell.polygon), key=lambda edge: edge[3])
    angle = float(np.arctan2(along[1], along[0]))
    yard = start + along * length * rng.uniform(0.3, 0.7) + inward * 34
    for turn, (wide, deep, eaves, material) in enumerate(
        ((16, 11, 5.5, "tile roof"), (34, 15, 6, "metal roof"), (24, 12, 5, "tile roof"))
    ):
        way = angle + turn * np.pi / 2
        at = yard + 21 * np.array([np.cos(way), np.sin(way)])
        yield Building(
            rectangle((at[0], at[1]), wide, deep, way + np.pi / 2),
            eaves,
            float(rng.uniform(2.5, 4.5)),
            material,
            int(rng.integers(32)),
        )


def _garden_trees(canvas: Canvas, land: Land, cell: Cell, rng: np.random.Generator) -> Trees:
    """Trees in gardens and courtyards, where nothing is built."""
    low, high = cell.polygon.min(axis=0), cell.polygon.max(axis=0)
    area = float(np.prod(high - low))
    count = int(area / (190 if cell.use == "suburb" else 330) / max(1.0, canvas.step_m**2 / 4))
    at = rng.uniform(low, high, (count, 2))
    at = land.bend(at[inside(at, cell.polygon)])
    open_ground = canvas.material_at(at) == ID["grass"]
    return grow(
        at[open_ground],
        rng,
        radius_m=max(2.6, 1.3 * canvas.step_m),
        height_m=7.0,
        conifer_share=0.25,
    )
