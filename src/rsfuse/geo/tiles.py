"""The scene loop: cut a scene into tiles, work on them in bounded memory, resume after a kill.

    plan = plan_tiles(shape, tile=1024, halo=64)
    with RasterSink(path, geobox, bands=("class",), dtype="uint8") as sink:
        run_tiles(plan, step, lambda tile, r: sink.write(tile.core, r.data, r.valid))
        sink.finish()

Every pixel belongs to the core of exactly one tile; the halo is context only. Results reach the
sink in tile order and in the calling thread. A manifest notes each tile after its result is on the
disk, so a killed run goes on where it stopped and ends with the same bytes.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError, OutputError, RsfuseError
from rsfuse.geo.gdal import GDAL_ERRORS, gdal_settings, no_georeference_warnings
from rsfuse.geo.grid import Window
from rsfuse.geo.write import cog_from_tiff, converted, tiled_writer

T = TypeVar("T")
IN_FLIGHT_PER_WORKER = 2  # results that may wait for their turn


@dataclass(frozen=True)
class Tile:
    """One piece of work.

    Attributes:
        index: Position in the plan.
        core: Pixels that this tile owns.
        window: Core and halo, clipped to the image.
    """

    index: int
    core: Window
    window: Window


@dataclass(frozen=True)
class TilePlan:
    """How a scene is cut: row by row, left to right.

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
        return -(-self.area.h // self.tile), -(-self.area.w // self.tile)

    def __len__(self) -> int:
        """Number of tiles."""
        rows, columns = self.grid
        return rows * columns

    def __getitem__(self, index: int) -> Tile:
        """The tile of an index; tiles are computed, not stored."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row, column = divmod(index, self.grid[1])
        x, y = self.area.x + column * self.tile, self.area.y + row * self.tile
        w = min(self.tile, self.area.x + self.area.w - x)
        h = min(self.tile, self.area.y + self.area.h - y)
        around = Window(x - self.halo, y - self.halo, w + 2 * self.halo, h + 2 * self.halo).clipped(
            self.shape
        )
        return Tile(index, Window(x, y, w, h), around)

    def __iter__(self) -> Iterator[Tile]:
        """All tiles in order."""
        return (self[i] for i in range(len(self)))

    def memory_bytes(self, channels: int, itemsize: int = 4, workers: int = 1) -> int:
        """Bytes that the loop holds at most: window of every tile in flight, in and out.

        (1 + IN_FLIGHT_PER_WORKER) * workers * channels * itemsize * (tile + 2 halo)^2; it does not
        depend on the size of the scene.
        """
        side = min(self.tile + 2 * self.halo, max(self.shape) + 2 * self.halo)
        return (1 + IN_FLIGHT_PER_WORKER) * workers * channels * itemsize * side * side


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
        tile: Side of a core; rounded up to whole blocks of the file when `block` is given.
        halo: Context around each core.
        block: (h, w) of the file's own blocks.
        area: Part of the scene to cover, clipped to it.

    Raises:
        InputError: Nothing to cover, or an impossible size.
    """
    if tile < 1 or halo < 0 or min(shape) < 1:
        raise InputError(
            f"tiles of {tile} pixels with a halo of {halo} on a scene of {shape[1]} x {shape[0]}",
            "Tiles and scenes have at least one pixel, halos at least none.",
            "Use the defaults, or --tile 1024.",
        )
    if block is not None:
        side = max(block)
        if side <= tile:
            tile = -(-tile // side) * side
    whole = Window(0, 0, shape[1], shape[0])
    covered = whole if area is None else area.clipped(shape)
    if covered.w < 1 or covered.h < 1:
        raise InputError(
            f"the area {tuple(area or whole)} lies outside of the scene",
            f"The scene is {shape[1]} x {shape[0]} pixels.",
            "Check the area of interest.",
        )
    return TilePlan(shape, tile, halo, covered)


@dataclass(frozen=True)
class TileRun:
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
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> TileRun:
    """Run `step` on every tile and hand the results to `sink` in order.

    Args:
        plan: The tiles.
        step: Work on one tile; called in worker threads.
        sink: Takes a result; called in this thread, in tile order. What it does must be on the disk
            when it returns, for `manifest` to mean anything.
        workers: Threads.
        manifest: File of finished tiles; with it a later call skips them.
        run_key: What the results depend on (inputs, model, parameters); a manifest of another key
            is refused.
        on_error: `skip` passes over tiles whose step fails with an RsfuseError.
        shard: (i, n): only every n-th tile, starting from i.
        progress: Called with (done, total).

    Raises:
        InputError: The manifest belongs to another run.
    """
    index, count = shard
    mine = range(index, len(plan), count)
    finished = _read_manifest(manifest, plan, run_key) if manifest is not None else set()
    todo = deque(i for i in mine if i not in finished)
    skipped = len(mine) - len(todo)
    waiting: deque[tuple[Tile, Future[T]]] = deque()
    failed: list[tuple[int, str]] = []
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            while todo or waiting:
                while todo and len(waiting) < IN_FLIGHT_PER_WORKER * workers:
                    tile = plan[todo.popleft()]
                    waiting.append((tile, pool.submit(step, tile)))
                tile, future = waiting.popleft()
                try:
                    result = future.result()
                except RsfuseError as error:
                    if on_error == "fail":
                        raise
                    failed.append((tile.index, error.what))
                else:
                    sink(tile, result)
                    if manifest is not None:
                        _append(manifest, {"tile": tile.index})
                    done += 1
                if progress is not None:
                    progress(skipped + done + len(failed), len(mine))
        finally:
            for _, future in waiting:
                future.cancel()
    return TileRun(done, skipped, tuple(failed))


def _read_manifest(path: Path, plan: TilePlan, run_key: str) -> set[int]:
    """Finished tiles; a first line says what they belong to, a torn last line does not count."""
    head = {"key": run_key, "shape": list(plan.shape), "tile": plan.tile, "area": list(plan.area)}
    rows = read_rows(path)
    if not rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        _append(path, head)
        return set()
    if rows[0] != head:
        raise InputError(
            f"{path} belongs to a run with other inputs or parameters",
            "Its finished tiles cannot be mixed with those of this run.",
            "Repeat the command as it was, or start anew with --overwrite.",
        )
    return {int(row["tile"]) for row in rows[1:]}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; what follows a torn line is cut off."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    good = 0
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                break
            rows.append(row)
            good += len(line)
    if good < path.stat().st_size:
        os.truncate(path, good)
    return rows


def _append(path: Path, row: dict[str, Any]) -> None:
    with _writing(path), path.open("ab") as file:
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


class RasterSink:
    """Takes tiles of a raster into a tiled temporary file, and makes the result of it at the end.

    The temporary file lies beside the result, `.NAME.partial.tif`. With `keep` it outlives an
    interruption, so that a manifest can be resumed; otherwise it goes with the block.
    """

    def __init__(
        self,
        path: str | Path,
        geobox: GeoBox,
        *,
        bands: Sequence[str],
        dtype: str,
        nodata: float | None = None,
        colours: dict[int, Sequence[int]] | None = None,
        class_names: Sequence[str] | None = None,
        keep: bool = False,
    ) -> None:
        """Store what to write; the file is opened by `with`."""
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.stem}.partial.tif")
        self._geobox = geobox
        self._bands = tuple(bands)
        self._dtype = dtype
        self._nodata = nodata
        self._colours = colours
        self._class_names = class_names
        self._keep = keep
        self._file: Any = None

    def __enter__(self) -> RasterSink:
        """Open the temporary file, or the one that an interrupted run left."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        with _writing(self.path):
            if not (self._keep and self.partial.exists()):
                with tiled_writer(
                    self.partial,
                    self._geobox,
                    len(self._bands),
                    dtype=self._dtype,
                    nodata=self._nodata,
                    bands=self._bands,
                    colours=self._colours,
                    class_names=self._class_names,
                ):
                    pass
            self._open()
        return self

    def _open(self) -> None:
        import rasterio

        with no_georeference_warnings():
            self._file = rasterio.open(self.partial, "r+")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; the temporary file stays only for a resume."""
        if self._file is not None:
            with _writing(self.path) if kind is None else suppress(Exception):
                self._file.close()
            self._file = None
        if not (self._keep and kind is not None):
            self.partial.unlink(missing_ok=True)

    def write(
        self, window: Window, data: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None = None
    ) -> None:
        """Write the pixels of a core window; they are on the disk when this returns if `keep`."""
        from rasterio.windows import Window as GdalWindow

        known = np.ones(data.shape[1:], bool) if valid is None else valid
        place = GdalWindow(*window)
        with _writing(self.path), gdal_settings(GDAL_TIFF_INTERNAL_MASK="YES"):
            self._file.write(converted(data, known, self._dtype, self._nodata), window=place)
            if self._nodata is None:
                self._file.write_mask(known, window=place)
            if self._keep:
                self._file.close()
                self._open()

    def finish(self) -> None:
        """Make the cloud-optimised result; it appears when it is whole.

        Raises:
            OutputError: It cannot be written.
        """
        with _writing(self.path):
            self._file.close()
            self._file = None
        cog_from_tiff(self.partial, self.path)


def _cannot_write(path: Path, error: BaseException) -> OutputError:
    return OutputError(
        f"cannot write {path}: {str(error).strip() or type(error).__name__}",
        "the disk may be full or the folder not writable; nothing was left half-written",
        "check the free space and the permissions, or write elsewhere with -o",
    )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What GDAL and the system raise while writing becomes an OutputError."""
    try:
        yield
    except RsfuseError:
        raise
    except GDAL_ERRORS as error:
        raise _cannot_write(path, error) from error


class RowStore:
    """Records per tile in a JSON-lines file: durable, and a repeated tile replaces its records."""

    def __init__(self, path: str | Path) -> None:
        """Store the path."""
        self.path = Path(path)

    def write(self, tile: Tile, rows: Sequence[dict[str, Any]]) -> None:
        """Append the records of a tile."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _append(self.path, {"tile": tile.index, "rows": list(rows)})

    def read(self) -> list[dict[str, Any]]:
        """All records in tile order."""
        latest = {int(r["tile"]): r["rows"] for r in read_rows(self.path)}
        return [row for index in sorted(latest) for row in latest[index]]
