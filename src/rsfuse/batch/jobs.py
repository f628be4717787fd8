"""What is to be done: a list of items from a TOML file or a STAC catalog.

An item is one call of a command. Its inputs and options have the names of the command line, so that
whatever can be said there can be said here, and an item can be repeated by hand.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urljoin
from urllib.request import urlopen

import pydantic

from rsfuse.engine.config import read_toml
from rsfuse.errors import ConfigError, InputError
from rsfuse.runs import parse_json, read_json

# Task -> the inputs of a command in their order, and what it writes in the folder of an item.
TASKS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "match": (("reference", "query"), ""),
    "detect": (("scene",), "objects.gpkg"),
    "classify": (("ms", "pan"), "map.tif"),
}

# Options that belong to the batch, not to an item.
RESERVED = ("output", "overwrite", "resume", "progress", "quiet", "verbose", "as_json", "dry_run")

# Names of the JSON files that commands write where the STAC Item of an item goes, ID.json.
TAKEN_IDS = ("run", "transform")

HTTP_TIMEOUT_S = 30
MOST_STAC_BYTES = 64 << 20
MOST_STAC_FILES = 1_000_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class Item:
    """One call of a command.

    Attributes:
        id: Names its folder.
        inputs: Role -> path or URL, in the order of the command.
        options: Option of the command -> value.
        when: Time of the input, RFC 3339; None where unknown.
    """

    id: str
    inputs: Mapping[str, str]
    options: Mapping[str, Any]
    when: str | None = None


class _Asset(pydantic.BaseModel):
    href: str = ""


class _Link(pydantic.BaseModel):
    rel: str = ""
    href: str = ""


class _Stac(pydantic.BaseModel):
    """What is read of a STAC file: catalog, collection, item, or item collection."""

    type: str = ""
    id: str | int = ""
    properties: dict[str, Any] = pydantic.Field(default_factory=dict)
    assets: dict[str, _Asset] = pydantic.Field(default_factory=dict)
    links: tuple[_Link, ...] = ()
    features: tuple["_Stac", ...] = ()


@dataclass(frozen=True)
class Batch:
    """A task and its items."""

    task: str
    items: tuple[Item, ...]

    def __post_init__(self) -> None:
        """Check that items have names of their own.

        Raises:
            InputError: No items, a name that cannot be that of a folder, one of `TAKEN_IDS`, or one
                that occurs twice.
        """
        if not self.items:
            raise InputError("there are no items", "a batch needs at least one", "add [[items]]")
        seen: set[str] = set()
        for item in self.items:
            if not _NAME.fullmatch(item.id):
                raise InputError(
                    f"the id {item.id!r} cannot name a folder",
                    "letters, digits, dots, dashes and underscores are needed, at most 120",
                    "give the item another id",
                )
            # Folders of some systems do not tell large letters from small ones.
            if item.id.lower() in TAKEN_IDS:
                raise InputError(
                    f"the id {item.id!r} is that of a file that rsfuse {self.task} writes",
                    f"the STAC Item of the item would take the place of {item.id}.json",
                    f"give the item another id, for example {_free(item.id)}",
                )
            if item.id.lower() in seen:
                raise InputError(
                    f"the id {item.id!r} occurs twice",
                    "results of two items must not mix",
                    "give one of them another id",
                )
            seen.add(item.id.lower())


def check_task(task: str) -> str:
    """The task, if there is such a one.

    Raises:
        InputError: There is not.
    """
    if task not in TASKS:
        raise InputError(
            f"task {task!r} is unknown", f"known are {', '.join(TASKS)}", "choose one of them"
        )
    return task


def read_jobs(path: str | Path) -> Batch:
    """Read a TOML file.

        task = "detect"
        [options]              # of the command, for all items
        model = "hit-uav-tiny"
        [[items]]
        id = "north"           # by default the name of the first input; see `TAKEN_IDS`
        scene = "north.tif"    # beside this file, absolute, or a URL
        score = 0.5            # an option of this item alone

    Raises:
        ConfigError: Not TOML, a key that means nothing, or a missing input.
        InputError: Names that cannot be those of folders, or occur twice.
    """
    path = Path(path)
    content = read_toml(path)
    for key, value in content.items():
        kind = {"task": str, "options": dict, "items": list}.get(key)
        if kind is None or not isinstance(value, kind):
            raise ConfigError(
                f"{path}: {key!r} means nothing here",
                "a batch has task, [options] and [[items]]",
                "options of the command belong under [options] or into an item",
            )
    task = check_task(str(content.get("task", "")))
    rows = content.get("items", [])
    if not all(isinstance(row, dict) for row in rows):
        raise ConfigError(
            f"{path}: an item is no table", "[[items]] is needed", "see docs/batch.md"
        )
    shared = content.get("options", {})
    return Batch(task, tuple(_item(path, task, row, shared) for row in rows))


def _item(path: Path, task: str, row: Mapping[str, Any], shared: Mapping[str, Any]) -> Item:
    roles, _ = TASKS[task]
    missing = [role for role in roles if not isinstance(row.get(role), str) or not row[role]]
    if missing:
        raise ConfigError(
            f"{path}: the item {row.get('id', '?')} has no {missing[0]}",
            f"{task} takes {' and '.join(roles)}",
            f'add {missing[0]} = "file.tif"',
        )
    inputs = {role: resolved(row[role], str(path.resolve().parent) + "/") for role in roles}
    options = {key: value for key, value in row.items() if key not in (*roles, "id")}
    name = str(row.get("id", _free(Path(row[roles[0]]).stem)))
    return Item(name, inputs, {**shared, **options})


def resolved(path: str, base: str) -> str:
    """A path or URL as seen from a file: absolute ones as they are."""
    if "://" in path or path.startswith("/"):
        return path
    if "://" in base:
        return urljoin(base, path)
    return str((Path(base) if base.endswith("/") else Path(base).parent) / path)


def read_stac(
    place: str, task: str, assets: Mapping[str, str], options: Mapping[str, Any]
) -> Batch:
    """The items of a STAC catalog, collection, item collection, or of a single item.

    Args:
        place: Path or http(s) URL of its JSON file.
        task: The command.
        assets: Role of an input -> key of the asset that holds it; or, where it has a slash or a
            dot, a path or URL, the same for all items.
        options: Of the command, for all items.

    Raises:
        InputError: It cannot be read, or an item lacks an asset.
    """
    roles, _ = TASKS[check_task(task)]
    unknown = [role for role in assets if role not in roles]
    missing = [role for role in roles if role not in assets]
    if unknown or missing:
        raise InputError(
            f"--asset for {', '.join(unknown or missing)} is {'unknown' if unknown else 'missing'}",
            f"{task} takes {' and '.join(roles)}",
            " ".join(f"--asset {role}=KEY" for role in roles),
        )
    items = []
    for where, item in _stac_items(place):
        inputs = {}
        for role in roles:
            key = assets[role]
            asset = item.assets.get(key)
            if asset is not None and asset.href:
                inputs[role] = resolved(asset.href, where)
            elif "/" in key or "." in key:
                inputs[role] = resolved(key, str(Path.cwd()) + "/")
            else:
                raise InputError(
                    f"the item {item.id} has no asset {key!r}",
                    f"it has {', '.join(item.assets) or 'none'}",
                    f"name the one that holds the {role} with --asset {role}=KEY",
                )
        when = item.properties.get("datetime")
        stamp = when if isinstance(when, str) else None
        items.append(Item(_free(_folder_name(str(item.id))), inputs, dict(options), stamp))
    return Batch(task, tuple(items))


def _folder_name(name: str) -> str:
    """An id of a catalog as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-")[:120]


def _free(name: str) -> str:
    """A name, with an ending where it is one of `TAKEN_IDS`."""
    return f"{name}_item" if name.lower() in TAKEN_IDS else name


def _stac_items(place: str) -> Iterator[tuple[str, _Stac]]:
    """Where each item was found, and its content."""
    waiting, seen = [place], {place}
    while waiting:
        where = waiting.pop(0)
        content = _load(where)
        if content.type == "Feature":
            yield where, content
        elif content.type == "FeatureCollection":
            yield from ((where, feature) for feature in content.features)
        elif content.type not in ("Catalog", "Collection"):
            raise InputError(
                f"{where} is not STAC: its type is {content.type!r}",
                "a catalog, a collection, an item or an item collection is needed",
                "name the JSON file of one",
            )
        for link in content.links:
            if link.rel in ("item", "items", "child", "next") and link.href:
                target = resolved(link.href, where)
                if target not in seen and len(seen) < MOST_STAC_FILES:
                    seen.add(target)
                    waiting.append(target)


def _load(place: str) -> _Stac:
    content = _content(place)
    try:
        return _Stac.model_validate(content)
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        raise InputError(
            f"{place} is not STAC: {'.'.join(map(str, fault['loc']))}: {fault['msg']}",
            "a catalog, a collection, an item or an item collection is needed",
            "name the JSON file of one",
        ) from error


def _content(place: str) -> Any:
    if "://" not in place:
        return read_json(place)
    if not place.startswith(("http://", "https://")):
        raise InputError(f"{place} cannot be read", "a path or http(s) is needed", "copy it first")
    try:
        with urlopen(place, timeout=HTTP_TIMEOUT_S) as answer:
            return parse_json(answer.read(MOST_STAC_BYTES))
    except (URLError, TimeoutError, OSError, ValueError) as error:
        raise InputError(
            f"{place} cannot be read: {error}", "a STAC JSON file is needed", "check the address"
        ) from error


def is_toml(place: str) -> bool:
    """Whether a list of jobs is a TOML file rather than a catalog."""
    return place.lower().endswith(".toml")
