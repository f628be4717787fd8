"""How the matcher gets at the pixels of two rasters, and back to them from a placement."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from rsfuse.matching.pipeline import PairReader, Points, Rect
from rsfuse.matching.results import Reason
from rsfuse.ops.geometry2d import (
    FloatArray,
    SplineField,
    Transform,
    apply_matrix,
    fit_field,
    fit_matrix,
    unit_matrix,
)

if TYPE_CHECKING:
    from rsfuse.geo.raster import RasterSource

SMALLEST_SIDE_PX = 32
LINEAR_BASE_PX = 0.05  # a georeference this straight is a matrix
FIELD_CELLS = 16  # along a side, at least, of the field that a bent georeference becomes
SAMPLES_PER_CELL = 3


def pair_reader(
    reference: RasterSource,
    query: RasterSource,
    *,
    prior: FloatArray | None = None,
    max_shift_px: float | None = None,
) -> tuple[PairReader | None, FloatArray | None, Reason | None]:
    """Readers of both rasters, the matrix of the georeference where it is one, or the problem.

    Args:
        reference: Its pixels are those of the search.
        query: Read through the mapping that the search asks for.
        prior: (3, 3) reference pixels -> query pixels, in place of the georeference.
        max_shift_px: How far the georeference may be off, reference pixels; half the reference by
            default.
    """
    from rsfuse.geo.grid import Window, pixel_mapping
    from rsfuse.geo.warp import read_mapped

    reference, query = reference.in_colours(), query.in_colours()
    bands0, bands1 = _some_bands(reference), _some_bands(query)
    h0, w0 = reference.shape
    h1, w1 = query.shape
    linear: FloatArray | None = np.eye(3)
    base: Points
    if prior is not None:
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
        problem = "The query's CRS cannot be mapped to the reference."
        return None, None, Reason("no_overlap", problem)
    low, high = back.min(axis=0), back.max(axis=0)
    if reference.is_georeferenced and query.is_georeferenced and prior is None:
        reach = max_shift_px if max_shift_px is not None else max(h0, w0) / 2
        low = np.maximum(low, [-reach, -reach])
        high = np.minimum(high, [w0 + reach, h0 + reach])
        if (high - low < SMALLEST_SIDE_PX).any():
            gap = float(np.max(np.maximum(low - [w0, h0], -high)))
            problem = (
                "By their georeference the two rasters lie too far apart to match: the query is "
                f"beyond {reach:.0f} reference pixels from the reference."
            )
            details = {"reach_px": float(reach), "gap_px": gap}
            return None, None, Reason("no_overlap", problem, details)

    def read0(rect: Rect, shape: tuple[int, int]) -> tuple[Any, Any]:
        x, y, w, h = (int(v) for v in rect)
        assert all(float(v).is_integer() for v in rect), f"{rect} are no whole pixels"
        whole = (h, w) == shape
        raster = reference.read(Window(x, y, w, h), shape=None if whole else shape, bands=bands0)
        return raster.data, raster.valid

    def read1(shape: tuple[int, int], mapping: Points) -> tuple[Any, Any]:
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


def _straight(base: Points, shape: tuple[int, int]) -> FloatArray | None:
    """The matrix of a mapping, if it is affine to within `LINEAR_BASE_PX`."""
    h, w = shape
    grid = np.stack(np.meshgrid(np.linspace(0, w, 9), np.linspace(0, h, 9)), -1).reshape(-1, 2)
    there = base(grid)
    if not np.isfinite(there).all():
        return None
    matrix = fit_matrix("affine", grid, there)
    gap = np.abs(apply_matrix(matrix, grid) - there).max()
    return matrix if gap < LINEAR_BASE_PX else None


def compose(placed: Transform, pair: PairReader, linear_base: FloatArray | None) -> Transform:
    """Reference pixels -> query pixels from a placement and the georeference after it."""
    field = placed.field
    if linear_base is not None:
        if field is None:
            return Transform(placed.model, unit_matrix(linear_base @ placed.base))
        linear = unit_matrix(linear_base)
        if np.array_equal(linear[2], [0.0, 0.0, 1.0]):
            turned = field.coefficients @ linear[:2, :2].T
            bent = SplineField(field.origin, field.spacing, turned)
            return Transform("smooth", linear @ placed.base, bent)
    # The georeference bends: the whole mapping becomes a matrix and a field through its samples.
    h, w = pair.shape0
    area, cells = (0.0, 0.0, float(w), float(h)), (FIELD_CELLS, FIELD_CELLS)
    if field is not None:
        # On the knots of its field, and between them where those are few.
        down, across = field.cells
        area = (*field.origin, across * field.spacing[0], down * field.spacing[1])
        cells = down * math.ceil(FIELD_CELLS / down), across * math.ceil(FIELD_CELLS / across)
    x, y = (
        np.linspace(start, start + length, SAMPLES_PER_CELL * count + 1)
        for start, length, count in zip(area[:2], area[2:], cells[::-1], strict=True)
    )
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    there = pair.base(placed.apply(grid))
    known = np.isfinite(there).all(axis=1)
    grid, there = grid[known], there[known]
    base = fit_matrix("affine", grid, there)
    bent = fit_field(
        grid,
        there - apply_matrix(base, grid),
        np.ones(len(grid)),
        area=area,
        cells=cells,
        stiffness=1e-9,
    )
    return Transform("smooth", base, bent)
