"""The rasters that a scene is painted on, in metres.

Points are (x, y) in metres from the upper left corner of the scene, x right, y down; only this file
turns them into pixels of the canvas, and only `_mask` shifts by the half pixel that OpenCV needs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.materials import ID

Points = NDArray[np.float64]

# Sub-pixel bits of OpenCV's polygon filling.
_SHIFT = 4

# A footprint is checked on cells of this size: finer than any gap that matters on the ground.
_CELL_M = 1.0


class Stencil(NamedTuple):
    """The pixels of one shape: where its bounding box lies, and which pixels in it belong to it."""

    rows: slice
    columns: slice
    mask: NDArray[np.bool_]


class Canvas:
    """Material, kind, direction and height of every pixel, and what ground is already taken.

    Attributes:
        step_m: Size of a canvas pixel.
        material: Index into `MATERIALS`, (h, w) uint8.
        variant: Kind of the material, (h, w) uint8.
        grain: Direction of rows on fields, in 1/256 of a half turn, (h, w) uint8.
        height_m: Height above the terrain, (h, w) float32.
    """

    def __init__(self, shape: tuple[int, int], step_m: float) -> None:
        self.step_m = step_m
        self.material = np.full(shape, ID["grass"], np.uint8)
        self.variant = np.zeros(shape, np.uint8)
        self.grain = np.zeros(shape, np.uint8)
        self.height_m = np.zeros(shape, np.float32)
        self._cell_m = max(_CELL_M, step_m)
        cells = [int(np.ceil(side * step_m / self._cell_m)) for side in shape]
        self._taken = np.zeros(cells, np.uint8)

    @property
    def extent_m(self) -> tuple[float, float]:
        """(width, height) of the scene."""
        h, w = self.material.shape
        return w * self.step_m, h * self.step_m

    def fill(
        self,
        polygon_m: Points,
        material: str,
        variant: int = 0,
        *,
        grain_rad: float | None = None,
        height_m: float | Callable[[Points], NDArray[np.float64]] | None = None,
        only: tuple[str, ...] = (),
    ) -> None:
        """Paint a polygon.

        Args:
            polygon_m: (K, 2) corners.
            material: Name of the material.
            variant: Its kind.
            grain_rad: Direction of its rows; None leaves what is there.
            height_m: Its height, or a function from points (N, 2) to heights; None leaves it.
            only: Paint on these materials only; all where empty.
        """
        found = _mask(polygon_m / self.step_m, self.material.shape)
        if found is None:
            return
        rows, columns, mask = found
        if only:
            mask = mask & _among(only)[self.material[rows, columns]]
        self.material[rows, columns][mask] = ID[material]
        self.variant[rows, columns][mask] = variant
        if grain_rad is not None:
            self.grain[rows, columns][mask] = round(grain_rad / np.pi * 256) % 256
        if callable(height_m):
            y, x = np.nonzero(mask)
            points = np.column_stack((x + columns.start + 0.5, y + rows.start + 0.5)) * self.step_m
            self.height_m[rows, columns][mask] = height_m(points)
        elif height_m is not None:
            self.height_m[rows, columns][mask] = height_m

    def material_at(self, points_m: Points) -> NDArray[np.uint8]:
        """Material under points (N, 2), those outside moved to the nearest edge."""
        h, w = self.material.shape
        column = np.clip((points_m[:, 0] / self.step_m).astype(int), 0, w - 1)
        row = np.clip((points_m[:, 1] / self.step_m).astype(int), 0, h - 1)
        return np.asarray(self.material[row, column], np.uint8)

    def covers(self, polygon_m: Points, materials: tuple[str, ...]) -> bool:
        """Whether a polygon lies inside the scene and only on these materials."""
        if not self.contains(polygon_m):
            return False
        found = _mask(polygon_m / self.step_m, self.material.shape)
        if found is None:
            return False
        here = self.material[found.rows, found.columns][found.mask]
        return bool(_among(materials)[here].all())

    def touches(self, polygon_m: Points, materials: tuple[str, ...]) -> bool:
        """Whether any pixel of a polygon is of these materials."""
        found = _mask(polygon_m / self.step_m, self.material.shape)
        if found is None:
            return False
        here = self.material[found.rows, found.columns][found.mask]
        return bool(_among(materials)[here].any())

    def contains(self, polygon_m: Points) -> bool:
        """Whether a polygon lies wholly inside the scene."""
        return bool(((polygon_m >= 0) & (polygon_m <= self.extent_m)).all())

    def is_free(self, polygon_m: Points) -> bool:
        """Whether nothing has claimed any ground of a polygon; what lies outside is free."""
        found = _mask(polygon_m / self._cell_m, self._taken.shape)
        return found is None or not self._taken[found.rows, found.columns][found.mask].any()

    def is_free_at(self, points_m: Points) -> NDArray[np.bool_]:
        """Which points (N, 2) lie on ground that nothing has claimed."""
        h, w = self._taken.shape
        column = np.clip((points_m[:, 0] / self._cell_m).astype(int), 0, w - 1)
        row = np.clip((points_m[:, 1] / self._cell_m).astype(int), 0, h - 1)
        return np.asarray(self._taken[row, column] == 0)

    def claim(self, polygon_m: Points) -> None:
        """Keep later footprints off a polygon."""
        found = _mask(polygon_m / self._cell_m, self._taken.shape)
        if found is not None:
            self._taken[found.rows, found.columns][found.mask] = 1


@functools.cache
def _among(materials: tuple[str, ...]) -> NDArray[np.bool_]:
    """For each material id, whether it is one of these."""
    table = np.zeros(256, bool)
    table[[ID[name] for name in materials]] = True
    return table


def _mask(polygon: Points, shape: tuple[int, ...]) -> Stencil | None:
    """The pixels of a polygon in pixel coordinates; None where it lies outside."""
    low = np.maximum(np.floor(polygon.min(axis=0)).astype(int) - 1, 0)
    high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 1, (shape[1], shape[0]))
    if (low >= high).any():
        return None
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    # OpenCV has its origin at the centre of the first pixel.
    corners = np.round((polygon - low - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(mask, [corners], 1, lineType=cv2.LINE_8, shift=_SHIFT)
    return Stencil(slice(low[1], high[1]), slice(low[0], high[0]), mask.astype(bool))


def rectangle(centre: tuple[float, float], length: float, width: float, angle_rad: float) -> Points:
    """Corners (4, 2) of a rectangle: `length` along `angle_rad`, clockwise on the screen."""
    along = np.array([np.cos(angle_rad), np.sin(angle_rad)])
    across = np.array([-along[1], along[0]])
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    return np.asarray(
        np.asarray(centre) + half[:, :1] * length * along + half[:, 1:] * width * across
    )


def ribbon(line: Points, width: float, *, offset: float = 0.0) -> Points:
    """Polygon of a strip along a line, `offset` to its right (clockwise on the screen)."""
    direction = np.gradient(line, axis=0)
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
    right = np.column_stack((-direction[:, 1], direction[:, 0]))
    return np.vstack(
        (line + right * (offset - width / 2), (line + right * (offset + width / 2))[::-1])
    )


def inside(points: Points, polygon: Points) -> NDArray[np.bool_]:
    """Which points (N, 2) lie in a polygon (K, 2), by the even-odd rule."""
    found = np.zeros(len(points), bool)
    x, y = points[:, 0], points[:, 1]
    for (xa, ya), (xb, yb) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if ya != yb:
            crosses = (y < ya) != (y < yb)
            found ^= crosses & (x < xa + (y - ya) * (xb - xa) / (yb - ya))
    return found
