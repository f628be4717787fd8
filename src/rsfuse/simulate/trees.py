"""Trees: where they stand, and the crowns that a raster sees of them."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.canvas import Canvas, Points
from rsfuse.simulate.materials import ID, VARIANTS
from rsfuse.simulate.noise import fractal, generator
from rsfuse.simulate.terrain import Field

# Rows of the canvas that are worked on at a time, and the widest crown.
_ROWS = 1024
_REACH_M = 9.0


class Trees(NamedTuple):
    """Trees as columns: position (N, 2), crown radius, height, and whether it is a conifer."""

    at_m: Points
    radius_m: NDArray[np.float64]
    height_m: NDArray[np.float64]
    is_conifer: NDArray[np.bool_]


def join(parts: list[Trees]) -> Trees:
    """All trees of several groups."""
    return Trees(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def grow(
    at_m: Points,
    rng: np.random.Generator,
    *,
    radius_m: float,
    height_m: float,
    conifer_share: float | NDArray[np.float64] = 0.0,
) -> Trees:
    """Trees of varying size at given places."""
    count = len(at_m)
    size = np.clip(rng.normal(1.0, 0.18, count), 0.55, 1.5)
    return Trees(
        at_m,
        radius_m * size,
        height_m * size * rng.uniform(0.85, 1.15, count),
        rng.random(count) < conifer_share,
    )


def forest(canvas: Canvas, seed: int) -> Trees:
    """Trees wherever the canvas has undergrowth; variants are broadleaf, conifer, mixed, open."""
    rng = generator(seed, "forest")
    spacing = max(5.6, 2.4 * canvas.step_m)
    width, height = canvas.extent_m
    columns, rows = int(width / spacing) + 1, int(height / spacing) + 1
    x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
    at = np.column_stack((x.ravel(), y.ravel())) + rng.uniform(-0.42, 0.42, (x.size, 2))
    at *= spacing
    at = at[(at[:, 0] < width) & (at[:, 1] < height)]
    at = at[canvas.material_at(at) == ID["undergrowth"]]
    row, column = (at[:, ::-1] / canvas.step_m).astype(int).T
    variant = canvas.variant[row, column] % 4
    keep = rng.random(len(at)) < np.array([0.97, 0.99, 0.97, 0.45])[variant]
    at, variant = at[keep], variant[keep]
    share = np.array([0.03, 0.96, 0.45, 0.15])[variant]
    trees = grow(at, rng, radius_m=0.62 * spacing, height_m=15.0, conifer_share=share)
    # Stands differ in age over some hundred metres.
    age = np.clip(1.0 + 0.22 * _stands(canvas.extent_m, rng).at(at), 0.5, 1.5)
    narrow = np.where(trees.is_conifer, 0.78, 1.0)
    return Trees(at, trees.radius_m * narrow, trees.height_m * age, trees.is_conifer)


def on_open_ground(canvas: Canvas, trees: Trees) -> Trees:
    """The trees that stand on soil where nothing was built."""
    soil = [ID[name] for name in ("grass", "crop", "undergrowth", "bare soil")]
    keep = canvas.is_free_at(trees.at_m) & np.isin(canvas.material_at(trees.at_m), soil)
    return Trees(
        trees.at_m[keep], trees.radius_m[keep], trees.height_m[keep], trees.is_conifer[keep]
    )


def _stands(extent_m: tuple[float, float], rng: np.random.Generator) -> Field:
    step_m = max(16.0, max(extent_m) / 1000)
    shape = int(extent_m[1] / step_m) + 1, int(extent_m[0] / step_m) + 1
    return Field(fractal(shape, 160 / step_m, rng, octaves=3).full(), step_m)


def paint(canvas: Canvas, trees: Trees, seed: int) -> None:
    """Paint the crowns: the nearest tree owns a pixel, if its crown reaches it and is higher."""
    if not len(trees.at_m):
        return
    rng = generator(seed, "tints")
    tint = rng.integers(0, VARIANTS, len(trees.at_m)).astype(np.uint8)
    h, w = canvas.material.shape
    pixel = np.floor(trees.at_m / canvas.step_m).astype(np.int64)
    inside = ((pixel >= 0) & (pixel < (w, h))).all(axis=1)
    order = np.flatnonzero(inside)[np.argsort(pixel[inside, 1], kind="stable")]
    row_of = pixel[order, 1]
    reach = int(np.ceil(_REACH_M / canvas.step_m)) + 2
    for start in range(0, h, _ROWS):
        stop = min(start + _ROWS, h)
        first, last = max(start - reach, 0), min(stop + reach, h)
        here = order[np.searchsorted(row_of, first) : np.searchsorted(row_of, last)]
        if len(here):
            _paint_rows(canvas, trees, tint, pixel, here, (first, last), slice(start, stop))


def _paint_rows(
    canvas: Canvas,
    trees: Trees,
    tint: NDArray[np.uint8],
    pixel: NDArray[np.int64],
    here: NDArray[np.int64],
    band: tuple[int, int],
    rows: slice,
) -> None:
    first, last = band
    mask = np.ones((last - first, canvas.material.shape[1]), np.uint8)
    mask[pixel[here, 1] - first, pixel[here, 0]] = 0
    away, label = cv2.distanceTransformWithLabels(
        mask, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # OpenCV numbers the labels itself: read them back where the trees stand.
    owner = np.zeros(int(label.max()) + 1, np.int64)
    owner[label[pixel[here, 1] - first, pixel[here, 0]]] = here
    part = slice(rows.start - first, rows.stop - first)
    distance = away[part] * np.float32(canvas.step_m)
    owned = owner[label[part]]
    radius = trees.radius_m.astype(np.float32)[owned]
    y, x = np.nonzero(distance < radius)
    tree = owned[y, x]
    relative = distance[y, x] / radius[y, x]
    conifer = trees.is_conifer[tree]
    # A conifer is a cone, a broadleaf a dome on a trunk.
    profile = np.where(conifer, 1.0 - 0.62 * relative, 0.55 + 0.45 * np.sqrt(1 - relative**2))
    top = (trees.height_m[tree] * profile).astype(np.float32)
    height = canvas.height_m[rows]
    above = top > height[y, x]
    y, x, tree = y[above], x[above], tree[above]
    height[y, x] = top[above]
    canvas.material[rows][y, x] = np.where(conifer[above], ID["conifer"], ID["broadleaf"])
    canvas.variant[rows][y, x] = tint[tree]
