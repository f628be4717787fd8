"""Laws of the scene loop: cores partition the scene, and no result knows how it was cut."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rsfuse.geo.grid import Window
from rsfuse.geo.tiles import Tile, plan_tiles, run_tiles, shard_tiles

SIDES = st.integers(1, 90)


@st.composite
def areas(draw: st.DrawFn) -> tuple[tuple[int, int], Window]:
    """A scene and an area that lies at least partly inside of it."""
    h, w = draw(SIDES), draw(SIDES)
    x, y = draw(st.integers(-20, w - 1)), draw(st.integers(-20, h - 1))
    right, bottom = (
        draw(st.integers(max(x, 0) + 1, w + 20)),
        draw(st.integers(max(y, 0) + 1, h + 20)),
    )
    return (h, w), Window(x, y, right - x, bottom - y)


@settings(max_examples=60, deadline=None)
@given(areas(), st.integers(1, 40), st.integers(0, 12), st.sampled_from([None, (4, 4), (3, 90)]))
def test_every_pixel_of_the_area_is_in_one_core(
    scene: tuple[tuple[int, int], Window],
    side: int,
    halo: int,
    block: tuple[int, int] | None,
) -> None:
    shape, area = scene
    plan = plan_tiles(shape, tile=side, halo=halo, block=block, area=area)
    owners = np.zeros(shape, int)
    for index, tile in enumerate(plan):
        assert tile == plan[index]
        assert tile.index == index
        assert tile.window.clipped(shape) == tile.window
        assert tile.core.intersection(tile.window) == tile.core
        assert min(tile.core.w, tile.core.h) > 0
        owners[tile.core.slices_in(Window(0, 0, shape[1], shape[0]))] += 1
    expected = np.zeros(shape, int)
    expected[area.clipped(shape).slices_in(Window(0, 0, shape[1], shape[0]))] = 1
    np.testing.assert_array_equal(owners, expected)
    assert len(list(plan)) == len(plan)


@settings(deadline=None)
@given(st.integers(0, 500), st.integers(1, 60))
def test_shards_are_a_partition_in_order(count: int, parts: int) -> None:
    shards = [shard_tiles(count, (index, parts)) for index in range(parts)]
    assert [tile for shard in shards for tile in shard] == list(range(count))
    sizes = Counter(len(shard) for shard in shards)
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=40, deadline=None)
@given(
    SIDES, SIDES, st.integers(1, 60), st.integers(3, 9), st.integers(1, 3), st.integers(0, 2**32)
)
def test_result_does_not_depend_on_the_tile_size(
    h: int, w: int, side: int, halo: int, workers: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 1000, (h, w))
    result = np.full((h, w), -1)
    whole = Window(0, 0, w, h)

    def step(tile: Tile) -> np.ndarray:
        rows, columns = tile.core.slices_in(tile.window)
        return neighbourhood(image[tile.window.slices_in(whole)])[rows, columns]

    def sink(tile: Tile, values: np.ndarray) -> None:
        result[tile.core.slices_in(whole)] = values

    run_tiles(plan_tiles((h, w), tile=side, halo=halo), step, sink, workers=workers)
    np.testing.assert_array_equal(result, neighbourhood(image))


def neighbourhood(image: np.ndarray) -> np.ndarray:
    """Sums over 7 x 7 pixels, zero outside: a result that depends on three pixels around."""
    padded = np.pad(image, 3)
    rows = sum(padded[i : i + image.shape[0]] for i in range(7))
    return sum(rows[:, i : i + image.shape[1]] for i in range(7))  # type: ignore[return-value]
