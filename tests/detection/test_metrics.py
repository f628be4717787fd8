"""Average precision: values worked out on paper, and equality with a plain telling of the rules."""

import numpy as np
import pytest
import shapely

from rsfuse.detection.metrics import (
    PROTOCOLS,
    THRESHOLDS,
    Answers,
    Protocol,
    Truth,
    ap_of,
    average_precision,
)
from rsfuse.errors import InputError


def square(x: float, y: float, side: float = 10.0) -> np.ndarray:
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]])


def truth_of(*rows: tuple[int, np.ndarray, int, int]) -> Truth:
    image, corners, labels, difficult = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Truth(
        np.array(image, np.int64),
        np.array(corners, np.float64).reshape(-1, 4, 2),
        np.array(labels, np.int64),
        np.array(difficult, np.int64),
    )


def answers_of(*rows: tuple[int, np.ndarray, int, float]) -> Answers:
    image, corners, labels, scores = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Answers(
        np.array(image, np.int64),
        np.array(corners, np.float64).reshape(-1, 4, 2),
        np.array(labels, np.int64),
        np.array(scores, np.float64),
    )


def ap50(truth: Truth, answers: Answers, protocol: str = "voc12") -> float:
    return float(average_precision(truth, answers, ("a",), PROTOCOLS[protocol], (0.5,)).ap[0, 0])


A, B, C = square(0, 0), square(100, 0), square(200, 0)


def test_all_found_is_one() -> None:
    truth = truth_of((0, A, 0, 0), (1, A, 0, 0))
    answers = answers_of((0, A, 0, 0.9), (1, A, 0, 0.8))
    assert ap50(truth, answers, "voc12") == pytest.approx(1.0)
    assert ap50(truth, answers, "dota-1.0") == pytest.approx(1.0)


def test_right_wrong_right() -> None:
    # Precision at the hits: 1/1 and 2/3; recall 1/2 and 1.
    truth = truth_of((0, A, 0, 0), (0, B, 0, 0))
    answers = answers_of((0, A, 0, 0.9), (0, C, 0, 0.8), (0, B, 0, 0.7))
    assert ap50(truth, answers, "voc12") == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # Recalls 0 to 0.5 (six) have precision 1, 0.6 to 1 (five) have 2/3.
    assert ap50(truth, answers, "dota-1.0") == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_a_second_detection_of_an_object_is_wrong() -> None:
    truth = truth_of((0, A, 0, 0), (0, B, 0, 0))
    answers = answers_of((0, A, 0, 0.9), (0, A, 0, 0.8), (0, B, 0, 0.7))
    assert ap50(truth, answers) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_no_second_best_object_is_tried() -> None:
    # Both detections fit A best; B, which the second overlaps by a third, stays unfound.
    near = square(5, 0)
    truth = truth_of((0, A, 0, 0), (0, near, 0, 0))
    answers = answers_of((0, A, 0, 0.9), (0, square(1, 0), 0, 0.8))
    assert ap50(truth, answers) == pytest.approx(0.5)


def test_difficult_objects_count_for_nothing_or_as_others() -> None:
    truth = truth_of((0, A, 0, 0), (0, B, 0, 1))
    answers = answers_of((0, B, 0, 0.9), (0, A, 0, 0.8))
    assert ap50(truth, answers, "dota-1.0") == pytest.approx(1.0)
    assert ap50(truth, answers, "dota-1.5") == pytest.approx(1.0)
    only_easy = answers_of((0, A, 0, 0.8))
    assert ap50(truth, only_easy, "voc12") == pytest.approx(1.0)
    assert ap50(truth, only_easy, "dota-1.5") == pytest.approx(6 / 11)


def test_an_overlap_of_exactly_the_threshold_is_not_enough() -> None:
    truth = truth_of((0, A, 0, 0))
    half = np.array([[0, 0], [10, 0], [10, 5], [0, 5]], float)
    answers = answers_of((0, half, 0, 0.9))
    assert ap50(truth, answers) == 0.0
    loose = Protocol("at least", "voc12", strict=False)
    assert average_precision(truth, answers, ("a",), loose, (0.5,)).ap[0, 0] == pytest.approx(1.0)


def test_ties_are_taken_in_the_order_given() -> None:
    truth = truth_of((0, A, 0, 0), (0, B, 0, 0))
    right_first = answers_of((0, A, 0, 0.5), (0, C, 0, 0.5))
    wrong_first = answers_of((0, C, 0, 0.5), (0, A, 0, 0.5))
    assert ap50(truth, right_first) == pytest.approx(0.5)
    assert ap50(truth, wrong_first) == pytest.approx(0.25)


def test_empty_classes() -> None:
    truth = truth_of((0, A, 0, 0))
    answers = answers_of((0, A, 0, 0.9), (0, A, 1, 0.9))
    scores = average_precision(truth, answers, ("a", "b", "c"), PROTOCOLS["voc12"])
    assert np.isnan(scores.ap[1]).all()  # no objects: left out of the mean
    assert scores.mean(0.5) == pytest.approx(1.0)
    nothing = average_precision(truth, answers_of(), ("a",), PROTOCOLS["dota-1.0"])
    assert (nothing.ap == 0).all()
    assert np.isnan(average_precision(truth_of(), answers_of(), ("a",), PROTOCOLS["voc12"]).mean())


def test_recall_of_exactly_three_tenths_misses_the_fourth_level() -> None:
    # arange(0, 1.1, 0.1)[3] is 0.30000000000000004.
    recall, precision = np.array([0.1, 0.2, 0.3]), np.ones(3)
    assert ap_of(recall, precision, "voc07") == pytest.approx(3 / 11)


def test_numbers_that_are_none_are_refused() -> None:
    broken = A.copy()
    broken[0, 0] = np.nan
    with pytest.raises(InputError, match="not a finite number"):
        ap50(truth_of((0, A, 0, 0)), answers_of((0, broken, 0, 0.9)))


def plain_ap(truth: Truth, answers: Answers, label: int, threshold: float, rule: str,
             ignore_difficult: bool) -> float:  # fmt: skip
    """The rules told step by step, with shapely."""
    objects = [i for i in range(len(truth.labels)) if truth.labels[i] == label]
    hard = {i for i in objects if truth.difficult[i] and ignore_difficult}
    npos = len(objects) - len(hard)
    detections = [i for i in range(len(answers.labels)) if answers.labels[i] == label]
    detections.sort(key=lambda i: -answers.scores[i])
    taken: set[int] = set()
    hits, misses, curve = 0, 0, []
    for d in detections:
        best, overlap = None, -1.0
        for o in objects:
            if truth.image[o] != answers.image[d]:
                continue
            a, b = shapely.Polygon(truth.corners[o]), shapely.Polygon(answers.corners[d])
            common = a.intersection(b).area
            value = common / (a.area + b.area - common)
            if value > overlap:
                best, overlap = o, value
        if overlap > threshold:
            if best not in hard:
                if best in taken:
                    misses += 1
                else:
                    taken.add(best)
                    hits += 1
        else:
            misses += 1
        curve.append((hits / npos if npos else 0.0, hits / max(hits + misses, 1e-300)))
    if not npos:
        return float("nan")
    if rule == "voc07":
        levels = np.arange(0.0, 1.1, 0.1)
        return sum(max([p for r, p in curve if r >= level], default=0.0) for level in levels) / 11
    total, last = 0.0, 0.0
    for i, (recall, _) in enumerate(curve):
        if recall > last:
            total += (recall - last) * max(p for _, p in curve[i:])
            last = recall
    return total


@pytest.mark.parametrize("seed", range(12))
def test_random_sets_equal_the_plain_rules(seed: int) -> None:
    random = np.random.default_rng(seed)

    def quads(count: int) -> np.ndarray:
        base = np.stack([square(*random.integers(0, 30, 2)) for _ in range(count)])
        return base + random.uniform(-3, 3, base.shape)

    n, m = 25, 60
    truth = Truth(
        random.integers(0, 3, n), quads(n), random.integers(0, 3, n), random.integers(0, 2, n)
    )
    copied = random.integers(0, n, m)
    corners = truth.corners[copied] + random.uniform(-2, 2, (m, 4, 2))
    answers = Answers(truth.image[copied], corners, truth.labels[copied], random.random(m).round(1))
    for name in ("dota-1.0", "dota-1.5", "voc12"):
        protocol = PROTOCOLS[name]
        scores = average_precision(truth, answers, ("a", "b", "c"), protocol)
        for label in range(3):
            for t in (0, 3, 7):
                expected = plain_ap(
                    truth, answers, label, THRESHOLDS[t], protocol.rule,
                    protocol.difficult == "ignored",
                )  # fmt: skip
                assert scores.ap[label, t] == pytest.approx(expected, abs=1e-12, nan_ok=True)
