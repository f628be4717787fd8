"""Windows, reductions and warps of any size agree with each other."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rsfuse.geo.grid import Window
from rsfuse.geo.raster import RasterSource, open_raster
from rsfuse.geo.warp import read_mapped

PLACES = st.floats(-30, 60)
QUICK = settings(max_examples=60, deadline=None)
RNG = np.random.default_rng(11)
HEIGHT, WIDTH = 37, 53


def scene() -> RasterSource:
    image = RNG.integers(1, 200, (2, HEIGHT, WIDTH)).astype(np.float32)
    image[:, RNG.uniform(size=(HEIGHT, WIDTH)) < 0.1] = np.nan
    return open_raster(image)


SCENE = scene()
WHOLE = SCENE.read()

windows = st.builds(
    Window,
    x=st.integers(-20, WIDTH + 5),
    y=st.integers(-20, HEIGHT + 5),
    w=st.integers(1, 60),
    h=st.integers(1, 60),
)


@QUICK
@given(windows)
def test_window_is_cut_from_the_whole(window: Window) -> None:
    found = SCENE.read(window)
    y, x = np.mgrid[window.y : window.y + window.h, window.x : window.x + window.w]
    inside = (y >= 0) & (y < HEIGHT) & (x >= 0) & (x < WIDTH)
    expected = np.zeros(window.shape, bool)
    expected[inside] = WHOLE.valid[y[inside], x[inside]]
    np.testing.assert_array_equal(found.valid, expected)
    np.testing.assert_array_equal(found.data[:, expected], WHOLE.data[:, y[expected], x[expected]])


@QUICK
@given(windows, st.integers(1, 30), st.integers(1, 30))
def test_reduction_stays_within_the_values_it_averages(window: Window, h: int, w: int) -> None:
    fine, coarse = (
        SCENE.read(window),
        SCENE.read(window, shape=(min(h, window.h), min(w, window.w))),
    )
    if coarse.valid.any():
        values, means = fine.data[:, fine.valid], coarse.data[:, coarse.valid]
        assert means.min() >= values.min() - 1e-3
        assert means.max() <= values.max() + 1e-3
    assert not coarse.data[:, ~coarse.valid].any()


@QUICK
@given(windows, st.integers(1, 4), st.integers(1, 4))
def test_reduction_by_whole_numbers_is_the_mean_of_blocks(window: Window, fy: int, fx: int) -> None:
    h, w = max(1, window.h // fy), max(1, window.w // fx)
    window = Window(window.x, window.y, w * fx, h * fy)
    fine, coarse = SCENE.read(window), SCENE.read(window, shape=(h, w))
    count = fine.valid.reshape(h, fy, w, fx).sum(axis=(1, 3))
    total = fine.data.reshape(2, h, fy, w, fx).sum(axis=(2, 4))
    np.testing.assert_array_equal(coarse.valid, count * 2 >= fx * fy)
    expected = np.where(coarse.valid, total / np.maximum(count, 1), 0)
    np.testing.assert_allclose(coarse.data, expected, rtol=1e-5, atol=1e-4)


@QUICK
@given(windows, st.sampled_from(["nearest", "bilinear", "cubic", "lanczos"]))
def test_warp_by_whole_pixels_is_a_window(window: Window, resampling: str) -> None:
    corner = np.array([window.x, window.y])
    found = read_mapped(SCENE, window.shape, lambda xy: xy + corner, resampling=resampling)
    expected = SCENE.read(window)
    np.testing.assert_array_equal(found.valid, expected.valid)
    np.testing.assert_array_equal(found.data, expected.data)


@QUICK
@given(
    st.floats(0.2, 5),
    st.floats(0.2, 5),
    st.floats(-180, 180),
    st.floats(-30, 60),
    st.floats(-30, 60),
)
def test_warp_of_any_affine_map_keeps_a_constant(
    sx: float, sy: float, turn_deg: float, dx: float, dy: float
) -> None:
    turn = np.deg2rad(turn_deg)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * [sx, sy]
    image = np.where(np.isfinite(WHOLE.data[0]) & WHOLE.valid, np.float32(42), np.nan)
    found = read_mapped(open_raster(image), (23, 29), lambda xy: xy @ matrix.T + [dx, dy])
    np.testing.assert_allclose(found.data[:, found.valid], 42, rtol=1e-5)
    assert not found.data[:, ~found.valid].any()
