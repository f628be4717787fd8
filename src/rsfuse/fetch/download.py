"""The part of a box from remote images, and nothing more: cloud-optimised files read by ranges.

Pixels are not resampled: the window of the image's own grid that holds the box is copied. Bands of
another pixel size are put on the grid of the first.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
import pyproj
from odc.geo.geobox import GeoBox

from rsfuse.archive import Archive, write_item
from rsfuse.errors import InputError, RasterError
from rsfuse.fetch.search import TIMEOUT_S, TRIES, Box, Candidate, Query, find_groups
from rsfuse.fetch.sources import Source
from rsfuse.geo.gdal import gdal_settings, reading
from rsfuse.geo.grid import Window, apply_affine, between, footprint, window_geobox
from rsfuse.geo.raster import RasterSource, open_raster
from rsfuse.geo.write import write_cog
from rsfuse.runs import parse_json, utc_now

MOST_PIXELS = 400_000_000  # of one file, bands included: 1.6 GB while it is made
_EDGE_POINTS = 21
WAIT_S = 1.0  # before the second try; doubled each time


class Fetched(NamedTuple):
    """A group of files.

    Attributes:
        name: Of its folder.
        files: Role -> path.
        kept: Whether it was there already.
    """

    name: str
    files: Mapping[str, Path]
    kept: bool


def fetch(
    sources: Mapping[str, Source],
    query: Query,
    folder: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Fetched]:
    """Copy what the sources have for a box into an archive.

    Each group becomes one item: a GeoTIFF per role, named after it, and a STAC Item with licences,
    origins and checksums. `rsfuse batch FOLDER/catalog.json` takes them from there. What is there
    and whole is kept.

    Args:
        sources: Role -> source.
        query: What is looked for.
        folder: The archive.
        progress: Called with (done, all) groups.

    Raises:
        InputError: Nothing was found, a catalog or a file does not answer, or the box is too large.
        OutputError: A file cannot be written.
    """
    archive = Archive(folder)
    archive.sweep()
    groups = find_groups(sources, query)
    found = []
    for done, group in enumerate(groups, start=1):
        name = _name(next(iter(group.values())))
        request = _request(sources, group, query.bbox)
        kept = archive.is_done(name, request)
        if not kept:
            with archive.making(name) as scratch:
                grids = [
                    _copy(sources[role], item, query.bbox, scratch / f"{role}.tif")
                    for role, item in group.items()
                ]
                _describe(scratch, name, request, sources, group, grids[0])
        if progress is not None:
            progress(done, len(groups))
        place = archive.place(name)
        found.append(Fetched(name, {role: place / f"{role}.tif" for role in group}, kept))
    archive.write_catalog("Images fetched by rsfuse")
    return found


def _name(item: Candidate) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", item.id).lstrip("._-")[:120] or "item"


def _request(sources: Mapping[str, Source], group: Mapping[str, Candidate], bbox: Box) -> str:
    asked = {role: [item.id, sources[role].assets] for role, item in group.items()}
    return hashlib.sha256(json.dumps([asked, bbox], sort_keys=True).encode()).hexdigest()


def _copy(source: Source, item: Candidate, bbox: Box, path: Path) -> GeoBox:
    """Write the bands of an item over the box; the grid of the file."""
    query = _token(source.token) if source.token else ""
    addresses = {key: _signed(item.assets[key], query) for key in source.assets}
    part = _tried(partial(_part, item, addresses, bbox), RasterError)
    write_cog(
        path, part.data, geobox=part.grid, nodata=part.nodata, bands=list(addresses),
        dtype=part.dtype, valid=part.valid,
    )  # fmt: skip
    return part.grid


class _Part(NamedTuple):
    """Bands over the box: values (B, h, w), validity (h, w), grid, and how the first is stored."""

    data: npt.NDArray[np.generic]
    valid: npt.NDArray[np.bool_]
    grid: GeoBox
    dtype: str
    nodata: float | None


def _part(item: Candidate, addresses: Mapping[str, str], bbox: Box) -> _Part:
    """Read the bands of an item on the pixels of the first one around the box."""
    first = next(iter(addresses.values()))
    with open_raster(first) as raster:
        grid = _window_over(raster, bbox, len(addresses))
        dtype, nodata = raster.dtype, raster.nodata
    names = ", ".join(urlsplit(address).path for address in addresses.values())
    with reading(names), gdal_settings(remote=True):
        found = _loaded(item, addresses, grid, dtype, nodata)
    data = np.stack([found[key].values[0] for key in addresses])
    valid = np.isfinite(data) if nodata is None else np.isfinite(data) & (data != nodata)
    return _Part(data, valid.all(axis=0), grid, dtype, nodata)


def _loaded(
    item: Candidate, addresses: Mapping[str, str], grid: GeoBox, dtype: str, nodata: float | None
) -> Any:
    """The bands on a grid, as an xarray Dataset: pixels that lie on it are copied."""
    import odc.stac
    import pystac

    place = footprint(grid)
    entry = pystac.Item(item.id, place["geometry"], place["bbox"], item.when, {})
    for key, address in addresses.items():
        entry.add_asset(key, pystac.Asset(address, media_type=pystac.MediaType.COG))
    return odc.stac.load(
        [entry], list(addresses), geobox=grid, dtype=dtype, nodata=nodata, resampling="bilinear"
    )


def _signed(address: str, query: str) -> str:
    """The address with a token."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise InputError(
            f"the image lies at {address}",
            "only http(s) addresses are fetched",
            "name a catalog with such addresses in a file for --config",
        )
    return address if not query else f"{address}{'&' if parts.query else '?'}{query}"


T = TypeVar("T")


def _tried(step: Callable[[], T], *kinds: type[Exception]) -> T:
    """The result of a step that is repeated, after longer and longer waits, when it fails."""
    for attempt in range(TRIES - 1):
        try:
            return step()
        except kinds:
            time.sleep(WAIT_S * 2**attempt)
    return step()


def _window_over(raster: RasterSource, bbox: Box, bands: int) -> GeoBox:
    """The part of the raster's grid that holds the box.

    Raises:
        InputError: They share nothing, or it is too large.
    """
    grid = raster.geobox
    if grid.crs is None:
        raise InputError(
            f"{raster.name} has no CRS", "the box cannot be found in it", "name another collection"
        )
    west, south, east, north = bbox
    step = np.linspace(0, 1, _EDGE_POINTS)
    x, y = west + (east - west) * step, south + (north - south) * step
    edge = np.concatenate([
        np.stack([x, np.full_like(x, south)], 1), np.stack([x, np.full_like(x, north)], 1),
        np.stack([np.full_like(y, west), y], 1), np.stack([np.full_like(y, east), y], 1),
    ])  # fmt: skip
    onto = between(pyproj.CRS("OGC:CRS84"), grid.crs.proj)
    places = apply_affine(~grid.affine, np.column_stack(onto.transform(*edge.T)))
    low = np.floor(places.min(axis=0) + 1e-6).astype(int)
    high = np.ceil(places.max(axis=0) - 1e-6).astype(int)
    window = Window(int(low[0]), int(low[1]), *(int(v) for v in high - low)).clipped(raster.shape)
    if min(window.shape) < 1:
        raise InputError(
            f"{raster.name} does not reach the box",
            "its pixels lie elsewhere",
            "choose other dates",
        )
    if window.w * window.h * bands > MOST_PIXELS:
        raise InputError(
            f"the box holds {window.w} x {window.h} pixels of {bands} bands",
            f"at most {MOST_PIXELS:,} numbers are fetched into one file",
            "fetch it in smaller boxes",
        )
    return window_geobox(grid, window)


def _token(address: str) -> str:
    """What is appended to the addresses of files."""

    def ask() -> str:
        try:
            with urlopen(address, timeout=TIMEOUT_S[1]) as answer:
                return str(parse_json(answer.read(65_536))["token"])
        except HTTPError as error:
            if error.code < 500 and error.code != HTTPStatus.TOO_MANY_REQUESTS:
                raise _no_token(address, error) from error
            raise

    try:
        return _tried(ask, URLError, TimeoutError)
    except (OSError, ValueError, KeyError) as error:
        raise _no_token(address, error) from error


def _no_token(address: str, error: Exception) -> InputError:
    return InputError(
        f"{address} gives no token: {error}",
        "the files of this source ask for one",
        "it may need an account; name another source with --config",
    )


def _describe(
    folder: Path,
    name: str,
    request: str,
    sources: Mapping[str, Source],
    group: Mapping[str, Candidate],
    grid: GeoBox,
) -> None:
    leader = next(iter(group.values()))
    links = [
        {"rel": "derived_from", "href": item.link or item.assets[sources[role].assets[0]],
         "title": f"{role}: {item.id}"}
        for role, item in group.items()
    ]  # fmt: skip
    properties: dict[str, Any] = {
        "datetime": _stamp(leader),
        "created": utc_now(),
        "license": "other",
        "rsfuse:licences": {role: source.licence for role, source in sources.items()},
        "rsfuse:origins": {
            role: {"id": item.id, "datetime": _stamp(item), "cloud": item.cloud,
                   "collection": sources[role].collection, "endpoint": sources[role].endpoint}
            for role, item in group.items()
        },
    }  # fmt: skip
    write_item(
        folder, name, request, place=footprint(grid), properties=properties, links=links,
        extensions=["https://stac-extensions.github.io/projection/v2.0.0/schema.json"],
        roles={f"{role}.tif": role for role in group},
    )  # fmt: skip


def _stamp(item: Candidate) -> str:
    return item.when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
