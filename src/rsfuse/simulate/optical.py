"""What a camera sees in blue, green, red and near infrared: sun, shadow, air and cloud."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.light import Sun, light_rows
from rsfuse.simulate.materials import ID, MATERIALS, VARIANTS, reflectance_table
from rsfuse.simulate.noise import Fractal, Plane, fractal, generator
from rsfuse.simulate.scene import Scene
from rsfuse.simulate.terrain import Field

# Share of skylight in the light on level ground, and light that the air itself adds; the blue of
# shadows and of distance. Round numbers for a clear day (visibility some 30 km).
_SKY = np.array([0.30, 0.23, 0.18, 0.10], np.float32)
_AIR = np.array([0.045, 0.026, 0.013, 0.005], np.float32)
_HAZE = np.array([0.16, 0.14, 0.125, 0.09], np.float32)

# How vigour of plants moves each band: less red, more infrared.
_VIGOUR = np.array([-0.10, -0.03, -0.17, 0.09], np.float32)

_SHALLOW = np.array([0.075, 0.095, 0.062, 0.014], np.float32)

_CLOUD = np.array([0.62, 0.62, 0.62, 0.64], np.float32)
_CLOUD_HEIGHT_M = 900.0

# PAN is a weighted mean of the bands.
PAN_WEIGHTS = np.array([0.12, 0.30, 0.36, 0.22], np.float32)


@dataclass(frozen=True)
class Clouds:
    """Opacity of clouds, of the shadows they cast, and how bright they are, all from 0 to 1."""

    cover: Field
    shade: Field
    glow: Field


@dataclass(frozen=True)
class Camera:
    """All that is needed to compute rows of an optical image of the ground.

    Attributes:
        scene: The ground.
        sun: Where the light comes from.
        lit: Share of direct sunlight, (H, W) uint8.
        table: Reflectance (material * variant, band).
        haze: From 0 (clear) to 1.
        clouds: None for a clear sky.
        fine: Texture at one to a few pixels.
        patches: Variation over fields and meadows.
        waves: On water.
    """

    scene: Scene
    sun: Sun
    lit: NDArray[np.uint8]
    table: NDArray[np.float32]
    haze: float
    clouds: Clouds | None
    fine: Fractal
    patches: Fractal
    waves: Fractal

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Reflectance at the top of the atmosphere in rows, (stop - start, W, 4)."""
        image = self._surface(start, stop)
        direct, sky = light_rows(self.scene, self.lit, self.sun, start, stop)
        if self.clouds is not None:
            direct = direct * (1 - 0.85 * self._share(self.clouds.shade, start, stop))
        image *= (1 - _SKY) * direct[..., None] + _SKY * sky[..., None]
        image *= 1 - 0.5 * self.haze * np.asarray([1.0, 0.85, 0.7, 0.5], np.float32)
        image += _AIR + self.haze * _HAZE
        if self.clouds is not None:
            opacity = self._share(self.clouds.cover, start, stop)[..., None]
            glow = self._share(self.clouds.glow, start, stop)[..., None]
            image += opacity * (_CLOUD * (0.55 + 0.45 * glow) - image)
        return image

    def _share(self, field: Field, start: int, stop: int) -> Plane:
        h, w = self.lit.shape
        rows = field.rows((h, w), self.scene.step_m, start, stop)
        return np.asarray(np.clip(rows, 0.0, 1.0), np.float32)

    def _surface(self, start: int, stop: int) -> NDArray[np.float32]:
        """Reflectance of the ground with its texture."""
        scene = self.scene
        material, variant = scene.material[start:stop], scene.variant[start:stop]
        index = material.astype(np.int32) * VARIANTS + variant % VARIANTS
        image = np.take(self.table, index, axis=0)
        fine, patch = self.fine.rows(start, stop), self.patches.rows(start, stop)
        texture = np.array([m.texture for m in MATERIALS], np.float32)[material]
        water = material == ID["water"]
        texture *= fine + 0.7 * patch
        texture[water] = 0.15 * self.waves.rows(start, stop)[water]
        planted = (material == ID["crop"]) | (material == ID["grass"])
        ploughed = material == ID["bare soil"]
        texture[planted | ploughed] += self._row_pattern(start, stop, planted | ploughed)
        image *= (1.0 + texture)[..., None]
        vigour = np.where(planted, patch, np.float32(0.0))
        image *= 1.0 + vigour[..., None] * _VIGOUR
        depth = -scene.height_m[start:stop][water]
        shallow = np.exp(-np.maximum(depth, 0.0) / np.float32(1.6))[:, None]
        kind = (variant[water] % 4 == 0)[:, None]
        image[water] += np.where(kind, shallow * (_SHALLOW - image[water]), 0.0)
        return image

    def _row_pattern(self, start: int, stop: int, where: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Passes of the machines across each field, and the wheel tracks every 24 m."""
        scene = self.scene
        y, x = np.nonzero(where)
        angle = scene.grain[start:stop][where].astype(np.float32) * np.float32(np.pi / 256)
        step = np.float32(scene.step_m)
        across = ((y + np.float32(start)) * np.cos(angle) - x * np.sin(angle)) * step
        pattern = np.zeros(len(y), np.float32)
        for period, size in ((2.9, 0.035), (6.0, 0.030), (12.0, 0.022)):
            # A period of few pixels is averaged away by the pixel itself.
            kept = size * float(np.sinc(1.3 * scene.step_m / period)) if period > step * 2 else 0.0
            if kept > 0.003:
                pattern += np.float32(kept) * np.sin(across * np.float32(2 * np.pi / period))
        tracks = np.abs((across + 12) % 24 - 12)
        width = max(0.45, 0.5 * scene.step_m)
        depth = 0.32 * min(1.0, 0.7 / scene.step_m)
        wheel = np.exp(-(((tracks - 1.0) / np.float32(width)) ** 2))
        crop = scene.material[start:stop][where] == ID["crop"]
        return np.asarray(pattern - np.float32(depth) * wheel * crop, np.float32)


def make_camera(
    scene: Scene,
    lit: NDArray[np.uint8],
    *,
    sun: Sun,
    season: str,
    haze: float,
    clouds: float,
    seed: int,
) -> Camera:
    """A camera over a scene.

    Args:
        scene: The ground.
        lit: From `sunlit`.
        sun: The same sun.
        season: One of `SEASONS`.
        haze: From 0 (clear) to 1.
        clouds: Share of the sky that they cover.
        seed: Of textures and clouds; the textures of a scene do not depend on it.
    """
    shape = scene.material.shape
    step = scene.step_m
    rng = generator(scene.seed, "texture")
    return Camera(
        scene=scene,
        sun=sun,
        lit=lit,
        table=reflectance_table(season).reshape(-1, 4),
        haze=haze,
        clouds=_make_clouds(scene, clouds, sun, seed) if clouds > 0 else None,
        fine=fractal(shape, max(1.0, 2.4 / step), rng, octaves=3, persistence=0.8),
        patches=fractal(shape, max(2.0, 90 / step), rng, octaves=5, persistence=0.7),
        waves=fractal(shape, max(2.0, 40 / step), rng, octaves=6, persistence=0.75),
    )


def _make_clouds(scene: Scene, share: float, sun: Sun, seed: int) -> Clouds:
    """Heaps of cloud over a share of the scene, and their shadows on the far side of the sun."""
    step_m = max(scene.step_m, scene.gsd_m * max(scene.shape) / 700)
    size_m = scene.gsd_m * max(scene.shape)
    x, y, z = sun.toward
    away_m = np.array([-x, -y]) * _CLOUD_HEIGHT_M * min(1.0, size_m / 6000) / z
    reach = int(np.abs(away_m).max() / step_m) + 2
    h, w = (int(np.ceil(side * scene.gsd_m / step_m)) for side in scene.shape)
    wide = (h + 2 * reach, w + 2 * reach)
    rng = generator(seed, "clouds")
    heaps = fractal(wide, 0.22 * size_m / step_m, rng, octaves=7, persistence=0.55).full()
    level = float(np.quantile(heaps, 1 - np.clip(share, 0, 1)))
    thick = np.clip((heaps - level) / 0.55 + 0.15, 0, 1)
    opacity = np.asarray(thick**0.7 * (0.80 + 0.2 * thick), np.float32)
    # Thick parts and sides that face the sun are brighter.
    slope_y, slope_x = np.gradient(cv2.GaussianBlur(heaps, (0, 0), 2.0), step_m / size_m)
    glow = 0.35 + 0.4 * (heaps - level) - 0.02 * (slope_x * x + slope_y * y)
    glow = np.asarray(np.clip(glow, 0, 1), np.float32)
    dx, dy = (round(d / step_m) for d in away_m)
    shade = np.asarray(cv2.GaussianBlur(opacity, (0, 0), max(12 / step_m, 0.5)), np.float32)
    return Clouds(
        Field(opacity[reach : reach + h, reach : reach + w], step_m),
        Field(shade[reach - dy : reach - dy + h, reach - dx : reach - dx + w], step_m),
        Field(glow[reach : reach + h, reach : reach + w], step_m),
    )
