"""MS and PAN images as one pair, and PAN images where a sensor model has to stand in for them."""

import logging
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from rsfuse.engine.bundle import InputInfo
from rsfuse.errors import BandError, GridError, InputError
from rsfuse.geo.grid import gsd_m, integer_ratio, overlap, rescaled, same_grid, window_geobox
from rsfuse.geo.raster import Raster, RasterSource, open_raster

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

log = logging.getLogger(__name__)

# What a MS sensor passes at its own Nyquist frequency; typical of QuickBird and Landsat.
MTF_AT_NYQUIST = 0.3


@dataclass(frozen=True, eq=False)
class Pair:
    """MS and PAN of the same ground, PAN pixels being whole parts of MS pixels.

    Attributes:
        ms: The multispectral image.
        pan: The panchromatic image, on a grid `ratio` times finer.
        ratio: PAN pixels per MS pixel along an axis.
    """

    ms: RasterSource
    pan: RasterSource
    ratio: int

    def __enter__(self) -> "Pair":
        """The pair itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close both files."""
        self.ms.close()
        self.pan.close()


def open_pair(
    ms: Any,
    pan: Any,
    *,
    ms_bands: Sequence[str | int] | None = None,
    pan_bands: Sequence[str | int] | None = None,
    inputs: Sequence[InputInfo] = (),
) -> Pair:
    """Open MS and PAN and make them fit together.

    Without a CRS on either, the corners of both images are taken as the same. With one, PAN on
    another grid (not aligned, no whole ratio, another CRS) is resampled once onto an exact
    refinement of the MS grid, into a temporary file.

    Args:
        ms: Multispectral raster: whatever `open_raster` takes.
        pan: Panchromatic raster.
        ms_bands: Bands to use.
        pan_bands: Bands to use.
        inputs: What a model expects, see `open_as`.

    Raises:
        GridError: They share no ground, are swapped, or without a CRS not of an integer ratio; the
            error proposes what to do.
        BandError: The bands are not those that the model expects.
    """
    expected = {item.name: item for item in inputs}
    one = open_as(ms, expected.get("ms"), bands=ms_bands)
    two = open_as(pan, expected.get("pan"), bands=pan_bands)
    if _fits(one, two):
        return Pair(one, two, _ratio(one, two))
    log.warning("%s is resampled onto the grid of %s", two.name, one.name)
    scratch = tempfile.mkdtemp(prefix="rsfuse-pan-")
    try:
        warped = open_raster(warp_pan(one, two, Path(scratch) / "pan.tif"))
        # What is told of it is told of the file that was given.
        pair = Pair(one, warped.called(two.name), _ratio(one, warped))
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(pair, shutil.rmtree, scratch, ignore_errors=True)
    return pair


def open_as(
    raster: Any, info: InputInfo | None = None, *, bands: Sequence[str | int] | None = None
) -> RasterSource:
    """Open an image with the bands that a model expects, in its order.

    An image that names all of them gives them by name, whatever its order and the number of its
    bands. Any other must have as many bands as are expected, which are taken as they come.

    Args:
        raster: Whatever `open_raster` takes.
        info: What is expected; nothing when None.
        bands: The bands to use, in the order in which the model takes them; found by name when
            None.

    Raises:
        BandError: The image has not all bands by name, and another number of them.
    """
    source = open_raster(raster, bands=bands)
    if info is None:
        return source
    if bands is None and _names_all(source.bands, info.bands):
        if _folded(source.bands) == _folded(info.bands):
            return source
        if isinstance(raster, RasterSource):
            raise BandError(
                f"{source.name} is open with the bands {', '.join(source.bands)}",
                f"these are expected, in this order: {', '.join(info.bands)}",
                "open it with bands=, or give its path",
            )
        return open_raster(raster, bands=info.bands)
    if len(source.bands) != len(info.bands):
        choice = " ".join(["-b N"] * len(info.bands))
        raise BandError(
            f"{source.name} has {len(source.bands)} bands: {', '.join(source.bands)}",
            f"{len(info.bands)} are expected: {', '.join(info.bands)}",
            "give the image of a sensor that has them"
            if len(source.bands) < len(info.bands)
            else "write these bands, in this order, to a file of their own: gdal_translate "
            f"{choice} IN.tif OUT.tif",
        )
    if bands is None and (note := by_place(source, info)):
        log.warning("%s: %s", source.name, note)
    return source


def by_place(source: RasterSource, info: InputInfo) -> str:
    """What to know of an image whose bands have other names than are expected, as a sentence.

    Empty where the names agree, where either side has none but numbers, and for a single band,
    which cannot be out of order.
    """
    if len(info.bands) == 1 or _folded(source.bands) == _folded(info.bands):
        return ""
    if _are_numbers(source.bands) or _are_numbers(info.bands):
        return ""
    return (
        f"the bands are named {', '.join(source.bands)} and were taken, in this order, for "
        f"{', '.join(info.bands)}"
    )


def _names_all(bands: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether all expected bands are there by name; numbers alone on both sides are no names."""
    wanted = set(_folded(expected))
    if _are_numbers(bands) and _are_numbers(expected):
        return False
    return len(wanted) == len(expected) and wanted <= set(_folded(bands))


def _are_numbers(bands: Sequence[str]) -> bool:
    """Whether bands are named after their place alone: band1, b2, Band 3."""
    return all(
        re.fullmatch(rf"(band|b)?[ _]?0*{number}", name)
        for number, name in enumerate(_folded(bands), start=1)
    )


def _folded(bands: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in bands]


def _fits(ms: RasterSource, pan: RasterSource) -> bool:
    """Whether PAN lies on an exact refinement of the MS grid.

    Raises:
        GridError: They share no ground, or are swapped.
    """
    if not (ms.is_georeferenced and pan.is_georeferenced):
        return True
    overlap(ms.geobox, pan.geobox)
    if gsd_m(pan.geobox) > 1.2 * gsd_m(ms.geobox):
        raise GridError(
            f"MS has pixels of {gsd_m(ms.geobox):.3g} m and PAN of {gsd_m(pan.geobox):.3g} m",
            "PAN has the smaller pixels of the two",
            "give MS first and PAN second",
        )
    try:
        ratio = integer_ratio(pan.geobox, ms.geobox)
    except GridError:
        return False
    return same_grid(rescaled(ms.geobox, ratio), pan.geobox)


def _ratio(ms: RasterSource, pan: RasterSource) -> int:
    swap = "give MS first and PAN second"
    if not ms.is_georeferenced and not pan.is_georeferenced:
        h, w = ms.shape
        ratio = round(pan.shape[0] / h)
        if ratio < 1 or (h * ratio, w * ratio) != pan.shape:
            raise GridError(
                f"MS is {h} x {w} and PAN {pan.shape[0]} x {pan.shape[1]} pixels, both without CRS",
                "without a CRS the size of PAN must be a multiple of that of MS",
                swap if ratio < 1 else "crop both to the same ground, or give georeferenced files",
            )
        return ratio
    overlap(ms.geobox, pan.geobox)
    return integer_ratio(pan.geobox, ms.geobox)


def warp_pan(
    ms: RasterSource | str | Path,
    pan: RasterSource | str | Path,
    path: str | Path,
    ratio: int | None = None,
) -> Path:
    """Write PAN on an exact refinement of the MS grid, in bounded memory, and return the path.

    Args:
        ms: The MS image, which sets the grid.
        pan: PAN on any grid and in any CRS.
        path: The result.
        ratio: PAN pixels per MS pixel; the nearest whole number to the true one when None.

    Raises:
        GridError: They share no ground, or PAN is coarser than MS.
    """
    from rsfuse.geo.grid import pixel_mapping
    from rsfuse.geo.warp import warp_raster

    one, two = open_raster(ms), open_raster(pan)
    overlap(one.geobox, two.geobox)
    found = max(1, round(gsd_m(one.geobox) / gsd_m(two.geobox))) if ratio is None else ratio
    target = rescaled(one.geobox, found)
    warp_raster(two, target, pixel_mapping(target, two.geobox), path)
    return Path(path)


def wald_pair(image: Raster, ratio: int, weights: Sequence[float] | None = None) -> Pair:
    """PAN and a coarser MS from a scene that has MS alone (Wald's protocol).

    PAN is a weighted mean of the bands at the resolution given, as a sensor whose response covers
    them would see it. MS is the image as a sensor of a `ratio` times larger pixel would see it:
    blurred so that the modulation transfer at the coarse Nyquist frequency is `MTF_AT_NYQUIST`, the
    mean over the coarse pixel included. Both are simulated: results on them must say so.

    Args:
        image: (C, H, W); rows and columns that do not fill a coarse pixel are dropped.
        ratio: r.
        weights: One per band; equal when None.
    """
    bands, height, width = image.data.shape
    h, w = height // ratio, width // ratio
    if min(h, w) < 1:
        raise InputError(
            f"an image of {height} x {width} pixels at a ratio of {ratio}",
            "not one coarse pixel is filled",
            "use a smaller ratio",
        )
    from rsfuse.geo.grid import Window

    window = Window(0, 0, w * ratio, h * ratio)
    data = image.data[:, : h * ratio, : w * ratio]
    valid = image.valid[: h * ratio, : w * ratio]
    grid = window_geobox(image.geobox, window)
    share = np.full(bands, 1.0 / bands) if weights is None else np.asarray(weights, np.float64)
    pan = np.tensordot(share / share.sum(), data, axes=1)[None].astype(np.float32)
    # At the coarse Nyquist frequency f = 1 / (2 r), a Gaussian of sigma s passes exp(-2 (pi s f)^2)
    # and the mean over a coarse pixel 2 / pi; both together pass what the sensor does.
    left = MTF_AT_NYQUIST / (2 / np.pi)
    sigma = ratio * np.sqrt(-np.log(left) / 2) * 2 / np.pi
    known = np.maximum(gaussian_filter(valid.astype(np.float32), sigma, mode="nearest"), 1e-6)
    blurred = np.stack(
        [gaussian_filter(np.where(valid, band, 0), sigma, mode="nearest") / known for band in data]
    )
    cells = blurred.reshape(bands, h, ratio, w, ratio)
    coarse = cells.mean(axis=(2, 4)).astype(np.float32)
    whole = np.asarray(valid.reshape(h, ratio, w, ratio).all(axis=(1, 3)))
    ms = Raster(coarse, whole, rescaled(grid, 1.0 / ratio), image.bands, image.radiometry)
    fine = Raster(pan, valid, grid, ("pan",), image.radiometry)
    return Pair(open_raster(ms), open_raster(fine), ratio)


def robust_range(
    images: Sequence[tuple[Image, Mask]], low: float = 2.0, high: float = 98.0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Percentiles of each band over the pixels of training areas: what becomes 0 and 1.

    Args:
        images: (C, H, W) and the pixels (H, W) that count, one per scene.
        low: Percentile that becomes 0.
        high: Percentile that becomes 1.

    Raises:
        InputError: No pixel counts.
    """
    values = [data[:, use] for data, use in images if use.any()]
    if not values:
        raise InputError(
            "no pixel of the training areas holds data",
            "the range of the bands is taken from them",
            "check that labels and images overlap",
        )
    joined = np.concatenate(values, axis=1).astype(np.float64)
    lows, highs = np.percentile(joined, (low, high), axis=1)
    highs = np.where(highs - lows < 1e-9, lows + 1.0, highs)
    return tuple(float(v) for v in lows), tuple(float(v) for v in highs)
