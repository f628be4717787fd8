"""What a side-looking radar sees: backscatter, layover, shadow, double bounce, points, speckle.

The sensor looks along the rows of the scene, from the left or from the right, so every row is
computed by itself. The image is in ground range, corrected for the terrain but not for what stands
on it: the top of a building lies nearer to the sensor than its foot.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import special

from rsfuse.simulate.materials import ID, MATERIALS, VARIANTS, sigma0_table
from rsfuse.simulate.noise import Fractal, Plane, fractal, generator
from rsfuse.simulate.scene import Scene

# Weakest signal above the receiver's noise, linear sigma0.
NOISE_FLOOR = 10 ** (-27 / 10)

# Shadowed plants still scatter from above and around; shadowed ground returns nothing.
_SHADED_PLANTS = 0.45

# With pixels from this size on single crowns are not resolved.
_CROWNS_BLEND_M = 1.6

# A wall lower than this is a kerb.
_LOWEST_WALL_M = 1.0

# Double bounce: energy per metre of wall height, falling off as the wall turns from the sensor.
_BOUNCE = 5.0
_BOUNCE_WIDTH_RAD = np.deg2rad(14.0)
_BOUNCE_ANY = 0.05

# Energy per metre of wall height that comes back from the façade itself, in so many parts.
_FACADE = 0.25
_WALL_PARTS = 24
_STOREY_M = 3.0

# Bright points per square metre, and the decades of their radar cross section in square metres.
_POINTS_PER_M2 = {
    "ship": (0.020, 1.0, 3.2),
    "plane": (0.020, 0.6, 2.2),
    "vehicle": (0.10, 0.6, 1.9),
    "metal roof": (0.0022, 0.8, 2.4),
    "flat roof": (0.0018, 0.6, 2.0),
    "tile roof": (0.0012, 0.4, 1.6),
}


_T = TypeVar("_T", bound=np.generic)


class Reflectors(NamedTuple):
    """Bright points of the ground, by rows: place, and energy relative to one ground pixel."""

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    energy: Plane


@dataclass(frozen=True)
class Radar:
    """All that is needed to compute rows of the mean radar image of the ground.

    Attributes:
        scene: The ground.
        incidence_deg: From the vertical, at the ground.
        from_left: The sensor stands to the left of the scene.
        table: Mean backscatter (material * variant), linear.
        moisture: Variation over fields, in decibel per unit.
        wind: Variation over water.
        reflectors: Bright points.
    """

    scene: Scene
    incidence_deg: float
    from_left: bool
    table: NDArray[np.float32]
    moisture: Fractal
    wind: Fractal
    reflectors: Reflectors

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """(stop - start, W, 2): mean sigma0 of distributed targets, and of bright points."""
        scene = self.scene
        material = self._seen(scene.material[start:stop])
        variant = self._seen(scene.variant[start:stop])
        height = self._heights(material, start, stop)
        sigma = self._backscatter(material, variant, start, stop)
        image = self._project(sigma, material, height)
        points = self._bright_points(height, start, stop)
        both = np.stack((image, points), axis=-1)
        return both if self.from_left else np.ascontiguousarray(both[:, ::-1])

    def _heights(self, material: NDArray[np.uint8], start: int, stop: int) -> Plane:
        """Heights in order of range; where pixels are as large as crowns, woods are level."""
        height = np.maximum(self._seen(self.scene.height_m[start:stop]), 0.0)
        if self.scene.step_m < _CROWNS_BLEND_M:
            return height
        plants = (material == ID["broadleaf"]) | (material == ID["conifer"])
        # Along rows only, so that each row is computed by itself.
        level = cv2.blur(height, (7, 1))
        return np.where(plants, level, height)

    def _seen(self, rows: NDArray[_T]) -> NDArray[_T]:
        """Rows in order of range."""
        return rows if self.from_left else rows[:, ::-1]

    def _backscatter(
        self, material: NDArray[np.uint8], variant: NDArray[np.uint8], start: int, stop: int
    ) -> Plane:
        index = material.astype(np.int32) * VARIANTS + variant % VARIANTS
        sigma = np.take(self.table, index)
        moisture = self._seen(self.moisture.rows(start, stop))
        wind = self._seen(self.wind.rows(start, stop))
        is_water = material == ID["water"]
        sigma *= np.exp(np.where(is_water, 0.30 * wind, 0.17 * moisture), dtype=np.float32)
        shape = self.scene.material.shape
        ground = self.scene.terrain_m.rows(shape, self.scene.step_m, start, stop)
        rise = np.gradient(self._seen(ground), self.scene.step_m, axis=1)
        # A slope that faces the sensor is brighter: more ground per range, steeper incidence.
        return np.asarray(sigma * np.clip(1.0 + 2.6 * rise, 0.25, 3.0), np.float32)

    def _project(self, sigma: Plane, material: NDArray[np.uint8], height: Plane) -> Plane:
        """Move everything to its range, darken what lies in shadow, add walls and double bounce."""
        step = self.scene.step_m
        w = sigma.shape[1]
        cot = 1.0 / np.tan(np.deg2rad(self.incidence_deg))
        fall = (np.arange(w) * (step * cot)).astype(np.float32)
        ray = height + fall
        hidden = ray < np.maximum.accumulate(ray, axis=1) - 1e-3
        plants = (material == ID["broadleaf"]) | (material == ID["conifer"])
        sigma = sigma * np.where(hidden, np.where(plants, _SHADED_PLANTS, 0.0), 1.0)

        image = np.where(height > 0.05, 0.0, sigma).astype(np.float32)
        y, x = np.nonzero(height > 0.05)
        shift = height[y, x] * (cot / step)
        _deposit(image, y, x - shift, sigma[y, x])

        soft = np.array([m.is_soft for m in MATERIALS])
        rise = np.diff(height, axis=1, append=height[:, -1:])
        behind = np.roll(material, -1, axis=1)
        wall = (rise > _LOWEST_WALL_M) & ~soft[behind] & ~hidden
        y, x = np.nonzero(wall)
        if len(y):
            tall = rise[y, x]
            foot = x + 0.5
            aspect = self._aspect(height)[y, x]
            # Long rough surfaces reflect less of a bounce than smooth ground and water.
            _deposit(image, y, foot - height[y, x] * cot / step, _BOUNCE * tall / step * aspect)
            for part in (np.arange(_WALL_PARTS) + 0.5) / _WALL_PARTS:
                top = height[y, x] + part * tall
                # Sills and balconies of each storey stand out.
                storey = 0.25 + np.cos(np.pi * top / _STOREY_M) ** 8
                energy = _FACADE * tall / (step * _WALL_PARTS) * storey
                _deposit(image, y, foot - top * cot / step, energy)
        return image

    def _aspect(self, height: Plane) -> Plane:
        """How squarely the wall at each pixel faces the sensor, from 0 to 1."""
        soft = cv2.GaussianBlur(height, (0, 0), 1.6)
        along = cv2.Sobel(soft, cv2.CV_32F, 1, 0)
        across = cv2.Sobel(soft, cv2.CV_32F, 0, 1)
        angle = np.arctan2(np.abs(across), np.maximum(along, 1e-6))
        return np.asarray(_BOUNCE_ANY + np.exp(-((angle / _BOUNCE_WIDTH_RAD) ** 2)), np.float32)

    def _bright_points(self, height: Plane, start: int, stop: int) -> Plane:
        """Corner reflectors, at the range of half the height of what they stand on."""
        first, last = np.searchsorted(self.reflectors.row, (start, stop))
        y = self.reflectors.row[first:last] - start
        x = self.reflectors.column[first:last]
        x = x if self.from_left else height.shape[1] - 1 - x
        points = np.zeros(height.shape, np.float32)
        cot = 1.0 / np.tan(np.deg2rad(self.incidence_deg))
        place = x - 0.5 * height[y, x] * cot / self.scene.step_m
        _deposit(points, y, place, self.reflectors.energy[first:last])
        return points


def _deposit(image: Plane, y: NDArray[np.int64], x: NDArray[np.float64], energy: Plane) -> None:
    """Add energy at real positions along rows, shared between the two nearest pixels."""
    w = image.shape[1]
    left = np.floor(x).astype(np.int64)
    part = x - left
    for column, share in ((left, 1.0 - part), (left + 1, part)):
        inside = (column >= 0) & (column < w)
        flat = y[inside] * w + column[inside]
        added = np.bincount(flat, (energy * share)[inside], minlength=image.size)
        image += added.reshape(image.shape).astype(np.float32)


def make_radar(
    scene: Scene, *, incidence_deg: float, from_left: bool, season: str, seed: int
) -> Radar:
    """A radar over a scene; wind and moisture depend on the seed, which stands for the date."""
    shape = scene.material.shape
    step = scene.step_m
    rng = generator(seed, "radar", season)
    return Radar(
        scene=scene,
        incidence_deg=incidence_deg,
        from_left=from_left,
        table=sigma0_table().ravel(),
        moisture=fractal(shape, max(2.0, 70 / step), rng, octaves=4, persistence=0.6),
        wind=fractal(shape, max(2.0, 260 / step), rng, octaves=6, persistence=0.6),
        reflectors=_find_reflectors(scene),
    )


def _find_reflectors(scene: Scene) -> Reflectors:
    """Bright points on metal things; they belong to the things, not to the date of an image."""
    rng = generator(scene.seed, "reflectors")
    rows, columns, energies = [], [], []
    for name, (density, low, high) in _POINTS_PER_M2.items():
        y, x = np.nonzero(scene.material == ID[name])
        chosen = rng.random(len(y)) < density * scene.step_m**2
        rows.append(y[chosen])
        columns.append(x[chosen])
        cross_section = 10.0 ** rng.uniform(low, high, int(chosen.sum()))
        energies.append(0.1 * cross_section / scene.step_m**2)
    row, column = np.concatenate(rows), np.concatenate(columns)
    energy = np.concatenate(energies)
    order = np.argsort(row, kind="stable")
    return Reflectors(row[order], column[order], energy[order].astype(np.float32))


def speckle(shape: tuple[int, int], looks: float, rng: np.random.Generator) -> Plane:
    """Gamma-distributed speckle of mean 1 and variance 1 / looks, alike between neighbours.

    A smooth Gaussian field is turned into the gamma distribution by its quantiles: any number of
    looks, exact statistics of one pixel, and grains somewhat larger than a pixel as in real images.
    """
    field = rng.standard_normal(shape, dtype=np.float32)
    side = 0.22
    kernel = np.array([side, 1.0, side])
    kernel /= np.sqrt((kernel**2).sum())
    smooth = cv2.sepFilter2D(field, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    del field
    nodes = np.linspace(-6, 6, 4097)
    quantiles = special.gammaincinv(looks, special.ndtr(nodes)) / looks
    table = quantiles.astype(np.float32)
    result = np.asarray(smooth, np.float32)
    for start in range(0, shape[0], 256):  # in parts: the temporary arrays stay small
        rows = result[start : start + 256]
        position = np.clip((rows + 6) * np.float32(4096 / 12), 0, 4095)
        low = position.astype(np.int32)
        part = position - low
        rows[:] = table[low] * (1 - part) + table[low + 1] * part
    return result


def spread_points(points: Plane) -> Plane:
    """Bright points as the radar draws them: a peak with the cross of its side lobes."""
    x = np.arange(-12, 13)
    response = np.sinc(x / 1.35) ** 2 * np.cos(np.pi * x / 26) ** 2
    kernel = response / response.sum()
    return np.asarray(
        cv2.sepFilter2D(points, cv2.CV_32F, kernel, kernel, borderType=cv2.BORDER_CONSTANT)
    )
