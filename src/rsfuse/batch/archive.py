"""The folder of a batch: one folder per item, each whole or absent, and a STAC catalog over them.

    catalog.json                  STAC Catalog
    summary.json, failures.csv    of the last run
    items/ID/ID.json              STAC Item: what was made of what, with checksums; written last
    items/ID/...                  what the command wrote

An item is made in a scratch folder and put in its place by one rename. It counts as done when its
STAC Item asks for the same thing and every file has the checksum that it names.
"""

import csv
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rsfuse.batch.jobs import TASKS, Item
from rsfuse.errors import RsfuseError
from rsfuse.geo.grid import to_lonlat
from rsfuse.geo.raster import open_raster
from rsfuse.runs import RUN_FILE, RunRecord, atomic_path, read_json, utc_now, write_json

STAC_VERSION = "1.1.0"
EXTENSIONS = [
    "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
]
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
# Hexadecimal head of a multihash of SHA-256: the code of the function and the length of 32 bytes.
MULTIHASH = "1220"
MEDIA_TYPES = {
    ".tif": "image/tiff; application=geotiff; profile=cloud-optimized",
    ".gpkg": "application/geopackage+sqlite3",
    ".geojson": "application/geo+json",
    ".json": "application/json",
    ".html": "text/html",
    ".csv": "text/csv",
    ".webp": "image/webp",
    ".vrt": "application/xml",
}
_SCRATCH = ".part-"


class Archive:
    """The folder of a batch.

    Attributes:
        folder: Its path.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()

    @property
    def items(self) -> Path:
        """The folder of the items."""
        return self.folder / "items"

    def place(self, item: Item) -> Path:
        """The folder of an item."""
        return self.items / item.id

    @contextmanager
    def making(self, item: Item) -> Iterator[Path]:
        """A scratch folder that becomes the item's when the block ends well.

        Whatever happens, the item's folder is the old one or the new one.
        """
        self.items.mkdir(parents=True, exist_ok=True)
        scratch = self.items / f"{_SCRATCH}{item.id}-{secrets.token_hex(4)}"
        scratch.mkdir()
        try:
            yield scratch
            target = self.place(item)
            old = scratch.with_name(f"{scratch.name}-old")
            if target.exists():
                target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed workers left; put back what was moved aside in between."""
        if not self.items.is_dir():
            return
        for left in self.items.glob(f"{_SCRATCH}*"):
            name = left.name.removeprefix(_SCRATCH)
            if name.endswith("-old"):
                target = self.items / name.removesuffix("-old")[:-9]
                if not target.exists():
                    left.rename(target)
                    continue
            shutil.rmtree(left, ignore_errors=True)

    def is_done(self, task: str, item: Item) -> bool:
        """Whether the item is there, undamaged, made of the same inputs with the same options."""
        folder = self.place(item)
        try:
            content = read_json(folder / f"{item.id}.json")
            if content["properties"]["rsfuse:request"] != request_of(task, item):
                return False
            return all(
                checksum(folder / asset["href"]) == asset["file:checksum"]
                for asset in content["assets"].values()
            )
        except (RsfuseError, OSError, KeyError, TypeError, AttributeError):
            return False

    def describe(self, task: str, item: Item, folder: Path) -> dict[str, Any]:
        """Write the STAC Item of a finished item into its (scratch) folder; its short summary."""
        run = next(folder.glob(f"**/{RUN_FILE}")).parent
        record = RunRecord.load(run)
        content = stac_item(task, item, folder, record)
        write_json(folder / f"{item.id}.json", content)
        return {"status": record.status, "confidence": record.confidence}

    def write_catalog(self, task: str) -> Path:
        """Write catalog.json over all items that are there."""
        names = sorted(p.name for p in self.items.iterdir() if (p / f"{p.name}.json").is_file())
        links = [{"rel": "root", "href": "./catalog.json", "type": "application/json"}]
        links += [
            {"rel": "item", "href": f"./items/{name}/{name}.json", "type": "application/geo+json"}
            for name in names
        ]
        path = self.folder / "catalog.json"
        content = {
            "type": "Catalog",
            "stac_version": STAC_VERSION,
            "id": self.folder.name,
            "title": f"Results of rsfuse {task}",
            "description": f"{len(names)} items made by rsfuse {task}.",
            "links": links,
        }
        write_json(path, content)
        return path

    def write_summary(
        self, summary: Mapping[str, Any], failures: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write summary.json and failures.csv."""
        write_json(self.folder / "summary.json", dict(summary))
        with (
            atomic_path(self.folder / "failures.csv") as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, ("id", "what", "why", "fix"), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(failures)


def request_of(task: str, item: Item) -> str:
    """Names what was asked for: task and options; files and bundles by place, size and time."""
    named = {**item.inputs, **item.options}
    stamps = {name: [value, *_stamp(str(value))] for name, value in named.items()}
    text = json.dumps([task, stamps], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _stamp(path: str) -> list[int]:
    place = Path(path)
    try:
        about = (place / "bundle.json" if place.is_dir() else place).stat()
    except (OSError, ValueError):  # a URL, a number, or a file that is gone: the run will say so
        return []
    return [about.st_size, about.st_mtime_ns]


def checksum(path: Path) -> str:
    """SHA-256 of a file as a multihash, as the STAC extension `file` wants it."""
    with path.open("rb") as file:
        return MULTIHASH + hashlib.file_digest(file, "sha256").hexdigest()


def stac_item(task: str, item: Item, folder: Path, record: RunRecord) -> dict[str, Any]:
    """The STAC Item of what lies in a folder.

    Its time is that of the input where a catalog names one, else that of the run.
    """
    assets = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        assets[name] = {
            "href": f"./{name}",
            "type": MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"),
            "roles": [_role(name, TASKS[task][1])],
            "file:size": path.stat().st_size,
            "file:checksum": checksum(path),
        }
    properties = {
        "datetime": item.when or record.started,
        "created": utc_now(),
        "processing:software": {"rsfuse": record.rsfuse_version},
        "processing:expression": {"format": "rsfuse", "expression": record.command},
        "rsfuse:task": task,
        "rsfuse:status": record.status,
        "rsfuse:confidence": record.confidence,
        "rsfuse:request": request_of(task, item),
    }
    links = [
        {"rel": rel, "href": "../../catalog.json", "type": "application/json"}
        for rel in ("root", "parent")
    ]
    links += [
        {"rel": "derived_from", "href": path, "title": role} for role, path in item.inputs.items()
    ]
    place = _where(next(iter(item.inputs.values())))
    extensions = [*EXTENSIONS, *([PROJECTION] if "properties" in place else [])]
    return {
        "type": "Feature",
        "stac_version": STAC_VERSION,
        "stac_extensions": extensions,
        "id": item.id,
        "geometry": place.get("geometry"),
        **({"bbox": place["bbox"]} if "bbox" in place else {}),
        "properties": {**properties, **place.get("properties", {})},
        "links": links,
        "assets": assets,
    }


def _role(name: str, product: str) -> str:
    if name == product or name == "registered.tif":
        return "data"
    if name.endswith(".webp"):
        return "overview"
    return "metadata"


def _where(path: str) -> dict[str, Any]:
    """Footprint in longitude and latitude, and the grid, of an input; nothing without a CRS."""
    with open_raster(path) as source:
        grid = source.geobox
        if grid.crs is None:
            return {}
        h, w = source.shape
        ring = to_lonlat(grid, np.array([[0, h], [w, h], [w, 0], [0, 0], [0, h]], np.float64))
        code = grid.crs.to_epsg()
        return {
            "geometry": {"type": "Polygon", "coordinates": [ring.round(7).tolist()]},
            "bbox": [*ring.min(0).round(7).tolist(), *ring.max(0).round(7).tolist()],
            "properties": {
                "proj:code": None if code is None else f"EPSG:{code}",
                "proj:shape": list(grid.shape),
                "proj:transform": [float(v) for v in tuple(grid.affine)[:6]],
            },
        }
