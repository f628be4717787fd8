"""From images to candidates, and from candidates to placements."""

import cv2
import numpy as np
import pytest

from rsfuse.geo.raster import open_raster
from rsfuse.matching.measurer import TemplateMeasurer
from rsfuse.matching.pipeline import (
    PairReader,
    SearchRange,
    Verified,
    covered,
    find_candidates,
    spread_tiles,
    verified_part,
    verify,
)
from rsfuse.matching.predict import _close, _search_margin
from rsfuse.matching.reader import pair_reader
from rsfuse.matching.robust import Consensus
from rsfuse.matching.search import FIRST_LOOK, SECOND_LOOK, Candidate
from rsfuse.ops.geometry2d import apply_matrix, for_opencv

SIDE = 320
# As far as can be from the rotations of the first look, and among those of the second.
TURN_DEG = 33.0


def turned(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image turned about its centre, and the matrix to it."""
    a = np.deg2rad(TURN_DEG)
    matrix = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]])
    matrix[:2, 2] = SIDE / 2 - matrix[:2, :2] @ [SIDE / 2, SIDE / 2]
    return cv2.warpAffine(image, for_opencv(matrix)[:2], (SIDE, SIDE)), matrix


def reader(first: np.ndarray, second: np.ndarray) -> PairReader:
    pair, _, _ = pair_reader(open_raster(first), open_raster(second))
    assert pair is not None
    return pair


@pytest.fixture(scope="module")
def grains() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Small things only, in noise; the same turned, in other noise; and the matrix."""
    rng = np.random.default_rng(5)
    image = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)).astype(np.float32), (0, 0), 1.2)
    view, matrix = turned(image)
    noise = rng.normal(size=(2, SIDE, SIDE)).astype(np.float32) * 0.35 * image.std()
    return image + noise[0], view + noise[1], matrix


@pytest.mark.parametrize(
    ("size", "side", "most", "across", "down"),
    [
        ((500, 300), 768, 9, 1, 1),
        ((1000, 700), 320, 144, 4, 3),
        ((10000, 10000), 320, 144, 12, 12),
        ((10000, 10000), 768, 9, 3, 3),
        ((9000, 300), 320, 9, 9, 1),
        ((5000, 5000), 478.496, 144, 11, 11),
    ],
)
def test_tiles_are_spread_from_border_to_border(
    size: tuple[int, int], side: float, most: int, across: int, down: int
) -> None:
    tiles = np.array(spread_tiles((10.0, 20.0, *size), side, most))
    assert len(tiles) == across * down
    assert (tiles[:, 2:] == np.minimum(round(side), size)).all()  # half a pixel would be a shift
    assert tiles[:, :2].min(axis=0).tolist() == [10, 20]
    assert (tiles[:, :2] + tiles[:, 2:]).max(axis=0).tolist() == [10 + size[0], 20 + size[1]]


def test_beyond_the_horizon_all_of_the_reference_counts_as_covered() -> None:
    pair = reader(np.zeros((90, 120)), np.zeros((900, 1800)))
    assert covered(pair, np.eye(3)) == (0, 0, 120, 90)
    leaning = np.array([[1.0, 0, 0], [0, 1, 0], [1e-3, 0, 1]])
    assert np.isnan(apply_matrix(np.linalg.inv(leaning), [[1800, 0]])).any()
    assert covered(pair, leaning) == (0, 0, 120, 90)


def test_a_query_that_is_a_small_part_is_looked_at_where_it_lies() -> None:
    pair = reader(np.zeros((500, 600)), np.zeros((200, 150)))
    placed = np.array([[1.0, 0, -310], [0, 1, -40], [0, 0, 1]])
    assert verified_part(pair, placed) == (310, 40, 150, 200)
    assert verified_part(pair, np.diag([0.5, 0.5, 1.0])) == (0, 0, 600, 500)


def misplaced(matrix: np.ndarray, truth: np.ndarray) -> float:
    points = np.random.default_rng(0).uniform(60, SIDE - 60, (30, 2))
    return float(np.hypot(*(apply_matrix(matrix, points) - apply_matrix(truth, points)).T).mean())


def test_the_margin_of_the_search_is_over_other_places() -> None:
    nothing = Consensus(np.eye(3), np.zeros(0, bool), 0.0)

    def placed(score: float, x: float) -> Verified:
        matrix = np.array([[1, 0, x], [0, 1, 0], [0, 0, 1.0]])
        return Verified(matrix, nothing, Candidate(score, matrix, 0.0, 1.0), 0)

    best, same, other = placed(8.0, 0.0), placed(12.0, 2.0), placed(9.0, 90.0)
    assert _search_margin(best, [best, same, other], (SIDE, SIDE)) == pytest.approx(np.log(12 / 9))
    assert _search_margin(other, [best, same, other], (SIDE, SIDE)) == pytest.approx(np.log(9 / 12))
    assert _search_margin(best, [best, same], (SIDE, SIDE)) == 0


def test_the_second_look_has_the_rotations_between_those_of_the_first(grains: tuple) -> None:
    first, second, truth = grains
    pair = reader(first, second)
    rough, fine = (
        find_candidates(pair, SearchRange((-60, 60), (1, 1), again=again), threads=1)[0]
        for again in (False, True)
    )
    assert 2 < misplaced(rough.matrix, truth) < 8
    assert misplaced(fine.matrix, truth) < 1
    assert fine.rotation_deg == pytest.approx(TURN_DEG)


def test_a_second_look_never_enlarges_images_beyond_the_first(grains: tuple) -> None:
    small = grains[0][:100, :100]
    read: list[tuple[int, int]] = []
    pair = reader(small, small)

    def seen(rect: tuple[float, float, float, float], shape: tuple[int, int]):  # type: ignore[no-untyped-def]
        read.append(shape)
        return pair.read0(rect, shape)

    watched = PairReader(pair.shape0, seen, pair.read1, pair.base, pair.shape1, pair.area1)
    find_candidates(watched, SearchRange((-6, 6), (1, 1), again=True), threads=1)
    assert read == [(FIRST_LOOK[0], FIRST_LOOK[0])]
    assert SECOND_LOOK[0] > FIRST_LOOK[0]
    assert SECOND_LOOK[1] < FIRST_LOOK[1]


def test_tie_points_that_disagree_move_no_candidate(grains: tuple) -> None:
    stranger = np.random.default_rng(9).normal(size=(SIDE, SIDE)).astype(np.float32)
    pair = reader(grains[0], stranger)
    for seed in range(3):
        candidate = Candidate(5.0, np.eye(3), 0.0, 1.0)
        found = verify(pair, TemplateMeasurer(), candidate, np.random.default_rng(seed))
        if found.consensus.evidence < 0.3:
            np.testing.assert_array_equal(found.matrix, np.eye(3))


def placement(evidence: float) -> Verified:
    agreed = Consensus(np.eye(3), np.zeros(0, bool), evidence)
    return Verified(np.eye(3), agreed, Candidate(0.0, np.eye(3), 0.0, 1.0), 0)


def test_the_best_of_the_search_is_refined_whatever_its_tie_points_say() -> None:
    verified = [placement(e) for e in (5, 4, 3, 2, 0)]
    searched = verified[::-1]
    chosen = _close(verified, searched)
    assert [v.consensus.evidence for v in chosen] == [5, 4, 3, 0]
    assert [v.consensus.evidence for v in _close(verified, verified)] == [5, 4, 3]
    assert len(_close(verified[:1], [])) == 1
