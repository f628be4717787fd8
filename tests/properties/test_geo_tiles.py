"""Tiles, for all scenes, tile sizes, areas, shards and workers."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsfuse.errors import InputError
from rsfuse.geo.grid import Window
from rsfuse.geo.tiles import RowStore, Tile, TilePlan, plan_tiles, read_rows, run_tiles

sides = st.integers(1, 90)
shapes = st.tuples(sides, sides)
tile_sides = st.integers(5, 100)
halos = st.integers(0, 20)
areas = st.builds(Window, st.integers(-20, 80), st.integers(-20, 80), sides, sides)
shards = st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))

Image = npt.NDArray[np.int64]


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    """A plan of a scene, or of the part of an area that lies inside of it."""
    shape = draw(shapes)
    inside = [None, draw(areas)]
    area = draw(st.sampled_from([a for a in inside if a is None or min(a.clipped(shape)[2:]) > 0]))
    block = draw(st.none() | st.tuples(st.integers(1, 20), st.integers(1, 20)))
    return plan_tiles(shape, tile=draw(tile_sides), halo=draw(halos), block=block, area=area)


def cut(window: Window) -> tuple[slice, slice]:
    """The window as an index of rows and columns."""
    return slice(window.y, window.y + window.h), slice(window.x, window.x + window.w)


def image(shape: tuple[int, int]) -> Image:
    """Whole numbers, so that a sum does not depend on its order."""
    return np.random.default_rng(7).integers(0, 1000, shape)


def box_sum(pixels: Image, radius: int) -> Image:
    """Sum of the square of neighbours of each pixel; outside counts as zero."""
    padded = np.pad(pixels, radius)
    width = 2 * radius + 1
    return np.lib.stride_tricks.sliding_window_view(padded, (width, width)).sum(axis=(2, 3))


def filtered(plan: TilePlan, pixels: Image, radius: int, **options: int) -> Image:
    """The box sum of a scene, tile by tile; -1 where no tile brings a pixel."""
    result = np.full(plan.shape, -1)

    def step(tile: Tile) -> Image:
        x, y = tile.core.x - tile.window.x, tile.core.y - tile.window.y
        core = cut(Window(x, y, tile.core.w, tile.core.h))
        return box_sum(pixels[cut(tile.window)], radius)[core]

    def sink(tile: Tile, part: Image) -> None:
        result[cut(tile.core)] = part

    run = run_tiles(plan, step, sink, **options)
    assert (run.done, run.skipped, run.failed) == (len(plan), 0, ())
    return result


@given(plans())
def test_cores_cover_each_pixel_of_the_area_once_and_no_other(plan: TilePlan) -> None:
    count = np.zeros(plan.shape, int)
    for tile in plan:
        assert min(tile.core.shape) > 0
        count[cut(tile.core)] += 1
    expected = np.zeros(plan.shape, int)
    expected[cut(plan.area)] = 1
    np.testing.assert_array_equal(count, expected)


@given(plans())
def test_tiles_are_numbered_row_by_row(plan: TilePlan) -> None:
    tiles = list(plan)
    assert [tile.index for tile in tiles] == list(range(len(plan)))
    assert [plan[tile.index] for tile in tiles] == tiles
    corners = [(tile.core.y, tile.core.x) for tile in tiles]
    assert corners == sorted(corners)


@given(plans())
def test_window_has_all_of_the_halo_that_the_scene_has(plan: TilePlan) -> None:
    for tile in plan:
        core, window = tile.core, tile.window
        assert window.x == max(0, core.x - plan.halo)
        assert window.y == max(0, core.y - plan.halo)
        assert window.x + window.w == min(plan.shape[1], core.x + core.w + plan.halo)
        assert window.y + window.h == min(plan.shape[0], core.y + core.h + plan.halo)


@given(plans(), st.integers(1, 4), st.integers(1, 8), st.integers(1, 4))
def test_memory_formula_has_room_for_every_tile_in_flight(
    plan: TilePlan, channels: int, itemsize: int, workers: int
) -> None:
    largest = max(tile.window.w * tile.window.h for tile in plan)
    in_flight = min(2 * workers, len(plan)) + min(workers, len(plan))
    needed = in_flight * channels * itemsize * largest
    assert plan.memory_bytes(channels, itemsize, workers) >= needed


@given(shapes, st.integers(0, 3), st.integers(0, 5), tile_sides, st.integers(1, 3))
@settings(deadline=None)
def test_filter_does_not_depend_on_tiles_or_workers(
    shape: tuple[int, int], radius: int, spare: int, tile: int, workers: int
) -> None:
    pixels = image(shape)
    plan = plan_tiles(shape, tile=tile, halo=radius + spare)
    whole = box_sum(pixels, radius)
    np.testing.assert_array_equal(filtered(plan, pixels, radius, workers=workers), whole)


def test_filter_shows_a_halo_that_is_too_small() -> None:
    # What the test above compares would notice a missing pixel of context.
    pixels = image((40, 40))
    plan = plan_tiles((40, 40), tile=16, halo=1)
    assert (filtered(plan, pixels, 2) != box_sum(pixels, 2)).any()


@given(plans(), st.integers(1, 9))
@settings(deadline=None)
def test_shards_have_each_tile_once(plan: TilePlan, parts: int) -> None:
    seen: list[int] = []
    for index in range(parts):
        run = run_tiles(plan, lambda t: t.index, lambda _, i: seen.append(i), shard=(index, parts))
        assert run.skipped == 0
    assert sorted(seen) == list(range(len(plan)))


@given(st.integers(-3, 12), st.integers(-3, 9))
def test_shards_out_of_range_are_refused(index: int, parts: int) -> None:
    plan = plan_tiles((8, 8), tile=8)
    if 0 <= index < parts:
        run_tiles(plan, lambda _: None, lambda *_: None, shard=(index, parts))
    else:
        with pytest.raises(InputError):
            run_tiles(plan, lambda _: None, lambda *_: None, shard=(index, parts))


@given(plans(), st.sets(st.integers(0, 40)), shards, st.integers(1, 3))
@settings(deadline=None)
def test_failing_tiles_are_all_reported_and_no_other_is_lost(
    plan: TilePlan, bad: set[int], shard: tuple[int, int], workers: int
) -> None:
    def step(tile: Tile) -> int:
        if tile.index in bad:
            raise ValueError(f"tile {tile.index} is bad")
        return tile.index

    mine: list[int] = []
    run_tiles(plan, lambda t: t.index, lambda _, i: mine.append(i), shard=shard)
    good: list[int] = []
    calls: list[tuple[int, int]] = []
    run = run_tiles(
        plan,
        step,
        lambda _, i: good.append(i),
        shard=shard,
        workers=workers,
        on_error="skip",
        progress=lambda done, total: calls.append((done, total)),
    )
    assert good == [i for i in mine if i not in bad]
    assert [index for index, _ in run.failed] == [i for i in mine if i in bad]
    assert all(f"tile {index} is bad" in reason for index, reason in run.failed)
    assert run.done == len(good)
    assert [done for done, _ in calls if done] == list(range(1, len(mine) + 1))
    assert {total for _, total in calls} <= {len(mine)}


class _Stopped(Exception):
    """Stands for whatever ends a run early."""


@pytest.fixture(scope="module")
def folders() -> Iterator[Iterator[Path]]:
    """A new folder for each example."""
    with tempfile.TemporaryDirectory() as root:
        yield (_made(Path(root, str(number))) for number in range(10**6))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@given(
    plan=plans(),
    stops=st.lists(st.integers(0, 12), max_size=3),
    before_it_counts=st.booleans(),
    torn=st.binary(max_size=8).filter(lambda tail: b"\n" not in tail),
)
@settings(deadline=None, max_examples=50)
def test_run_that_was_stopped_anywhere_ends_with_the_same_bytes(
    folders: Iterator[Path], plan: TilePlan, stops: list[int], before_it_counts: bool, torn: bytes
) -> None:
    def attempt(folder: Path, stop: int | None) -> int:
        manifest = folder / "tiles.jsonl"
        written = 0
        with RowStore(folder / "rows.jsonl", manifest=manifest) as store:

            def sink(tile: Tile, rows: list[dict[str, int]]) -> None:
                nonlocal written
                # Stopped before the tile is written, or between that and its line in the manifest.
                if written == stop and before_it_counts:
                    raise _Stopped
                store.write(tile, rows)
                if written == stop:
                    raise _Stopped
                written += 1

            run = run_tiles(
                plan,
                lambda t: [{"tile": t.index, "row": row} for row in range(t.index % 3)],
                sink,
                manifest=manifest,
                run_key="key",
            )
            store.finish()
        return run.skipped

    whole, stopped = next(folders), next(folders)
    assert attempt(whole, None) == 0
    finished = 0
    for stop in stops:
        if stop >= len(plan) - finished:
            break
        with pytest.raises(_Stopped):
            attempt(stopped, stop)
        finished += stop
        with (stopped / "tiles.jsonl").open("ab") as manifest:
            manifest.write(torn)
    assert attempt(stopped, None) == finished
    assert (stopped / "rows.jsonl").read_bytes() == (whole / "rows.jsonl").read_bytes()
    expected = [{"tile": t, "row": row} for t in range(len(plan)) for row in range(t % 3)]
    assert list(read_rows(stopped / "rows.jsonl")) == expected
