"""Pictures of rasters for people: stretched, small, with transparent invalid pixels."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsfuse.errors import RsfuseError
from rsfuse.geo.grid import Window, gsd_m
from rsfuse.geo.raster import Raster, RasterSource
from rsfuse.runs import atomic_path

PREVIEW_SIDE_PX = 1400

# Shares of the pixels that become black and white, and the grey of the median.
_DARKEST, _BRIGHTEST, _MIDDLE_GREY = 0.01, 0.99, 0.42


def preview_shape(shape: tuple[int, int], side: int = PREVIEW_SIDE_PX) -> tuple[int, int]:
    """(h, w) of a picture of an image, at most `side` pixels long."""
    shrink = max(1.0, max(shape) / side)
    return max(1, round(shape[0] / shrink)), max(1, round(shape[1] / shrink))


def preview(source: RasterSource, side: int = PREVIEW_SIDE_PX) -> Raster:
    """A reduced read of the bands that make a picture."""
    shape = preview_shape(source.shape, side)
    whole = shape == source.shape
    return source.read(shape=None if whole else shape, bands=picture_bands(source))


def picture_bands(source: RasterSource) -> tuple[str | int, ...]:
    """Red, green and blue where the raster names them; else its first three or one."""
    lower = [band.lower() for band in source.bands]
    if all(colour in lower for colour in ("red", "green", "blue")):
        return tuple(source.bands[lower.index(c)] for c in ("red", "green", "blue"))
    return source.bands[:3] if len(source.bands) >= 3 else source.bands[:1]


class Tones(NamedTuple):
    """How the numbers of each band become grey.

    Attributes:
        low: Number of each band that becomes black.
        high: Number of each band that becomes white.
        power: Exponent of the tone curve of each band.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    power: tuple[float, ...]


def tones_of(raster: Raster) -> Tones:
    """Tones that suit a raster.

    The 1 % darkest and brightest pixels saturate, and a tone curve puts the median at a middle
    grey, so that radar does not drown in black.
    """
    rows = []
    for band in raster.data:
        known = band[raster.valid]
        low, middle, high = (
            np.quantile(known, (_DARKEST, 0.5, _BRIGHTEST)) if known.size else (0.0, 0.5, 1.0)
        )
        spread = max(float(high - low), 1e-9)
        centre = float(np.clip((middle - low) / spread, 0.02, 0.98))
        power = float(np.clip(np.log(_MIDDLE_GREY) / np.log(centre), 0.4, 1.6))
        rows.append((float(low), float(low) + spread, power))
    return Tones(*zip(*rows, strict=True))


def stretch(raster: Raster, tones: Tones | None = None) -> npt.NDArray[np.uint8]:
    """(H, W, 4): red, green, blue and alpha.

    Args:
        raster: One band, or three.
        tones: Of each band; those that suit the raster when None.
    """
    layers = [
        np.clip((band - low) / (high - low), 0, 1) ** power
        for band, low, high, power in zip(raster.data, *(tones or tones_of(raster)), strict=True)
    ]
    if len(layers) != 3:
        layers = [layers[0]] * 3
    alpha = raster.valid.astype(np.float32)
    return (np.stack([*layers, alpha], axis=-1) * 255 + 0.5).astype(np.uint8)


def save_picture(path: Path, pixels: npt.NDArray[np.uint8], *, lossless: bool = False) -> None:
    """Write (H, W, 3 or 4) as WebP or PNG, by the suffix; atomically."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {}
    if path.suffix == ".webp":
        options = {"lossless": True} if lossless else {"quality": 82, "method": 2}
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, **options)


def chip_window(centre: tuple[float, float], side: int, shape: tuple[int, int]) -> Window:
    """A square window around a point, moved so that it lies inside the image where it can."""
    h, w = shape
    x = int(np.clip(round(centre[0] - side / 2), 0, max(0, w - side)))
    y = int(np.clip(round(centre[1] - side / 2), 0, max(0, h - side)))
    return Window(x, y, side, side)


def describe_input(role: str, source: RasterSource) -> dict[str, Any]:
    """What a run record says of one of its inputs."""
    gsd = None
    with suppress(RsfuseError):
        gsd = gsd_m(source.geobox)
    return {
        "role": role,
        "path": source.name,
        "shape": list(source.shape),
        "bands": list(source.bands),
        "crs": None if source.geobox.crs is None else str(source.geobox.crs),
        "gsd_m": gsd,
        "dtype": source.dtype,
        "notes": list(source.notes),
        "transform": [float(v) for v in tuple(source.geobox.affine)[:6]],
    }
