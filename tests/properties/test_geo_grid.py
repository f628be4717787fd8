"""Grids, for all transforms and windows."""

import numpy as np
from affine import Affine
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from rsfuse.errors import NoOverlapError
from rsfuse.geo.grid import (
    Window,
    integer_ratio,
    overlap,
    pixel_mapping,
    same_grid,
    window_geobox,
)

sides = st.integers(1, 200)
shapes = st.tuples(sides, sides)
windows = st.builds(Window, st.integers(-100, 300), st.integers(-100, 300), sides, sides)
points = st.lists(st.tuples(st.floats(-50, 250), st.floats(-50, 250)), min_size=1, max_size=20).map(
    lambda pairs: np.array(pairs, np.float64)
)


@st.composite
def grids(draw: st.DrawFn, crs: str = "EPSG:32631") -> GeoBox:
    """A grid somewhere in a kilometre around one point, turned, stretched, mirrored or not."""
    angle = draw(st.floats(0, 2 * np.pi))
    step_x, step_y = draw(st.floats(0.5, 30)), draw(st.floats(0.5, 30))
    mirror = draw(st.sampled_from([1, -1]))
    cos, sin = np.cos(angle), np.sin(angle)
    return GeoBox(
        draw(shapes),
        Affine(
            step_x * cos,
            -mirror * step_y * sin,
            500_000 + draw(st.floats(-1000, 1000)),
            step_x * sin,
            mirror * step_y * cos,
            5_400_000 + draw(st.floats(-1000, 1000)),
        ),
        crs,
    )


@settings(deadline=None)
@given(grids(), grids(), points)
def test_mapping_there_and_back_returns(a: GeoBox, b: GeoBox, xy: np.ndarray) -> None:
    np.testing.assert_allclose(pixel_mapping(b, a)(pixel_mapping(a, b)(xy)), xy, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(grids(), grids("EPSG:32632"), points)
def test_mapping_there_and_back_returns_through_two_crs(
    a: GeoBox, b: GeoBox, xy: np.ndarray
) -> None:
    np.testing.assert_allclose(pixel_mapping(b, a)(pixel_mapping(a, b)(xy)), xy, atol=1e-2)


@settings(deadline=None)
@given(grids(), grids(), grids(), points)
def test_mappings_compose(a: GeoBox, b: GeoBox, c: GeoBox, xy: np.ndarray) -> None:
    direct = pixel_mapping(a, c)(xy)
    np.testing.assert_allclose(pixel_mapping(b, c)(pixel_mapping(a, b)(xy)), direct, atol=1e-4)


@settings(deadline=None)
@given(grids(), windows, points)
def test_pixels_of_a_window_are_shifted_pixels(
    grid: GeoBox, window: Window, xy: np.ndarray
) -> None:
    moved = pixel_mapping(window_geobox(grid, window), grid)(xy)
    np.testing.assert_allclose(moved, xy + np.array([window.x, window.y]), atol=1e-5)


@given(windows, shapes)
def test_clipped_windows_hold_the_same_pixels(window: Window, shape: tuple[int, int]) -> None:
    image = np.zeros((500, 600), bool)
    rows, columns = window.slices_in(Window(-100, -100, 600, 600))
    image[rows, columns] = True
    inside = image[100 : 100 + shape[0], 100 : 100 + shape[1]]
    clipped = window.clipped(shape)
    assert inside.sum() == clipped.w * clipped.h
    if inside.any():
        assert inside[clipped.slices_in(Window(0, 0, shape[1], shape[0]))].all()


@settings(deadline=None)
@given(grids(), st.integers(1, 8), st.integers(0, 50), st.integers(0, 50))
def test_coarsened_grids_nest(grid: GeoBox, ratio: int, x: int, y: int) -> None:
    a, b, c, d, e, f = tuple(window_geobox(grid, Window(x, y, 8, 8)).affine)[:6]
    affine = Affine(a * ratio, b * ratio, c, d * ratio, e * ratio, f)
    assert integer_ratio(grid, GeoBox((8, 8), affine, grid.crs)) == ratio


@settings(deadline=None)
@given(grids(), grids())
def test_overlap_holds_every_pixel_that_both_show(a: GeoBox, b: GeoBox) -> None:
    height, width = (int(side) for side in b.shape)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    on_a = pixel_mapping(b, a)(np.column_stack((x.ravel(), y.ravel())))
    size = np.array([int(a.shape[1]), int(a.shape[0])])
    shown = on_a[((on_a > 0) & (on_a < size)).all(axis=1)]
    assume(len(shown))
    found = overlap(a, b)
    low, high = np.array([found.x, found.y]), np.array([found.x + found.w, found.y + found.h])
    assert (shown >= low - 1e-2).all()
    assert (shown <= high + 1e-2).all()
    assert found == found.clipped((int(size[1]), int(size[0])))


@settings(deadline=None)
@given(grids(), grids())
@example(
    GeoBox((1, 1), Affine(4.0, -2.2e-311, 5e5, 8.9e-311, 1.0, 5.4e6), "EPSG:32631"),
    GeoBox((1, 1), Affine(5.0, 5.8e-311, 5e5, 1.1e-310, -2.625, 5.4e6), "EPSG:32631"),
)
@example(
    GeoBox((1, 1), Affine(0.9689124217106447, -0.24740395925452294, 5e5,
                          0.24740395925452294, 0.9689124217106447, 5.4e6), "EPSG:32631"),
    GeoBox((1, 1), Affine(0.9689124217106447, 0.7422118777635688, 5e5,
                          0.24740395925452294, -2.9067372651319343, 5.4e6), "EPSG:32631"),
)  # fmt: skip
def test_overlap_is_mutual(a: GeoBox, b: GeoBox) -> None:
    def shares(first: GeoBox, second: GeoBox) -> bool:
        try:
            overlap(first, second)
        except NoOverlapError:
            return False
        return True

    assert shares(a, b) == shares(b, a)


@given(grids())
def test_a_grid_is_the_same_as_itself_and_not_as_its_shift(grid: GeoBox) -> None:
    height, width = (int(side) for side in grid.shape)
    assert same_grid(grid, window_geobox(grid, Window(0, 0, width, height)))
    assert not same_grid(grid, window_geobox(grid, Window(1, 0, width, height)))
