"""What the archive of a batch holds beside the items' files: STAC Items, summary, failures."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsfuse.archive import Archive, write_item
from rsfuse.batch.jobs import TASKS, Item
from rsfuse.geo.grid import footprint
from rsfuse.geo.raster import open_raster
from rsfuse.runs import RUN_FILE, RunRecord, atomic_path, utc_now, write_json

PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
STATUS = "rsfuse:status"


def describe(task: str, item: Item, folder: Path) -> RunRecord:
    """Write the STAC Item of a finished item into its (scratch) folder.

    Its time is that of the input where a catalog names one, else that of the run; its place is that
    of the first input.
    """
    record = RunRecord.load(next(folder.glob(f"**/{RUN_FILE}")).parent)
    with open_raster(next(iter(item.inputs.values()))) as source:
        place = footprint(source.geobox)
    write_item(
        folder,
        item.id,
        request_of(task, item),
        place=place,
        properties={
            "datetime": item.when or record.started,
            "created": utc_now(),
            "processing:software": {"rsfuse": record.rsfuse_version},
            "processing:expression": {"format": "rsfuse", "expression": record.command},
            "rsfuse:task": task,
            STATUS: record.status,
            "rsfuse:confidence": record.confidence,
        },
        links=[
            {"rel": "derived_from", "href": path, "title": role}
            for role, path in item.inputs.items()
        ],
        extensions=[PROCESSING, *([PROJECTION] if "properties" in place else [])],
        roles={product: Path(product).stem for product in (TASKS[task][1] or "registered.tif",)},
    )
    return record


def write_summary(
    archive: Archive, summary: Mapping[str, Any], failures: Sequence[Mapping[str, Any]]
) -> None:
    """Write summary.json and failures.csv."""
    write_json(archive.folder / "summary.json", dict(summary))
    with (
        atomic_path(archive.folder / "failures.csv") as path,
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
