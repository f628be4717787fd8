"""Archives: one folder per item, each whole or absent, and a STAC catalog over them.

    catalog.json         STAC Catalog
    items/ID/ID.json     STAC Item: what was made of what, with checksums; written last
    items/ID/...         the files

An item is made in a scratch folder and put in its place by one rename. It counts as done when its
STAC Item answers the same request and every file has the checksum that it names.
"""

import hashlib
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rsfuse.errors import InputError, RsfuseError
from rsfuse.runs import exchange_folders, read_json, write_json

STAC_VERSION = "1.1.0"
FILE_EXTENSION = "https://stac-extensions.github.io/file/v2.1.0/schema.json"
REQUEST = "rsfuse:request"
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
    """The folder of an archive.

    Attributes:
        folder: Its path.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).resolve()

    @property
    def items(self) -> Path:
        """The folder of the items."""
        return self.folder / "items"

    def place(self, name: str) -> Path:
        """The folder of an item."""
        return self.items / name

    @contextmanager
    def making(self, name: str) -> Iterator[Path]:
        """A scratch folder that becomes the item's when the block ends well.

        Whatever happens, the item's folder is the old one or the new one.
        """
        self.items.mkdir(parents=True, exist_ok=True)
        scratch = self.items / f"{_SCRATCH}{name}-{secrets.token_hex(4)}"
        scratch.mkdir()
        try:
            yield scratch
            target = self.place(name)
            if target.exists() and exchange_folders(scratch, target):
                return  # the scratch folder is the old one now
            old = scratch.with_name(f"{scratch.name}-old")
            if target.exists():
                target.rename(old)
            scratch.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what killed processes left.

        Where folders cannot change places at once, put back what was moved aside in between.
        """
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

    def is_done(self, name: str, request: str) -> bool:
        """Whether an item is there, undamaged, as the answer to the same request."""
        folder = self.place(name)
        try:
            content = read_json(folder / f"{name}.json")
            if content["properties"][REQUEST] != request:
                return False
            return all(
                checksum(folder / asset["href"]) == asset["file:checksum"]
                for asset in content["assets"].values()
            )
        except (RsfuseError, OSError, KeyError, TypeError, AttributeError):
            return False

    def properties(self, name: str) -> Mapping[str, Any]:
        """Of the STAC Item of an item that is done.

        Raises:
            InputError: It is not there, or damaged.
        """
        content: Mapping[str, Any] = read_json(self.place(name) / f"{name}.json")["properties"]
        return content

    def write_catalog(self, title: str) -> Path:
        """Write catalog.json over all items that are there."""
        self.items.mkdir(parents=True, exist_ok=True)
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
            "title": title,
            "description": f"{title}: {len(names)} items.",
            "links": links,
        }
        write_json(path, content)
        return path


def write_item(
    folder: Path,
    name: str,
    request: str,
    *,
    place: Mapping[str, Any],
    properties: Mapping[str, Any],
    links: list[dict[str, str]],
    extensions: list[str],
    roles: Mapping[str, str],
) -> None:
    """Write the STAC Item of what lies in the (scratch) folder of an item.

    Args:
        folder: The folder; every file in it becomes an asset.
        name: Of the item.
        request: What it answers, see `Archive.is_done`.
        place: "geometry", and "bbox" and "properties" where they are known.
        properties: Further properties; "datetime" must be among them.
        links: Beside those to the catalog.
        extensions: Schemas beside that of files.
        roles: File -> the key under which others look for it; the file's own name otherwise. These
            have the role "data".

    Raises:
        InputError: The STAC Item would take the place of one of the files.
    """
    target = folder / f"{name}.json"
    if target.exists():
        raise InputError(
            f"the item {name} holds a file {target.name}",
            "its STAC Item has this name",
            "give the item another name",
        )
    assets = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        file = path.relative_to(folder).as_posix()
        assets[roles.get(file, file)] = {
            "href": f"./{file}",
            "type": MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream"),
            "roles": ["data" if file in roles else "metadata"],
            "file:size": path.stat().st_size,
            "file:checksum": checksum(path),
        }
    up = [
        {"rel": rel, "href": "../../catalog.json", "type": "application/json"}
        for rel in ("root", "parent")
    ]
    write_json(
        target,
        {
            "type": "Feature",
            "stac_version": STAC_VERSION,
            "stac_extensions": [FILE_EXTENSION, *extensions],
            "id": name,
            "geometry": place.get("geometry"),
            **({"bbox": place["bbox"]} if "bbox" in place else {}),
            "properties": {**properties, **place.get("properties", {}), REQUEST: request},
            "links": [*up, *links],
            "assets": assets,
        },
    )


def checksum(path: Path) -> str:
    """SHA-256 of a file as a multihash, as the STAC extension `file` wants it."""
    with path.open("rb") as file:
        return MULTIHASH + hashlib.file_digest(file, "sha256").hexdigest()
