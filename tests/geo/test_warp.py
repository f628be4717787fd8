"""Resampling: exact between pixels, averaged where coarser, holes and edges, whole scenes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, map_coordinates

from rsfuse.errors import BandError, InputError, NoOverlapError, OutputError, RasterError
from rsfuse.geo.grid import Window, pixel_geobox, pixel_mapping
from rsfuse.geo.raster import open_raster
from rsfuse.geo.tiles import TilePlan, plan_tiles
from rsfuse.geo.warp import read_mapped, warp_memory_bytes, warp_raster

Write = Callable[..., Path]
KERNELS = ["nearest", "bilinear", "cubic", "lanczos"]


def shifted(dx: float, dy: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda xy: xy + np.array([dx, dy])


def waves(x: np.ndarray, y: np.ndarray, period: float = 10.0) -> np.ndarray:
    """A band-limited pattern at positions in the corner convention."""
    k = 2 * np.pi / period
    return 100 + 20 * np.sin(k * x + 0.3) * np.cos(k * 0.7 * y) + 10 * np.sin(k * 0.9 * (x + y))


def wave_image(shape: tuple[int, int], period: float = 10.0) -> np.ndarray:
    y, x = np.indices(shape) + 0.5
    return waves(x, y, period).astype(np.float32)


# --- positions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("resampling", KERNELS)
def test_identity_gives_the_image_to_its_outermost_pixel(
    rng: np.random.Generator, resampling: str
) -> None:
    image = rng.uniform(-50, 50, (2, 45, 70)).astype(np.float32)
    found = read_mapped(open_raster(image), (45, 70), lambda xy: xy, resampling=resampling)
    np.testing.assert_array_equal(found.data, image)
    assert found.valid.all()


@pytest.mark.parametrize("resampling", KERNELS)
@pytest.mark.parametrize("shift", [(5, 0), (-3, 7), (40, -20)])
def test_whole_shift_moves_pixels_and_nothing_else(
    rng: np.random.Generator, shift: tuple[int, int], resampling: str
) -> None:
    image = rng.uniform(-50, 50, (45, 70)).astype(np.float32)
    found = read_mapped(open_raster(image), (45, 70), shifted(*shift), resampling=resampling)
    expected = open_raster(image).read(Window(*shift, 70, 45))
    np.testing.assert_array_equal(found.valid, expected.valid)
    np.testing.assert_array_equal(found.data, expected.data)


@pytest.mark.parametrize(
    ("resampling", "error"), [("bilinear", 2.5), ("cubic", 0.45), ("lanczos", 0.25)]
)
@pytest.mark.parametrize("shift", [(0.5, 0.5), (0.25, -0.37), (-1.013, 2.71)])
def test_fraction_of_a_pixel_shows_the_pattern_there(
    shift: tuple[float, float], resampling: str, error: float
) -> None:
    # The error allowed is that of the kernel at a period of 10 pixels and an amplitude of 30.
    source = open_raster(wave_image((80, 90)))
    found = read_mapped(
        source, (60, 70), shifted(8 + shift[0], 9 + shift[1]), resampling=resampling
    )
    y, x = np.indices((60, 70)) + 0.5
    expected = waves(x + 8 + shift[0], y + 9 + shift[1])
    assert np.abs(found.data[0] - expected).max() < error


@pytest.mark.parametrize("shift", [0.1, 0.02, 0.505])
def test_shift_that_is_asked_for_is_the_one_that_is_made(shift: float) -> None:
    # Phase of a wave: the error of the position, whatever the kernel does to the height. Positions
    # rounded to 1/32 pixel would be wrong by 0.006, 0.011 and 0.005.
    image = np.tile(np.sin(2 * np.pi * (np.arange(160) + 0.5) / 16).astype(np.float32), (8, 1))
    found = read_mapped(open_raster(image), (4, 128), shifted(16 + shift, 2), resampling="cubic")
    phase = np.exp(-2j * np.pi * (np.arange(128) + 0.5) / 16)
    angle = np.angle((found.data[0, 0] * phase).sum()) + np.pi / 2
    assert angle * 16 / (2 * np.pi) == pytest.approx(shift, abs=2.5e-3)


def test_kernel_agrees_with_an_independent_spline(rng: np.random.Generator) -> None:
    smooth = gaussian_filter(rng.standard_normal((90, 110)), 3.0).astype(np.float32) * 100
    matrix = np.array([[0.95, 0.2], [-0.18, 1.02]])
    found = read_mapped(
        open_raster(smooth), (50, 60), lambda xy: xy @ matrix.T + [12.3, 24.7], resampling="lanczos"
    )
    y, x = np.indices((50, 60)) + 0.5
    there = np.stack([x, y], axis=-1) @ matrix.T + [12.3, 24.7] - 0.5
    expected = map_coordinates(smooth, [there[..., 1], there[..., 0]], order=5)
    assert np.abs(found.data[0] - expected).max() < 0.01 * np.abs(smooth).max()


def test_curved_mapping_is_followed_to_a_thousandth_of_a_pixel() -> None:
    y, x = np.indices((220, 240)) + 0.5
    source = open_raster(np.stack([x, y]).astype(np.float32))  # values are positions

    def curved(xy: np.ndarray) -> np.ndarray:
        u, v = xy[:, 0], xy[:, 1]
        return np.column_stack((u + 4 * np.sin(v / 40) + 10, v + 3e-4 * (u - 100) ** 2 + 6))

    found = read_mapped(source, (190, 200), curved, resampling="bilinear")
    y, x = np.indices((190, 200)) + 0.5
    expected = curved(np.column_stack((x.ravel(), y.ravel()))).T.reshape(2, 190, 200)
    error = np.abs(found.data - expected)[:, found.valid]
    assert found.valid.mean() > 0.95
    assert error.max() < 1.1e-3


def test_mapping_is_asked_about_few_points_where_it_is_smooth() -> None:
    asked = 0

    def counting(xy: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += len(xy)
        return xy * 0.97 + 3

    read_mapped(open_raster(np.ones((600, 600), np.float32)), (600, 600), counting)
    assert asked < 600 * 600 / 50


def test_mapping_without_an_answer_is_invalid() -> None:
    def half(xy: np.ndarray) -> np.ndarray:
        return np.where(xy[:, :1] < 30, xy, np.nan)

    found = read_mapped(open_raster(np.ones((60, 60), np.float32)), (60, 60), half)
    expected = np.zeros((60, 60), bool)
    expected[:, :30] = True
    np.testing.assert_array_equal(found.valid, expected)


def test_lattice_beside_the_image_is_invalid() -> None:
    found = read_mapped(open_raster(np.ones((2, 9, 9))), (5, 6), shifted(100, 0))
    assert found.data.shape == (2, 5, 6)
    assert not found.valid.any()


def test_mapping_that_scatters_reads_the_image_in_parts(rng: np.random.Generator) -> None:
    image = rng.uniform(0, 1, (700, 700)).astype(np.float32)
    places = rng.uniform(0, 700, (64 * 64, 2))

    def scatter(xy: np.ndarray) -> np.ndarray:
        index = (np.floor(xy[:, 1]) * 64 + np.floor(xy[:, 0])).astype(int) % len(places)
        return places[index]

    found = read_mapped(open_raster(image), (64, 64), scatter, resampling="nearest")
    column, row = np.floor(places).astype(int).T
    np.testing.assert_array_equal(found.data[0].ravel(), image[row, column])


# --- coarser lattices ----------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_whole_reduction_is_the_mean_of_the_pixels(rng: np.random.Generator, factor: int) -> None:
    image = rng.uniform(0, 100, (30 * factor, 40 * factor)).astype(np.float32)
    found = read_mapped(open_raster(image), (30, 40), lambda xy: xy * factor)
    expected = image.reshape(30, factor, 40, factor).mean(axis=(1, 3))
    np.testing.assert_allclose(found.data[0], expected, rtol=1e-5)


@pytest.mark.parametrize("factor", [1.5, 2.5, 3.9, 7.3])
def test_pattern_finer_than_the_lattice_disappears(factor: float) -> None:
    y, x = np.indices((400, 400))
    checker = ((x + y) % 2 * 200 - 100).astype(np.float32)
    size = int(400 / factor)
    found = read_mapped(open_raster(checker), (size, size), lambda xy: xy * factor)
    assert np.abs(found.data[0, 2:-2, 2:-2]).max() < 15  # of 100


@pytest.mark.parametrize("factor", [1.3, 2.0, 2.6, 4.5])
def test_pattern_coarser_than_the_lattice_stays_in_place(factor: float) -> None:
    period = 12 * factor
    size = int(360 / factor)
    source = open_raster(wave_image((360, 360), period))
    found = read_mapped(source, (size, size), lambda xy: xy * factor)
    y, x = (np.indices((size, size)) + 0.5) * factor
    expected = waves(x, y, period)
    inner = (slice(4, -4), slice(4, -4))
    there, here = expected[inner] - 100, found.data[0][inner] - 100
    assert np.corrcoef(there.ravel(), here.ravel())[0, 1] > 0.999
    assert np.abs(there - here).max() < 6  # of 30: what averaging takes from the height


def test_pixels_that_are_not_square_are_averaged_along_one_axis_only(
    rng: np.random.Generator,
) -> None:
    image = rng.uniform(0, 100, (160, 40)).astype(np.float32)
    found = read_mapped(open_raster(image), (40, 40), lambda xy: xy * [1, 4])
    np.testing.assert_allclose(found.data[0], image.reshape(40, 4, 40).mean(axis=1), rtol=1e-5)


def test_nearest_takes_values_that_exist(rng: np.random.Generator) -> None:
    classes = rng.choice([3, 17, 200], (300, 300)).astype(np.uint8)
    found = read_mapped(open_raster(classes), (41, 41), lambda xy: xy * 7.1, resampling="nearest")
    assert set(np.unique(found.data)) == {3, 17, 200}


def test_enlarged_image_is_smooth_and_in_place() -> None:
    source = open_raster(wave_image((50, 50), 12))
    found = read_mapped(source, (150, 150), lambda xy: xy / 3)
    y, x = (np.indices((150, 150)) + 0.5) / 3
    inner = (slice(10, -10), slice(10, -10))
    assert np.abs(found.data[0] - waves(x, y, 12))[inner].max() < 0.5


# --- holes and edges -----------------------------------------------------------------------------


@pytest.mark.parametrize("resampling", KERNELS)
@pytest.mark.parametrize("scale", [1.0, 0.7, 1.6, 3.4])
def test_invalid_pixels_never_leak_into_valid_ones(
    rng: np.random.Generator, resampling: str, scale: float
) -> None:
    image = np.full((120, 120), 50, np.float32)
    image[rng.uniform(size=image.shape) < 0.15] = np.nan
    image[40:60, 50:80] = np.nan
    size = int(110 / scale)
    found = read_mapped(
        open_raster(image), (size, size), lambda xy: xy * scale + 3.3, resampling=resampling
    )
    assert 0.2 < found.valid.mean() < 1
    np.testing.assert_allclose(found.data[0, found.valid], 50, rtol=1e-5)
    assert not found.data[0, ~found.valid].any()


@pytest.mark.parametrize("resampling", KERNELS)
def test_pixel_is_valid_where_its_nearest_one_is(rng: np.random.Generator, resampling: str) -> None:
    image = np.ones((50, 50), np.float32)
    image[rng.uniform(size=image.shape) < 0.3] = np.nan
    found = read_mapped(open_raster(image), (40, 40), shifted(2.3, 4.6), resampling=resampling)
    y, x = np.indices((40, 40)) + 0.5
    nearest = np.isfinite(image)[np.floor(y + 4.6).astype(int), np.floor(x + 2.3).astype(int)]
    np.testing.assert_array_equal(found.valid, nearest)


def test_image_of_one_pixel_is_read() -> None:
    found = read_mapped(open_raster(np.full((1, 1), 9.0)), (3, 3), lambda xy: xy / 3)
    np.testing.assert_array_equal(found.data[0], np.full((3, 3), 9))


def test_image_wider_than_other_libraries_address_is_read() -> None:
    image = np.arange(40_000, dtype=np.float32)[None]
    found = read_mapped(open_raster(image), (1, 40_000), lambda xy: xy, resampling="bilinear")
    np.testing.assert_array_equal(found.data[0], image)


# --- arguments -----------------------------------------------------------------------------------


def test_bands_and_grid_travel_with_the_result(tiny_raster: Path) -> None:
    grid = GeoBox((20, 30), Affine(20, 0, 500_000, 0, -20, 5_400_000), "EPSG:32631")
    with open_raster(tiny_raster) as source:
        mapping = pixel_mapping(grid, source.geobox)
        found = read_mapped(source, (20, 30), mapping, bands=("nir",), geobox=grid)
        expected = source.read(shape=(20, 30), bands=("nir",))
    assert (found.bands, found.geobox) == (("nir",), grid)
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-5)
    np.testing.assert_array_equal(found.valid, expected.valid)


def test_wrong_arguments_are_refused(tiny_raster: Path) -> None:
    source = open_raster(tiny_raster)
    with pytest.raises(InputError, match="cubic"):
        read_mapped(source, (4, 4), lambda xy: xy, resampling="cubik")
    with pytest.raises(InputError, match="same shape"):
        read_mapped(source, (4, 4), lambda xy: xy, geobox=pixel_geobox((4, 5)))
    with pytest.raises(InputError, match="at least one pixel"):
        read_mapped(source, (0, 4), lambda xy: xy)
    with pytest.raises(BandError, match="green"):
        read_mapped(source, (4, 4), lambda xy: xy, bands=("green",))


# --- whole scenes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "low", "high"), [("uint8", 0, 255), ("uint16", 0, 65535), ("int16", -32768, 32767)]
)
def test_warped_file_keeps_its_type_by_rounding_and_clipping(
    write_raster: Write, tmp_path: Path, dtype: str, low: int, high: int
) -> None:
    image = np.full((60, 60), low, dtype)
    image[:, 30:] = high  # cubic interpolation overshoots beside the step
    path = write_raster(image)
    with open_raster(path) as source:
        warp_raster(source, source.geobox, shifted(0.4, 0.0), tmp_path / "out.tif")
        expected = read_mapped(source, (60, 60), shifted(0.4, 0.0))
    assert expected.data.max() > high
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.dtypes == (dtype,)
        found = file.read(1)
    rounded = np.clip(np.rint(expected.data[0]), low, high)
    np.testing.assert_array_equal(found[expected.valid], rounded[expected.valid])


def test_integers_that_would_be_rounded_are_refused(write_raster: Write, tmp_path: Path) -> None:
    numbers = np.arange(1600, dtype=np.int32).reshape(40, 40)
    for first, is_exact in ((0, True), ((1 << 24) - 1599, True), (1 << 24, False)):
        with open_raster(write_raster(numbers + first)) as source:
            words = (source, source.geobox, shifted(0.0, 0.0), tmp_path / f"{first}.tif")
            if is_exact:
                warp_raster(*words, resampling="nearest")
                with rasterio.open(tmp_path / f"{first}.tif") as file:
                    np.testing.assert_array_equal(file.read(1), numbers + first)
            else:
                with pytest.raises(RasterError, match="16777216"):
                    warp_raster(*words, resampling="nearest")
    assert not (tmp_path / f"{1 << 24}.tif").exists()


def test_a_raster_that_does_not_reach_the_grid_is_refused(
    write_raster: Write, tmp_path: Path
) -> None:
    source = open_raster(write_raster(np.ones((40, 40), np.uint8)))
    with source, pytest.raises(NoOverlapError, match="no usable pixel"):
        warp_raster(source, source.geobox, shifted(500, 0), tmp_path / "far.tif")
    assert list(tmp_path.glob("*far*")) == []


def test_warped_file_keeps_nodata_bands_and_grid(tiny_raster: Path, tmp_path: Path) -> None:
    target = GeoBox((50, 50), Affine(8, 0, 499_990, 0, -8, 5_400_010), "EPSG:32631")
    with open_raster(tiny_raster) as source:
        mapping = pixel_mapping(target, source.geobox)
        warp_raster(source, target, mapping, tmp_path / "out.tif")
        expected = read_mapped(source, (50, 50), mapping)
    with open_raster(tmp_path / "out.tif") as result:
        assert (result.nodata, result.bands, result.geobox) == (0, ("red", "nir"), target)
        found = result.read()
    np.testing.assert_array_equal(found.valid, expected.valid)
    # A valid value below one would be taken for nodata and becomes one.
    stored = np.where(expected.valid, np.clip(np.rint(expected.data), 1, 65535), 0)
    np.testing.assert_array_equal(found.data, stored)


def test_warped_file_without_nodata_gets_a_mask(write_raster: Write, tmp_path: Path) -> None:
    path = write_raster(np.zeros((40, 40), np.uint8))  # zero is a value like any other
    with open_raster(path) as source:
        warp_raster(source, source.geobox, shifted(10, 0), tmp_path / "out.tif")
    with open_raster(tmp_path / "out.tif") as result:
        expected = np.zeros((40, 40), bool)
        expected[:, :30] = True
        assert result.nodata is None
        np.testing.assert_array_equal(result.read().valid, expected)


def test_warped_classes_keep_their_colours_and_values(tmp_path: Path) -> None:
    index = (np.indices((50, 50)).sum(axis=0) // 7 % 3).astype(np.uint8)
    colours = {0: (255, 0, 0), 1: (0, 120, 0), 2: (9, 8, 7)}
    with rasterio.open(
        tmp_path / "map.tif", "w", driver="GTiff", width=50, height=50, count=1, dtype="uint8",
        crs="EPSG:32631", transform=Affine(10, 0, 5e5, 0, -10, 5.4e6),
    ) as file:  # fmt: skip
        file.write(index, 1)
        file.write_colormap(1, colours)
    with open_raster(tmp_path / "map.tif") as source:
        warp_raster(source, source.geobox, lambda xy: xy * 0.9 + 1.2, tmp_path / "out.tif")
    with open_raster(tmp_path / "out.tif") as result:
        assert {k: tuple(result.colours[k]) for k in colours} == colours
        assert set(np.unique(result.read().data)) == {0, 1, 2}


def test_warped_complex_image_is_its_amplitude(write_raster: Write, tmp_path: Path) -> None:
    path = write_raster(np.full((20, 20), 3 + 4j, np.complex64))
    with open_raster(path) as source:
        warp_raster(source, source.geobox, shifted(0.3, 0.3), tmp_path / "out.tif")
    with open_raster(tmp_path / "out.tif") as result:
        assert (result.dtype, result.radiometry) == ("float32", "amplitude")
        raster = result.read()
    np.testing.assert_allclose(raster.data[:, raster.valid], 5, rtol=1e-6)


def curved_scene(xy: np.ndarray) -> np.ndarray:
    u, v = xy[:, 0], xy[:, 1]
    return np.column_stack((1.8 * u + 3 * np.sin(v / 60) + 4, 1.7 * v + 2 * np.cos(u / 50) + 5))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("tile", [64, 100, 256])
def test_warped_file_does_not_depend_on_tiles_and_workers(
    tmp_path: Path, rng: np.random.Generator, tile: int, workers: int
) -> None:
    image = rng.uniform(0, 60_000, (2, 500, 560)).astype(np.uint16)
    image[:, 200:230, 100:160] = 0
    source = open_raster(image, nodata=0)
    target = pixel_geobox((260, 290))
    warp_raster(source, target, curved_scene, tmp_path / "whole.tif", tile=1024)
    warp_raster(source, target, curved_scene, tmp_path / "tiles.tif", tile=tile, workers=workers)
    with open_raster(tmp_path / "whole.tif") as a, open_raster(tmp_path / "tiles.tif") as b:
        whole, tiles = a.read(), b.read()
    np.testing.assert_array_equal(tiles.valid, whole.valid)
    # Positions are interpolated to a thousandth of a pixel, values stand for up to 60,000.
    np.testing.assert_allclose(tiles.data, whole.data, atol=60)
    assert np.mean(tiles.data == whole.data) > 0.99


def test_progress_tells_done_and_total(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    warp_raster(
        open_raster(np.ones((100, 100))),
        pixel_geobox((100, 100)),
        lambda xy: xy,
        tmp_path / "out.tif",
        tile=64,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_memory_makes_tiles_smaller_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def spy(shape: tuple[int, int], **options: int) -> TilePlan:
        sizes.append(options["tile"])
        return plan_tiles(shape, **options)

    monkeypatch.setattr("rsfuse.geo.tiles.plan_tiles", spy)
    source, target = open_raster(np.ones((300, 300), np.uint8)), pixel_geobox((300, 300))
    enough = warp_memory_bytes(512, 1, 1, 1)
    warp_raster(source, target, lambda xy: xy, tmp_path / "a.tif", memory=enough)
    assert sizes == [512]
    with pytest.raises(InputError, match="--memory"):
        warp_raster(source, target, lambda xy: xy, tmp_path / "b.tif", memory=10**6)
    assert not (tmp_path / "b.tif").exists()


def test_memory_stays_below_the_formula(tmp_path: Path) -> None:
    code = """
import resource, sys
import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rsfuse.geo.raster import open_raster
from rsfuse.geo.warp import read_mapped, warp_memory_bytes, warp_raster

folder = sys.argv[1]
place = {"crs": "EPSG:32631", "transform": Affine(10, 0, 5e5, 0, -10, 5.4e6)}
with rasterio.open(
    f"{folder}/a.tif", "w", driver="GTiff", width=5000, height=5000, count=2, dtype="uint16",
    tiled=True, sparse_ok=True, compress="deflate", **place,
):
    pass
turned = np.array([[0.8, -0.6], [0.6, 0.8]])
read_mapped(open_raster(np.ones((99, 99))), (99, 99), lambda xy: xy @ turned)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_raster(f"{folder}/a.tif") as source:
    target = GeoBox((2500, 2500), place["transform"], "EPSG:32631")
    mapping = lambda xy: xy @ turned.T + 1500
    warp_raster(source, target, mapping, f"{folder}/b.tif", tile=256, workers=2)
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(used, warp_memory_bytes(256, 2, 2, 2))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    used, allowed = (int(number) for number in done.stdout.split())
    print(used, allowed)
    assert used < allowed


def test_failed_warp_leaves_nothing(write_raster: Write, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()

    def broken(xy: np.ndarray) -> np.ndarray:
        if xy[:, 1].max() > 150:
            raise RuntimeError("broken")
        return xy

    source = open_raster(np.ones((300, 300), np.float32))
    with pytest.raises(RuntimeError, match="broken"):
        warp_raster(source, pixel_geobox((300, 300)), broken, folder / "a.tif", tile=64)
    assert list(folder.iterdir()) == []
    with pytest.raises(OutputError):
        warp_raster(source, pixel_geobox((9, 9)), lambda xy: xy, "/proc/none/a.tif")
