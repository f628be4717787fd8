"""Images whose numbers a model never saw are told from those that it did."""

import numpy as np
import pytest

from rsfuse.engine.bundle import InputInfo
from rsfuse.engine.familiar import strange_bands
from rsfuse.geo.raster import open_raster

INFO = InputInfo(name="ms", bands=("red", "nir"), low=(100.0, 200.0), high=(1100.0, 2200.0))


def image(red: tuple[float, float], nir: tuple[float, float]) -> np.ndarray:
    """Bands of evenly spread numbers."""
    rng = np.random.default_rng(0)
    return np.stack([rng.uniform(*limits, (50, 60)) for limits in (red, nir)]).astype(np.float32)


@pytest.mark.parametrize(
    ("red", "nir", "strange"),
    [
        ((100, 1100), (200, 2200), ()),
        ((100, 500), (200, 900), ()),  # darker than the training, and still among it
        ((0, 255), (0, 255), ("nir",)),  # eight bits
        ((0, 1), (0, 1), ("red", "nir")),  # reflectance
        ((100, 1100), (20_000, 90_000), ("nir",)),
        ((600, 650), (200, 2200), ("red",)),  # no contrast at all
    ],
)
def test_strange_bands(
    red: tuple[float, float], nir: tuple[float, float], strange: tuple[str, ...]
) -> None:
    found = strange_bands(open_raster(image(red, nir)), INFO)
    assert tuple(said.split()[0] for said in found) == strange
    assert all("in training from" in said for said in found)


def test_what_is_not_known_is_not_judged() -> None:
    source = open_raster(image((0, 1), (0, 1)))
    assert strange_bands(source, InputInfo(name="ms", bands=("red", "nir"))) == ()
    empty = open_raster(np.zeros((2, 4, 4), np.float32), nodata=0)
    assert strange_bands(empty, INFO) == ()
