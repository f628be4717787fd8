"""Water and relief: where sea, river and ponds lie, and how high the land is.

Outlines are level sets of smooth fields, so that shores look like shores and not like polygons.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from rsfuse.simulate.noise import Plane, fractal, generator

Points = NDArray[np.float64]

# The fields are smooth: this many nodes along the longer side of a scene are enough.
_NODES = 1000


@dataclass(frozen=True)
class Field:
    """A smooth function on the ground, sampled on a coarse lattice.

    Attributes:
        values: (h, w) samples at cell centres.
        step_m: Size of a cell.
    """

    values: NDArray[np.floating]
    step_m: float

    def at(self, points_m: Points, *, order: int = 1) -> NDArray[np.float64]:
        """Values at points (N, 2) in metres; the nearest edge outside."""
        where = (points_m[:, ::-1] / self.step_m - 0.5).T
        values = np.asarray(self.values, np.float64)
        found = ndimage.map_coordinates(values, where, order=order, mode="nearest")
        return np.asarray(found, np.float64)

    def rows(
        self, shape: tuple[int, int], step_m: float, start: int, stop: int
    ) -> NDArray[np.floating]:
        """Values on rows `start` to `stop` of a finer raster, in the precision of the samples."""
        ratio = self.step_m / step_m
        first = max(int(start / ratio) - 3, 0)
        last = min(int(np.ceil(stop / ratio)) + 3, self.values.shape[0])
        # warpAffine rounds to 1/32 of a coarse cell, which shows; an exact resize needs whole
        # ratios, so interpolate along each axis by matrix products with four weights a row.
        down = _cubic_weights(np.arange(start, stop), ratio, first, last)
        across = _cubic_weights(np.arange(shape[1]), ratio, 0, self.values.shape[1])
        return _apply(_apply(self.values[first:last], down).T, across).T


def _cubic_weights(
    pixels: NDArray[np.int64], ratio: float, first: int, last: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows of a slab [first, last) and their weights for the centre of each fine pixel."""
    where = (pixels + 0.5) / ratio - 0.5
    base = np.floor(where).astype(np.int64)
    t = where - base
    weights = np.stack(
        (
            -0.5 * t + t**2 - 0.5 * t**3,
            1 - 2.5 * t**2 + 1.5 * t**3,
            0.5 * t + 2 * t**2 - 1.5 * t**3,
            -0.5 * t**2 + 0.5 * t**3,
        )
    )
    rows = np.clip(base + np.arange(-1, 3)[:, None], first, last - 1) - first
    return rows, weights


def _apply(
    slab: NDArray[np.floating], rows_and_weights: tuple[NDArray[np.int64], NDArray[np.float64]]
) -> NDArray[np.floating]:
    rows, weights = rows_and_weights
    weights = weights.astype(slab.dtype)
    total = slab[rows[0]] * weights[0][:, None]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total += slab[row] * weight[:, None]
    return np.asarray(total)


@dataclass(frozen=True)
class Terrain:
    """Signed distances to water (positive in it) and the relief, all in metres.

    Attributes:
        sea_m: Into the sea.
        river_m: Into the river.
        pond_m: Into ponds.
        height_m: Height of the ground above the sea.
        seaward_rad: Direction of the open sea.
        shore_m: A point of the shore near the middle of the coast.
        river_line_m: The middle of the river, (N, 2).
    """

    sea_m: Field
    river_m: Field
    pond_m: Field
    height_m: Field
    seaward_rad: float
    shore_m: tuple[float, float]
    river_line_m: Points

    def wet_m(self, points_m: Points) -> NDArray[np.float64]:
        """Signed distance into any water at points (N, 2)."""
        fields = (self.sea_m, self.river_m, self.pond_m)
        return np.asarray(np.max([field.at(points_m) for field in fields], axis=0))


def make_terrain(
    extent_m: tuple[float, float], step_m: float, *, relief_m: float, seed: int
) -> Terrain:
    """Sea on one side, a river into it, some ponds, and hills that rise from the shores.

    Args:
        extent_m: (width, height) of the scene.
        step_m: Pixel of the canvas; the fields are at least as coarse.
        relief_m: Height of the highest hills.
        seed: Of the scene.
    """
    rng = generator(seed, "terrain")
    cell_m = max(step_m, max(extent_m) / _NODES)
    shape = (int(np.ceil(extent_m[1] / cell_m)), int(np.ceil(extent_m[0] / cell_m)))
    size_m = float(np.sqrt(extent_m[0] * extent_m[1]))
    y, x = (np.indices(shape, dtype=np.float32) + 0.5) * np.float32(cell_m)

    seaward = float(rng.choice([0.0, 0.5, 1.0, 1.5]) * np.pi + rng.normal(0, 0.25))
    toward = np.array([np.cos(seaward), np.sin(seaward)])
    out = (x - extent_m[0] / 2) * np.float32(toward[0]) + (y - extent_m[1] / 2) * np.float32(
        toward[1]
    )
    coast = fractal(shape, 0.45 * size_m / cell_m, rng, octaves=7, persistence=0.52).full()
    sea = out + np.float32(0.075 * size_m) * coast
    sea -= np.float32(np.quantile(sea, 0.81))
    shore = _shore_point(sea, toward, cell_m, extent_m)

    line = _river_line(extent_m, toward, shore, rng)
    river = _river(line, shape, cell_m, size_m, rng)
    pond = _ponds(x, y, shape, cell_m, size_m, rng)

    land = np.maximum.reduce([sea, river, pond]) < 0
    inland = ndimage.distance_transform_edt(np.pad(land, 1, mode="edge"))[1:-1, 1:-1] * cell_m
    rise = 1 - np.exp(-inland / (0.10 * size_m))
    hills = fractal(shape, 0.5 * size_m / cell_m, rng, octaves=6, persistence=0.42).full()
    height = relief_m * rise * np.clip(0.45 + 0.28 * hills, 0.02, 1.2)
    height = cv2.GaussianBlur(np.asarray(height, np.float32), (0, 0), max(12 / cell_m, 0.6))
    return Terrain(
        sea_m=Field(np.asarray(sea, np.float32), cell_m),
        river_m=Field(river, cell_m),
        pond_m=Field(pond, cell_m),
        height_m=Field(np.asarray(height, np.float32), cell_m),
        seaward_rad=seaward,
        shore_m=shore,
        river_line_m=line,
    )


def _shore_point(
    sea: Plane, toward: Points, cell_m: float, extent_m: tuple[float, float]
) -> tuple[float, float]:
    """Where a straight line out to sea first meets the water, away from the corners."""
    centre = np.asarray(extent_m) / 2
    across = np.array([-toward[1], toward[0]])
    start = centre + across * 0.12 * min(extent_m)
    steps = np.arange(0, max(extent_m), cell_m)
    points = np.clip(start + steps[:, None] * toward, 0, np.asarray(extent_m) - cell_m)
    wet = sea[(points[:, 1] / cell_m).astype(int), (points[:, 0] / cell_m).astype(int)] > 0
    first = int(np.argmax(wet)) if wet.any() else len(points) - 1
    return float(points[first, 0]), float(points[first, 1])


def _river_line(
    extent_m: tuple[float, float],
    toward: Points,
    shore: tuple[float, float],
    rng: np.random.Generator,
) -> Points:
    """A winding line from the inland edge to beyond the shore, beside the harbour."""
    size = float(max(extent_m))
    across = np.array([-toward[1], toward[0]])
    mouth = np.asarray(shore) - across * rng.uniform(0.30, 0.42) * size + toward * 0.45 * size
    source = (
        np.asarray(extent_m) / 2 - toward * 0.85 * size + across * rng.uniform(-0.5, 0.3) * size
    )
    t = np.linspace(0, 1, 600)
    swing = np.zeros_like(t)
    for waves, weight in ((1.3, 0.055), (3.1, 0.030), (6.7, 0.014), (13.0, 0.005)):
        swing += weight * np.sin(2 * np.pi * waves * t + rng.uniform(0, 2 * np.pi))
    return np.asarray(source + t[:, None] * (mouth - source) + swing[:, None] * size * across)


def _river(
    line: Points, shape: tuple[int, int], cell_m: float, size_m: float, rng: np.random.Generator
) -> Plane:
    """Signed distance into a river of varying width."""
    width_m = float(np.clip(0.013 * size_m, 5, 90))
    pixels = np.round((line / cell_m - 0.5) * 16).astype(np.int32)
    canvas = np.full(shape, 255, np.uint8)
    cv2.polylines(canvas, [pixels], False, 0, 1, cv2.LINE_8, 4)
    away = cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * np.float32(cell_m)
    wobble = fractal(shape, 6 * width_m / cell_m, rng, octaves=4).full()
    return np.asarray(width_m / 2 * (1 + 0.16 * wobble) - away, np.float32)


def _ponds(
    x: Plane,
    y: Plane,
    shape: tuple[int, int],
    cell_m: float,
    size_m: float,
    rng: np.random.Generator,
) -> Plane:
    """Signed distance into a few ponds with wavy shores."""
    wave = fractal(shape, 0.09 * size_m / cell_m, rng, octaves=5).full()
    inside = np.full(shape, -np.inf, np.float32)
    count = int(np.clip(round(2 + (size_m / 4000) ** 2), 2, 60))
    for _ in range(count):
        centre = rng.uniform(0.1, 0.9, 2) * (shape[1] * cell_m, shape[0] * cell_m)
        radius = float(np.clip(rng.uniform(0.014, 0.035) * size_m, 8, 260))
        stretch, angle = rng.uniform(1.0, 1.8), rng.uniform(0, np.pi)
        u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        v = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
        blob = radius * (1 + 0.35 * wave) - np.hypot(u / stretch, v * stretch**0.5)
        inside = np.maximum(inside, blob.astype(np.float32))
    return inside
