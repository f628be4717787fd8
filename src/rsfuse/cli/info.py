"""`rsfuse info`: describe a raster, a run folder or a model bundle."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from rsfuse.cli.options import Json, Quiet, Verbose
from rsfuse.cli.output import emit
from rsfuse.errors import InputError
from rsfuse.runs import RunRecord, is_run_folder

CARD_FILE = "bundle.json"

# Statistics are taken from a reduced read of at most this many pixels a side.
STATISTICS_SIDE = 512


def info(
    path: Annotated[
        str, typer.Argument(help="Raster, run folder, model bundle, or the name of a shipped one.")
    ],
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Describe a raster, a run folder or a model bundle.

    Statistics of a raster come from a reduced read and are approximate.
    """
    folder = Path(path)
    if not folder.exists() and "/" not in path and "." not in path:
        from rsfuse.engine.bundle import shipped_bundles

        folder = shipped_bundles().get(path, folder)
    if folder.suffix.lower() == ".zip" and folder.is_file():
        emit(describe_bundle(folder), as_json)
    elif not folder.is_dir():
        emit(describe_raster(path), as_json)
    elif is_run_folder(folder):
        emit(describe_run(folder), as_json)
    elif (folder / CARD_FILE).is_file():
        emit(describe_bundle(folder), as_json)
    else:
        raise InputError(
            f"{folder} is neither a run folder nor a model bundle",
            f"the former holds run.json, the latter {CARD_FILE}",
            "give a raster file, the -o folder of a finished command, or a bundle folder",
        )


def describe_raster(path: str) -> dict[str, Any]:
    """What a raster holds: grid, bands, radiometry, validity, approximate statistics."""
    import numpy as np

    from rsfuse.geo.grid import gsd_m
    from rsfuse.geo.raster import open_raster

    with open_raster(path) as source:
        height, width = source.shape
        shrink = max(1.0, max(height, width) / STATISTICS_SIDE)
        reduced = source.read(shape=(max(1, int(height / shrink)), max(1, int(width / shrink))))
        geobox = source.geobox
        georeferenced = source.is_georeferenced and geobox.crs is not None
        description: dict[str, Any] = {
            "kind": "raster",
            "path": path,
            "height": height,
            "width": width,
            "bands": list(source.bands),
            "dtype": source.dtype,
            "radiometry": source.radiometry,
            "crs": str(geobox.crs) if geobox.crs is not None else None,
            "gsd_m": gsd_m(geobox) if georeferenced else None,
            "transform": list(geobox.affine)[:6] if source.is_georeferenced else None,
            "bounds": list(geobox.extent.boundingbox) if georeferenced else None,
            "block": list(source.block),
            "valid_share": float(reduced.valid.mean()),
            "statistics": {},
            "notes": list(source.notes),
        }
        for name, band in zip(source.bands, reduced.data, strict=True):
            values = band[reduced.valid]
            if values.size:
                low, middle, high = (float(v) for v in np.percentile(values, (2, 50, 98)))
                description["statistics"][name] = {"p2": low, "median": middle, "p98": high}
    return description


def describe_run(folder: Path) -> dict[str, Any]:
    """What a run did and how it ended."""
    run = RunRecord.load(folder)
    return {
        "kind": "run",
        "path": str(folder),
        "task": run.task,
        "status": run.status,
        "confidence": run.confidence,
        "reasons": [reason.get("message", reason.get("code", "")) for reason in run.reasons],
        "inputs": [f"{item.get('role', 'input')}: {item.get('path', '?')}" for item in run.inputs],
        "result": dict(run.result),
        "outputs": dict(run.outputs),
        "command": run.command,
        "started": run.started,
        "seconds": run.seconds,
        "rsfuse_version": run.rsfuse_version,
    }


def describe_bundle(path: Path) -> dict[str, Any]:
    """What a model bundle holds, without loading its weights."""
    from rsfuse.engine.bundle import WEIGHTS_FILE, load_bundle

    bundle = load_bundle(path)
    card = bundle.card
    description: dict[str, Any] = {
        "kind": "model bundle",
        "path": str(path),
        "name": card.name,
        "task": card.task,
        "architecture": card.architecture,
        "arguments": card.arguments,
        "inputs": [
            f"{item.name}: {', '.join(item.bands)}"
            + ("" if item.gsd_m is None else f" at {item.gsd_m:g} m")
            for item in card.inputs
        ],
        "classes": [item.name for item in card.classes],
        "training": {k: v for k, v in card.training.items() if k != "settings"},
        "scores": card.scores,
        "files": sorted(card.files),
        "rsfuse_version": card.rsfuse_version,
    }
    if path.is_dir():
        header = read_safetensors_header(path / WEIGHTS_FILE)
        header.pop("__metadata__", None)
        description["parameters"] = sum(prod(tensor["shape"]) for tensor in header.values())
    return description


def read_safetensors_header(path: Path) -> dict[str, Any]:
    """Name -> dtype, shape and offsets of each tensor, read from the head of the file alone.

    The file is eight bytes (little-endian) with the length of a JSON header, that header, the data:
    https://github.com/huggingface/safetensors#format

    Raises:
        InputError: Not a safetensors file, or a truncated one.
    """
    with _damaged(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise ValueError("the header is longer than the file")
        header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("the header is not a JSON object")
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
        if max(ends, default=0) > path.stat().st_size - 8 - length:
            raise ValueError("the file ends before its last tensor")
        return header


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    """Turn what parsers raise into an error that names the file."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}",
            "the file is damaged, incomplete or of another kind",
            "copy the bundle again from where it was made",
        ) from error
