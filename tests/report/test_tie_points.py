"""Tie points of a run folder: columns, implied geotransform, residual vectors."""

import numpy as np
import pytest

from rsfuse.report.tie_points import TiePoints, fit_geotransform, to_reference_frame


def tie_points(
    reference: np.ndarray,
    world: np.ndarray,
    residual: np.ndarray,
    query: np.ndarray | None = None,
) -> TiePoints:
    count = len(reference)
    return TiePoints(
        reference=reference,
        query=np.full((count, 2), np.nan) if query is None else query,
        residual=residual,
        residual_px=np.hypot(*residual.T),
        probability=np.ones(count),
        kept=np.ones(count, bool),
        held_out_px=np.zeros(count),
        reason=("",) * count,
        map=world,
    )


def on_ground(xy: np.ndarray, transform: tuple[float, ...]) -> np.ndarray:
    a, b, c, d, e, f = transform
    return np.column_stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f])


@pytest.mark.parametrize(
    "transform",
    [
        (10.0, 0.0, 5e5, 0.0, -10.0, 5.4e6),  # north up
        (10.0, 0.0, 5e5, 0.0, 10.0, 5.4e6),  # south up
        (7.1, 3.2, 5e5, 3.2, -7.1, 5.4e6),  # turned
        (1e-4, 0.0, 13.4, 0.0, -6e-5, 52.5),  # degrees, pixels not square
    ],
)
def test_geotransform_is_implied_by_three_points(
    transform: tuple[float, ...], rng: np.random.Generator
) -> None:
    xy = rng.uniform(0, 1000, (3, 2))
    points = tie_points(xy, on_ground(xy, transform), np.zeros((3, 2)))
    assert fit_geotransform(points) == pytest.approx(transform, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("count", [0, 2])
def test_too_few_points_imply_no_geotransform(count: int, rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 1000, (count, 2))
    assert fit_geotransform(tie_points(xy, xy, np.zeros((count, 2)))) is None


def test_points_on_a_line_imply_no_geotransform() -> None:
    xy = np.column_stack([np.arange(5.0), 2 * np.arange(5.0)])
    assert fit_geotransform(tie_points(xy, 10 * xy, np.zeros((5, 2)))) is None


def test_frame_that_is_not_affine_implies_no_geotransform(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 1000, (50, 2))
    world = on_ground(xy, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0))
    world[:, 0] += 1e-4 * xy[:, 1] ** 2
    assert fit_geotransform(tie_points(xy, world, np.zeros((50, 2)))) is None


def test_residuals_follow_a_projective_transform(rng: np.random.Generator) -> None:
    transform = np.array([[1.1, -0.2, 5.0], [0.3, 0.9, -3.0], [1e-4, -2e-4, 1.0]])

    def apply(xy: np.ndarray) -> np.ndarray:
        mapped = np.column_stack([xy, np.ones(len(xy))]) @ transform.T
        return mapped[:, :2] / mapped[:, 2:]

    xy = rng.uniform(0, 500, (20, 2))
    moved = rng.normal(0, 1e-4, (20, 2))
    points = tie_points(xy, np.full((20, 2), np.nan), apply(xy + moved) - apply(xy))
    np.testing.assert_allclose(to_reference_frame(points, transform), moved, atol=1e-8)


def test_residuals_without_a_transform_follow_the_tie_points(rng: np.random.Generator) -> None:
    xy = rng.uniform(0, 100, (30, 2))
    residual = np.tile([3.0, 4.0], (30, 1))
    # Query pixels are half as large and the query is turned by 90 degrees: (x, y) -> (-2y, 2x).
    query = np.column_stack([-2 * xy[:, 1], 2 * xy[:, 0]]) + 7.0
    points = tie_points(xy, np.full((30, 2), np.nan), residual, query)
    np.testing.assert_allclose(to_reference_frame(points, None), np.tile([2.0, -1.5], (30, 1)))


@pytest.mark.parametrize("count", [0, 2])
def test_residuals_of_too_few_tie_points_stay_as_they_are(
    count: int, rng: np.random.Generator
) -> None:
    xy, residual = rng.uniform(0, 9, (count, 2)), rng.normal(size=(count, 2))
    points = tie_points(xy, np.full((count, 2), np.nan), residual, xy)
    np.testing.assert_array_equal(to_reference_frame(points, None), residual)
