"""Results: columns that fit together and summaries on a paper case."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rsfuse.matching.results import MatchResult, Reason, TiePoints, summary_px
from rsfuse.ops.geometry2d import Transform


def columns(n: int = 4) -> dict[str, Any]:
    """Columns of n tie points; the last was not kept."""
    xy = np.arange(2.0 * n).reshape(n, 2)
    kept = np.arange(n) < n - 1
    return {
        "xy0": xy,
        "xy1": xy + 1,
        "probability": np.full(n, 0.9),
        "score": np.full(n, 0.5),
        "sigma_px": np.linspace(0.5, 2, n),
        "residual": np.tile([3.0, -4.0], (n, 1)),
        "kept": kept,
        "held_out_px": np.where(kept, 2.0, np.nan),
        "from_query": np.zeros(n, bool),
    }


def result(transform: Transform | None, **changes: Any) -> MatchResult:
    image: Any = SimpleNamespace(shape=(60, 80))
    content: dict[str, Any] = {
        "status": "ok",
        "confidence": 0.97,
        "reasons": (),
        "transform": transform,
        "covariance": None,
        "tie_points": TiePoints(**columns()),
        "before_px": None,
        "diagnostics": {},
        "reference": image,
        "query": image,
        "parameters": {},
    }
    return MatchResult(**(content | changes))


@pytest.mark.parametrize("name", list(columns()))
def test_columns_of_different_length_are_refused(name: str) -> None:
    content = columns()
    content[name] = content[name][:-1]
    with pytest.raises(ValueError, match=rf"differ in length.*'{name}': 3"):
        TiePoints(**content)


def test_derived_columns() -> None:
    points = TiePoints(**columns())
    assert len(points) == 4
    np.testing.assert_allclose(points.residual_px, 5.0)
    np.testing.assert_allclose(points.covariances_px2[0], [[0.25, 0], [0, 0.25]])
    np.testing.assert_allclose(points.covariances_px2[3], [[4, 0], [0, 4]])


def test_standard_errors_are_in_query_pixels() -> None:
    placed = Transform("shift", np.array([[1.0, 0, 3], [0, 1, -2], [0, 0, 1]]))
    finer = Transform("shift", np.diag([4.0, 4.0, 1.0]) @ placed.base)
    found = result(finer, placed=placed, covariance=0.01 * np.eye(2))
    np.testing.assert_allclose(found.standard_error_px([[0, 0], [9, 5]]), 4 * 0.1 * np.sqrt(2))
    assert np.isnan(result(finer).standard_error_px([[0, 0]])).all()


def test_no_tie_points_at_all() -> None:
    none = TiePoints.none()
    assert len(none) == 0
    assert none.residual_px.shape == (0,)
    assert none.covariances_px2.shape == (0, 2, 2)
    assert summary_px(none.held_out_px) is None


def test_the_summary_of_a_paper_case() -> None:
    # 1, 2, 3, 4 px: median 2.5, mean square 30 / 4, 90 % at 3 + 0.7.
    summary = summary_px(np.array([4.0, np.nan, 1.0, 3.0, 2.0, np.inf]))
    assert summary == pytest.approx({"median": 2.5, "rmse": np.sqrt(7.5), "p90": 3.7})


def test_one_distance_is_its_own_summary() -> None:
    assert summary_px(np.array([1.5])) == pytest.approx({"median": 1.5, "rmse": 1.5, "p90": 1.5})


def test_no_known_distance_has_no_summary() -> None:
    assert summary_px(np.zeros(0)) is None
    assert summary_px(np.array([np.nan, np.inf])) is None


def test_the_line_of_a_result_counts_kept_tie_points() -> None:
    found = result(Transform("shift", np.eye(3)))
    assert str(found) == "ok, confidence 0.97: shift, 3 of 4 tie points, held-out error 2.00 px"
    assert repr(found) == str(found)
    assert found.held_out_px == {"median": 2.0, "rmse": 2.0, "p90": 2.0}


def test_the_line_of_a_refused_result_says_why() -> None:
    reasons = (Reason("few", "Only 3 tie points."), Reason("dark", "The query is dark."))
    found = result(None, status="refused", confidence=0.02, reasons=reasons)
    assert str(found) == "refused, confidence 0.02: Only 3 tie points.; The query is dark."
    assert found.transform_px is None
    assert found.rotation_scale is None
    assert np.isnan(found.standard_error_px([[1, 2], [3, 4]])).all()


def test_rotation_and_scale_of_a_result() -> None:
    found = result(Transform("similarity", np.array([[0, -2, 0], [2, 0, 0], [0, 0, 1.0]])))
    assert found.rotation_scale == pytest.approx((90, 2))
    assert found.transform_px is not None


def test_the_standard_error_grows_away_from_the_tie_points() -> None:
    # Scale and rotation 0.01 uncertain each, shift 0.3 px per axis, at (30, 40).
    covariance = np.diag([1e-4, 1e-4, 0.09, 0.09])
    same = Transform("similarity", np.eye(3))
    found = result(same, placed=same, covariance=covariance)
    error = found.standard_error_px([[0, 0], [30, 40]])
    np.testing.assert_allclose(error, [np.sqrt(0.18), np.sqrt(2 * 2500e-4 + 0.18)])
