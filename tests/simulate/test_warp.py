"""Known geometry: there and back, and the pixels of a warped image where the warp says."""

import cv2
import numpy as np
import pytest

from rsfuse.errors import InputError
from rsfuse.simulate import MODELS, Displacement, MatrixWarp, ReliefWarp, Scene, make_warp, render
from rsfuse.simulate.imaging import interpolate

WARPS = [model for model in MODELS if model != "none"]


@pytest.mark.parametrize("model", WARPS)
def test_inverse_undoes_forward(scene: Scene, model: str, rng: np.random.Generator) -> None:
    warp = make_warp(model, scene)
    assert warp is not None
    assert warp.model == model
    points = rng.uniform(0, scene.shape[0], (500, 2))
    moved = warp.forward(points)
    assert np.linalg.norm(moved - points, axis=1).max() > 5
    np.testing.assert_allclose(warp.inverse(moved), points, atol=1e-6)


@pytest.mark.parametrize("model", WARPS)
def test_dense_displacement_equals_the_mapping(scene: Scene, model: str) -> None:
    warp = make_warp(model, scene)
    assert warp is not None
    h, w = scene.shape
    y, x = np.mgrid[0:h, 0:w] + 0.5
    points = np.column_stack((x.ravel(), y.ravel()))
    for inverse in (False, True):
        mapping = warp.inverse if inverse else warp.forward
        dense = Displacement(warp, (h, w), inverse=inverse)
        found = np.concatenate([dense.rows(0, 101), dense.rows(101, h)])
        error = found.reshape(-1, 2) - (mapping(points) - points)
        assert np.abs(error).max() < 0.01


def test_matrix_warp_of_known_points() -> None:
    quarter_turn = np.array([[0.0, -1.0, 100.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    warp = MatrixWarp(quarter_turn, "affine")
    np.testing.assert_allclose(warp.forward(np.array([[10.0, 20.0]])), [[80.0, 10.0]])
    perspective = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.01, 0.0, 1.0]])
    np.testing.assert_allclose(
        MatrixWarp(perspective, "homography").forward(np.array([[100.0, 50.0]])), [[50.0, 25.0]]
    )


def test_relief_moves_high_ground_by_the_tangent_of_the_view(scene: Scene) -> None:
    warp = ReliefWarp(np.eye(3), scene.terrain_m, scene.gsd_m, (0.5, -0.25))
    points = np.array([[100.5, 320.5], [320.5, 100.5], [500.5, 500.5]])
    height = scene.terrain_m.at(points * scene.gsd_m, order=3)
    moved = warp.forward(points) - points
    np.testing.assert_allclose(moved[:, 0], 0.5 * height, atol=1e-9)
    np.testing.assert_allclose(moved[:, 1], -0.25 * height, atol=1e-9)
    assert np.ptp(height) > 1


@pytest.mark.parametrize("model", WARPS)
def test_warped_image_shows_each_point_where_the_warp_puts_it(scene: Scene, model: str) -> None:
    warp = make_warp(model, scene)
    assert warp is not None
    reference = render(scene, "pan")
    query = render(scene, "pan", warp=warp, seed=9)
    h, w = scene.shape
    forward = Displacement(warp, (h, w), inverse=False).rows(0, h)
    y, x = np.mgrid[0:h, 0:w] + 0.5
    x, y = x + forward[..., 0] - 0.5, y + forward[..., 1] - 0.5
    sampled = np.empty((h, w, 1), np.float32)
    interpolate(query.data[0][..., None], x, y, sampled)
    back = sampled[..., 0]
    there = x.astype(np.float32), y.astype(np.float32)
    covered = cv2.remap(query.valid.astype(np.float32), *there, cv2.INTER_LINEAR) > 0.999
    shifts = []
    for top in range(40, h - 130, 90):
        for left in range(40, w - 130, 90):
            part = slice(top, top + 90), slice(left, left + 90)
            if covered[part].all() and reference.data[0][part].std() > 250:
                shifts.append(small_shift(reference.data[0][part], back[part]))
    assert len(shifts) >= 6
    assert np.abs(np.median(shifts, axis=0)).max() < 0.01
    assert np.percentile(np.linalg.norm(shifts, axis=1), 90) < 0.06


def small_shift(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Shift (x, y) of the second image against the first by least squares on their gradients."""
    soft = [cv2.GaussianBlur(np.log(image), (0, 0), 2.0)[8:-8, 8:-8] for image in (one, other)]
    gy, gx = np.gradient((soft[0] + soft[1]) / 2)
    a = np.column_stack((gx.ravel(), gy.ravel()))
    return np.linalg.lstsq(a, (soft[0] - soft[1]).ravel(), rcond=None)[0]


def test_query_is_invalid_where_the_scene_does_not_reach(scene: Scene) -> None:
    warp = MatrixWarp(np.array([[1.0, 0.0, 25.0], [0.0, 1.0, -10.0], [0.0, 0.0, 1.0]]), "shift")
    query = render(scene, "sar", warp=warp)
    expected = np.zeros(scene.shape, bool)
    expected[: scene.shape[0] - 10, 25:] = True
    np.testing.assert_array_equal(query.valid, expected)
    assert (query.data[0][~query.valid] == 0).all()
    assert (query.data[0][query.valid] > 0).all()


def test_no_warp_and_unknown_warp(scene: Scene) -> None:
    assert make_warp("none", scene) is None
    with pytest.raises(InputError, match="wobble"):
        make_warp("wobble", scene)
