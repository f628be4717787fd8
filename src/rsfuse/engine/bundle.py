"""Model bundles: weights and everything that is needed to use them, as data and never as code.

A bundle is a folder, or a zip file of one, with

    model.safetensors   the weights
    bundle.json         the card: task, architecture, inputs, classes, training, scores, checksums
    README.md           the same for people: what the model is for and what it is not
    item.json           the same for catalogs: a STAC Item with the extension MLM
    model.onnx          optional, for ONNX Runtime

Nothing in it is executed on loading, and every file is checked against its SHA-256 first.
"""

import hashlib
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from rsfuse.engine.config import Config, make_config
from rsfuse.engine.mlm import mlm_item
from rsfuse.errors import InputError
from rsfuse.runs import atomic_path, parse_json, read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "bundle.json"
README_FILE = "README.md"
ITEM_FILE = "item.json"
ONNX_FILE = "model.onnx"
BUNDLE_FORMAT = 2

# What reading a damaged, encrypted or foreign zip file raises; encryption is a RuntimeError.
_ZIP_FAULTS = (
    OSError, KeyError, ValueError, EOFError, OverflowError, RuntimeError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip

# Format -> what makes a card of the next one of it: old bundles are read for ever.
UPGRADES: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: lambda card: {**card, "format": 2},  # 2 added item.json, which nothing here reads
}

# Guards against a zip file that unpacks to more than any model of ours holds.
MOST_BYTES = 4 << 30
MOST_FILES = 16


class ClassInfo(Config):
    """A class: its name and its colour in maps and pictures, as "#rrggbb"."""

    name: str
    color: str = pydantic.Field("#808080", pattern=r"^#[0-9a-fA-F]{6}$")


class InputInfo(Config):
    """One image that a model takes.

    Attributes:
        name: Its role, for example "ms", "pan" or "image".
        bands: Names of its bands, in the order of the network's input.
        low: Value of each band that becomes 0.
        high: Value of each band that becomes 1.
        clip: Whether values outside [low, high] are clipped.
        gsd_m: The ground sampling distance that the model was trained at; None where unknown.
    """

    name: str
    bands: tuple[str, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    clip: bool = False
    gsd_m: float | None = None


class BundleCard(Config):
    """What a bundle holds, as stored in bundle.json.

    Attributes:
        format: Version of this layout.
        task: The verb that uses it.
        name: A short name, for example "das2f-quickbird".
        architecture: The name under which the task builds the network.
        arguments: Keyword arguments of the network; plain JSON.
        inputs: The images that it takes.
        classes: The classes that it tells apart, in the order of its output.
        training: Data and their licence, command, seed, steps.
        scores: Measured scores, each with the data set in its name.
        extra: What else the task needs, for example a softmax temperature.
        files: SHA-256 of each other file of the bundle.
        rsfuse_version: The version that wrote it.
    """

    format: int = BUNDLE_FORMAT
    task: Literal["match", "detect", "classify"]
    name: str
    architecture: str
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    inputs: tuple[InputInfo, ...] = ()
    classes: tuple[ClassInfo, ...] = ()
    training: dict[str, Any] = pydantic.Field(default_factory=dict)
    scores: dict[str, Any] = pydantic.Field(default_factory=dict)
    extra: dict[str, Any] = pydantic.Field(default_factory=dict)
    files: dict[str, str] = pydantic.Field(default_factory=dict)
    rsfuse_version: str = ""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its path (folder or zip file) and its card."""

    path: Path
    card: BundleCard

    def state(self) -> "dict[str, Tensor]":
        """The weights by name.

        Raises:
            InputError: The file is missing, damaged or not the one that the card names.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        content = self.file(WEIGHTS_FILE)
        try:
            return load(content)
        except SafetensorError as error:
            raise _damaged(self.path, WEIGHTS_FILE, str(error)) from error

    def load_into(self, model: "nn.Module") -> None:
        """Copy the weights into a network.

        Raises:
            InputError: They are of another architecture.
        """
        try:
            model.load_state_dict(self.state())
        except RuntimeError as error:
            raise InputError(
                f"the weights of {self.path} do not fit {self.card.architecture}",
                str(error).splitlines()[-1].strip(),
                "the bundle was written by another version, or for other sizes; train it again",
            ) from error

    def file(self, name: str) -> bytes:
        """The content of one file of the bundle, checked against its SHA-256.

        Raises:
            InputError: No such file, or its content is not the one that the card names.
        """
        content = _read(self.path, name)
        expected = self.card.files.get(name)
        if expected is not None and hashlib.sha256(content).hexdigest() != expected:
            raise _damaged(self.path, name, "its SHA-256 is not the one in bundle.json")
        return content

    def has(self, name: str) -> bool:
        """Whether the bundle holds a file of this name."""
        return name in self.card.files


def save_bundle(
    folder: str | Path,
    card: BundleCard,
    state: "Mapping[str, Tensor]",
    *,
    readme: str,
    onnx: Path | None = None,
) -> Bundle:
    """Write a bundle; bundle.json comes last, so that an interrupt leaves no readable half.

    Args:
        folder: The bundle's folder; made where it is missing.
        card: Its card; `files` and `rsfuse_version` are filled in here.
        state: Weights by name.
        readme: The model card as Markdown.
        onnx: An ONNX file to copy into the bundle.

    Raises:
        OutputError: The folder cannot be written to.
    """
    from safetensors.torch import save_file

    from rsfuse import __version__

    folder = Path(folder)
    (folder / CARD_FILE).unlink(missing_ok=True)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, temporary)
    with atomic_path(folder / README_FILE) as temporary:
        temporary.write_text(readme, encoding="utf-8")
    names = [WEIGHTS_FILE, README_FILE]
    if onnx is not None:
        with atomic_path(folder / ONNX_FILE) as temporary:
            shutil.copyfile(onnx, temporary)
        names.append(ONNX_FILE)
    hashes = {name: _sha256(folder / name) for name in names}
    about = {name: (hashes[name], (folder / name).stat().st_size) for name in names}
    write_json(folder / ITEM_FILE, mlm_item(card, sum(v.numel() for v in state.values()), about))
    hashes[ITEM_FILE] = _sha256(folder / ITEM_FILE)
    written = {"format": BUNDLE_FORMAT, "files": hashes, "rsfuse_version": __version__}
    card = card.model_copy(update=written)
    write_json(folder / CARD_FILE, card.model_dump())
    return Bundle(folder, card)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shipped_bundles() -> dict[str, Path]:
    """Name -> folder of the bundles that come with rsfuse."""
    folder = Path(str(resources.files("rsfuse"))) / "models"
    found = folder.iterdir() if folder.is_dir() else ()
    return {path.name: path for path in sorted(found) if (path / CARD_FILE).is_file()}


def load_bundle(path: str | Path, task: str | None = None) -> Bundle:
    """Open a bundle; the weights are read by `Bundle.state`.

    Args:
        path: Folder, or zip file of one; or the name of a bundle that comes with rsfuse.
        task: The verb that wants to use it; None accepts any.

    Raises:
        InputError: Not a bundle, of a later format, or made for another task.
    """
    path = Path(path)
    if not path.exists():
        path = shipped_bundles().get(str(path), path)
    content = _card(path)
    version = content.get("format")
    if not isinstance(version, int) or version > BUNDLE_FORMAT:
        raise InputError(
            f"{path} is a bundle of format {version!r}",
            f"this rsfuse reads formats up to {BUNDLE_FORMAT}",
            f"use the rsfuse that wrote it ({content.get('rsfuse_version', 'unknown')}) or a later",
        )
    while version in UPGRADES:
        content = UPGRADES[version](content)
        version = content["format"]
    card = make_config(BundleCard, content, f"{path}/{CARD_FILE}")
    if task is not None and card.task != task:
        raise InputError(
            f"{path} is a model for `rsfuse {card.task}`",
            f"`rsfuse {task}` cannot use it",
            f"give a bundle that `rsfuse train {task}` wrote",
        )
    return Bundle(path, card)


def is_bundle(path: str | Path) -> bool:
    """Whether the path is a folder or zip file with a bundle in it."""
    path = Path(path)
    if path.is_dir():
        return (path / CARD_FILE).is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return CARD_FILE in archive.namelist()
    except _ZIP_FAULTS:
        return False


def zip_bundle(bundle: Bundle, path: str | Path) -> Path:
    """Write a bundle as one zip file and return its path."""
    names = [CARD_FILE, *bundle.card.files]
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), _read(bundle.path, name))
    return Path(path)


def _card(path: Path) -> dict[str, Any]:
    if not is_bundle(path):
        raise InputError(
            f"{path} is not a model bundle",
            f"a bundle is a folder or a zip file that holds {CARD_FILE} and {WEIGHTS_FILE}",
            "give the folder that `rsfuse train` wrote, or the name of one that comes with rsfuse: "
            + (", ".join(shipped_bundles()) or "none does"),
        )
    if path.is_dir():
        content = read_json(path / CARD_FILE)
    else:
        try:
            content = parse_json(_read(path, CARD_FILE))
        except ValueError as error:
            raise _damaged(path, CARD_FILE, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, CARD_FILE, "it is not a JSON object")
    return content


def _read(path: Path, name: str) -> bytes:
    """One file of a bundle, of a size that a bundle may have."""
    try:
        if path.is_dir():
            return (path / name).read_bytes()
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo(name)
            if entry.file_size > MOST_BYTES or len(archive.namelist()) > MOST_FILES:
                raise _damaged(path, name, "it unpacks to more than a bundle may hold")
            return archive.read(entry)
    except _ZIP_FAULTS as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, name, str(error)) from error


def _damaged(path: Path, name: str, reason: str) -> InputError:
    return InputError(
        f"{name} of the bundle {path} cannot be used: {reason}",
        "the bundle is damaged, incomplete or was changed by hand",
        "copy it again from where it was made",
    )
