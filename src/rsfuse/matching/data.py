"""Pairs of images with a known transform, read from a folder with an `index.json`.

A dataset is a folder whose `index.json` is a list of entries. Required keys: `pair`, `category`,
`image1`, `image2` (paths relative to the index) and `affine_1to2` (2 x 3) or `homography_1to2`
(3 x 3), which map pixels of image 1 to pixels of image 2 in the corner convention: (0, 0) is the
outer corner of the first pixel. Optional: `set`, `use`, `licence`, `bands1`, `bands2` (from 1),
`points` (a text file of x1 y1 x2 y2), `points_rmse_px`, `residual_px` (what is left in image 2
under the stated truth) and `modality` (two words such as `["optical", "sar"]`).

Image 1 becomes image 0, the reference; image 2 becomes image 1, the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rsfuse.errors import InputError
from rsfuse.runs import parse_json

FloatArray = npt.NDArray[np.float64]
ImageArray = npt.NDArray[np.float32]

INDEX_NAME = "index.json"

# (reference, query) of the categories in the published sets; an entry's own `modality` wins.
# In CFOG the first image is the "sensed" one, so radar, lidar and maps come before optical.
MODALITIES: Mapping[str, tuple[str, str]] = {
    "Optical-SAR": ("optical", "sar"),
    "Optical-Infrared": ("optical", "infrared"),
    "Optical-Optical": ("optical", "optical"),
    "Optical-Map": ("optical", "map"),
    "Optical-Depth": ("optical", "depth"),
    "Nighttime": ("night", "infrared"),
    "optical_sar_a": ("sar", "optical"),
    "optical_sar_c": ("sar", "optical"),
    "visible_sar_b": ("sar", "optical"),
    "lidardepth_optical": ("optical", "depth"),
    "optical_lidarint_1": ("lidar", "optical"),
    "optical_lidarint_2": ("lidar", "optical"),
    "optical_map_1": ("map", "optical"),
    "optical_map_2": ("map", "optical"),
    "visible_infrared_a": ("infrared", "optical"),
    "visible_infrared_b": ("infrared", "optical"),
    "Sentinel-2 / Sentinel-1 VH": ("optical", "sar"),
    "SPOT-5 / ERS SAR": ("optical", "sar"),
    "SPOT-5 before / after flood": ("optical", "optical"),
}


@dataclass(frozen=True, eq=False)
class MatchPair:
    """Two images of the same ground and the transform between them.

    Attributes:
        id: Unique name, `set/category/pair`.
        set: Name of the set that the pair comes from.
        category: The set's own word for the kind of pair.
        modality: What the reference and the query show, such as `("optical", "sar")`.
        reference: Path of image 0.
        query: Path of image 1.
        reference_bands: Bands to read, numbered from 1; all when None.
        query_bands: The same for the query.
        truth: (3, 3) matrix, reference pixels -> query pixels, corner convention.
        residual_px: (2,) shift that an independent measurement found left in the query: the best
            known position of `p` is `truth(p) + residual_px`. None when not measured.
        points: (N, 4) independent check points x0, y0, x1, y1, or None.
        points_rmse_px: How well `truth` fits the check points, or None.
        use: `train` or `dev`: what the set's terms allow.
        licence: Licence class as in the set's README.
    """

    id: str
    set: str
    category: str
    modality: tuple[str, str]
    reference: Path
    query: Path
    reference_bands: tuple[int, ...] | None
    query_bands: tuple[int, ...] | None
    truth: FloatArray
    residual_px: FloatArray | None
    points: FloatArray | None
    points_rmse_px: float | None
    use: str
    licence: str

    @property
    def group(self) -> str:
        """The row that this pair counts in: both modalities, optical first."""
        first, second = sorted(self.modality, key=lambda word: (word != "optical", word))
        return f"{first}-{second}"

    def read_reference(self) -> ImageArray:
        """Image 0 as (C, H, W) float32, unusable pixels NaN."""
        return read_image(self.reference, bands=self.reference_bands)

    def read_query(self) -> ImageArray:
        """Image 1 as (C, H, W) float32, unusable pixels NaN."""
        return read_image(self.query, bands=self.query_bands)


def read_image(path: Path, *, bands: tuple[int, ...] | None = None) -> ImageArray:
    """One image as (C, H, W) float32 with NaN where a pixel is not usable.

    Args:
        path: Any raster that GDAL reads.
        bands: Bands numbered from 1; all when None.

    Raises:
        RasterError: The file is missing or not a raster.
        BandError: A band does not exist.
    """
    from rsfuse.geo.raster import open_raster

    with open_raster(path, bands=bands) as source:
        raster = source.read()
    data = np.asarray(raster.data, dtype=np.float32)
    if raster.valid.all():
        return data
    return np.where(raster.valid[None], data, np.float32(np.nan))


def read_pairs(dataset: str | Path, *, limit: int | None = None) -> tuple[MatchPair, ...]:
    """All pairs of a dataset folder in the order of its index.

    Args:
        dataset: A folder with an `index.json`, or that file itself.
        limit: Keep at most this many pairs, spread evenly over the modalities and over each
            modality's list, so that a small run still sees every kind.

    Raises:
        InputError: The folder, the index, a key, an image or a check point file is missing or
            unusable. The message names the entry.
    """
    index = Path(dataset)
    if index.is_dir():
        index = index / INDEX_NAME
    entries = _read_index(index)
    pairs = tuple(
        _pair_from_entry(entry, number=number, index=index) for number, entry in enumerate(entries)
    )
    names = [pair.id for pair in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(
            f"{index}: the pair {repeated[0]} is listed more than once",
            "Results are kept by name, so every pair needs its own.",
            "Give the entries different values of `pair`.",
        )
    return pairs if limit is None else spread(pairs, limit)


def held_out_of(pairs: Sequence[MatchPair], every: int) -> frozenset[str]:
    """Names of the pairs of a whole set that are kept for measuring: every so-many-th, or none."""
    return frozenset(pair.id for pair in pairs[every - 1 :: every]) if every else frozenset()


def spread(pairs: tuple[MatchPair, ...], limit: int) -> tuple[MatchPair, ...]:
    """At most `limit` pairs, evenly from every modality and from all over its list."""
    if limit < 1:
        raise InputError(
            f"the limit is {limit}",
            "At least one pair must be evaluated.",
            "Use --limit 1 or more.",
        )
    groups: dict[str, list[MatchPair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    shares = dict.fromkeys(groups, 0)
    left = min(limit, len(pairs))
    while left:
        for name, members in groups.items():
            if left and shares[name] < len(members):
                shares[name] += 1
                left -= 1
    chosen: set[str] = set()
    for name, members in groups.items():
        steps = np.linspace(0, len(members), shares[name], endpoint=False).astype(int)
        chosen.update(members[step].id for step in steps)
    return tuple(pair for pair in pairs if pair.id in chosen)


def _read_index(index: Path) -> list[dict[str, Any]]:
    what_is_needed = f"A dataset is a folder with an {INDEX_NAME}: a list with one entry per pair."
    if not index.is_file():
        raise InputError(
            f"{index} does not exist",
            what_is_needed,
            "Give the folder of one set, for example data/matching/srif.",
        )
    try:
        entries = parse_json(index.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no text at all
        raise InputError(f"{index} is not JSON: {error}", what_is_needed) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{index} is not a list of entries", what_is_needed)
    if not entries:
        raise InputError(f"{index} lists no pairs", what_is_needed)
    return entries


def _pair_from_entry(entry: dict[str, Any], *, number: int, index: Path) -> MatchPair:
    where = f"{index}, entry {number}"
    missing = [key for key in ("pair", "category", "image1", "image2") if key not in entry]
    if missing:
        raise InputError(
            f"{where} has no key `{missing[0]}`",
            f"It has: {', '.join(sorted(entry)) or 'nothing'}.",
            "Every entry needs pair, category, image1, image2 and affine_1to2 or homography_1to2.",
        )
    category = str(entry["category"])
    set_name = str(entry.get("set", index.parent.name))
    images = [index.parent / str(entry[key]) for key in ("image1", "image2")]
    for image in images:
        if not image.is_file():
            raise InputError(
                f"{where}: {image} does not exist",
                "Image paths are relative to the index.",
                "Restore the file or remove the entry.",
            )
    return MatchPair(
        id=f"{set_name}/{category}/{entry['pair']}",
        set=set_name,
        category=category,
        modality=_modality(entry, category, where),
        reference=images[0],
        query=images[1],
        reference_bands=_bands(entry, "bands1", where),
        query_bands=_bands(entry, "bands2", where),
        truth=_truth(entry, where),
        residual_px=_residual(entry, where),
        points=_points(entry, index, where),
        points_rmse_px=float(entry["points_rmse_px"]) if "points_rmse_px" in entry else None,
        use=str(entry.get("use", "dev")),
        licence=str(entry.get("licence", "unknown")),
    )


def _modality(entry: dict[str, Any], category: str, where: str) -> tuple[str, str]:
    stated = entry.get("modality")
    if stated is None:
        return MODALITIES.get(category, (category, category))
    if isinstance(stated, list) and len(stated) == 2:
        return str(stated[0]), str(stated[1])
    raise InputError(
        f"{where}: `modality` is {stated!r}",
        "It names what image 1 and image 2 show.",
        'Write two words, for example ["optical", "sar"].',
    )


def _bands(entry: dict[str, Any], key: str, where: str) -> tuple[int, ...] | None:
    stated = entry.get(key)
    if stated is None:
        return None
    if isinstance(stated, list) and stated and all(isinstance(band, int) for band in stated):
        return tuple(stated)
    raise InputError(f"{where}: `{key}` is {stated!r}", "It lists band numbers from 1.")


def _numbers(value: Any, where: str, what: str) -> FloatArray:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if not np.isfinite(array).all():
        raise InputError(f"{where}: {what} is {value!r}", "It must hold finite numbers.")
    return array


def _truth(entry: dict[str, Any], where: str) -> FloatArray:
    for key, shape in (("affine_1to2", (2, 3)), ("homography_1to2", (3, 3))):
        if key not in entry:
            continue
        matrix = _numbers(entry[key], where, f"`{key}`")
        if matrix.shape != shape:
            raise InputError(f"{where}: `{key}` has the shape {matrix.shape}", f"Needed: {shape}.")
        full = np.vstack([matrix, [0.0, 0.0, 1.0]]) if shape == (2, 3) else matrix
        if abs(np.linalg.det(full)) < 1e-9:
            raise InputError(f"{where}: `{key}` cannot be inverted", "It maps an image to a line.")
        return full
    raise InputError(
        f"{where} has no transform",
        f"It has: {', '.join(sorted(entry))}.",
        "Add affine_1to2 (2 x 3) or homography_1to2 (3 x 3).",
    )


def _residual(entry: dict[str, Any], where: str) -> FloatArray | None:
    if entry.get("residual_px") is None:
        return None
    residual = _numbers(entry["residual_px"], where, "`residual_px`")
    if residual.shape != (2,):
        raise InputError(f"{where}: `residual_px` has the shape {residual.shape}", "Needed: (2,).")
    return residual


def _points(entry: dict[str, Any], index: Path, where: str) -> FloatArray | None:
    if entry.get("points") is None:
        return None
    path = index.parent / str(entry["points"])
    try:
        points = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where}: {path} cannot be read as check points: {error}",
            "It must hold four numbers a line: x1 y1 x2 y2.",
        ) from error
    if points.shape[1] != 4 or not np.isfinite(points).all():
        raise InputError(
            f"{where}: {path} holds {points.shape[1]} columns",
            "It must hold four finite numbers a line: x1 y1 x2 y2.",
        )
    return points
