"""Trust: probabilities that grow with the evidence and stay probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsfuse.matching.trust import (
    OK_CONFIDENCE,
    PAIR_WEIGHTS,
    WEAK_CONFIDENCE,
    Evidence,
    pair_confidence,
    pair_features,
    tie_point_features,
    tie_point_probability,
)

SHARE = st.floats(0, 1)
AMOUNT = st.floats(0, 1e4)
MARGIN = st.floats(-3, 3)
METHOD = st.sampled_from(sorted(PAIR_WEIGHTS))


@given(agreement=AMOUNT, more=AMOUNT, share=SHARE, runner_up=AMOUNT)
def test_more_agreement_never_lowers_confidence(
    agreement: float, more: float, share: float, runner_up: float
) -> None:
    low = pair_confidence(Evidence(agreement, share, runner_up, 100, 50, 5.0))
    high = pair_confidence(Evidence(agreement + more, share, runner_up, 100, 50, 5.0))
    assert 0 <= low <= high <= 1


@given(agreement=AMOUNT, share=st.tuples(SHARE, SHARE), runner_up=AMOUNT)
def test_a_larger_share_never_lowers_confidence(
    agreement: float, share: tuple[float, float], runner_up: float
) -> None:
    low, high = (
        pair_confidence(Evidence(agreement, s, runner_up, 100, 50, 5.0)) for s in sorted(share)
    )
    assert 0 <= low <= high <= 1


@given(agreement=AMOUNT, share=SHARE, runner_up=AMOUNT, more=AMOUNT)
def test_a_stronger_runner_up_never_raises_confidence(
    agreement: float, share: float, runner_up: float, more: float
) -> None:
    clear = pair_confidence(Evidence(agreement, share, runner_up, 100, 50, 5.0))
    rivalled = pair_confidence(Evidence(agreement, share, runner_up + more, 100, 50, 5.0))
    assert 0 <= rivalled <= clear <= 1


@given(agreement=AMOUNT, margins=st.tuples(MARGIN, MARGIN), method=METHOD)
def test_a_better_score_of_the_search_never_lowers_confidence(
    agreement: float, margins: tuple[float, float], method: str
) -> None:
    low, high = (
        pair_confidence(Evidence(agreement, 0.5, 2.0, 100, 50, 6.0, m), method)
        for m in sorted(margins)
    )
    assert 0 <= low <= high <= 1


@given(agreement=AMOUNT, runner_up=AMOUNT, stands=st.tuples(AMOUNT, AMOUNT), method=METHOD)
def test_whole_images_that_stand_out_more_never_lower_confidence(
    agreement: float, runner_up: float, stands: tuple[float, float], method: str
) -> None:
    low, high = (
        pair_confidence(Evidence(agreement, 0.5, runner_up, 100, 50, z), method)
        for z in sorted(stands)
    )
    assert 0 <= low <= high <= 1


def test_the_two_ends_of_the_scale() -> None:
    assert pair_confidence(Evidence(0, 0, 0, 0, 0, 0)) < 0.05
    assert pair_confidence(Evidence(4, 0.1, 3.5, 200, 20, 4)) < WEAK_CONFIDENCE
    assert pair_confidence(Evidence(150, 0.9, 2, 200, 180, 12)) > OK_CONFIDENCE


def test_tie_points_or_whole_images_can_convince() -> None:
    doubtful, agreed, stands = (
        pair_confidence(Evidence(agreement, 0.4, 2, 400, 160, z))
        for agreement, z in ((4, 4), (30, 4), (4, 10))
    )
    assert doubtful < WEAK_CONFIDENCE
    assert min(agreed, stands) > 5 * doubtful


def test_features_are_bounded() -> None:
    np.testing.assert_array_equal(pair_features(Evidence(-5, 0.0, -7, 0, 0, -3)), 0)
    top = pair_features(Evidence(1e9, 1.0, 0, 10, 10, 1e9, 1e9))
    np.testing.assert_allclose(top, [np.log1p(200), 3, np.log1p(20), 1])
    assert pair_features(Evidence(0, 0, 0, 10, 10, 0, -1e9))[3] == -0.5
    assert pair_features(Evidence(0, 0, 1e9, 10, 10, 0))[1] == -2


@given(
    probability=st.tuples(SHARE, SHARE),
    height=st.tuples(st.floats(-5, 50), st.floats(-5, 50)),
    residual=st.tuples(st.floats(0, 100), st.floats(0, 100)),
    confidence=SHARE,
)
def test_better_tie_points_are_never_less_probable(
    probability: tuple[float, float],
    height: tuple[float, float],
    residual: tuple[float, float],
    confidence: float,
) -> None:
    worse_better = tie_point_probability(
        np.array(sorted(probability)),
        np.array(sorted(height)),
        np.array(sorted(residual, reverse=True)),
        confidence=confidence,
    )
    assert 0 <= worse_better[0] <= worse_better[1] <= confidence


@pytest.mark.parametrize("column", range(3))
def test_each_kind_of_evidence_counts_for_a_tie_point(column: int) -> None:
    low, high = [0.2, 5.0, 4.0], [0.2, 5.0, 4.0]
    high[column] = (0.9, 9.0, 0.5)[column]
    pair = np.array([low, high]).T
    worse, better = tie_point_probability(*pair, confidence=0.8)
    assert better > worse + 0.02


def test_a_tie_point_of_a_wrong_transform_is_wrong() -> None:
    good = (np.array([0.999]), np.array([20.0]), np.array([0.1]))
    assert tie_point_probability(*good, confidence=0.0) == 0
    assert tie_point_probability(*good, confidence=1.0) > 0.9


def test_no_tie_points() -> None:
    none = np.zeros(0)
    assert tie_point_features(none, none, none).shape == (0, 3)
    assert tie_point_probability(none, none, none, confidence=0.5).shape == (0,)


def test_certain_and_impossible_peaks_stay_finite() -> None:
    ends = np.array([0.0, 1.0])
    assert np.isfinite(tie_point_features(ends, ends, np.zeros(2))).all()
