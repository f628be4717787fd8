"""Origin, order of axes, windows: docs/conventions.md, "Coordinates"."""

from pathlib import Path

import numpy as np
import pytest

from rsfuse.geo.grid import Window, pixel_geobox
from rsfuse.geo.raster import open_raster
from rsfuse.geo.warp import read_mapped


def test_convention_pixel_origin_is_the_outer_corner(tiny_raster: Path) -> None:
    with open_raster(tiny_raster) as source:
        affine = source.geobox.affine
    assert affine @ (0.0, 0.0) == (500_000.0, 5_400_000.0)
    assert affine @ (0.5, 0.5) == (500_005.0, 5_399_995.0)


def test_convention_no_crs_means_the_pixel_frame(plain_image: Path) -> None:
    with open_raster(plain_image) as source:
        assert source.geobox.crs is None
        assert source.geobox == pixel_geobox((32, 48))
        assert source.geobox.affine @ (3.5, 1.5) == (3.5, 1.5)


def test_convention_points_are_x_y() -> None:
    image = np.zeros((20, 30), np.float32)
    image[4, 11] = 100.0  # row 4, column 11: centre (11.5, 4.5) in (x, y)
    asked: list[np.ndarray] = []

    def mapping(xy: np.ndarray) -> np.ndarray:
        asked.append(xy)
        return np.full_like(xy, (11.5, 4.5))

    found = read_mapped(open_raster(image), (1, 1), mapping, resampling="nearest")
    assert found.data[0, 0, 0] == 100.0
    assert all(xy.shape[1] == 2 and xy.dtype == np.float64 for xy in asked)


def test_convention_shapes_are_h_w(tiny_raster: Path) -> None:
    with open_raster(tiny_raster) as source:
        assert tuple(source.shape) == (40, 60)
        assert tuple(source.geobox.shape) == (40, 60)
        assert source.read(shape=(20, 30)).data.shape == (2, 20, 30)


def test_convention_window_outside_the_image_is_invalid() -> None:
    image = np.arange(20 * 30, dtype=np.float32).reshape(20, 30)
    found = open_raster(image).read(Window(x=28, y=-1, w=4, h=3))
    inside = np.zeros((3, 4), bool)
    inside[1:, :2] = True
    np.testing.assert_array_equal(found.valid, inside)
    np.testing.assert_array_equal(found.data[0][inside], image[0:2, 28:30].ravel())


@pytest.mark.parametrize("resampling", ["nearest", "bilinear", "cubic", "lanczos"])
@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -2), (-4, 5)])
def test_convention_resampling_has_no_half_pixel(
    rng: np.random.Generator, shift: tuple[int, int], resampling: str
) -> None:
    image = rng.uniform(10, 20, (40, 50)).astype(np.float32)
    dx, dy = shift
    found = read_mapped(
        open_raster(image), (40, 50), lambda xy: xy + np.array(shift), resampling=resampling
    )
    rows = slice(8, 32)
    columns = slice(8, 42)
    expected = image[8 + dy : 32 + dy, 8 + dx : 42 + dx]
    assert found.valid[rows, columns].all()
    np.testing.assert_allclose(found.data[0, rows, columns], expected, atol=1e-3)
