"""Pairs of images, labels and how they are parted."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.classification.data import (
    by_place,
    open_as,
    open_pair,
    robust_range,
    wald_pair,
    warp_pan,
)
from rsfuse.engine.bundle import InputInfo
from rsfuse.errors import BandError, GridError, InputError, NoOverlapError
from rsfuse.geo.raster import Raster, open_raster
from rsfuse.geo.write import write_cog


def grid(shape: tuple[int, int], size: float, x: float = 500_000, y: float = 5_000_000) -> GeoBox:
    return GeoBox(shape, Affine(size, 0, x, 0, -size, y), "EPSG:32631")


def write(path: Path, shape: tuple[int, int], size: float, bands: int = 1, **more: float) -> Path:
    random = np.random.default_rng(bands)
    data = random.uniform(0, 100, (bands, *shape)).astype(np.float32)
    write_cog(path, data, geobox=grid(shape, size, **more))
    return path


def test_a_pair_has_a_whole_ratio(tmp_path: Path) -> None:
    ms, pan = write(tmp_path / "ms.tif", (20, 30), 4, 3), write(tmp_path / "pan.tif", (80, 120), 1)
    with open_pair(ms, pan) as pair:
        assert pair.ratio == 4
    bare = open_pair(np.zeros((4, 10, 12)), np.zeros((20, 24)))
    assert bare.ratio == 2


@pytest.mark.parametrize(
    ("pan_shape", "pan_size", "more", "kind", "hint"),
    [
        ((10, 15), 8, {}, GridError, "MS first"),  # swapped
        ((80, 120), 1, {"x": 600_000}, NoOverlapError, ""),
    ],
)
def test_pairs_that_do_not_fit_are_explained(
    tmp_path: Path, pan_shape: tuple[int, int], pan_size: float, more: dict[str, float],
    kind: type[InputError], hint: str,
) -> None:  # fmt: skip
    ms = write(tmp_path / "ms.tif", (20, 30), 4, 3)
    pan = write(tmp_path / "pan.tif", pan_shape, pan_size, **more)
    with pytest.raises(kind) as caught:
        open_pair(ms, pan)
    assert hint in caught.value.fix


@pytest.mark.parametrize(
    ("shape", "size", "more", "ratio"),
    [
        ((80, 120), 1, {"x": 500_000.5}, 4),  # corners half a pixel off
        ((53, 80), 1.5, {}, 3),
        ((79, 120), 1, {}, 4),
    ],
)
def test_a_pan_on_another_grid_is_resampled(
    tmp_path: Path, shape: tuple[int, int], size: float, more: dict[str, float], ratio: int,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    ms, pan = (
        write(tmp_path / "ms.tif", (20, 30), 4, 3),
        write(tmp_path / "p.tif", shape, size, **more),
    )
    with caplog.at_level("WARNING", logger="rsfuse"), open_pair(ms, pan) as pair:
        assert pair.ratio == ratio
        assert pair.pan.shape == (20 * ratio, 30 * ratio)
        assert pair.pan.name == str(pan)
        assert pair.pan.read().valid.mean() > 0.9
        place = pair.pan.path
    assert "resampled onto the grid" in caplog.text
    assert place is not None
    assert Path(place).exists()
    del pair
    gc.collect()
    assert not Path(place).exists()


def test_a_warped_pan_fits(tmp_path: Path) -> None:
    ms = write(tmp_path / "ms.tif", (20, 30), 4, 3)
    pan = write(tmp_path / "pan.tif", (64, 96), 1.3)
    path = warp_pan(ms, pan, tmp_path / "pan_on_ms.tif")
    with open_pair(ms, path) as pair:
        assert pair.ratio == 3
        assert pair.pan.read().valid.mean() > 0.9


def test_bands_are_compared_with_the_model(tmp_path: Path) -> None:
    ms, pan = write(tmp_path / "ms.tif", (20, 30), 4, 3), write(tmp_path / "pan.tif", (80, 120), 1)
    inputs = (InputInfo(name="ms", bands=("b", "g", "r", "n")),)
    with pytest.raises(BandError, match="3 bands"):
        open_pair(ms, pan, inputs=inputs)


RGBN = InputInfo(name="ms", bands=("blue", "green", "red", "nir"))


@pytest.mark.parametrize(
    "names",
    [
        ("nir", "red", "green", "blue"),
        ("NIR", "Red", "Green", "Blue"),
        ("coastal", "blue", "green", "red", "edge", "nir"),
    ],
)
def test_bands_that_have_the_names_of_the_model_are_read_by_them(
    write_raster: Callable[..., Path], names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    numbers = {"blue": 1, "green": 2, "red": 3, "nir": 4}
    data = np.stack([np.full((4, 5), numbers.get(n.lower(), 9), np.uint16) for n in names])
    path = write_raster(data, bands=names)
    with open_as(path, RGBN) as source:
        assert source.read().data[:, 0, 0].tolist() == [1, 2, 3, 4]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "names", [(), ("b1", "b2", "b3", "b4"), ("Band 1", "Band 2", "Band 3", "Band 4")]
)
def test_bands_without_names_are_taken_as_they_come(
    write_raster: Callable[..., Path], names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raster(np.arange(80, dtype=np.uint16).reshape(4, 4, 5), bands=names)
    with open_as(path, RGBN) as source:
        assert source.read().data[:, 0, 0].tolist() == [0, 20, 40, 60]
        assert by_place(source, RGBN) == ""
    assert caplog.text == ""


def test_bands_with_other_names_are_taken_as_they_come_with_a_warning(
    write_raster: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = np.arange(80, dtype=np.uint16).reshape(4, 4, 5)
    path = write_raster(data, bands=("B8", "B4", "B3", "B2"))
    with caplog.at_level("WARNING", logger="rsfuse"), open_as(path, RGBN) as source:
        assert source.read().data[:, 0, 0].tolist() == [0, 20, 40, 60]
        assert by_place(source, RGBN) in caplog.text
    assert "named B8, B4, B3, B2" in caplog.text


def test_numbers_of_bands_are_names_where_they_are_out_of_order(
    write_raster: Callable[..., Path],
) -> None:
    data = np.arange(80, dtype=np.uint16).reshape(4, 4, 5)
    path = write_raster(data, bands=("B4", "B3", "B2", "B1"))
    with open_as(path, InputInfo(name="ms", bands=("B1", "B2", "B3", "B4"))) as source:
        assert source.read().data[:, 0, 0].tolist() == [60, 40, 20, 0]


def test_too_many_bands_without_names_are_not_guessed(write_raster: Callable[..., Path]) -> None:
    path = write_raster(np.zeros((6, 4, 5), np.uint16))
    for names in (RGBN.bands, ("band1", "band2", "band3", "band4")):
        with pytest.raises(BandError, match="has 6 bands") as caught:
            open_as(path, InputInfo(name="ms", bands=names))
        assert "gdal_translate -b N -b N -b N -b N " in caught.value.fix


def test_an_open_image_is_not_reordered_but_told_of(write_raster: Callable[..., Path]) -> None:
    names = ("nir", "red", "green", "blue")
    path = write_raster(np.zeros((4, 4, 5), np.uint16), bands=names)
    with open_raster(path) as source, pytest.raises(BandError, match="is open"):
        open_as(source, RGBN)
    with open_raster(path, bands=RGBN.bands) as source:
        assert open_as(source, RGBN) is source


def test_a_simulated_pan_is_the_mean_and_ms_is_what_a_coarser_sensor_sees() -> None:
    flat = np.broadcast_to(np.array([10.0, 30.0])[:, None, None], (2, 40, 41)).astype(np.float32)
    image = Raster(flat, np.ones((40, 41), bool), grid((40, 41), 2.0), ("a", "b"))
    pair = wald_pair(image, 4, weights=(1, 3))
    assert pair.ratio == 4
    assert pair.ms.shape == (10, 10)
    assert pair.pan.shape == (40, 40)
    np.testing.assert_allclose(pair.pan.read().data, 25.0)
    np.testing.assert_allclose(pair.ms.read().data[:, 3:-3, 3:-3], flat[:, :4, :4], rtol=1e-5)
    assert abs(pair.ms.geobox.affine.a) == 8.0
    # A wave at the coarse Nyquist frequency keeps 0.3 of its height; the coarse pixels see it at an
    # eighth of a turn from its crest.
    x = np.arange(400) + 0.5
    wave = np.cos(2 * np.pi * x / 8 - np.pi / 4)
    data = np.broadcast_to(wave, (1, 8, 400)).astype(np.float32)
    seen = wald_pair(Raster(data, np.ones((8, 400), bool), grid((8, 400), 1), ("a",)), 4)
    height = np.abs(seen.ms.read().data[0, 0, 20:-20]).max()
    assert height == pytest.approx(0.3 * np.cos(np.pi / 4), abs=0.02)


def test_ranges_come_from_what_counts() -> None:
    data = np.stack([np.arange(100.0), np.arange(100.0) * 2]).reshape(2, 10, 10).astype(np.float32)
    use = np.zeros((10, 10), bool)
    use[:5] = True
    low, high = robust_range([(data, use)], 0, 100)
    assert low == (0.0, 0.0)
    assert high == (49.0, 98.0)
    with pytest.raises(InputError, match="no pixel"):
        robust_range([(data, ~np.ones((10, 10), bool))])
