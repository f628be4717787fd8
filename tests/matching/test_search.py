"""Global search: a known placement of a random image is found first."""

import cv2
import numpy as np
import pytest

from rsfuse.matching.search import Candidate, View, flattened, search
from rsfuse.ops.geometry2d import apply_matrix, for_opencv, rotation_scale_of

SIDE = 96


def land(rng: np.random.Generator, shape: tuple[int, int] = (220, 220)) -> np.ndarray:
    """Random blocks and a soft texture: something with edges, around 0.5."""
    image = cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), 4.0)
    image *= 0.15 / image.std()
    for _ in range(70):
        centre = rng.uniform(0, shape[::-1])
        box = (tuple(centre), tuple(rng.uniform(8, 40, 2)), float(rng.uniform(0, 90)))
        patch = cv2.boxPoints(box).astype(np.int32)
        cv2.fillPoly(image, [patch], float(rng.normal(0, 0.5)))
    return image.astype(np.float32)


def placement(rotation: float, scale: float, shift: tuple[float, float], side: int) -> np.ndarray:
    """Reference pixels -> query pixels: turned clockwise about the common centre, then moved."""
    c, s = scale * np.cos(np.deg2rad(rotation)), scale * np.sin(np.deg2rad(rotation))
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    centre = np.array([side / 2, side / 2])
    matrix[:2, 2] = centre - matrix[:2, :2] @ centre + shift
    return matrix


def views(
    matrix: np.ndarray,
    rng: np.random.Generator,
    *,
    side: int = SIDE,
    size: int = SIDE,
    shape: tuple[int, int] = (220, 220),
) -> tuple[View, View]:
    """A reference of `side` pixels, cut from land of `shape`, and a query of `size` pixels."""
    ground = land(rng, shape)
    start = (ground.shape[0] - side) // 2
    cut = np.array([[1, 0, -start], [0, 1, -start], [0, 0, 1.0]])
    whole = for_opencv(matrix @ cut)[:2]
    query = cv2.warpAffine(ground, whole, (size, size), flags=cv2.INTER_LINEAR)
    reference = ground[start : start + side, start : start + side]
    return (
        View(np.ascontiguousarray(reference)[None], np.ones((side, side), bool), (1.0, 1.0)),
        View(query[None], np.ones((size, size), bool), (1.0, 1.0)),
    )


def error(candidate: Candidate, matrix: np.ndarray, side: int = SIDE) -> float:
    """Mean distance over the reference between where two placements put it."""
    x, y = np.meshgrid(np.linspace(0, side, 5), np.linspace(0, side, 5))
    xy = np.stack([x.ravel(), y.ravel()], axis=1)
    return float(
        np.hypot(*(apply_matrix(candidate.matrix, xy) - apply_matrix(matrix, xy)).T).mean()
    )


CASES = [
    (0.0, 1.0, (0, 0)),
    (0.0, 1.0, (21, -17)),
    (90.0, 1.0, (5, 8)),
    (-34.0, 1.0, (10, -6)),
    (147.0, 1.0, (-4, 12)),
    (12.0, 1.15, (6, 4)),
    (-60.0, 0.87, (-7, 3)),
]


@pytest.mark.parametrize(
    ("rotation", "scale", "shift", "sign"),
    [(*case, 1) for case in CASES] + [(*case, -1) for case in CASES[1::2]],
)
def test_a_known_placement_is_the_first_candidate(
    rotation: float, scale: float, shift: tuple[float, float], sign: int, rng: np.random.Generator
) -> None:
    matrix = placement(rotation, scale, shift, SIDE)
    reference, query = views(matrix, rng)
    query = query._replace(image=sign * query.image)
    found = search(
        reference,
        query,
        rotations_deg=np.arange(-180, 180, 6.0),
        scales=np.array([1 / 1.15, 1.0, 1.15]),
    )
    best = found[0]
    assert error(best, matrix) < 6
    assert abs((best.rotation_deg - rotation + 180) % 360 - 180) <= 6
    assert best.scale == pytest.approx(scale, rel=0.16)
    assert rotation_scale_of(best.matrix)[0] == pytest.approx(
        (best.rotation_deg + 180) % 360 - 180, abs=1e-6
    )
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
    assert best.score > 1.2 * found[1].score


@pytest.mark.parametrize("shift", [(0, 0), (24, -20), (-24, 20), (-26, -26), (26, 26)])
def test_a_small_query_is_found_on_a_larger_reference(
    shift: tuple[float, float], rng: np.random.Generator
) -> None:
    side, size = 120, 64
    matrix = placement(0, 1, (-28 + shift[0], -28 + shift[1]), side)
    reference, query = views(matrix, rng, side=side, size=size)
    found = search(reference, query, rotations_deg=np.array([0.0, 90.0]), scales=np.array([1.0]))
    assert error(found[0], matrix, side) < 3


@pytest.mark.parametrize(
    ("rotation", "shift"), [(0.0, (0, 0)), (0.0, (-30, 26)), (40.0, (28, 28)), (-90.0, (30, -8))]
)
def test_a_reference_in_the_corner_of_a_coarse_query_is_found(
    rotation: float, shift: tuple[float, float], rng: np.random.Generator
) -> None:
    # A query pixel is two reference pixels: at the reference's size the query is 192 pixels wide.
    matrix = placement(rotation, 0.5, shift, SIDE)
    reference, query = views(matrix, rng, shape=(420, 420))
    found = search(
        reference, query, rotations_deg=np.array([0.0, 40.0, -90.0]), scales=np.array([0.5])
    )
    assert error(found[0], matrix) < 3


@pytest.mark.parametrize("shift", [(0, 0), (50, 44), (-50, 40), (-44, -50), (46, -46)])
def test_a_small_reference_is_found_on_a_larger_query(
    shift: tuple[float, float], rng: np.random.Generator
) -> None:
    side, size = 48, 150
    matrix = placement(0, 1, (51 + shift[0], 51 + shift[1]), side)
    reference, query = views(matrix, rng, side=side, size=size)
    found = search(reference, query, rotations_deg=np.array([0.0, 90.0]), scales=np.array([1.0]))
    assert error(found[0], matrix, side) < 3


def test_reduced_pixels_are_led_back_to_full_resolution(rng: np.random.Generator) -> None:
    matrix = placement(0, 1, (9, -5), SIDE)
    reference, query = views(matrix, rng)
    reference, query = reference._replace(factor=(4.0, 4.0)), query._replace(factor=(2.0, 2.5))
    found = search(reference, query, rotations_deg=np.zeros(1), scales=np.ones(1))
    expected = np.diag([2.0, 2.5, 1]) @ matrix @ np.diag([0.25, 0.25, 1])
    np.testing.assert_allclose(
        apply_matrix(found[0].matrix, [[200, 200]]), apply_matrix(expected, [[200, 200]]), atol=4
    )


def test_candidates_are_distinct_and_no_more_than_asked(rng: np.random.Generator) -> None:
    reference, query = views(placement(0, 1, (3, 3), SIDE), rng)
    found = search(
        reference, query, rotations_deg=np.arange(-12, 13, 6.0), scales=np.ones(1), keep=3
    )
    assert 1 <= len(found) <= 3
    for i, one in enumerate(found):
        for other in found[:i]:
            assert error(one, other.matrix) > 0.05 * SIDE


def test_a_limit_on_the_shift_is_kept(rng: np.random.Generator) -> None:
    reference, query = views(placement(0, 1, (22, 0), SIDE), rng)
    middle = np.array([[SIDE / 2, SIDE / 2]])
    for origin, expected in [((0.0, 0.0), False), ((-22.0, 0.0), True)]:
        found = search(
            reference,
            query,
            rotations_deg=np.zeros(1),
            scales=np.ones(1),
            max_shift=10.0,
            origin=origin,
        )
        moved = [apply_matrix(c.matrix, middle)[0] - middle[0] + origin for c in found]
        assert all(np.hypot(*m) <= 10 for m in moved)
        right = [np.hypot(m[0] - 22 - origin[0], m[1]) < 2 for m in moved]
        assert any(right) is expected


def test_threads_do_not_change_the_answer(rng: np.random.Generator) -> None:
    reference, query = views(placement(18, 1, (3, 3), SIDE), rng)
    answers = [
        search(
            reference,
            query,
            rotations_deg=np.arange(-30, 31, 6.0),
            scales=np.array([0.9, 1.0, 1.1]),
            threads=threads,
        )
        for threads in (1, 3)
    ]
    for one, other in zip(*answers, strict=True):
        assert one.score == other.score
        np.testing.assert_array_equal(one.matrix, other.matrix)


def test_masked_pixels_do_not_pull_the_placement(rng: np.random.Generator) -> None:
    matrix = placement(0, 1, (12, 7), SIDE)
    reference, query = views(matrix, rng)
    valid = query.valid.copy()
    valid[30:70, 60:] = False
    image = np.where(valid, query.image, np.float32(1e5))
    found = search(
        reference, View(image, valid, (1.0, 1.0)), rotations_deg=np.zeros(1), scales=np.ones(1)
    )
    assert error(found[0], matrix) < 3


def test_flat_images_do_not_fail() -> None:
    flat = View(np.zeros((1, 48, 48), np.float32), np.ones((48, 48), bool), (1.0, 1.0))
    found = search(flat, flat, rotations_deg=np.zeros(1), scales=np.ones(1))
    assert all(np.isfinite(c.score) for c in found)


@pytest.mark.parametrize("rotation", [90.0, 180.0, -90.0])
def test_a_quarter_turn_costs_no_score(rotation: float, rng: np.random.Generator) -> None:
    reference, _ = views(np.eye(3), rng)
    turned = np.rot90(reference.image, round(-rotation / 90), axes=(1, 2))
    query = reference._replace(image=np.ascontiguousarray(turned))
    (upright,) = search(reference, reference, rotations_deg=np.zeros(1), scales=np.ones(1), keep=1)
    (found,) = search(
        reference, query, rotations_deg=np.array([rotation]), scales=np.ones(1), keep=1
    )
    assert error(found, placement(rotation, 1, (0, 0), SIDE)) < 1e-6
    assert found.score == pytest.approx(upright.score, rel=0.01)


def test_flattening_keeps_phases_and_takes_the_root_of_magnitudes(rng: np.random.Generator) -> None:
    spectrum = (rng.normal(size=(2, 8, 8)) + 1j * rng.normal(size=(2, 8, 8))).astype(np.complex64)
    spectrum[:, 0, 0] *= 1e4  # what a long edge adds to a few frequencies
    spectrum[:, 1, 1] *= 1e-9  # and what is noise stays small
    flat = flattened(spectrum, 0.5)
    np.testing.assert_allclose(np.angle(flat), np.angle(spectrum), atol=1e-4)
    before, after = (np.sqrt((np.abs(s) ** 2).sum(axis=0)) for s in (spectrum, flat))
    assert after[0, 0] == pytest.approx(np.sqrt(before[0, 0]), rel=1e-4)
    assert after[1, 1] < 1e-6
