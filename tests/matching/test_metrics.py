"""Metrics on cases that were worked out on paper."""

import numpy as np
import pytest

from rsfuse.errors import InputError
from rsfuse.matching import metrics

IDENTITY = np.eye(3)


def shift(x: float, y: float) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, 2] = [x, y]
    return matrix


# --- transforms --------------------------------------------------------------------------------


def test_matrix_and_function_transform_points_alike() -> None:
    matrix = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, -1.0], [0.0, 0.0, 1.0]])
    points = np.array([[1.0, 2.0], [0.0, 0.0]])
    expected = [[3.0, 5.0], [1.0, -1.0]]
    assert metrics.transform_points(matrix, points).tolist() == expected
    by_function = metrics.transform_points(lambda xy: xy * [2, 3] + [1, -1], points)
    assert by_function.tolist() == expected


def test_homography_divides_by_the_third_coordinate() -> None:
    matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
    assert metrics.transform_points(matrix, np.array([[2.0, 4.0]])).tolist() == [[1.0, 2.0]]


def test_point_on_the_horizon_is_infinitely_wrong_instead_of_nan() -> None:
    matrix = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
    there = metrics.transform_points(matrix, np.array([[1.0, 0.0]]))
    assert metrics.distances(there, np.zeros((1, 2))).tolist() == [np.inf]


# --- SRIF criterion ----------------------------------------------------------------------------


def test_match_at_exactly_three_pixels_is_not_correct() -> None:
    points0 = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0]])
    points1 = np.array([[2.999, 0.0], [13.0, 0.0], [20.0, 3.001]])
    assert metrics.correct_matches(points0, points1, IDENTITY).tolist() == [True, False, False]


def test_query_point_counts_once_however_many_matches_share_it() -> None:
    points0 = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [9.0, 9.0]])
    points1 = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    assert metrics.correct_matches(points0, points1, IDENTITY).tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_no_matches_are_no_correct_matches() -> None:
    empty = np.zeros((0, 2))
    assert metrics.correct_matches(empty, empty, IDENTITY).tolist() == []


def test_match_rmse_is_twenty_with_nine_correct_matches_and_measured_with_ten() -> None:
    assert metrics.match_rmse(np.ones(9)) == 20.0
    assert metrics.match_rmse(np.array([1.0, 2.0] * 5)) == pytest.approx(np.sqrt(2.5))


# --- grid errors -------------------------------------------------------------------------------


def test_grid_runs_from_the_first_pixel_centre_to_the_last() -> None:
    nodes = metrics.grid_nodes(IDENTITY, (40, 60), (40, 60))
    assert len(nodes) == 400
    assert nodes.min(axis=0).tolist() == [0.5, 0.5]
    assert nodes.max(axis=0).tolist() == [59.5, 39.5]


def test_grid_keeps_only_nodes_that_the_query_shows() -> None:
    # The query is the left half: of 20 columns between 0.5 and 39.5 those up to 20 remain.
    nodes = metrics.grid_nodes(IDENTITY, (40, 40), (40, 20))
    assert len(nodes) == 200
    assert nodes[:, 0].max() <= 20


def test_truth_without_common_ground_is_an_error_that_hints_at_the_direction() -> None:
    with pytest.raises(InputError, match="only 0 of 400 grid nodes"):
        metrics.grid_nodes(shift(1000, 0), (40, 40), (40, 40))


def test_grid_error_of_a_constant_offset_is_its_length() -> None:
    errors = metrics.grid_errors(shift(3, 4), IDENTITY, (50, 50), (50, 50))
    assert errors == pytest.approx(np.full(400, 5.0))


def test_centre_placement_puts_centre_on_centre() -> None:
    placement = metrics.centre_placement((100, 200), (50, 80))
    assert metrics.transform_points(placement, np.array([[100.0, 50.0]])).tolist() == [[40.0, 25.0]]


def test_failure_costs_what_knowing_nothing_costs() -> None:
    assert metrics.counted_error(None, placement_px=30.0, shape1=(300, 400)) == 30.0


@pytest.mark.parametrize("error", [1e6, float("inf"), float("nan")])
def test_counted_error_is_capped_at_half_the_diagonal(error: float) -> None:
    assert metrics.counted_error(error, placement_px=30.0, shape1=(300, 400)) == 250.0


def test_failure_on_far_apart_images_is_capped_too() -> None:
    assert metrics.counted_error(None, placement_px=900.0, shape1=(300, 400)) == 250.0


def test_answer_counts_with_its_own_error() -> None:
    assert metrics.counted_error(2.5, placement_px=30.0, shape1=(300, 400)) == 2.5


def test_share_within_counts_failures_in_the_denominator() -> None:
    assert metrics.share_within(np.array([1.0, 2.0, np.inf, 5.0]), 2.0) == 0.5


def test_checkpoint_rmse_of_three_four_five_triangles() -> None:
    points = np.array([[0.0, 0.0, 3.0, 4.0], [10.0, 10.0, 10.0, 10.0]])
    assert metrics.checkpoint_rmse(IDENTITY, points) == pytest.approx(np.sqrt(25 / 2))


# --- corners -----------------------------------------------------------------------------------


def test_corner_error_of_a_shift_is_its_length() -> None:
    assert metrics.corner_error(shift(0, 2), IDENTITY, (30, 40)) == pytest.approx(2.0)


def test_sorted_corners_hide_a_quarter_turn_that_unsorted_ones_show() -> None:
    quarter = np.array([[0.0, -1.0, 40.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert metrics.corner_error(quarter, IDENTITY, (40, 40), is_sorted=True) == pytest.approx(0.0)
    assert metrics.corner_error(quarter, IDENTITY, (40, 40)) == pytest.approx(40.0)


def test_auc_of_one_error_inside_the_threshold() -> None:
    # Recall rises from (0, 0) to (1, 1), then is flat to 4: (0.5 + 3) / 4.
    assert float(metrics.error_auc([1.0], 4.0)) == pytest.approx(3.5 / 4)


def test_auc_of_two_errors_of_which_one_failed() -> None:
    # Recall 1/2 is reached at 2, then flat to 10: (0.5 * 2 / 2 + 8 * 0.5) / 10.
    assert float(metrics.error_auc([np.inf, 2.0], 10.0)) == pytest.approx(0.45)


def test_auc_does_not_rise_towards_an_error_beyond_the_threshold() -> None:
    assert float(metrics.error_auc([5.0], 5.0)) == 0.0
    assert float(metrics.error_auc([6.0], 5.0)) == 0.0


def superglue_auc(errors: list[float], threshold: float) -> float:
    """The published loop, line by line, with NumPy's trapezoid."""
    ordered = [0.0, *sorted(errors)]
    recall = list(np.linspace(0, 1, len(ordered)))
    last = int(np.searchsorted(ordered, threshold))
    y = [*recall[:last], recall[last - 1]]
    x = [*ordered[:last], threshold]
    return float(np.trapezoid(y, x) / threshold)


def test_auc_equals_the_published_loop_on_random_errors(rng: np.random.Generator) -> None:
    errors = rng.exponential(4.0, (20, 17))
    errors[rng.random(errors.shape) < 0.2] = np.inf
    for threshold in (3.0, 5.0, 10.0):
        expected = [superglue_auc(row.tolist(), threshold) for row in errors]
        assert metrics.error_auc(errors, threshold) == pytest.approx(expected)


# --- probabilities -----------------------------------------------------------------------------


def test_reliability_bins_hold_means_and_leave_empty_bars_out() -> None:
    bars = metrics.reliability_bins([0.05, 0.15, 0.15, 1.0], [False, True, False, True])
    assert [(bar.lower, bar.members) for bar in bars] == [(0.0, 1), (0.1, 2), (0.9, 1)]
    assert [bar.share_correct for bar in bars] == [0.0, 0.5, 1.0]
    assert bars[1].mean_probability == pytest.approx(0.15)


def test_calibration_error_weighs_bars_by_their_members() -> None:
    # Bar 0.9: three of four right, gap 0.15; bar 0.1: none of one right, gap 0.1.
    probabilities = [0.9, 0.9, 0.9, 0.9, 0.1]
    correct = [True, True, True, False, False]
    value = metrics.expected_calibration_error(probabilities, correct)
    assert value == pytest.approx((4 * 0.15 + 1 * 0.1) / 5)


def test_brier_score_of_certainty_and_of_ignorance() -> None:
    assert metrics.brier_score([1.0, 0.0], [True, False]) == 0.0
    assert metrics.brier_score([0.5, 0.5], [True, False]) == 0.25
    assert metrics.brier_score([1.0], [False]) == 1.0


def test_auroc_counts_ordered_pairs_and_ties_half() -> None:
    # Positives 0.8, 0.4; negatives 0.4, 0.2: ordered 1 + 1 + 0.5 + 1 of 4.
    assert metrics.auroc([0.8, 0.4, 0.4, 0.2], [True, True, False, False]) == pytest.approx(0.875)
    assert metrics.auroc([0.1, 0.9], [True, False]) == 0.0


def test_auroc_of_one_class_is_not_a_number() -> None:
    assert np.isnan(metrics.auroc([0.1, 0.9], [True, True]))


def test_probability_above_one_is_an_error() -> None:
    with pytest.raises(InputError, match=r"run from 0\.2 to 1\.5"):
        metrics.brier_score([0.2, 1.5], [True, False])


def test_ellipse_holds_what_lies_within_its_axes() -> None:
    # At 90 % the squared radius is -2 ln 0.1 = 4.605: 2.14 sigma inside, 2.15 sigma outside.
    covariance = np.array([[4.0, 0.0], [0.0, 1.0]])
    residuals = np.array([[2 * 2.14, 0.0], [2 * 2.15, 0.0], [0.0, 2.14], [0.0, 2.15]])
    covered = metrics.ellipse_coverage(residuals, np.repeat(covariance[None], 4, axis=0))
    assert covered == 0.5


def test_ellipse_of_a_slanted_covariance_is_slanted() -> None:
    covariance = np.array([[[1.0, 0.9], [0.9, 1.0]]] * 2)
    along, across = np.array([[1.9, 1.9]]), np.array([[1.9, -1.9]])
    assert metrics.ellipse_coverage(along, covariance[:1]) == 1.0
    assert metrics.ellipse_coverage(across, covariance[:1]) == 0.0


def test_gaussian_residuals_are_covered_at_the_stated_level(rng: np.random.Generator) -> None:
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    residuals = rng.multivariate_normal([0, 0], covariance, 20_000)
    covered = metrics.ellipse_coverage(residuals, np.repeat(covariance[None], 20_000, axis=0))
    assert covered == pytest.approx(0.9, abs=0.01)


def test_singular_covariance_covers_nothing() -> None:
    assert metrics.ellipse_coverage(np.zeros((1, 2)), np.zeros((1, 2, 2))) == 0.0


# --- bootstrap ---------------------------------------------------------------------------------


def test_interval_of_a_constant_has_no_width(rng: np.random.Generator) -> None:
    interval = metrics.bootstrap_interval(np.full(30, 7.0), metrics.mean, rng)
    assert interval == (7.0, 7.0, 7.0)


def test_interval_of_a_share_matches_the_normal_approximation(rng: np.random.Generator) -> None:
    values = np.repeat([0.0, 1.0], 200)
    interval = metrics.bootstrap_interval(values, metrics.mean, rng)
    half_width = 1.96 * np.sqrt(0.25 / 400)
    assert interval.value == 0.5
    assert interval.lower == pytest.approx(0.5 - half_width, abs=0.01)
    assert interval.upper == pytest.approx(0.5 + half_width, abs=0.01)


def test_same_generator_gives_the_same_interval() -> None:
    values = np.arange(20.0)
    first = metrics.bootstrap_interval(values, metrics.median, np.random.default_rng(3))
    second = metrics.bootstrap_interval(values, metrics.median, np.random.default_rng(3))
    assert first == second


def test_median_with_failures_stays_infinite_where_half_failed(rng: np.random.Generator) -> None:
    interval = metrics.bootstrap_interval(np.array([1.0, np.inf, np.inf]), metrics.median, rng)
    assert interval.value == np.inf
    assert interval.upper == np.inf


def test_quantile_between_finite_values_interpolates_and_beside_a_failure_is_infinite() -> None:
    assert metrics.quantile_of([0.0, 10.0], 0.25) == 2.5
    assert metrics.quantile_of([0.0, 1.0, np.inf], 0.5) == 1.0
    assert metrics.quantile_of([0.0, 1.0, np.inf], 0.9) == np.inf
