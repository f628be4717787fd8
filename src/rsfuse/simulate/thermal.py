"""What a thermal camera sees: brightness temperature by day or by night."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rsfuse.simulate.light import Sun, light_rows
from rsfuse.simulate.materials import ID, VARIANTS, warmth_table
from rsfuse.simulate.noise import Fractal, fractal, generator
from rsfuse.simulate.scene import Scene

_AIR_K = {"spring": 285.0, "summer": 296.0, "autumn": 284.0, "winter": 274.0}
_SUN = {"spring": 0.8, "summer": 1.0, "autumn": 0.65, "winter": 0.35}
_NIGHT_COOLING_K = 9.0

# Share of warmth that stays in shadow: air, conduction, and the sun before it.
_IN_SHADOW = 0.35


@dataclass(frozen=True)
class ThermalCamera:
    """All that is needed to compute rows of a thermal image of the ground.

    Attributes:
        scene: The ground.
        sun: Where the light comes from by day; None by night.
        lit: Share of direct sunlight by day.
        table: Kelvin above the air (material * variant).
        air_k: Temperature of the air.
        sunshine: Strength of the sun, 1 in summer.
        drift: Slow variation of soil moisture and wind.
    """

    scene: Scene
    sun: Sun | None
    lit: NDArray[np.uint8]
    table: NDArray[np.float32]
    air_k: float
    sunshine: float
    drift: Fractal

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Brightness temperature in kelvin in rows, (stop - start, W, 1)."""
        material = self.scene.material[start:stop]
        index = material.astype(np.int32) * VARIANTS + self.scene.variant[start:stop] % VARIANTS
        warmth = np.take(self.table, index)
        if self.sun is not None:
            light = light_rows(self.scene, self.lit, self.sun, start, stop)
            sunny = _IN_SHADOW + (1 - _IN_SHADOW) * np.minimum(light.direct, 1.4)
            heated = warmth > 0
            warmth = np.where(heated, warmth * sunny * self.sunshine, warmth)
        dry = material != ID["water"]
        warmth += np.where(dry, 0.9, 0.15) * self.drift.rows(start, stop)
        return np.asarray((self.air_k + warmth)[..., None], np.float32)


def make_thermal_camera(
    scene: Scene, lit: NDArray[np.uint8], *, sun: Sun, season: str, is_night: bool
) -> ThermalCamera:
    """A thermal camera over a scene."""
    rng = generator(scene.seed, "thermal")
    return ThermalCamera(
        scene=scene,
        sun=None if is_night else sun,
        lit=lit,
        table=warmth_table(is_night=is_night).ravel(),
        air_k=_AIR_K[season] - (_NIGHT_COOLING_K if is_night else 0.0),
        sunshine=_SUN[season],
        drift=fractal(scene.material.shape, max(2.0, 130 / scene.step_m), rng, octaves=5),
    )
