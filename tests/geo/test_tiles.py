"""The scene loop: order, bounds, errors, shards, and the same bytes after a kill."""

import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError, OutputError, RasterError
from rsfuse.geo.grid import Window, pixel_geobox, same_grid, window_geobox
from rsfuse.geo.raster import Raster, open_raster
from rsfuse.geo.tiles import (
    IN_FLIGHT,
    RasterSink,
    RowStore,
    Tile,
    merge_rasters,
    merge_rows,
    plan_tiles,
    read_rows,
    run_tiles,
    shard_path,
    shard_tiles,
)

UTM = GeoBox((700, 900), Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32631")


@pytest.fixture
def scene(rng: np.random.Generator) -> Raster:
    """Two bands of 700 x 900 with holes."""
    data = rng.integers(1, 3000, (2, *UTM.shape)).astype(np.float32)
    valid = rng.random(UTM.shape) > 0.05
    data[:, ~valid] = 0
    return Raster(data, valid, UTM, ("red", "nir"), "reflectance")


def whole(data: np.ndarray) -> Raster:
    """A raster of one band without holes."""
    shape = (data.shape[1], data.shape[2])
    geobox = window_geobox(UTM, Window(0, 0, shape[1], shape[0]))
    return Raster(data, np.ones(shape, bool), geobox, ("a",))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond a size: what a full disk looks like from inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def nothing(_: Tile, __: object) -> None:
    """A sink that forgets."""


# Plans


def test_window_is_core_and_halo_clipped_to_the_scene() -> None:
    plan = plan_tiles((100, 250), tile=100, halo=20)
    assert [tile.core for tile in plan] == [
        Window(0, 0, 100, 100),
        Window(100, 0, 100, 100),
        Window(200, 0, 50, 100),
    ]
    assert [tile.window for tile in plan] == [
        Window(0, 0, 120, 100),
        Window(80, 0, 140, 100),
        Window(180, 0, 70, 100),
    ]
    assert [tile.index for tile in plan] == [0, 1, 2]


def test_tiles_fall_on_the_blocks_of_the_file_also_within_an_area() -> None:
    plan = plan_tiles(
        (4000, 4000), tile=300, halo=0, block=(256, 256), area=Window(700, 90, 900, 600)
    )
    assert plan.tile == 512
    inner = [tile.core for tile in plan]
    assert {core.x % 512 for core in inner if core.x != 700} == {0}
    assert {core.y % 512 for core in inner if core.y != 90} == {0}
    assert sum(core.w * core.h for core in inner) == 900 * 600


def test_strips_that_are_wider_than_a_tile_do_not_blow_it_up() -> None:
    assert plan_tiles((5000, 5000), tile=512, block=(1, 5000)).tile == 512
    assert plan_tiles((5000, 5000), tile=500, block=(16, 5000)).tile == 512


def test_scene_smaller_than_a_tile_is_one_tile() -> None:
    plan = plan_tiles((1, 1), tile=1024, halo=64)
    assert list(plan) == [Tile(0, Window(0, 0, 1, 1), Window(0, 0, 1, 1))]
    with pytest.raises(IndexError):
        plan[1]


def test_area_is_clipped_to_the_scene() -> None:
    plan = plan_tiles((100, 100), tile=64, halo=0, area=Window(-50, 90, 100, 100))
    assert plan.area == Window(0, 90, 50, 10)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((0, 10), {}),
        ((10, 10), {"tile": 0}),
        ((10, 10), {"halo": -1}),
        ((10, 10), {"area": Window(10, 0, 5, 5)}),
        ((10, 10), {"area": Window(2, 2, 0, 5)}),
    ],
)
def test_impossible_plans_are_refused(shape: tuple[int, int], options: dict[str, object]) -> None:
    with pytest.raises(InputError):
        plan_tiles(shape, **options)  # type: ignore[arg-type]


def test_memory_does_not_depend_on_the_scene_and_follows_its_formula() -> None:
    small, large = (plan_tiles((s, s), tile=512, halo=32) for s in (10_000, 100_000))
    assert small.memory_bytes(3, 2, 2) == large.memory_bytes(3, 2, 2)
    in_flight = 3 * 2 * (3 * 2 + 1) * 576**2
    assert large.memory_bytes(3, 2, 2) == in_flight + 28 * 3 * 512**2 + 320 * 2**20


def test_tiles_get_smaller_until_they_fit_into_the_memory() -> None:
    plan = plan_tiles((100_000, 100_000), tile=2048, halo=32)
    fitting = plan.within(600 * 10**6, channels=4, workers=2)
    assert fitting.tile == 1024
    assert fitting.memory_bytes(4, workers=2) <= 600 * 10**6 < plan.memory_bytes(4, workers=2)
    assert plan.within(10**10, channels=4) is plan
    with pytest.raises(InputError, match=r"--memory \d+MB"):
        plan.within(10**8, channels=4)


# The loop


def test_results_arrive_in_order_and_in_the_calling_thread() -> None:
    plan = plan_tiles((400, 400), tile=100, halo=0)
    seen: list[int] = []
    threads: set[int] = set()

    def step(tile: Tile) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.002 * ((tile.index * 7) % 5))
        return tile.index

    def sink(tile: Tile, result: int) -> None:
        assert threading.get_ident() == threading.main_thread().ident
        assert tile.index == result
        seen.append(result)

    run = run_tiles(plan, step, sink, workers=3)
    assert seen == list(range(16))
    assert (run.done, run.skipped, run.failed) == (16, 0, ())
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("workers", [1, 3])
def test_results_that_wait_are_bounded(workers: int) -> None:
    plan = plan_tiles((600, 600), tile=100, halo=0)
    lock = threading.Lock()
    alive, most = 0, 0

    def step(tile: Tile) -> int:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        time.sleep(0.02 if tile.index == 0 else 0.0)  # the first is late, the others would pile up
        return tile.index

    def sink(_: Tile, __: int) -> None:
        nonlocal alive
        time.sleep(0.001)
        with lock:
            alive -= 1

    run_tiles(plan, step, sink, workers=workers)
    assert 1 <= most <= IN_FLIGHT * workers
    assert alive == 0


def test_progress_counts_to_the_end() -> None:
    calls: list[tuple[int, int]] = []
    plan = plan_tiles((300, 100), tile=100, halo=0)
    run_tiles(plan, lambda t: t, nothing, progress=lambda *now: calls.append(now))
    assert calls == [(0, 3), (1, 3), (2, 3), (3, 3)]


def failing_at(*indexes: int) -> Callable[[Tile], int]:
    def step(tile: Tile) -> int:
        if tile.index in indexes:
            raise RasterError(f"tile {tile.index} is damaged", "its block is torn", "copy it again")
        return tile.index

    return step


def test_failing_tile_ends_the_loop_by_default() -> None:
    seen: list[int] = []
    plan = plan_tiles((100, 1000), tile=100, halo=0)
    with pytest.raises(RasterError, match="tile 3 is damaged"):
        run_tiles(plan, failing_at(3), lambda t, _: seen.append(t.index), workers=2)
    assert seen == [0, 1, 2]


def test_failing_tiles_are_passed_over_and_named(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    plan = plan_tiles((100, 500), tile=100, halo=0)
    run = run_tiles(
        plan, failing_at(0, 3), lambda t, _: seen.append(t.index), on_error="skip", workers=2
    )
    assert seen == [1, 2, 4]
    assert run.failed == ((0, "tile 0 is damaged"), (3, "tile 3 is damaged"))
    assert run.done == 3
    assert "tile 3" in caplog.text


def test_failing_sink_always_ends_the_loop() -> None:
    def sink(_: Tile, __: object) -> None:
        raise OutputError("the disk is full")

    with pytest.raises(OutputError):
        run_tiles(plan_tiles((100, 300), tile=100), lambda t: t, sink, on_error="skip")


def test_failed_tiles_are_tried_again_by_the_next_call(tmp_path: Path) -> None:
    plan = plan_tiles((100, 500), tile=100, halo=0)
    manifest = tmp_path / "tiles.jsonl"
    first = run_tiles(plan, failing_at(2), nothing, manifest=manifest, on_error="skip")
    seen: list[int] = []
    second = run_tiles(plan, failing_at(), lambda t, _: seen.append(t.index), manifest=manifest)
    assert (first.done, len(first.failed)) == (4, 1)
    assert (second.done, second.skipped, seen) == (1, 4, [2])


def test_manifest_of_other_parameters_is_refused(tmp_path: Path) -> None:
    plan = plan_tiles((100, 300), tile=100, halo=0)
    manifest = tmp_path / "tiles.jsonl"
    run_tiles(plan, lambda t: t, nothing, manifest=manifest, run_key="a")
    for other, key in ((plan, "b"), (plan_tiles((100, 300), tile=100, halo=9), "a")):
        with pytest.raises(InputError, match="other inputs or parameters"):
            run_tiles(other, lambda t: t, nothing, manifest=manifest, run_key=key)
    assert run_tiles(plan, lambda t: t, nothing, manifest=manifest, run_key="a").skipped == 3


def test_torn_last_line_of_the_manifest_does_not_count(tmp_path: Path) -> None:
    plan = plan_tiles((100, 300), tile=100, halo=0)
    manifest = tmp_path / "tiles.jsonl"
    run_tiles(plan, lambda t: t, nothing, manifest=manifest)
    content = manifest.read_bytes()
    manifest.write_bytes(content[:-3])
    seen: list[int] = []
    run_tiles(plan, lambda t: t, lambda t, _: seen.append(t.index), manifest=manifest)
    assert seen == [2]
    assert manifest.read_bytes() == content


def test_manifest_serves_one_run_at_a_time(tmp_path: Path) -> None:
    plan = plan_tiles((100, 300), tile=100, halo=0)
    manifest = tmp_path / "tiles.jsonl"

    def second_run(_: Tile, __: object) -> None:
        with pytest.raises(InputError, match="in use"):
            run_tiles(plan, lambda t: t, nothing, manifest=manifest)

    run_tiles(plan, lambda t: t, second_run, manifest=manifest)
    assert run_tiles(plan, lambda t: t, nothing, manifest=manifest).skipped == 3


def test_manifest_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        run_tiles(
            plan_tiles((9, 9)), lambda t: t, nothing, manifest=tmp_path / "file" / "tiles.jsonl"
        )


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 20])
def test_every_tile_is_in_one_shard(parts: int) -> None:
    plan = plan_tiles((300, 400), tile=100, halo=0)
    seen: list[int] = []
    for index in range(parts):
        run = run_tiles(plan, lambda t: t, lambda t, _: seen.append(t.index), shard=(index, parts))
        assert run.done == len(shard_tiles(12, (index, parts)))
    assert seen == list(range(12))


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, 0)])
def test_shards_that_do_not_exist_are_refused(shard: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="shard"):
        run_tiles(plan_tiles((9, 9)), lambda t: t, nothing, shard=shard)


def test_workers_are_at_least_one() -> None:
    with pytest.raises(InputError, match="0 workers"):
        run_tiles(plan_tiles((9, 9)), lambda t: t, nothing, workers=0)


# The raster sink


def write_scene(
    path: Path,
    scene: Raster,
    *,
    tile: int = 256,
    nodata: float | None = None,
    manifest: Path | None = None,
    shard: tuple[int, int] = (0, 1),
    stop_at: int | None = None,
) -> None:
    """Copy a scene through the loop."""
    source = open_raster(scene)

    def step(part: Tile) -> Raster:
        if part.index == stop_at:
            raise RasterError("stopped")
        return source.read(part.window)

    with RasterSink(
        path,
        source.geobox,
        bands=source.bands,
        dtype="uint16",
        nodata=nodata,
        radiometry=source.radiometry,
        manifest=manifest,
        shard=shard,
    ) as sink:
        plan = plan_tiles(source.shape, tile=tile, halo=16)
        run_tiles(plan, step, sink.take, manifest=manifest, shard=shard, workers=2)
        sink.finish()


@pytest.mark.parametrize("nodata", [None, 0, 65535])
def test_sink_writes_what_it_took(tmp_path: Path, scene: Raster, nodata: float | None) -> None:
    write_scene(tmp_path / "out.tif", scene, nodata=nodata)
    with open_raster(tmp_path / "out.tif") as source:
        found = source.read()
    np.testing.assert_array_equal(found.valid, scene.valid)
    np.testing.assert_array_equal(found.data, scene.data)
    assert same_grid(found.geobox, scene.geobox)
    assert (found.bands, found.radiometry) == (scene.bands, "reflectance")
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.dtypes == ("uint16", "uint16")
        assert file.nodata == nodata
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_result_has_the_same_bytes_for_every_tile_size(tmp_path: Path, scene: Raster) -> None:
    for side in (100, 512, 4096):
        write_scene(tmp_path / f"{side}.tif", scene, tile=side)
    assert (tmp_path / "100.tif").read_bytes() == (tmp_path / "512.tif").read_bytes()
    assert (tmp_path / "100.tif").read_bytes() == (tmp_path / "4096.tif").read_bytes()


@pytest.mark.parametrize("nodata", [None, 255])
def test_what_no_tile_wrote_is_invalid(tmp_path: Path, nodata: float | None) -> None:
    geobox = pixel_geobox((64, 64))
    with RasterSink(
        tmp_path / "out.tif", geobox, bands=("class",), dtype="uint8", nodata=nodata
    ) as sink:
        sink.write(Window(10, 20, 5, 4), np.full((1, 4, 5), 7.4, np.float32))
        sink.finish()
    found = open_raster(tmp_path / "out.tif").read()
    expected = np.zeros((64, 64), bool)
    expected[20:24, 10:15] = True
    np.testing.assert_array_equal(found.valid, expected)
    assert (found.data[0, expected] == 7).all()


def test_raster_without_holes_has_no_mask(tmp_path: Path) -> None:
    source = open_raster(whole(np.ones((1, *UTM.shape), np.float32)))
    with RasterSink(tmp_path / "out.tif", UTM, bands=("a",), dtype="float32") as sink:
        run_tiles(plan_tiles(UTM.shape, tile=64), lambda t: source.read(t.core), sink.take)
        sink.finish()
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.mask_flag_enums[0] == [rasterio.enums.MaskFlags.all_valid]
        assert (file.read() == 1).all()


def test_values_that_are_not_finite_are_invalid(tmp_path: Path) -> None:
    data = np.array([[[1.5, np.nan, np.inf, 300.0]]], np.float32)
    with RasterSink(
        tmp_path / "out.tif", pixel_geobox((1, 4)), bands=("a",), dtype="uint8"
    ) as sink:
        sink.write(Window(0, 0, 4, 1), data)
        sink.finish()
    found = open_raster(tmp_path / "out.tif").read()
    assert found.valid.tolist() == [[True, False, False, True]]
    assert found.data[0, 0, [0, 3]].tolist() == [2.0, 255.0]


def test_area_has_its_own_grid(tmp_path: Path, scene: Raster) -> None:
    area = Window(130, 41, 300, 222)
    with RasterSink(
        tmp_path / "out.tif", scene.geobox, bands=scene.bands, dtype="uint16", area=area
    ) as sink:
        source = open_raster(scene)
        plan = plan_tiles(source.shape, tile=128, halo=8, area=area)
        run_tiles(plan, lambda t: source.read(t.core), sink.take)
        sink.finish()
    found = open_raster(tmp_path / "out.tif").read()
    expected = source.read(area)
    assert same_grid(found.geobox, window_geobox(scene.geobox, area))
    np.testing.assert_array_equal(found.data, expected.data)
    np.testing.assert_array_equal(found.valid, expected.valid)


def test_classes_keep_colours_and_names_and_are_reduced_by_mode(tmp_path: Path) -> None:
    labels = np.zeros((1, 1100, 1100), np.float32)
    geobox = whole(labels).geobox
    labels[:, :, 1::3] = 2
    colours = {0: (0, 0, 255), 2: (255, 0, 0)}
    with RasterSink(
        tmp_path / "out.tif",
        geobox,
        bands=("class",),
        dtype="uint8",
        nodata=255,
        colours=colours,
        class_names=("water", "forest", "built"),
    ) as sink:
        sink.write(Window(0, 0, 1100, 1100), labels)
        sink.finish()
    with rasterio.open(tmp_path / "out.tif") as file:
        assert {i: file.colormap(1)[i][:3] for i in colours} == colours
        assert json.loads(file.tags()["class_names"])["2"] == "built"
        assert file.overviews(1)
        assert set(np.unique(file.read(1, out_shape=(137, 137)))) <= {0, 2}


def test_results_of_another_size_are_refused(tmp_path: Path) -> None:
    small = whole(np.zeros((1, 5, 5), np.float32))
    with RasterSink(
        tmp_path / "out.tif", pixel_geobox((50, 50)), bands=("a",), dtype="uint8"
    ) as sink:
        with pytest.raises(InputError, match="core has"):
            sink.take(plan_tiles((50, 50), tile=20, halo=2)[0], small)
        with pytest.raises(InputError, match="inside of the file"):
            sink.write(Window(47, 0, 5, 5), small.data)
    assert list(tmp_path.iterdir()) == []


def test_sink_is_used_inside_its_block(tmp_path: Path) -> None:
    sink = RasterSink(tmp_path / "a.tif", pixel_geobox((5, 5)), bands=("a",), dtype="uint8")
    with pytest.raises(InputError, match="with"):
        sink.write(Window(0, 0, 1, 1), np.zeros((1, 1, 1)))
    with pytest.raises(InputError, match="with"):
        sink.finish()


# Interruptions


def test_interrupted_scene_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, scene: Raster
) -> None:
    write_scene(tmp_path / "whole.tif", scene)
    path, manifest = tmp_path / "out.tif", tmp_path / "tiles.jsonl"
    for stop_at in (2, 7, None):
        if stop_at is None:
            write_scene(path, scene, manifest=manifest)
        else:
            with pytest.raises(RasterError, match="stopped"):
                write_scene(path, scene, manifest=manifest, stop_at=stop_at)
            assert not path.exists()
            assert len(manifest.read_text().splitlines()) == 1 + stop_at
    assert path.read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.tif", "whole.tif"]


def test_without_its_unfinished_file_a_scene_starts_anew(tmp_path: Path, scene: Raster) -> None:
    path, manifest = tmp_path / "out.tif", tmp_path / "tiles.jsonl"
    write_scene(tmp_path / "whole.tif", scene)
    with pytest.raises(RasterError):
        write_scene(path, scene, manifest=manifest, stop_at=5)
    (tmp_path / ".out.tif.partial.tif").unlink()
    write_scene(path, scene, manifest=manifest)
    assert path.read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_damaged_unfinished_file_is_not_used(tmp_path: Path, scene: Raster) -> None:
    path, manifest = tmp_path / "out.tif", tmp_path / "tiles.jsonl"
    write_scene(tmp_path / "whole.tif", scene)
    with pytest.raises(RasterError):
        write_scene(path, scene, manifest=manifest, stop_at=5)
    (tmp_path / ".out.tif.partial.tif").write_bytes(b"II*\0 not a header")
    write_scene(path, scene, manifest=manifest)
    assert path.read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_unfinished_file_of_other_parameters_is_refused(tmp_path: Path, scene: Raster) -> None:
    path, manifest = tmp_path / "out.tif", tmp_path / "tiles.jsonl"
    with pytest.raises(RasterError):
        write_scene(path, scene, manifest=manifest, stop_at=5)
    with (
        pytest.raises(InputError, match="other parameters"),
        RasterSink(path, scene.geobox, bands=("red",), dtype="uint16", manifest=manifest),
    ):
        pass
    assert manifest.exists()


# Copies a scene of 6 tiles; the process kills itself in the middle of a write.
KILLED = """
import os, signal, sys
import numpy as np
from rsfuse.geo import blocks, tiles
from rsfuse.geo.grid import pixel_geobox
from rsfuse.geo.raster import Raster, open_raster

folder, fatal = sys.argv[1], int(sys.argv[2])
rng = np.random.default_rng(1)
shape = (500, 700)
scene = Raster(
    rng.integers(1, 99, (1, *shape)).astype("f4"), rng.random(shape) > 0.1, pixel_geobox(shape),
    ("a",),
)
source = open_raster(scene)
pwrite, calls = os.pwrite, 0

def fragile(file, content, start):
    global calls
    calls += 1
    if calls == fatal:
        pwrite(file, content[: len(content) // 2], start)
        os.kill(os.getpid(), signal.SIGKILL)
    return pwrite(file, content, start)

os.pwrite = fragile
manifest = tiles.Path(folder, "tiles.jsonl")
plan = tiles.plan_tiles(shape, tile=256, halo=10)
with (
    tiles.RasterSink(folder + "/out.tif", source.geobox, bands=("a",), dtype="uint8",
                     manifest=manifest) as sink,
    tiles.RowStore(folder + "/rows.jsonl", manifest=manifest) as store,
):
    def take(tile, raster):
        sink.take(tile, raster)
        store.write(tile, [{"index": tile.index, "sum": float(raster.data.sum())}] * 3)

    run = tiles.run_tiles(plan, lambda t: source.read(t.window), take, workers=2,
                          manifest=manifest, run_key=source.fingerprint)
    sink.finish()
    store.finish()
print(calls, run.skipped)
"""


def killed(folder: Path, fatal: int) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLED, str(folder), str(fatal)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_killed_scene_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = killed(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    calls = int(whole.stdout.split()[0])
    skipped = 0
    # In the pixels of a tile, in its records, in the manifest: wherever the numbers fall.
    for fatal in (calls // 5, calls // 2, 9, 3, 0):
        run = killed(tmp_path / "killed", fatal)
        assert run.returncode == (-9 if fatal else 0), run.stderr
        skipped = int(run.stdout.split()[1]) if not fatal else 0
        assert (tmp_path / "killed" / "out.tif").exists() == (fatal == 0)
    assert skipped >= 2
    for name in ("out.tif", "rows.jsonl"):
        expected = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "killed" / name).read_bytes() == expected
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == ["out.tif", "rows.jsonl"]


# A full disk


def test_full_disk_while_tiles_are_written(
    tmp_path: Path, scene: Raster, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.pwrite, 0

    def full(file: int, content: bytes, start: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 1500:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, content, start)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError) as caught:
        write_scene(tmp_path / "out.tif", scene)
    assert "No space left" in caught.value.what
    assert "half-written" in caught.value.why
    assert list(tmp_path.iterdir()) == []
    calls = 0
    with pytest.raises(OutputError) as caught:
        write_scene(tmp_path / "out.tif", scene, manifest=tmp_path / "tiles.jsonl")
    assert "kept" in caught.value.why
    monkeypatch.undo()
    write_scene(tmp_path / "out.tif", scene, manifest=tmp_path / "tiles.jsonl")
    write_scene(tmp_path / "whole.tif", scene)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_disk_too_small_for_the_scene_is_known_at_the_start(tmp_path: Path, scene: Raster) -> None:
    with file_size_limit(10**6), pytest.raises(OutputError, match=r"out\.tif"):
        write_scene(tmp_path / "out.tif", scene)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("nodata", [None, 255])
def test_full_disk_while_the_result_is_made_keeps_the_tiles(
    tmp_path: Path, rng: np.random.Generator, nodata: float | None
) -> None:
    scene = whole(rng.integers(0, 255, (1, 1024, 1024)).astype(np.float32))
    scene.valid[:100] = False
    source = open_raster(scene)
    path, manifest = tmp_path / "out.tif", tmp_path / "tiles.jsonl"
    plan = plan_tiles(scene.shape, tile=512)

    def attempt(limit: int) -> int:
        with RasterSink(
            path, scene.geobox, bands=("a",), dtype="uint8", nodata=nodata, manifest=manifest
        ) as sink:
            run = run_tiles(plan, lambda t: source.read(t.core), sink.take, manifest=manifest)
            with file_size_limit(limit):
                sink.finish()
        return run.skipped

    # Blocks of noise do not get smaller, and the overviews come on top.
    with pytest.raises(OutputError, match=r"out\.tif"):
        attempt(2**20 + 4096)
    assert not path.exists()
    assert attempt(2**22) == 4
    found = open_raster(path).read()
    np.testing.assert_array_equal(found.valid, scene.valid)
    np.testing.assert_array_equal(found.data[:, found.valid], scene.data[:, found.valid])
    assert [p.name for p in tmp_path.iterdir()] == ["out.tif"]


def test_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path, scene: Raster) -> None:
    (tmp_path / "file").write_text("in the way")
    for manifest in (None, tmp_path / "tiles.jsonl"):
        with pytest.raises(OutputError, match="cannot write"):
            write_scene(tmp_path / "file" / "out.tif", scene, manifest=manifest)
    with (
        pytest.raises(OutputError, match="cannot write"),
        RowStore(tmp_path / "file" / "rows.jsonl"),
    ):
        pass


# Shards


@pytest.mark.parametrize("nodata", [None, 0])
def test_merged_shards_are_the_whole(tmp_path: Path, scene: Raster, nodata: float | None) -> None:
    write_scene(tmp_path / "whole.tif", scene, nodata=nodata)
    for index in (2, 0, 1):
        write_scene(
            tmp_path / "out.tif",
            scene,
            nodata=nodata,
            shard=(index, 3),
            tile=200,
            manifest=tmp_path / f"{index}.jsonl",
        )
        assert shard_path(tmp_path / "out.tif", (index, 3)).exists()
    assert not (tmp_path / "out.tif").exists()
    merge_rasters(tmp_path / "out.tif", 3)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.tif", "whole.tif"]


def test_missing_shard_is_named(tmp_path: Path, scene: Raster) -> None:
    write_scene(tmp_path / "out.tif", scene, shard=(0, 2))
    with pytest.raises(InputError, match=r"out\.shard-2-of-2\.tif"):
        merge_rasters(tmp_path / "out.tif", 2)
    with pytest.raises(InputError, match=r"rows\.shard-1-of-2\.jsonl"):
        merge_rows(tmp_path / "rows.jsonl", 2)
    assert shard_path(tmp_path / "out.tif", (0, 2)).exists()


def test_shards_of_different_runs_do_not_merge(tmp_path: Path, scene: Raster) -> None:
    write_scene(tmp_path / "out.tif", scene, shard=(0, 2), nodata=0)
    write_scene(tmp_path / "out.tif", scene, shard=(1, 2), nodata=9)
    with pytest.raises(InputError, match="different runs"):
        merge_rasters(tmp_path / "out.tif", 2)
    assert not (tmp_path / "out.tif").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "out.shard-1-of-2.tif",
        "out.shard-2-of-2.tif",
    ]


# Records


def test_rows_come_in_tile_order_and_the_later_write_of_a_tile_counts(tmp_path: Path) -> None:
    plan = plan_tiles((100, 300), tile=100, halo=0)
    with RowStore(tmp_path / "rows.jsonl") as store:
        store.write(plan[2], [{"tile": 2, "score": np.float32(0.5)}])
        store.write(plan[0], [{"tile": 0, "name": "Łódź"}, {"tile": 0, "box": np.arange(2)}])
        store.write(plan[2], [{"tile": 2, "score": 0.75}])
        store.write(plan[1], [])
        store.finish()
    assert list(read_rows(tmp_path / "rows.jsonl")) == [
        {"tile": 0, "name": "Łódź"},
        {"tile": 0, "box": [0, 1]},
        {"tile": 2, "score": 0.75},
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_torn_last_record_of_an_interrupted_run_is_cut_off(tmp_path: Path) -> None:
    plan = plan_tiles((100, 300), tile=100, halo=0)
    manifest, path = tmp_path / "tiles.jsonl", tmp_path / "rows.jsonl"

    def rows(tile: Tile) -> list[dict[str, int]]:
        return [{"tile": tile.index}]

    with RowStore(path, manifest=manifest) as store:
        run_tiles(plan, rows, store.write, manifest=manifest, shard=(0, 1))
    partial = tmp_path / ".rows.jsonl.partial.jsonl"
    partial.write_bytes(partial.read_bytes() + b'{"tile": 2, "ro')
    with RowStore(path, manifest=manifest) as store:
        assert run_tiles(plan, rows, store.write, manifest=manifest).skipped == 3
        store.finish()
    assert list(read_rows(path)) == [{"tile": 0}, {"tile": 1}, {"tile": 2}]


def test_merged_rows_are_those_of_one_run(tmp_path: Path) -> None:
    plan = plan_tiles((100, 900), tile=100, halo=0)
    for index in (1, 0):
        with RowStore(tmp_path / "rows.jsonl", shard=(index, 2)) as store:
            run_tiles(plan, lambda t: [{"tile": t.index}], store.write, shard=(index, 2))
            store.finish()
    merge_rows(tmp_path / "rows.jsonl", 2)
    assert [row["tile"] for row in read_rows(tmp_path / "rows.jsonl")] == list(range(9))
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_damaged_rows_are_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(InputError, match="cannot be read"):
        list(read_rows(tmp_path / "rows.jsonl"))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_rows(tmp_path / "missing.jsonl"))


# Memory

# A sparse scene of 100,000 x 100,000 pixels: a band of it across, through the loop into a COG.
LARGE = """
import sys
import numpy as np
import rasterio
from rsfuse.geo.grid import Window
from rsfuse.geo.raster import open_raster
from rsfuse.geo.tiles import RasterSink, plan_tiles, run_tiles

def high_water():
    # Of this program alone: ru_maxrss starts with that of the parent.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024

folder, workers = sys.argv[1], 2
side = 100_000
with rasterio.open(
    folder + "/large.tif", "w", driver="GTiff", height=side, width=side, count=1, dtype="uint8",
    tiled=True, blockxsize=512, blockysize=512, SPARSE_OK="TRUE", BIGTIFF="YES",
    crs="EPSG:32631", transform=rasterio.Affine(1, 0, 5e5, 0, -1, 5e6),
) as file:
    file.write(np.full((1, 300, 300), 9, "u1"), window=((50_100, 50_400), (70_000, 70_300)))
source = open_raster(folder + "/large.tif")
warm = source.read(Window(0, 0, 64, 64))
area = Window(0, 50_000, side, 2048)
plan = plan_tiles(source.shape, tile=1024, halo=32, block=source.block, area=area)
before = high_water()
with RasterSink(folder + "/out.tif", source.geobox, bands=("a",), dtype="uint8", area=area) as sink:
    run_tiles(plan, lambda t: source.read(t.window), sink.take, workers=workers)
    sink.finish()
print(len(plan), high_water() - before, plan.memory_bytes(1, 4, workers))
"""


def test_memory_stays_below_the_formula_on_a_sparse_scene_of_100000(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", LARGE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    count, used, allowed = (int(word) for word in run.stdout.split())
    assert count == 3 * 98
    assert used < allowed < 100_000 * 2048 * 4 / 2  # half of what the whole band would take
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.shape == (2048, 100_000)
        assert file.bounds.top == 5e6 - 50_000
        assert (file.read(1, window=((100, 400), (70_000, 70_300))) == 9).all()
        assert not file.read(1, window=((0, 100), (70_000, 70_300))).any()
