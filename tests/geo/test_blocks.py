"""A raster under construction: pixels have their place, headers do not change, holes are free."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError, RasterError
from rsfuse.geo.blocks import BLOCK, BlockFile
from rsfuse.geo.grid import Window


def grid(h: int, w: int) -> GeoBox:
    return GeoBox((h, w), Affine(2.0, 0.0, 0.0, 0.0, -2.0, 0.0), "EPSG:32631")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("count", [1, 3])
def test_windows_land_where_they_belong(
    tmp_path: Path, rng: np.random.Generator, dtype: str, count: int
) -> None:
    expected = np.zeros((count, 700, 1300), dtype)
    file = BlockFile.create(tmp_path / "a.tif", grid(700, 1300), count, dtype=dtype)
    for window in (
        Window(0, 0, 1300, 1),
        Window(BLOCK, 0, BLOCK, BLOCK),
        Window(500, 490, 40, 150),
        Window(1299, 699, 1, 1),
        Window(1000, 20, 300, 640),
    ):
        data = rng.integers(0, 100, (count, window.h, window.w)).astype(dtype)
        expected[(slice(None), *window.slices_in(Window(0, 0, 1300, 700)))] = data
        file.write(window, data)
    file.close()
    with rasterio.open(tmp_path / "a.tif") as result:
        np.testing.assert_array_equal(result.read(), expected)
        assert result.dtypes == (dtype,) * count


def test_header_does_not_change_and_the_file_opens_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    file = BlockFile.create(path, grid(600, 600), 1, dtype="uint8", bands=("class",))
    before = path.read_bytes()
    file.write(Window(500, 500, 100, 100), np.full((1, 100, 100), 7, np.uint8))
    with rasterio.open(path) as result:  # while the other one is open
        assert result.descriptions == ("class",)
        assert result.read(1).sum() == 7 * 100 * 100
    file.write(Window(500, 500, 100, 100), np.zeros((1, 100, 100), np.uint8))
    file.close()
    assert path.read_bytes() == before


def test_untouched_blocks_take_no_space(tmp_path: Path) -> None:
    file = BlockFile.create(tmp_path / "a.tif", grid(50_000, 50_000), 1, dtype="uint16")
    file.write(Window(40_000, 40_000, 10, 10), np.ones((1, 10, 10), np.uint16))
    file.flush()
    file.close()
    taken = (tmp_path / "a.tif").stat()
    assert taken.st_size > 5 * 10**9
    assert taken.st_blocks * 512 < 5 * 10**6
    with rasterio.open(tmp_path / "a.tif") as result:
        corner = result.read(1, window=((39_999, 40_002), (39_999, 40_002)))
    assert corner.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


def test_untouched_blocks_are_nodata(tmp_path: Path) -> None:
    file = BlockFile.create(tmp_path / "a.tif", grid(600, 30), 1, dtype="float32", nodata=np.nan)
    file.close()
    with rasterio.open(tmp_path / "a.tif") as result:
        assert np.isnan(result.read()).all()


def test_values_are_found(tmp_path: Path) -> None:
    file = BlockFile.create(tmp_path / "a.tif", grid(600, 600), 1, dtype="uint8")
    file.write(Window(0, 0, 600, 600), np.full((1, 600, 600), 255, np.uint8))
    file.flush()
    assert not file.has(0)  # the padding of the last blocks does not count
    file.write(Window(599, 599, 1, 1), np.zeros((1, 1, 1), np.uint8))
    assert file.has(0)
    file.close()


@pytest.mark.parametrize("window", [Window(-1, 0, 2, 2), Window(59, 0, 2, 2), Window(0, 0, 3, 2)])
def test_windows_that_do_not_fit_are_refused(tmp_path: Path, window: Window) -> None:
    file = BlockFile.create(tmp_path / "a.tif", grid(60, 60), 1, dtype="uint8")
    with pytest.raises(InputError, match="inside of the file"):
        file.write(window, np.zeros((1, 2, 2), np.uint8))
    file.close()


def test_compressed_file_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=600, width=600, count=1, dtype="uint8", tiled=True,
        blockxsize=BLOCK, blockysize=BLOCK, compress="deflate", crs="EPSG:32631",
        transform=Affine(2, 0, 0, 0, -2, 0),
    ) as file:  # fmt: skip
        file.write(np.arange(360_000, dtype=np.uint8).reshape(1, 600, 600))
    with pytest.raises(RasterError, match="block after block"):
        BlockFile(path)


def test_nothing_is_left_of_a_file_that_could_not_be_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="band names"):
        BlockFile.create(tmp_path / "a.tif", grid(60, 60), 2, dtype="uint8", bands=("one",))
    assert list(tmp_path.iterdir()) == []
