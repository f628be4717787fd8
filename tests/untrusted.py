"""Every reader of files from elsewhere, with a small good file: for property tests and fuzzing.

A reader may give a value or an `RsfuseError` in three beats, whatever the file holds.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox
from PIL import Image

from rsfuse.batch import read_jobs, read_stac
from rsfuse.detection.data import Dataset, Objects, Sample
from rsfuse.detection.formats import read_dataset, write_dataset
from rsfuse.engine.bundle import BundleCard, load_bundle, save_bundle, zip_bundle
from rsfuse.engine.config import TrainSettings, read_config
from rsfuse.errors import RsfuseError
from rsfuse.fetch import read_sources
from rsfuse.geo.grid import Window
from rsfuse.geo.raster import open_raster
from rsfuse.geo.vectors import read_features
from rsfuse.matching.output import StoredTransform
from rsfuse.ops.geometry2d import SplineField, Transform
from rsfuse.runs import RunRecord


class Reader(NamedTuple):
    """A reader of a kind of file.

    Attributes:
        make: Writes a good file, and what it needs beside it, into an empty folder; the file.
        read: Reads that file, given the folder.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]


def survives(read: Callable[[], object]) -> None:
    """The call gives something, or an error of ours that says what, why and what next."""
    try:
        read()
    except RsfuseError as error:
        if not (error.what and error.fix):
            raise AssertionError("an error without its three beats") from error


OBJECTS = Objects(
    np.array([[[5.0, 5], [25, 5], [25, 15], [5, 15]], [[30, 30], [40, 34], [38, 39], [28, 35]]]),
    np.array([0, 1]),
    np.array([0, 0]),
)
DATASET = Dataset(
    classes=("ship", "warcraft"), samples=(Sample("a", None, OBJECTS, size=(48, 64)),)
)
VOC = """<annotation><filename>a.png</filename><size><width>64</width><height>48</height></size>
<object><name>ship</name><difficult>0</difficult><robndbox><cx>20</cx><cy>20</cy><w>9</w><h>5</h>
<angle>0.3</angle></robndbox></object></annotation>"""
UCAS = "5.0 5.0 25.0 5.0 25.0 15.0 5.0 15.0 0.1 5 5 20 10\n"
VEDAI = "00000001 10.5 12.5 0.3 1 1 0 5 15 16 6 8 8 18 17\n"

# Formats that rsfuse writes; of the others: labels, image, content.
WRITTEN = ("dota", "hrsc2016", "yolo-obb", "coco")
GIVEN = {
    "robndbox": ("Annotations/a.xml", "images/a.png", VOC),
    "ucas-aod": ("CAR/P0001.txt", "CAR/P0001.png", UCAS),
    "vedai": ("annotation512.txt", "images/00000001_co.png", VEDAI),
}


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)


def _written_labels(folder: Path, format: str) -> Path:
    write_dataset(folder, DATASET, format=format)
    _picture(folder / ("images" if format == "yolo-obb" else "") / "a.png")
    kinds = (".txt", ".xml", ".json")
    return next(p for p in sorted(folder.rglob("*")) if p.suffix in kinds and p.is_file())


def _given_labels(folder: Path, format: str) -> Path:
    label, image, content = GIVEN[format]
    _picture(folder / image)
    return _text(folder, label, content)


def _text(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def _text_reader(name: str, content: str, read: Callable[[Path], object]) -> Reader:
    return Reader(lambda folder: _text(folder, name, content), lambda folder: read(folder / name))


def _bundle(folder: Path, name: str) -> Path:
    card = BundleCard(task="detect", name="a", architecture="detector")
    bundle = save_bundle(folder / "bundle", card, {"w": torch.zeros(2, 3)}, readme="# a\n")
    if not name.endswith(".zip"):
        return bundle.path / name
    zip_bundle(bundle, folder / name)
    return folder / name


def _weights(folder: Path, name: str) -> object:
    where = folder / (name if name.endswith(".zip") else "bundle")
    return load_bundle(where, "detect").state()


def _raster(folder: Path) -> Path:
    path = folder / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=20, height=18, count=2, dtype="uint16", nodata=7,
        crs="EPSG:32631", transform=Affine(10, 0, 5e5, 0, -10, 5.4e6),
    ) as file:  # fmt: skip
        file.write(np.arange(720, dtype=np.uint16).reshape(2, 18, 20))
    return path


def _corner(folder: Path) -> object:
    with open_raster(folder / "a.tif") as source:
        h, w = source.shape
        return source.read(Window(0, 0, min(w, 40), min(h, 40)))


GRID = {"shape": [20, 30], "crs": "EPSG:32631", "transform": [10, 0, 5e5, 0, -10, 5.4e6]}
FIELD = SplineField((0.0, 0.0), (10.0, 10.0), np.zeros((5, 6, 2)))
TRANSFORM = {
    "format": "rsfuse-transform", "format_version": 1, "status": "ok", "confidence": 0.9,
    "transform": Transform("smooth", np.eye(3), FIELD).to_dict(),
    "reference": {**GRID, "georeferenced": True}, "query": {**GRID, "georeferenced": True},
}  # fmt: skip
RECORD = RunRecord(
    task="match", command="x", started="2026-01-01T00:00:00Z", seconds=1.0, inputs=(),
    parameters={}, status="ok", outputs={"a": "b"},
)  # fmt: skip
ITEM = {
    "type": "Feature", "id": "a", "properties": {}, "assets": {"v": {"href": "./a.tif"}},
    "links": [{"rel": "item", "href": "./b.json"}],
}  # fmt: skip
AREA = {
    "type": "FeatureCollection",
    "features": [{
        "type": "Feature", "properties": {"name": "a", "class": 3},
        "geometry": {"type": "Polygon", "coordinates": [[[3, 48], [4, 48], [4, 49], [3, 48]]]},
    }],
}  # fmt: skip

READERS = {
    **{
        f: Reader(partial(_written_labels, format=f), partial(read_dataset, format=f))
        for f in WRITTEN
    },
    **{f: Reader(partial(_given_labels, format=f), partial(read_dataset, format=f)) for f in GIVEN},
    "area": _text_reader(
        "area.geojson", json.dumps(AREA),
        lambda path: read_features(path, GeoBox((20, 30), Affine(*GRID["transform"]), GRID["crs"])),
    ),
    "raster": Reader(_raster, _corner),
    "transform": _text_reader("transform.json", json.dumps(TRANSFORM), StoredTransform.load),
    "run": _text_reader(
        "run.json", json.dumps(RECORD.to_dict()), lambda path: RunRecord.load(path.parent)
    ),
    "settings": _text_reader(
        "settings.toml", "seed = 1\nsteps = 5\nlearning_rate = 1e-3\nprecision = '32-true'\n",
        lambda path: read_config(path, TrainSettings),
    ),
    "jobs": _text_reader(
        "jobs.toml",
        'task = "detect"\n[options]\nscore = 0.5\n[[items]]\nid = "a"\nscene = "a.tif"\n',
        read_jobs,
    ),
    "sources": _text_reader(
        "sources.toml", '[s.a]\nendpoint = "http://x"\ncollection = "c"\nassets = ["b"]\n',
        lambda path: read_sources("s", path),
    ),
    "catalog": _text_reader(
        "catalog.json", json.dumps(ITEM),
        lambda path: read_stac(str(path), "detect", {"scene": "v"}, {}),
    ),
    **{
        f"bundle-{kind}": Reader(partial(_bundle, name=name), partial(_weights, name=name))
        for kind, name in (
            ("card", "bundle.json"), ("weights", "model.safetensors"), ("zip", "a.zip")
        )
    },
}  # fmt: skip
