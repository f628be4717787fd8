"""Constructed training pairs: the stated displacement is the true one; sources are read."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from rsfuse.errors import InputError
from rsfuse.geo.write import write_cog
from rsfuse.matching.data import held_out_of, read_pairs
from rsfuse.matching.model import CELL
from rsfuse.matching.operators import HELD_OUT, OPERATORS, degraded
from rsfuse.matching.pairs import Motions, Sources, Stack, draw_sample, load_groups, stack_of_pair
from rsfuse.ops.geometry2d import for_opencv

SIZE = 128
PLAIN = Motions(far=0, unrelated=0, holes=0, zoom=(1.0, 1.0))


def ground(seed: int = 0, size: int = 400) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((size, size)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(127 + 60 * soft / soft.std(), 0, 255).astype(np.uint8)[None]


def stack(*layers: np.ndarray, shifts: tuple[tuple[float, float], ...] | None = None) -> Stack:
    return Stack(layers, shifts or ((0.0, 0.0),) * len(layers))


def measured_shift(image0: np.ndarray, image1: np.ndarray, x: int, y: int) -> np.ndarray:
    """Where a patch of one grey image lies in the other, by normalised correlation."""
    patch = image0[y - 16 : y + 16, x - 16 : x + 16]
    reach = 14
    window = image1[y - 16 - reach : y + 16 + reach, x - 16 - reach : x + 16 + reach]
    scores = cv2.matchTemplate(window.astype(np.float32), patch.astype(np.float32), 5)
    row, column = np.unravel_index(scores.argmax(), scores.shape)
    return np.array([column - reach, row - reach])


@pytest.mark.parametrize("seed", range(6))
def test_the_stated_displacement_is_the_true_one(seed: int) -> None:
    groups = [[stack(ground())]]
    sample = draw_sample(
        np.random.default_rng(seed), groups, SIZE, PLAIN, {"same": OPERATORS["same"]}
    )
    assert sample.shift.shape == (SIZE // CELL + 1, SIZE // CELL + 1, 2)
    assert sample.related == 1
    gaps = []
    for column, row in ((7, 7), (9, 8), (8, 9)):
        found = measured_shift(sample.image0[4], sample.image1[4], column * CELL, row * CELL)
        gaps.append(np.hypot(*(found - sample.shift[row, column])))
    assert np.median(gaps) < 1.5


def test_layers_that_lie_beside_each_other_are_brought_together() -> None:
    first = ground()
    second = np.roll(first, (3, 5), axis=(1, 2))  # content lies 5 right and 3 down
    groups = [[stack(first, second, shifts=((0.0, 0.0), (5.0, 3.0)))]]
    still = Motions(0, 0, 0, 0, 0, (1.0, 1.0), 0, 0)
    same = {"same": OPERATORS["same"]}
    sample = draw_sample(np.random.default_rng(1), groups, SIZE, still, same)
    assert np.abs(sample.shift).max() < 3  # shear alone is left
    found = measured_shift(sample.image0[4], sample.image1[4], 64, 64)
    assert np.hypot(*(found - sample.shift[8, 8])) < 1.5


def test_a_sample_depends_on_the_generator_alone() -> None:
    groups = [[stack(ground())], [stack(ground(1), ground(2))]]
    one, again = (draw_sample(np.random.default_rng(5), groups, 64, Motions()) for _ in range(2))
    for a, b in zip(one, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_unrelated_pairs_and_holes() -> None:
    groups = [[stack(ground())]]
    samples = [
        draw_sample(np.random.default_rng(i), groups, 64, Motions(unrelated=1, holes=1))
        for i in range(4)
    ]
    assert all(s.related == 0 for s in samples)
    assert any((np.abs(s.image0).max(axis=0) == 0).mean() > 0.02 for s in samples)


@pytest.mark.parametrize("name", [*OPERATORS, *HELD_OUT])
def test_operators_keep_the_range_and_move_nothing(name: str) -> None:
    operator = {**OPERATORS, **HELD_OUT}[name]
    band = ground()[0].astype(np.float32) / 255
    before = band.copy()
    out = operator(band, np.random.default_rng(3))
    assert out.shape == band.shape
    assert out.dtype == np.float32
    assert out.min() >= -1e-6
    assert out.max() <= 1.5
    np.testing.assert_array_equal(band, before)
    rough = degraded(out, np.random.default_rng(4))
    assert rough.shape == band.shape


def test_operators_that_are_held_out_are_not_trained_on() -> None:
    assert not set(OPERATORS) & set(HELD_OUT)


def test_sources(tmp_path: Path) -> None:
    for name in ("a1", "a2", "b1", "b2"):
        write_cog(tmp_path / f"{name}.tif", ground(len(name)))
    entry = {
        "category": "x", "image1": "a1.tif", "image2": "b1.tif", "use": "train",
        "affine_1to2": [[1, 0, 2], [0, 1, 0]], "residual_px": [1, -1],
    }  # fmt: skip
    uses = ("train", "train", "dev", "train", "train")
    index = [{**entry, "pair": i, "use": use} for i, use in enumerate(uses)]
    (tmp_path / "index.json").write_text(json.dumps(index))
    kept = held_out_of(read_pairs(tmp_path), 2)
    assert [name.split("/")[-1] for name in sorted(kept)] == ["1", "3"]
    assert not held_out_of(read_pairs(tmp_path), 0)
    found = load_groups(
        Sources(
            pairs=(str(tmp_path),),
            images=(f"{tmp_path}/a?.tif, {tmp_path}/b?.tif", f"{tmp_path}/a1.tif"),
            simulated=1,
            simulated_size=96,
        )
    )
    pairs, stacks, single, simulated = found
    assert len(pairs) == 2  # 0 and 4: every second entry is kept for measuring, 2 is not to train
    assert pairs[0].shifts == ((0.0, 0.0), (3.0, -1.0))
    assert [len(s.layers) for s in stacks] == [2, 2]
    assert len(single) == 1
    assert len(simulated[0].layers) == 5


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (Sources(simulated=0), "nothing to train on"),
        (Sources(images=("none/*.tif",), simulated=0), "find 0 files"),
    ],
)
def test_empty_sources_are_refused(sources: Sources, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_groups(sources)


def test_a_turned_query_is_brought_onto_the_reference(tmp_path: Path) -> None:
    image = ground(3, 220)
    turn = cv2.getRotationMatrix2D((110, 110), 25, 1.0)  # between corners
    there = for_opencv(np.vstack([turn, [0, 0, 1]]))[:2]
    query = cv2.warpAffine(image[0], there, (220, 220))[None]
    for name, pixels in (("a", image), ("b", query)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), pixels[0])
    entry = {"pair": "1", "category": "x", "image1": "a.png", "image2": "b.png",
             "affine_1to2": turn.tolist(), "modality": ["optical", "sar"]}  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps([entry]))
    found = stack_of_pair(read_pairs(tmp_path)[0])
    first, second = (layer[0].astype(float) for layer in found.layers)
    assert first.shape == second.shape
    assert min(first.shape) > 150  # the largest square inside a turned one
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.98
    assert found.shifts == ((0.0, 0.0), (0.0, 0.0))


def test_files_of_a_stack_lie_on_one_grid(tmp_path: Path) -> None:
    write_cog(tmp_path / "a.tif", ground())
    write_cog(tmp_path / "b.tif", ground(size=300))
    with pytest.raises(InputError, match="differ in size"):
        load_groups(Sources(images=(f"{tmp_path}/a.tif,{tmp_path}/b.tif",), simulated=0))
