"""`rsfuse.align`: a second image brought into place near its georeference, in the dark too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import rsfuse
from rsfuse.cli.main import main
from rsfuse.errors import ConfigError
from rsfuse.geo.grid import Window
from rsfuse.geo.raster import Raster, open_raster
from rsfuse.ops.geometry2d import Transform

SIDE = 512
SHIFT = 9  # pixels


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed in ("21", "22"):
        words = ["simulate", "-o", str(folder / seed), "--size", str(SIDE), "--gsd", "0.5",
                 "--modalities", "pan,thermal", "--warp", "none", "--seed", seed, "-q"]  # fmt: skip
        assert main(words) == 0
    return folder


def read(path: Path) -> Raster:
    with open_raster(path) as source:
        return source.read()


def dark(image: np.ndarray) -> np.ndarray:
    """A thirtieth of the light, under noise."""
    noise = np.random.default_rng(1).normal(0, 0.02 * np.ptp(image), image.shape)
    return (0.03 * image + noise).astype(np.float32)


def off_by(transform: Transform, shift: tuple[float, float]) -> float:
    """Largest error in pixels of a transform that should shift."""
    points = np.array([[50.0, 50], [450, 60], [250, 250], [60, 450], [450, 450]])
    return float(np.hypot(*(transform.apply(points) - points - shift).T).max())


@pytest.mark.parametrize("night", [False, True])
def test_a_second_sensor_is_brought_into_place(scenes: Path, night: bool) -> None:
    pan, thermal = (read(scenes / "21" / f"{name}.tif").data for name in ("pan", "thermal"))
    moved = np.full_like(thermal, np.nan)
    moved[:, SHIFT:, :-SHIFT] = thermal[:, :-SHIFT, SHIFT:]
    found = rsfuse.align(dark(pan) if night else pan, moved, threads=1)
    assert found.status != "refused"
    assert found.corrected
    assert found.transform is not None
    assert off_by(found.transform, (-SHIFT, SHIFT)) < (8.0 if night else 1.5)


@pytest.mark.parametrize("night", [False, True])
def test_what_the_files_say_stands_where_nothing_is_better(scenes: Path, night: bool) -> None:
    pan, thermal = (read(scenes / "21" / f"{name}.tif") for name in ("pan", "thermal"))
    image = replace(pan, data=dark(pan.data)) if night else pan
    found = rsfuse.align(image, thermal, threads=1)
    assert found.status == "ok"
    assert not found.corrected
    assert found.transform is not None
    assert off_by(found.transform, (0, 0)) < 1e-6


@pytest.mark.parametrize("night", [False, True])
def test_other_ground_is_refused(scenes: Path, night: bool) -> None:
    pan = read(scenes / "21" / "pan.tif").data
    other = read(scenes / "22" / "thermal.tif").data
    assert rsfuse.align(dark(pan) if night else pan, other, threads=1).status == "refused"


def test_georeferences_say_where_to_look(scenes: Path) -> None:
    pan, thermal = (scenes / "21" / f"{name}.tif" for name in ("pan", "thermal"))
    with open_raster(thermal) as source:
        cut = source.read(Window(150, 100, 300, 300))
    found = rsfuse.align(pan, cut, threads=1)
    assert found.transform is not None
    assert off_by(found.transform, (-150, -100)) < 1e-6
    far = rsfuse.align(np.zeros((1, 64, 64), np.float32), np.zeros((1, 96, 96), np.float32))
    assert far.status == "refused"


def test_a_coarser_lattice_averages_noise(scenes: Path) -> None:
    pan, thermal = (read(scenes / "21" / f"{name}.tif").data for name in ("pan", "thermal"))
    fine, coarse = (
        rsfuse.match(dark(pan), thermal, prior=np.eye(3), finest=f, threads=1) for f in (1, 4)
    )
    assert coarse.confidence > fine.confidence
    assert coarse.diagnostics["lattice_factor"] > 3.9


def test_nonsense_is_told(scenes: Path) -> None:
    image = np.zeros((1, 64, 64), np.float32)
    with pytest.raises(ConfigError, match="the finest lattice has"):
        rsfuse.match(image, image, finest=0.5)
    with pytest.raises(ConfigError, match="largest shift is 0"):
        rsfuse.align(image, image, max_shift_px=0)
