"""Sunlight on the ground: cast shadows, slopes, and what the sky adds."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.noise import Plane
from rsfuse.simulate.scene import Scene

# Slopes of objects are clipped: a wall is one pixel wide here and would be a black or white line.
_STEEPEST = 1.1


class Sun(NamedTuple):
    """Where the sun stands: clockwise from north, and above the horizon."""

    azimuth_deg: float
    elevation_deg: float

    @property
    def toward(self) -> tuple[float, float, float]:
        """Unit vector to the sun: x right, y down, z up."""
        azimuth, elevation = np.deg2rad(self.azimuth_deg), np.deg2rad(self.elevation_deg)
        level = np.cos(elevation)
        return (
            float(np.sin(azimuth) * level),
            float(-np.cos(azimuth) * level),
            float(np.sin(elevation)),
        )


def sunlit(height_m: Plane, step_m: float, sun: Sun) -> NDArray[np.uint8]:
    """Share of direct sunlight on each pixel, 0 to 255: 0 in shadow.

    The edge of the shadow volume is carried away from the sun line by line, sinking by the sun's
    slope: one pass over the raster, whatever the length of the shadows.
    """
    x, y, z = sun.toward
    if abs(x) > abs(y):
        turned = _sweep(np.asarray(cv2.transpose(height_m), np.float32), step_m, (y, x, z))
        return np.asarray(cv2.transpose(turned), np.uint8)
    return _sweep(height_m, step_m, (x, y, z))


def _sweep(height_m: Plane, step_m: float, toward: tuple[float, float, float]) -> NDArray[np.uint8]:
    """Shadows for a sun that stands rather along rows of the array than along columns."""
    x, y, z = toward
    h, w = height_m.shape
    aside = x / abs(y)  # pixels along a row per row towards the sun
    sink = np.float32(z / np.hypot(x, y) * np.hypot(1.0, aside) * step_m)
    rows = range(h) if y < 0 else range(h - 1, -1, -1)
    lit = np.empty((h, w), np.uint8)
    edge = np.full(w, -1e3, np.float32)
    whole = int(np.floor(aside))
    part = np.float32(aside - whole)
    source = np.arange(w) + whole
    left, right = (np.clip(source + k, 0, w - 1) for k in (0, 1))
    beyond = (source < -1) | (source > w - 1)
    for row in rows:
        here = np.maximum(height_m[row], 0.0)
        # One row of penumbra keeps the edges of shadows smooth.
        lit[row] = np.clip((here - edge) / sink + 0.5, 0.0, 1.0) * 255.0
        top = np.maximum(here, edge)
        edge = top[left] * (1 - part) + top[right] * part - sink
        edge[beyond] = -1e3
    return lit


class Light(NamedTuple):
    """Light on some rows: direct (1 on level ground in the sun) and the visible share of sky."""

    direct: Plane
    sky: Plane


def light_rows(scene: Scene, lit: NDArray[np.uint8], sun: Sun, start: int, stop: int) -> Light:
    """Direct and sky light on rows `start` to `stop` of the ground."""
    h, w = scene.height_m.shape
    reach = max(2, round(6.0 / scene.step_m))
    first, last = max(start - reach, 0), min(stop + reach, h)
    top = np.maximum(scene.height_m[first:last], 0.0)
    inner = slice(start - first, stop - first)
    slope_x, slope_y = _slopes(top, scene.step_m, inner)
    ground = scene.terrain_m.rows((h, w), scene.step_m, max(start - 1, 0), min(stop + 1, h))
    rows = slice(1 if start else 0, (1 if start else 0) + stop - start)
    fall_x, fall_y = _slopes(ground, scene.step_m, rows)
    np.clip(slope_x, -_STEEPEST, _STEEPEST, out=slope_x)
    np.clip(slope_y, -_STEEPEST, _STEEPEST, out=slope_y)
    slope_x += fall_x
    slope_y += fall_y
    x, y, z = (np.float32(v) for v in sun.toward)
    facing = (z - x * slope_x - y * slope_y) / np.sqrt(1 + slope_x**2 + slope_y**2)
    direct = np.maximum(facing, 0) / z * (lit[start:stop] * np.float32(1 / 255))
    around = cv2.blur(top, (2 * reach + 1, 2 * reach + 1))[inner]
    sky = 1.0 - np.clip((around - top[inner]) * np.float32(0.045), 0.0, 0.5)
    return Light(np.asarray(direct, np.float32), np.asarray(sky, np.float32))


def _slopes(height: Plane, step_m: float, rows: slice) -> tuple[Plane, Plane]:
    """Derivatives along x and y of some rows, by central differences."""
    kernel = np.array([[-0.5, 0.0, 0.5]], np.float32) / np.float32(step_m)
    along = cv2.filter2D(height, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    down = cv2.filter2D(height, -1, kernel.T, borderType=cv2.BORDER_REPLICATE)
    return np.array(along[rows], np.float32), np.array(down[rows], np.float32)
