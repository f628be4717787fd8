"""Runs over tiles, for all plans: none forgets a tile, and a stopped one ends like any other."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsfuse.geo.grid import Window
from rsfuse.geo.tiles import RowStore, Tile, TilePlan, plan_tiles, read_rows, run_tiles

sides = st.integers(1, 90)
shapes = st.tuples(sides, sides)
tile_sides = st.integers(5, 100)
halos = st.integers(0, 20)
areas = st.builds(Window, st.integers(-20, 80), st.integers(-20, 80), sides, sides)
shards = st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n)))


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    """A plan of a scene, or of the part of an area that lies inside of it."""
    shape = draw(shapes)
    inside = [None, draw(areas)]
    area = draw(st.sampled_from([a for a in inside if a is None or min(a.clipped(shape)[2:]) > 0]))
    block = draw(st.none() | st.tuples(st.integers(1, 20), st.integers(1, 20)))
    return plan_tiles(shape, tile=draw(tile_sides), halo=draw(halos), block=block, area=area)


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
    # What the formula has for tiles in flight, without what is there in any case.
    share = plan.memory_bytes(channels, itemsize, workers) - plan.memory_bytes(channels, 0, workers)
    largest = max(tile.window.w * tile.window.h for tile in plan)
    in_flight = min(2 * workers, len(plan)) + min(workers, len(plan))
    assert share >= in_flight * channels * itemsize * largest


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
    plan=st.integers(6, 12).map(lambda count: plan_tiles((4, 4 * count), tile=4)),
    stops=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    before_it_counts=st.booleans(),
    torn=st.binary(max_size=8).filter(lambda tail: b"\n" not in tail),
)
@settings(deadline=None, max_examples=20)
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
