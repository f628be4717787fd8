"""Scenes that several files share: one with everything in it, and bare ground to build on."""

from collections.abc import Callable

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.simulate import Objects, Scene, render, simulate_scene
from rsfuse.simulate.materials import ID
from rsfuse.simulate.terrain import Field

SEED = 3


@pytest.fixture(scope="session")
def scene() -> Scene:
    """A coast with a town, a harbour and an airfield, 512 pixels of 1 m."""
    return simulate_scene(512, gsd_m=1.0, seed=SEED)


@pytest.fixture(scope="session")
def optical(scene: Scene) -> np.ndarray:
    """The scene in blue, green, red and near infrared on a clear day, (4, h, w)."""
    return render(scene, "ms", haze=0.0).data


@pytest.fixture
def bare() -> Callable[..., Scene]:
    """A function that makes level asphalt of 1 m pixels, to put things on.

    Its argument is a list of (rows, columns, material, height) to set.
    """

    def make(*things: tuple[slice, slice, str, float], side: int = 128) -> Scene:
        material = np.full((side, side), ID["asphalt"], np.uint8)
        height = np.zeros((side, side), np.float32)
        for rows, columns, name, height_m in things:
            material[rows, columns] = ID[name]
            height[rows, columns] = height_m
        return Scene(
            geobox=GeoBox((side, side), Affine(1, 0, 0, 0, -1, 0), "EPSG:32631"),
            oversample=1,
            material=material,
            variant=np.zeros((side, side), np.uint8),
            grain=np.zeros((side, side), np.uint8),
            height_m=height,
            terrain_m=Field(np.zeros((32, 32), np.float32), side / 32),
            roads=(),
            buildings=(),
            objects=Objects(np.zeros((0, 4, 2)), np.zeros(0, np.int64)),
            seed=0,
        )

    return make
