"""Detection in whole scenes: tile by tile, in bounded memory, resumable, without seams.

A scene is looked at on the ground sampling distance of the detector, in tiles with a halo. A box
belongs to the tile whose core holds its centre, so that an object on a seam is kept once, with its
whole surroundings in view; an exact suppression over the whole scene removes what two tiles still
see differently. Boxes of finished tiles lie in a spool file, so a killed run goes on where it
stopped.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rsfuse.detection.data import Dataset
from rsfuse.detection.results import Detections
from rsfuse.detection.runtime import Runtime, load_detector
from rsfuse.engine.bundle import Bundle
from rsfuse.errors import InputError
from rsfuse.geo.grid import Points, Window, gsd_m
from rsfuse.geo.mask import UsableArea
from rsfuse.geo.raster import RasterSource, open_raster
from rsfuse.geo.tiles import Tile, TilePlan, TileRun, plan_tiles, run_tiles
from rsfuse.geo.warp import read_mapped
from rsfuse.ops.nms import rotated_nms

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

log = logging.getLogger(__name__)

# Tiles and halos are multiples of this: the coarsest stride of the detectors, so that cells fall on
# the same ground whatever the size of the tile.
STRIDE = 32

# A scene whose ground sampling distance is this close to the detector's is not resampled.
SAME_GSD = 0.05

# A scene that is enlarged more shows the detector nothing of its objects; one that is reduced more
# has the size of its pixels wrong rather than right: drones see 1 cm, and detectors 0.3 m.
_MOST_SCALE = 4.0
_LEAST_SCALE = 1 / 32

# Beyond these the detector is asked about images unlike those that it learned from.
_LARGE_SCALE = 2.0
_SMALL_SCALE = 1 / 4

# Side of the stretches of the scene in which an area of interest is looked up.
_AREA_SIDE = 1024


@dataclass(frozen=True, eq=False)
class Found:
    """Objects in pixels.

    Attributes:
        boxes: (N, 5) oriented boxes: cx, cy, w, h, angle; (N, 6) with the heading.
        scores: (N,) in [0, 1].
        labels: (N,) class numbers.
    """

    boxes: Floats
    scores: Floats
    labels: npt.NDArray[np.int64]

    @classmethod
    def none(cls) -> "Found":
        """No object."""
        return cls(np.zeros((0, 5)), np.zeros(0), np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.scores)

    def at(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Found":
        """Those of an index or a mask."""
        return Found(self.boxes[which], self.scores[which], self.labels[which])


class TileDetector(Protocol):
    """Finds objects in one image."""

    def __call__(self, image: Image, valid: Mask, partner: Image | None) -> Found:
        """Objects of an image (C, h, w) in the numbers of its file, with an optional second one."""


@dataclass(frozen=True)
class SceneLattice:
    """The pixels that a scene is looked at with.

    Attributes:
        shape: (h, w) of the lattice.
        scale: Lattice pixels per pixel of the file.
    """

    shape: tuple[int, int]
    scale: float

    @classmethod
    def of(cls, source: RasterSource, target_gsd_m: float | None) -> "SceneLattice":
        """The lattice of a target ground sampling distance; the file's own pixels without one.

        Raises:
            InputError: That of the file is too far from it.
        """
        if target_gsd_m is None or not source.is_georeferenced:
            return cls(source.shape, 1.0)
        scale = gsd_m(source.geobox) / target_gsd_m
        if abs(scale - 1.0) <= SAME_GSD:
            return cls(source.shape, 1.0)
        _check_scale(source.name, scale, target_gsd_m)
        h, w = source.shape
        return cls((max(1, round(h * scale)), max(1, round(w * scale))), scale)

    def read(self, source: RasterSource, window: Window) -> tuple[Image, Mask]:
        """Pixels (C, h, w) and mask of a window of the lattice."""
        if self.scale == 1.0:
            raster = source.read(window)
        else:
            raster = read_mapped(source, window.shape, self._to_scene(window), resampling="cubic")
        return raster.data, raster.valid

    def read_partner(
        self,
        partner: RasterSource,
        mapping: Callable[[Points], Points] | None,
        window: Window,
    ) -> Image | None:
        """A second image on the pixels of a window, NaN where unknown; None if all of it is."""
        to_scene = self._to_scene(window)

        def place(points: Points) -> Points:
            at = to_scene(points)
            return at if mapping is None else mapping(at)

        raster = read_mapped(partner, window.shape, place, resampling="bilinear")
        if not raster.valid.any():
            return None
        return np.where(raster.valid, raster.data, np.float32(np.nan))

    def _to_scene(self, window: Window) -> Callable[[Points], Points]:
        corner = np.array([window.x, window.y], np.float64)
        return lambda points: (points + corner) / self.scale


def _check_scale(name: str, scale: float, target_gsd_m: float) -> None:
    """Refuse a scene whose pixels are far from those of the model, and warn of a large step."""
    found = f"{name} has a GSD of {scale * target_gsd_m:.3g} m, the model {target_gsd_m:.3g} m"
    room = 1.0 + SAME_GSD
    if not _LEAST_SCALE / room <= scale <= _MOST_SCALE * room:
        raise InputError(
            found,
            f"a scene is enlarged at most {_MOST_SCALE:g} times and reduced at most "
            f"{1 / _LEAST_SCALE:g} times",
            "check its pixel size with rsfuse info; if it is right, use a model of about this GSD",
        )
    if not _SMALL_SCALE / room <= scale <= _LARGE_SCALE * room:
        log.warning("%s: objects may be missed", found)


def plan_scene(
    lattice: SceneLattice,
    *,
    tile: int = 1024,
    halo: int = 128,
    memory: int | None = None,
    channels: int = 3,
    workers: int = 1,
) -> TilePlan:
    """Tiles of a lattice, of sides and halos that are whole strides.

    Raises:
        InputError: The memory is too little for the smallest tiles.
    """
    tile, halo = (STRIDE * max(1, round(side / STRIDE)) for side in (tile, halo))
    plan = plan_tiles(lattice.shape, tile=tile, halo=halo)
    return plan if memory is None else plan.within(memory, channels, workers=workers)


def detect_scene(
    source: RasterSource,
    detector: TileDetector,
    spool: Path,
    *,
    plan: TilePlan,
    lattice: SceneLattice,
    partner: RasterSource | None = None,
    partner_mapping: Callable[[Points], Points] | None = None,
    area: UsableArea | None = None,
    nms: float = 0.1,
    run_key: str = "",
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Found, TileRun]:
    """Find the objects of a scene.

    Args:
        source: The scene.
        detector: Finds objects in one tile.
        spool: File of the boxes of finished tiles; beside it lies the manifest. A later call with
            the same run key goes on from there; `clear_spool` removes both.
        plan: From `plan_scene`.
        lattice: The pixels that the scene is looked at with.
        partner: A second image of the scene.
        partner_mapping: Pixels of the scene (N, 2) -> pixels of the partner; the same when None.
        area: The area of interest: objects whose centre lies outside are left out.
        nms: Of two boxes of a class that overlap by more (IoU), the better one stays.
        run_key: What the result depends on beside the scene.
        workers: Tiles at once.
        progress: Called with (done, total) tiles.

    Returns:
        Objects in pixels of the file, best score first, and what the loop did.

    Raises:
        InputError: The spool belongs to another run.
        RasterError: The scene is damaged.
    """

    def step(tile: Tile) -> Found:
        image, valid = lattice.read(source, tile.window)
        if not valid[tile.core.slices_in(tile.window)].any():
            return Found.none()
        other = None
        if partner is not None:
            other = lattice.read_partner(partner, partner_mapping, tile.window)
        return _owned(detector(image, valid, other), tile, lattice, valid)

    book = _Spool(spool)
    run = run_tiles(
        plan,
        step,
        book.take,
        workers=workers,
        manifest=manifest_of(spool),
        run_key=f"{source.fingerprint} {run_key}",
        progress=progress,
    )
    found = book.all()
    if area is not None and len(found):
        found = found.at(_inside(area, found.boxes[:, :2], source.shape))
    kept = rotated_nms(found.boxes[:, :5], found.scores, nms, found.labels)
    return found.at(np.asarray(kept, np.int64)), run


def is_blank(source: RasterSource, area: UsableArea | None = None) -> bool:
    """Whether no pixel of a scene, or of an area of interest in it, can be used."""
    for tile in plan_tiles(source.shape, tile=_AREA_SIDE, halo=0):
        usable = None if area is None else area.at(tile.core, tile.core.shape)
        if usable is not None and not usable.any():
            continue
        valid = source.read(tile.core).valid
        if (valid if usable is None else valid & usable).any():
            return False
    return True


def manifest_of(spool: Path) -> Path:
    """Where the loop notes the tiles whose boxes lie in the spool."""
    return spool.with_name(f"{spool.name}.tiles.jsonl")


def clear_spool(spool: Path) -> None:
    """Remove the spool and its manifest, when the result is safely written."""
    manifest_of(spool).unlink(missing_ok=True)
    spool.unlink(missing_ok=True)


def _owned(found: Found, tile: Tile, lattice: SceneLattice, valid: Mask) -> Found:
    """The boxes whose centre lies on valid pixels of the tile's core, in pixels of the file."""
    if not len(found):
        return found
    boxes = found.boxes.astype(np.float64)
    boxes[:, 0] += tile.window.x
    boxes[:, 1] += tile.window.y
    core = tile.core
    x, y = np.floor(boxes[:, 0]), np.floor(boxes[:, 1])
    mine = (x >= core.x) & (x < core.x + core.w) & (y >= core.y) & (y < core.y + core.h)
    column = np.clip(x - tile.window.x, 0, valid.shape[1] - 1).astype(np.int64)
    row = np.clip(y - tile.window.y, 0, valid.shape[0] - 1).astype(np.int64)
    mine &= valid[row, column]
    boxes[:, :4] /= lattice.scale
    return Found(boxes, found.scores, found.labels).at(mine)


def _inside(area: UsableArea, centres: Floats, shape: tuple[int, int]) -> Mask:
    """Which points lie in the area; looked up in those stretches of the scene that hold any."""
    inside = np.zeros(len(centres), bool)
    cells = np.floor(centres / _AREA_SIDE).astype(np.int64)
    for cell in np.unique(cells, axis=0):
        x, y = (int(c) * _AREA_SIDE for c in cell)
        window = Window(x, y, _AREA_SIDE, _AREA_SIDE).clipped(shape)
        if min(window.shape) < 1:
            continue
        mask = area.at(window, window.shape)
        which = np.flatnonzero((cells == cell).all(axis=1))
        place = np.floor(centres[which]).astype(np.int64) - (window.x, window.y)
        column, row = np.clip(place, 0, (window.w - 1, window.h - 1)).T
        inside[which] = mask[row, column]
    return inside


class _Spool:
    """Boxes of finished tiles, one JSON line per tile, on the disk before the tile counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not manifest_of(path).exists():
            path.unlink(missing_ok=True)
        elif path.exists() and not path.read_bytes().endswith(b"\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # end the line that a kill cut off

    def take(self, tile: Tile, found: Found) -> None:
        """Append the boxes of a tile."""
        rows = np.column_stack([found.boxes, found.scores, found.labels]).tolist()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([tile.index, rows]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def all(self) -> Found:
        """The boxes of all tiles, in the order of the tiles.

        A line that a kill cut off is passed over. A tile whose line was written and whose entry in
        the manifest was not is done again; its last line counts.
        """
        tiles: dict[int, list[list[float]]] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    index, rows = json.loads(line)
                except ValueError:
                    continue
                tiles[int(index)] = rows
        rows = [row for index in sorted(tiles) for row in tiles[index]]
        if not rows:
            return Found.none()
        table = np.array(rows, np.float64)
        return Found(table[:, :-2], table[:, -2], table[:, -1].astype(np.int64))


def detect_dataset(
    bundle: Bundle, dataset: Dataset, *, least: float = 0.01, runtime: Runtime = "auto"
) -> list[Detections]:
    """Detections of a model on every image of a data set that has one, for scores.

    Images are read whole: they are those of a data set, not of an archive.

    Args:
        bundle: The model.
        dataset: The images.
        least: Lowest score that is kept.
        runtime: See `load_detector`.
    """
    detector = load_detector(bundle, score=least, runtime=runtime)
    found = []
    for sample in dataset.samples:
        if sample.image is None:
            continue
        with open_raster(sample.image) as source:
            raster = source.read()
        boxes, scores, labels = detector(raster.data, raster.valid)
        found.append(
            Detections.of_boxes(
                boxes, scores, labels, detector.classes, raster.shape, name=sample.name
            )
        )
    return found
