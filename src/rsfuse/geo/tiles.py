"""The scene loop: cut a scene into tiles, work on them in bounded memory, resume after a kill.

    plan = plan_tiles(source.shape, tile=1024, halo=64, block=source.block)
    done = folder / "tiles.jsonl"
    with RasterSink(path, source.geobox, bands=("class",), dtype="uint8", manifest=done) as sink:
        run_tiles(plan, step, sink.take, manifest=done, run_key=source.fingerprint)
        sink.finish()

Every pixel belongs to the core of exactly one tile; the halo is context only. Results reach the
sink in tile order and in the calling thread. The manifest names each tile after its result is on
the disk, so a killed run goes on where it stopped and ends with the same bytes.
"""

import errno
import fcntl
import json
import logging
import math
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError, OutputError, RasterError, RsfuseError
from rsfuse.geo.blocks import BlockFile
from rsfuse.geo.gdal import CACHE_BYTES
from rsfuse.geo.grid import Window, window_geobox
from rsfuse.geo.raster import RADIOMETRY_TAG, Raster
from rsfuse.geo.write import (
    ClassNames,
    Colours,
    Overviews,
    cog_from_tiff,
    converted,
    explained,
    opened,
)
from rsfuse.runs import atomic_path, plain

T = TypeVar("T")
Shard = tuple[int, int]
Progress = Callable[[int, int], None]

# Tiles per worker that are in work or wait for their turn at the sink.
IN_FLIGHT = 2

# Bytes per value that a sink holds while it rounds and clips a tile: a cleared copy in float32, one
# in float64, the stored one and the one in the order of the file.
_SINK_BYTES = 4 + 8 + 8 + 8

# Bytes that GDAL holds at most: its block cache, twice, because what it filled in the threads of
# workers is not given back to the thread that makes the result; and what a format driver takes.
_GDAL_BYTES = 2 * CACHE_BYTES + 64 * 2**20

# A memory ceiling makes tiles no smaller.
_SMALLEST_TILE = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tile:
    """One piece of work.

    Attributes:
        index: Position in the plan.
        core: Pixels that this tile owns.
        window: Core and halo, clipped to the scene.
    """

    index: int
    core: Window
    window: Window


@dataclass(frozen=True)
class TilePlan:
    """How a scene is cut: row by row, left to right; tiles are computed, not stored.

    Tiles begin at multiples of their side, so that they fall on the blocks of the file.

    Attributes:
        shape: (h, w) of the scene.
        tile: Side of a core in pixels.
        halo: Context around a core in pixels.
        area: The part of the scene that is covered.
    """

    shape: tuple[int, int]
    tile: int
    halo: int
    area: Window

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        return (
            -(-(self.area.y + self.area.h) // self.tile) - self.area.y // self.tile,
            -(-(self.area.x + self.area.w) // self.tile) - self.area.x // self.tile,
        )

    def __len__(self) -> int:
        """Number of tiles."""
        return math.prod(self.grid)

    def __getitem__(self, index: int) -> Tile:
        """The tile of an index."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, self.grid[1])
        x = (self.area.x // self.tile + column) * self.tile
        y = (self.area.y // self.tile + row) * self.tile
        core = Window(x, y, self.tile, self.tile).intersection(self.area)
        around = Window(
            core.x - self.halo,
            core.y - self.halo,
            core.w + 2 * self.halo,
            core.h + 2 * self.halo,
        )
        return Tile(index, core, around.clipped(self.shape))

    def __iter__(self) -> Iterator[Tile]:
        """All tiles in order."""
        return (self[index] for index in range(len(self)))

    def memory_bytes(self, channels: int, itemsize: int = 4, workers: int = 1) -> int:
        """Bytes that the loop and a `RasterSink` hold at most.

            (IN_FLIGHT + 1) * workers * (channels * itemsize + 1) * (tile + 2 * halo)^2
            + 28 * channels * tile^2 + 320 MiB

        The first term is what each tile in work reads, and what it and each tile that waits hand
        on, with one byte of mask per pixel; the second is the tile at the sink; the third is what
        GDAL takes, mostly its cache. The size of the scene does not occur. The interpreter and its
        libraries come on top, about 150 MB.

        Args:
            channels: Channels that a step holds per pixel: bands read, or produced, or in between,
                whichever are the most at one time.
            itemsize: Bytes per value.
            workers: Threads.
        """
        side, (h, w) = self.tile + 2 * self.halo, self.shape
        window = min(side, h) * min(side, w)
        core = min(self.tile, self.area.h) * min(self.tile, self.area.w)
        held = (IN_FLIGHT + 1) * workers * (channels * itemsize + 1) * window
        return held + _SINK_BYTES * channels * core + _GDAL_BYTES

    def within(self, memory: int, channels: int, itemsize: int = 4, workers: int = 1) -> "TilePlan":
        """This plan, with tiles small enough that `memory_bytes` is at most `memory`.

        Raises:
            InputError: The smallest tiles need more.
        """
        plan = self
        while (needed := plan.memory_bytes(channels, itemsize, workers)) > memory:
            if plan.tile <= _SMALLEST_TILE:
                raise InputError(
                    f"{memory / 1e6:.0f} MB are too little for {channels} channels and {workers} "
                    "workers",
                    f"tiles of {plan.tile} pixels with a halo of {plan.halo} take "
                    f"{needed / 1e6:.0f} MB",
                    f"use --memory {math.ceil(needed / 1e6)}MB, or fewer workers",
                )
            plan = replace(plan, tile=max(_SMALLEST_TILE, plan.tile // 2))
        return plan


def plan_tiles(
    shape: tuple[int, int],
    *,
    tile: int = 1024,
    halo: int = 64,
    block: tuple[int, int] | None = None,
    area: Window | None = None,
) -> TilePlan:
    """Cut a scene into tiles.

    Args:
        shape: (h, w) of the scene.
        tile: Side of a core; rounded up to whole blocks of the file where `block` is not larger.
        halo: Context around each core: as much as a result depends on.
        block: (h, w) of the file's own blocks.
        area: Part of the scene to cover; clipped to it.

    Raises:
        InputError: Nothing to cover, or an impossible size.
    """
    if tile < 1 or halo < 0 or min(shape) < 1:
        raise InputError(
            f"tiles of {tile} pixels with a halo of {halo} on a scene of {shape[1]} x {shape[0]}",
            "tiles and scenes have at least one pixel, halos at least none",
            "use the defaults, or --tile 1024",
        )
    for side in sorted(block or ()):
        if 1 < side <= tile:
            tile = -(-tile // side) * side
    whole = Window(0, 0, int(shape[1]), int(shape[0]))
    covered = whole if area is None else Window(*area).clipped(shape)
    if covered.w < 1 or covered.h < 1:
        raise InputError(
            f"the area {tuple(area or whole)} lies outside of the scene",
            f"the scene has {shape[1]} x {shape[0]} pixels",
            "check the area of interest: x, y, width, height in pixels",
        )
    return TilePlan((whole.h, whole.w), tile, halo, covered)


class TileRun(NamedTuple):
    """What a loop did.

    Attributes:
        done: Tiles finished now.
        skipped: Tiles that an earlier run had finished.
        failed: (index, reason) of tiles that failed and were passed over.
    """

    done: int
    skipped: int
    failed: tuple[tuple[int, str], ...]


def run_tiles(
    plan: TilePlan,
    step: Callable[[Tile], T],
    sink: Callable[[Tile, T], None],
    *,
    workers: int = 1,
    manifest: Path | None = None,
    run_key: str = "",
    on_error: Literal["fail", "skip"] = "fail",
    shard: Shard = (0, 1),
    progress: Progress | None = None,
) -> TileRun:
    """Run `step` on every tile and hand the results to `sink` in order.

    Args:
        plan: The tiles.
        step: Work on one tile; called in worker threads.
        sink: Takes a result; called in this thread, in tile order. With a manifest, what it took
            must be on the disk when it returns; the sinks of this module are given the manifest to
            do so.
        workers: Threads.
        manifest: File of finished tiles; with it, a later call skips them. It is removed by
            `finish` of the sinks.
        run_key: What the results depend on (fingerprints of inputs, model, parameters); a manifest
            of another key is refused.
        on_error: "skip" passes over tiles whose step fails; a later call with the manifest tries
            them again, until the sink is finished. A sink that fails always ends the loop.
        shard: (i, n): the i-th of n parts of the plan, i from 0.
        progress: Called in this thread with (tiles finished, tiles of this shard); first with what
            was finished before.

    Raises:
        InputError: The manifest belongs to another run or is in use by one, or the shard does not
            exist.
        OutputError: The manifest cannot be written.
    """
    mine = shard_tiles(len(plan), shard)
    if workers < 1:
        raise InputError(f"{workers} workers", "at least one is needed", "for example --workers 2")
    ledger = None if manifest is None else _Manifest(manifest, _manifest_head(plan, run_key, shard))
    finished = ledger.finished if ledger is not None else set()
    todo = deque(index for index in mine if index not in finished)
    skipped = len(mine) - len(todo)
    failed: list[tuple[int, str]] = []
    waiting: deque[tuple[Tile, Future[T]]] = deque()
    done = 0
    if progress is not None:
        progress(skipped, len(mine))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="rsfuse-tile")
    try:
        while todo or waiting:
            while todo and len(waiting) < IN_FLIGHT * workers:
                tile = plan[todo.popleft()]
                waiting.append((tile, pool.submit(step, tile)))
            tile, future = waiting.popleft()
            try:
                result = future.result()
            except Exception as error:
                if on_error == "fail":
                    raise
                reason = error.what if isinstance(error, RsfuseError) else repr(error)
                _log.warning("tile %d at %s failed: %s", tile.index, tuple(tile.core), reason)
                failed.append((tile.index, reason))
            else:
                sink(tile, result)
                del result  # not to be held while the next one is waited for
                if ledger is not None:
                    ledger.add(tile.index)
                done += 1
            del future
            if progress is not None:
                progress(skipped + done + len(failed), len(mine))
    finally:
        pool.shutdown(cancel_futures=True)
        if ledger is not None:
            ledger.close()
    return TileRun(done, skipped, tuple(failed))


def shard_tiles(count: int, shard: Shard) -> range:
    """Indices of the tiles of a shard: each is in one, and each shard is one stretch of the plan.

    Raises:
        InputError: Not (i, n) with 0 <= i < n.
    """
    index, parts = shard
    if not 0 <= index < parts:
        raise InputError(
            f"shard {index} of {parts}, counted from 0",
            "the parts of n are 0 to n - 1",
            "for example --shard 2/8, which is (1, 8)",
        )
    return range(count * index // parts, count * (index + 1) // parts)


def shard_path(path: str | Path, shard: Shard) -> Path:
    """Where a shard leaves its part of a result; the result itself where there is one shard."""
    path = Path(path)
    index, parts = shard
    if parts == 1:
        return path
    return path.with_name(f"{path.stem}.shard-{index + 1}-of-{parts}{path.suffix}")


class RasterSink:
    """Takes the tiles of a raster into an uncompressed file, and makes a result of it at the end.

    With a manifest, every tile is on the disk when `write` returns, and the unfinished file
    outlives an interruption; without one it goes with the block. A shard leaves a file of its own,
    see `shard_path`, and `merge_rasters` makes the result of them.
    """

    def __init__(
        self,
        path: str | Path,
        geobox: GeoBox,
        *,
        bands: Sequence[str],
        dtype: npt.DTypeLike,
        nodata: float | None = None,
        colours: Colours | None = None,
        class_names: ClassNames | None = None,
        radiometry: str | None = None,
        area: Window | None = None,
        overviews: Overviews = True,
        manifest: Path | None = None,
        shard: Shard = (0, 1),
    ) -> None:
        """Store what to write; the file is opened by `with`.

        Args:
            path: Result.
            geobox: Grid of the scene.
            bands: Name of each band.
            dtype: Data type in the file; values are rounded and clipped to it.
            nodata: Value of pixels that are invalid or never written; without one the result gets a
                mask where there are any.
            colours: As in `write_cog`.
            class_names: As in `write_cog`.
            radiometry: What the numbers are, see `Raster`.
            area: Part of the scene that the result covers; all of it when None.
            overviews: As in `write_cog`.
            manifest: That of the loop.
            shard: That of the loop.
        """
        self.path = shard_path(path, shard)
        self._result = Path(path)
        whole = Window(0, 0, int(geobox.shape[1]), int(geobox.shape[0]))
        self._area = whole if area is None else Window(*area).intersection(whole)
        self._geobox = window_geobox(geobox, self._area)
        self._bands = tuple(bands)
        self._dtype = np.dtype(dtype)
        self._nodata = nodata
        self._colours = colours
        self._class_names = class_names
        self._tags = {} if radiometry is None else {RADIOMETRY_TAG: radiometry}
        self._overviews = overviews
        self._manifest = manifest
        self._is_shard = shard[1] > 1
        mark = "" if manifest is not None else f".{os.getpid()}-{secrets.token_hex(4)}"
        self._partial = self.path.with_name(f".{self.path.name}{mark}.partial.tif")
        self._partial_mask = self.path.with_name(f".{self.path.name}{mark}.partial-mask.tif")
        self._data: BlockFile | None = None
        self._mask: BlockFile | None = None

    def __enter__(self) -> "RasterSink":
        """Open the unfinished file; the one of an interrupted run where the manifest is there.

        Raises:
            InputError: The file that is there belongs to another run.
            OutputError: The file cannot be written.
        """
        with writing(self.path, resumable=False):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._manifest is not None and self._manifest.exists() and self._reopen():
                return self
            if self._manifest is not None:
                self._manifest.unlink(missing_ok=True)
            self._remove()
            try:
                self._create()
            except BaseException:
                self._close()
                self._remove()
                raise
        return self

    def _create(self) -> None:
        if self._nodata is None:
            self._mask = BlockFile.create(
                self._partial_mask,
                self._geobox,
                1,
                dtype=np.uint8,
                tags={"INTERNAL_MASK_FLAGS_1": "2"},
            )
        self._data = BlockFile.create(
            self._partial,
            self._geobox,
            len(self._bands),
            dtype=self._dtype,
            nodata=self._nodata,
            bands=self._bands,
            colours=self._colours,
            class_names=self._class_names,
            tags=self._tags,
        )

    def _reopen(self) -> bool:
        """Whether an interrupted run left its file, which is open then."""
        attached = _mask_of(self._partial)
        if attached.exists():  # the run ended between the last tile and the result
            os.replace(attached, self._partial_mask)
        if not self._partial.exists():
            return False
        if self._nodata is None and not self._partial_mask.exists():
            return False
        try:
            self._data = BlockFile(self._partial)
            self._mask = BlockFile(self._partial_mask) if self._nodata is None else None
        except (RasterError, OSError) as error:
            _log.warning("the unfinished %s cannot be used: %s", self._partial, error)
            self._close()
            return False
        data = self._data
        if (data.shape, data.count, data.dtype) != (
            tuple(self._geobox.shape),
            len(self._bands),
            self._dtype,
        ):
            self._close()
            raise InputError(
                f"{self._partial} has shape {data.shape}, {data.count} bands and type {data.dtype}",
                "it was begun by a run with other parameters and cannot be continued by this one",
                "repeat the command as it was, or start anew with --overwrite",
            )
        return True

    def __exit__(self, *_: object) -> None:
        """Close; the unfinished file stays only where a manifest allows to go on."""
        self._close()
        if self._manifest is None:
            self._remove()

    def _close(self) -> None:
        for file in (self._data, self._mask):
            if file is not None:
                file.close()

    def _remove(self) -> None:
        for path in (self._partial, self._partial_mask, _mask_of(self._partial)):
            path.unlink(missing_ok=True)

    def take(self, tile: Tile, raster: Raster) -> None:
        """Write the core of a tile from a raster of its core or of its window."""
        size = raster.shape
        if size == tile.core.shape:
            self.write(tile.core, raster.data, raster.valid)
            return
        if size != tile.window.shape:
            raise InputError(
                f"a result of {size} for tile {tile.index}",
                f"its core has {tile.core.shape}, its window {tile.window.shape}",
                "return a raster of one of them",
            )
        rows, columns = tile.core.slices_in(tile.window)
        self.write(tile.core, raster.data[:, rows, columns], raster.valid[rows, columns])

    def write(
        self,
        window: Window,
        data: npt.NDArray[Any],
        valid: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Write the pixels of a window of the scene.

        Args:
            window: In pixels of the scene, inside the area.
            data: (C, h, w).
            valid: (h, w); all when None.

        Raises:
            OutputError: The disk is full, or gone.
        """
        if self._data is None:
            raise InputError(
                f"{self.path} is not open", "a sink writes inside its with block", "use with"
            )
        place = Window(window.x - self._area.x, window.y - self._area.y, window.w, window.h)
        known = np.ones(data.shape[1:], bool) if valid is None else valid
        if data.dtype.kind == "f":
            known = known & np.isfinite(data).all(axis=0)
        with writing(self.path, resumable=self._manifest is not None):
            self._data.write(place, converted(data, known, self._dtype, self._nodata))
            if self._mask is not None:
                self._mask.write(place, np.where(known, np.uint8(255), np.uint8(0))[None])
            if self._manifest is not None:
                self._data.flush()
                if self._mask is not None:
                    self._mask.flush()

    def finish(self) -> None:
        """Make the cloud-optimised result, or the file of the shard; it appears when it is whole.

        Raises:
            OutputError: It cannot be written.
        """
        if self._data is None:
            raise InputError(
                f"{self.path} is not open", "a sink finishes inside its with block", "use with"
            )
        with writing(self.path, resumable=self._manifest is not None):
            self._data.flush()
            masked = self._mask is not None and (self._is_shard or self._mask.has(0))
            self._close()
            if masked:
                os.replace(self._partial_mask, _mask_of(self._partial))
            if self._is_shard:
                if masked:
                    os.replace(_mask_of(self._partial), _mask_of(self.path))
                os.replace(self._partial, self.path)
            else:
                cog_from_tiff(self._partial, self._result, overviews=self._overviews)
            if self._manifest is not None:
                self._manifest.unlink(missing_ok=True)
            self._remove()


def merge_rasters(path: str | Path, parts: int, *, overviews: Overviews = True) -> None:
    """Make one raster of what the shards of a run left, atomically, and remove that.

    Args:
        path: Result, as every shard was given it.
        parts: Number of shards.
        overviews: As in `write_cog`.

    Raises:
        InputError: A shard is missing, or the shards belong to different runs.
        OutputError: The result cannot be written.
    """
    path = Path(path)
    files = _shard_files(path, parts)
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial.tif")
    try:
        with writing(path, resumable=False):
            _merge_into(scratch, files)
            masked = _mask_of(scratch)
            if masked.exists():
                mask = BlockFile(masked)
                mask.close()
                if not mask.has(0):
                    masked.unlink()
            cog_from_tiff(scratch, path, overviews=overviews)
    finally:
        scratch.unlink(missing_ok=True)
        _mask_of(scratch).unlink(missing_ok=True)
    for file in files:
        file.unlink()
        _mask_of(file).unlink(missing_ok=True)


def _merge_into(scratch: Path, files: Sequence[Path]) -> None:
    """The first shard copied, and what the others have written on top."""
    import shutil

    shutil.copyfile(files[0], scratch)
    if _mask_of(files[0]).exists():
        shutil.copyfile(_mask_of(files[0]), _mask_of(scratch))
    data = BlockFile(scratch)
    mask = BlockFile(_mask_of(scratch)) if _mask_of(scratch).exists() else None
    try:
        for file in files[1:]:
            with opened(file) as part, opened(files[0]) as first:
                if _layout(part) != _layout(first):
                    raise InputError(
                        f"{file} does not fit {files[0]}",
                        "they differ in grid, bands or type: they belong to different runs",
                        "run the shards again with the same arguments",
                    )
                for _, block in part.block_windows(1):
                    known = part.dataset_mask(window=block) > 0
                    if not known.any():
                        continue
                    window = Window(block.col_off, block.row_off, block.width, block.height)
                    with opened(scratch) as whole:
                        pixels = whole.read(window=block)
                        present = whole.dataset_mask(window=block) > 0
                    pixels[:, known] = part.read(window=block)[:, known]
                    data.write(window, pixels)
                    if mask is not None:
                        both = np.where(known | present, np.uint8(255), np.uint8(0))
                        mask.write(window, both[None])
    finally:
        data.close()
        if mask is not None:
            mask.close()


def _layout(file: Any) -> tuple[Any, ...]:
    nodata = None if file.nodata is None else repr(float(file.nodata))
    return (*file.shape, file.count, file.dtypes, file.transform, file.crs, nodata)


def _mask_of(path: Path) -> Path:
    """Where GDAL looks for the mask of a raster."""
    return path.with_name(f"{path.name}.msk")


def _shard_files(path: Path, parts: int) -> list[Path]:
    files = [shard_path(path, (index, parts)) for index in range(parts)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise InputError(
            f"{len(missing)} of {parts} shards of {path} are missing: {', '.join(missing[:8])}",
            "the result is made of all of them",
            "run the missing ones with --shard, then merge again",
        )
    return files


class RowStore:
    """Takes records of tiles and makes one file of JSON lines of them, in tile order.

    With a manifest, the records of a tile are on the disk when `write` returns, and the unfinished
    file outlives an interruption. A tile that is written twice has its later records only.
    """

    def __init__(
        self, path: str | Path, *, manifest: Path | None = None, shard: Shard = (0, 1)
    ) -> None:
        """Store where to write; the file is opened by `with`.

        Args:
            path: Result, `.jsonl`.
            manifest: That of the loop.
            shard: That of the loop.
        """
        self.path = shard_path(path, shard)
        self._manifest = manifest
        mark = "" if manifest is not None else f".{os.getpid()}-{secrets.token_hex(4)}"
        self._partial = self.path.with_name(f".{self.path.name}{mark}.partial.jsonl")
        self._file = _LineFile(self._partial)
        self._places: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> "RowStore":
        """Open the unfinished file; the one of an interrupted run where the manifest is there.

        Raises:
            OutputError: The file cannot be written.
        """
        with writing(self.path, resumable=False):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self._manifest is None or not self._manifest.exists():
                self._partial.unlink(missing_ok=True)
            elif not self._partial.exists():
                self._manifest.unlink()
            for line, place in self._file.open():
                self._places[int(line["tile"])] = place
        return self

    def __exit__(self, *_: object) -> None:
        """Close; the unfinished file stays only where a manifest allows to go on."""
        self._file.close()
        if self._manifest is None:
            self._partial.unlink(missing_ok=True)

    def write(self, tile: Tile, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take the records of a tile.

        Raises:
            OutputError: The disk is full, or gone.
        """
        line = {"tile": tile.index, "rows": plain(list(rows))}
        with writing(self.path, resumable=self._manifest is not None):
            self._places[tile.index] = self._file.append(line, flush=self._manifest is not None)

    def finish(self) -> None:
        """Make the result: one line per record.

        Raises:
            OutputError: It cannot be written.
        """
        self._file.close()
        with (
            atomic_path(self.path) as temporary,
            temporary.open("wb") as result,
            self._partial.open("rb") as partial,
        ):
            for index in sorted(self._places):
                start, length = self._places[index]
                partial.seek(start)
                for row in json.loads(partial.read(length))["rows"]:
                    result.write(_line(row))
        if self._manifest is not None:
            self._manifest.unlink(missing_ok=True)
        self._partial.unlink(missing_ok=True)


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """The records that a `RowStore` made a file of, one at a time.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with Path(path).open("rb") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", "a file of JSON lines is needed", "check the path"
        ) from error


def merge_rows(path: str | Path, parts: int) -> None:
    """Make one file of what the shards of a run left, atomically, and remove that.

    Args:
        path: Result, as every shard was given it.
        parts: Number of shards.

    Raises:
        InputError: A shard is missing.
        OutputError: The result cannot be written.
    """
    files = _shard_files(Path(path), parts)
    with atomic_path(path) as temporary, temporary.open("wb") as result:
        for file in files:
            with file.open("rb") as part:
                while chunk := part.read(2**20):
                    result.write(chunk)
    for file in files:
        file.unlink()


class _LineFile:
    """JSON lines that are appended to; a torn last line is cut off when the file is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        self._end = 0

    def open(self) -> list[tuple[dict[str, Any], tuple[int, int]]]:
        """Open the file, which may be missing; its lines and their (start, length)."""
        found = []
        self._end = 0
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    try:
                        content = json.loads(line) if line.endswith(b"\n") else None
                    except ValueError:
                        content = None
                    if not isinstance(content, dict):
                        break
                    found.append((content, (self._end, len(line))))
                    self._end += len(line)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(self._file, self._end)
        return found

    def lock(self) -> None:
        """Keep other processes from locking the file until it is closed or this one ends.

        Raises:
            InputError: Another one has locked it.
        """
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise InputError(
                f"{self.path} is in use by another process",
                "two runs cannot finish the same tiles at the same time",
                "wait for the other run, or end it",
            ) from error
        except OSError:  # a file system without locks
            _log.debug("%s cannot be locked", self.path)

    def append(self, content: Mapping[str, Any], *, flush: bool) -> tuple[int, int]:
        """Write a line; its (start, length)."""
        line = _line(content)
        start, rest = self._end, memoryview(line)
        while rest:
            written = os.pwrite(self._file, rest, self._end)
            rest, self._end = rest[written:], self._end + written
        if flush:
            os.fsync(self._file)
        return start, len(line)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class _Manifest:
    """Finished tiles of one run; its first line says what they belong to."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self._path = Path(path)
        self._file = _LineFile(self._path)
        with writing(self._path, resumable=False):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = [content for content, _ in self._file.open()]
            self._file.lock()
            if not lines:
                self._file.append(head, flush=True)
        if lines and lines[0] != head:
            self.close()
            raise InputError(
                f"{path} belongs to a run with other inputs or parameters",
                "its finished tiles cannot be mixed with those of this run",
                "repeat the command as it was, or start anew with --overwrite",
            )
        self.finished = {int(line["tile"]) for line in lines[1:]}

    def add(self, index: int) -> None:
        """Note a tile, on the disk."""
        with writing(self._path, resumable=True):
            self._file.append({"tile": index}, flush=True)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _manifest_head(plan: TilePlan, run_key: str, shard: Shard) -> dict[str, Any]:
    return {
        "format": "rsfuse-tiles",
        "format_version": 1,
        "run_key": run_key,
        "shape": list(plan.shape),
        "tile": plan.tile,
        "halo": plan.halo,
        "area": list(plan.area),
        "shard": list(shard),
    }


@contextmanager
def writing(path: Path, *, resumable: bool) -> Iterator[None]:
    """What GDAL and the operating system raise while tiles are written becomes an `OutputError`.

    Args:
        path: The result.
        resumable: Whether finished tiles are kept.
    """
    try:
        with explained(path):
            yield
    except RsfuseError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        fix = "free some space" if full else "check the folder and its permissions"
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            "the finished tiles are kept" if resumable else "nothing was left half-written",
            f"{fix}, then go on with --resume" if resumable else f"{fix}, or write elsewhere",
        ) from error
