"""Class maps of whole scenes: tile by tile, in bounded memory, resumable, without seams.

A network sees a tile with a halo of what its result depends on, aligned to its own windows, so the
probabilities of a pixel are the same whatever the size of the tile. Edges of the scene are
mirrored.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from odc.geo.geobox import GeoBox
from torch import nn

from rsfuse.classification.data import Pair
from rsfuse.classification.model import build_model
from rsfuse.engine.bundle import Bundle, ClassInfo, InputInfo
from rsfuse.errors import InputError
from rsfuse.geo.grid import Window, rescaled
from rsfuse.geo.mask import UsableArea
from rsfuse.geo.raster import Raster
from rsfuse.geo.tiles import RasterSink, Shard, Tile, TilePlan, TileRun, plan_tiles, run_tiles

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Number of a pixel without a class in the map, and of one without a value in percent rasters.
NO_CLASS = 255
NO_PERCENT = 255
MOST_CLASSES = NO_CLASS

# Values per MS pixel that a network of the usual width holds while it works.
_CHANNELS_IN_WORK = 512

# Side of a tile in MS pixels: two at once, with PAN at ratio 4, need less than 2 GB.
TILE = 96


class TileClassifier(Protocol):
    """Gives the probabilities of the classes for one tile."""

    classes: tuple[ClassInfo, ...]
    align: int
    halo: int
    factor: int

    def __call__(self, ms: Image, ms_valid: Mask, pan: Image, pan_valid: Mask) -> Image:
        """Probabilities (K, f h, f w) of MS (C, h, w) and PAN (P, r h, r w)."""


class NetworkClassifier:
    """A network of a bundle as a `TileClassifier`.

    Attributes:
        classes: What it tells apart.
        align: Sides of tiles in MS pixels must be multiples of this.
        halo: MS pixels around a tile on which its result depends.
        factor: Map pixels per MS pixel along an axis.
        temperature: Divides the logits, so that probabilities are calibrated.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[InputInfo],
        classes: Sequence[ClassInfo],
        *,
        temperature: float = 1.0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.classes = tuple(classes)
        self.align = int(getattr(model, "align", 1))
        self.halo = int(getattr(model, "halo", 0))
        self.factor = int(getattr(model, "factor", 1))
        self.temperature = temperature
        self._inputs = {item.name: item for item in inputs}

    @classmethod
    def load(cls, bundle: Bundle, device: str | torch.device = "cpu") -> "NetworkClassifier":
        """The classifier of a bundle.

        Raises:
            InputError: The bundle is damaged, or its weights do not fit its architecture.
        """
        card = bundle.card
        model = build_model(card.architecture, **card.arguments)
        bundle.load_into(model)
        temperature = float(card.extra.get("temperature", 1.0))
        return cls(model, card.inputs, card.classes, temperature=temperature, device=device)

    def __call__(self, ms: Image, ms_valid: Mask, pan: Image, pan_valid: Mask) -> Image:
        """Probabilities (K, f h, f w) of MS (C, h, w) and PAN (P, r h, r w)."""
        h, w = ms_valid.shape
        ratio = pan_valid.shape[0] // h
        one = scaled(ms, ms_valid, self._inputs["ms"])
        two = scaled(pan, pan_valid, self._inputs["pan"])
        below, right = -h % self.align, -w % self.align
        one = mirrored(one, below, right)
        two = mirrored(two, ratio * below, ratio * right)
        with torch.inference_mode():
            logits = self.model(self._batch(one), self._batch(two))[0].float()
            odds = torch.softmax(logits / self.temperature, dim=0)
        return odds[:, : self.factor * h, : self.factor * w].cpu().numpy()

    def _batch(self, image: Image) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(image))[None].to(self.device)


class AtResolution:
    """A classifier whose map has other pixels than its own.

    Larger ones get the mean probabilities of those that they hold, smaller ones those of the pixel
    that they lie in.

    Attributes:
        classes: As of the classifier.
        align: As of the classifier.
        halo: As of the classifier.
        factor: Map pixels per MS pixel along an axis.
    """

    def __init__(self, classifier: TileClassifier, factor: int) -> None:
        self.classes = classifier.classes
        self.align = classifier.align
        self.halo = classifier.halo
        self.factor = factor
        self._classifier = classifier

    def __call__(self, ms: Image, ms_valid: Mask, pan: Image, pan_valid: Mask) -> Image:
        """Probabilities (K, f h, f w) of MS (C, h, w) and PAN (P, r h, r w)."""
        odds = self._classifier(ms, ms_valid, pan, pan_valid)
        own = self._classifier.factor
        if self.factor > own:
            many = self.factor // own
            return np.repeat(np.repeat(odds, many, axis=1), many, axis=2)
        k, h, w = odds.shape
        few = own // self.factor
        return odds.reshape(k, h // few, few, w // few, few).mean(axis=(2, 4))


def scaled(data: Image, valid: Mask, info: InputInfo) -> Image:
    """Bands as the network wants them: `low` at 0, `high` at 1; invalid pixels in the middle."""
    low = np.asarray(info.low, np.float32)[:, None, None]
    high = np.asarray(info.high, np.float32)[:, None, None]
    out = (data - low) / np.maximum(high - low, np.float32(1e-12))
    if info.clip:
        out = np.clip(out, 0.0, 1.0)
    out[:, ~valid] = 0.5
    return out.astype(np.float32, copy=False)


def mirrored(image: Image, below: int, right: int) -> Image:
    """The image with its lower and right edge mirrored outwards, as often as it takes."""
    if not below and not right:
        return image
    return np.pad(image, ((0, 0), (0, below), (0, right)), mode="symmetric")


@dataclass(frozen=True)
class MapFiles:
    """Where the rasters of a class map go.

    Attributes:
        classes: The map itself: uint8, the number of the class, 255 without data.
        confidence: Probability of the chosen class in percent: uint8, 255 without data.
        probabilities: The same for each class, one band each.
    """

    classes: Path
    confidence: Path | None = None
    probabilities: Path | None = None


def map_geobox(pair: Pair, factor: int) -> GeoBox:
    """The grid of a map of `factor` pixels per MS pixel."""
    return rescaled(pair.ms.geobox, factor)


def plan_map(
    pair: Pair,
    classifier: TileClassifier,
    *,
    tile: int = TILE,
    memory: int | None = None,
    workers: int = 1,
) -> TilePlan:
    """Tiles in MS pixels, aligned to the windows of the classifier.

    Raises:
        InputError: The memory is too little for the smallest tiles.
    """
    align = classifier.align
    side = align * max(1, round(tile / align))
    halo = align * -(-classifier.halo // align)
    plan = plan_tiles(pair.ms.shape, tile=side, halo=halo)
    if memory is None:
        return plan
    bands = len(pair.ms.bands) + pair.ratio**2 * len(pair.pan.bands)
    return plan.within(memory, bands + _CHANNELS_IN_WORK, workers=workers)


def read_tile(
    pair: Pair, window: Window, area: UsableArea | None = None
) -> tuple[Raster, Raster, Mask]:
    """MS and PAN of a window of MS pixels, and which of these the map can have a class for.

    Args:
        pair: MS and PAN.
        window: In MS pixels.
        area: The area of interest on the MS grid.
    """
    ratio = pair.ratio
    ms = pair.ms.read(window)
    finer = Window(window.x * ratio, window.y * ratio, window.w * ratio, window.h * ratio)
    pan = pair.pan.read(finer)
    usable = ms.valid & _all_in_cells(pan.valid, ratio)
    if area is not None:
        usable = usable & area.at(window, window.shape)
    return ms, pan, usable


def classify_scene(
    pair: Pair,
    classifier: TileClassifier,
    files: MapFiles,
    *,
    plan: TilePlan | None = None,
    area: UsableArea | None = None,
    manifest: Path | None = None,
    run_key: str = "",
    shard: Shard = (0, 1),
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> TileRun:
    """Write the class map of a scene.

    Args:
        pair: MS and PAN.
        classifier: What tells the classes apart.
        files: Where the rasters go; each appears when it is whole.
        plan: From `plan_map`.
        area: The area of interest on the MS grid; without class outside.
        manifest: File of finished tiles; with it, a killed run goes on where it stopped.
        run_key: What the result depends on beside the images.
        shard: As in `run_tiles`; `merge_rasters` joins the parts.
        workers: Tiles at once.
        progress: Called with (done, total) tiles.

    Raises:
        RasterError: An image is damaged.
        OutputError: A raster cannot be written.
        InputError: Too many classes, or the manifest belongs to another run.
    """
    if len(classifier.classes) > MOST_CLASSES:
        raise InputError(
            f"{len(classifier.classes)} classes",
            f"a map of bytes holds at most {MOST_CLASSES}",
            "merge classes, or train with fewer",
        )
    plan = plan_map(pair, classifier, workers=workers) if plan is None else plan
    factor = classifier.factor

    def step(tile: Tile) -> tuple[Image, Mask]:
        ms, pan, usable = read_tile(pair, tile.window, area)
        core = tile.core.slices_in(tile.window)
        if not usable[core].any():
            shape = (len(classifier.classes), tile.core.h * factor, tile.core.w * factor)
            return np.zeros(shape, np.float32), np.zeros(shape[1:], bool)
        odds = classifier(ms.data, ms.valid, pan.data, pan.valid)
        rows, columns = (slice(s.start * factor, s.stop * factor) for s in core)
        known = usable.repeat(factor, axis=0).repeat(factor, axis=1)
        return odds[:, rows, columns], known[rows, columns]

    with ExitStack() as stack:
        sinks = _Sinks(files, map_geobox(pair, factor), classifier.classes, manifest, shard, stack)

        def take(tile: Tile, result: tuple[Image, Mask]) -> None:
            core = tile.core
            place = Window(core.x * factor, core.y * factor, core.w * factor, core.h * factor)
            sinks.write(place, *result)

        run = run_tiles(
            plan,
            step,
            take,
            workers=workers,
            manifest=manifest,
            run_key=f"{pair.ms.fingerprint} {pair.pan.fingerprint} {run_key}",
            shard=shard,
            progress=progress,
        )
        sinks.finish()
    return run


class _Sinks:
    """The rasters of a map, written together."""

    def __init__(
        self,
        files: MapFiles,
        geobox: GeoBox,
        classes: Sequence[ClassInfo],
        manifest: Path | None,
        shard: Shard,
        stack: ExitStack,
    ) -> None:
        def sink(path: Path, bands: Sequence[str], **more: Any) -> RasterSink:
            made = RasterSink(
                path, geobox, bands=bands, dtype="uint8", manifest=manifest, shard=shard, **more
            )
            return stack.enter_context(made)

        self._others: list[tuple[RasterSink, bool]] = []
        if files.probabilities is not None:
            names = [item.name for item in classes]
            self._others.append((sink(files.probabilities, names, nodata=NO_PERCENT), True))
        if files.confidence is not None:
            confidence = sink(files.confidence, ["confidence"], nodata=NO_PERCENT)
            self._others.append((confidence, False))
        self._classes = sink(
            files.classes,
            ["class"],
            nodata=NO_CLASS,
            colours={i: rgb(item.color) for i, item in enumerate(classes)},
            class_names={i: item.name for i, item in enumerate(classes)},
        )

    def write(self, place: Window, odds: Image, known: Mask) -> None:
        """Write the probabilities (K, h, w) of a window."""
        for sink, each in self._others:
            share = odds if each else odds.max(axis=0)[None]
            sink.write(place, np.rint(100.0 * share), known)
        self._classes.write(place, odds.argmax(axis=0)[None].astype(np.float32), known)

    def finish(self) -> None:
        """Make the results, the map last."""
        for sink, _ in self._others:
            sink.finish()
        self._classes.finish()


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green, blue of "#rrggbb"."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _all_in_cells(valid: Mask, ratio: int) -> Mask:
    """Which MS pixels have all of their PAN pixels."""
    h, w = valid.shape[0] // ratio, valid.shape[1] // ratio
    cells = valid[: h * ratio, : w * ratio].reshape(h, ratio, w, ratio)
    return np.asarray(cells.all(axis=(1, 3)))
