"""Accuracy measures, worked out on paper."""

import numpy as np
import pytest

from rsfuse.classification import metrics


def test_agreement_on_paper() -> None:
    matrix = np.array([[45, 15], [25, 15]])
    found = metrics.Agreement.of(matrix)
    assert found.overall == pytest.approx(0.6)
    # Chance: 0.6 * 0.7 + 0.4 * 0.3 = 0.54; kappa (0.6 - 0.54) / 0.46.
    assert found.kappa == pytest.approx(0.06 / 0.46)
    np.testing.assert_allclose(found.producers, [45 / 60, 15 / 40])
    np.testing.assert_allclose(found.users, [45 / 70, 15 / 30])
    np.testing.assert_allclose(found.f1, [90 / 130, 30 / 70])
    assert found.average == pytest.approx((45 / 60 + 15 / 40) / 2)


def test_classes_without_labels_count_for_nothing() -> None:
    found = metrics.Agreement.of(np.array([[5, 0, 1], [0, 0, 0], [0, 0, 4]]))
    assert np.isnan(found.producers[1])
    assert found.mean_f1 == pytest.approx((10 / 11 + 8 / 9) / 2)


def test_the_matrix_has_truth_in_rows() -> None:
    matrix = metrics.confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_calibration_on_paper() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, False, True, True])
    error, rows = metrics.reliability(confidence, right)
    assert error == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    assert [row["pixels"] for row in rows] == [2, 2]


def test_temperature_undoes_what_was_done_to_the_logits() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(20_000, 3))
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (odds.cumsum(1) < random.random((20_000, 1))).sum(1)
    assert metrics.fit_temperature(4.0 * logits, labels) == pytest.approx(4.0, rel=0.05)
    assert metrics.fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == 1.0


def test_areas_of_the_published_example() -> None:
    # Olofsson et al. 2014, table 8: map classes in rows there, in columns here. Deforestation is
    # mapped on 200,000 pixels and estimated at 235,086 with a 95 % margin of 68,418.
    published = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
    mapped = np.array([200_000.0, 150_000, 3_200_000, 6_450_000])
    found = metrics.estimate_areas(published.T, mapped.tolist())
    total = float(mapped.sum())
    assert found.share.sum() == pytest.approx(1)
    assert found.share[0] * total == pytest.approx(235_086, abs=1)
    # Forest gain by hand: 150,000 * 55 / 75 + 6,450,000 / 325.
    assert found.share[1] * total == pytest.approx(110_000 + 6_450_000 / 325)
    low, high = found.interval(total)[0]
    assert (high - low) / 2 == pytest.approx(68_418, rel=1e-3)


def test_whole_blocks_are_drawn() -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 2, 4000)
    blocks = np.arange(4000) // 100
    found = np.where(blocks % 2 == 0, truth, 1 - truth)  # half of the blocks are all wrong
    low, high = metrics.block_bootstrap(truth, found, blocks, 2, draws=300)["overall"]
    assert low < 0.42
    assert high > 0.58
    alone = metrics.block_bootstrap(truth, found, np.arange(4000), 2, draws=300)["overall"]
    assert alone[1] - alone[0] < 0.05


def test_one_block_has_no_interval() -> None:
    truth, found = np.array([0, 1, 1]), np.array([0, 1, 0])
    ends = metrics.block_bootstrap(truth, found, np.zeros(3, np.int64), 2)
    assert np.isnan([ends[name] for name in ("overall", "kappa", "mean_f1")]).all()


def test_labels_of_one_class_have_an_interval_of_accuracy_and_none_of_kappa() -> None:
    zeros = np.zeros(8, np.int64)
    ends = metrics.block_bootstrap(zeros, zeros, np.arange(8), 2, draws=20)
    assert ends["overall"] == (1.0, 1.0)
    assert np.isnan(ends["kappa"]).all()
