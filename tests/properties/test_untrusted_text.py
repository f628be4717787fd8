"""Text files from elsewhere: any content ends in a value or in an RsfuseError in three beats.

Whole data sets are made first, then bytes of one file are changed, cut, doubled or replaced by what
breaks parsers. The same for what rsfuse writes itself and reads again.
"""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rsfuse.batch import read_jobs, read_stac
from rsfuse.detection.data import Dataset, Objects, Sample
from rsfuse.detection.formats import read_dataset, write_dataset
from rsfuse.engine.bundle import load_bundle, zip_bundle
from rsfuse.engine.config import TrainSettings, read_config
from rsfuse.errors import RsfuseError
from rsfuse.fetch import read_sources
from rsfuse.matching.output import StoredTransform
from rsfuse.runs import RunRecord

# What breaks parsers: empty, other encodings, huge and strange numbers, deep nesting, other types.
STRANGE = (
    b"", b"\xff\xfe\x00", b"\x00" * 40, b"nan nan nan nan inf inf 1e999 -1e999 ship 0\n",
    b"[" * 3000,
    b"{}", b"[]", b"null", b"1", b'"x"', b"<a>" * 900, b"<annotation/>", b"\xef\xbb\xbf",
    b"0 0 0 0 0 0 0 0 ship 0\n", b"1 2\n", b"ship\n", b"9" * 5000, b'{"a": NaN}', b"= = =", b"'\"'",
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to four wounds."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("replace", "cut", "double", "strange", "flip")))
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        if kind == "replace":
            data[at : at + 1] = draw(st.binary(min_size=0, max_size=6))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 60))]
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 60))]
        elif kind == "flip" and data:
            data[at % len(data)] ^= 1 << draw(st.integers(0, 7))
        else:
            data = bytearray(draw(st.sampled_from(STRANGE)))
    return bytes(data)


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
WRITTEN = ("dota", "hrsc2016", "yolo-obb", "coco")
VOC = b"""<annotation><filename>a.png</filename><size><width>64</width><height>48</height></size>
<object><name>ship</name><difficult>0</difficult><robndbox><cx>20</cx><cy>20</cy><w>9</w><h>5</h>
<angle>0.3</angle></robndbox></object></annotation>"""
UCAS = b"5.0 5.0 25.0 5.0 25.0 15.0 5.0 15.0 0.1 5 5 20 10\n"
VEDAI = b"00000001 10.5 12.5 0.3 1 1 0 5 15 16 6 8 8 18 17\n"
OPTIONS = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def label_file(folder: Path, format: str) -> Path:
    """A small data set of a format; its one file of labels."""
    if format in WRITTEN:
        write_dataset(folder, DATASET, format=format)
        images = folder / ("images" if format == "yolo-obb" else "")
        images.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(images / "a.png")
        kinds = (".txt", ".xml", ".json")
        return next(p for p in sorted(folder.rglob("*")) if p.suffix in kinds and p.is_file())
    places = {
        "robndbox": ("Annotations/a.xml", "images/a.png", VOC),
        "ucas-aod": ("CAR/P0001.txt", "CAR/P0001.png", UCAS),
        "vedai": ("annotation512.txt", "images/00000001_co.png", VEDAI),
    }
    label, image, content = places[format]
    for name in (label, image):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / label).write_bytes(content)
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / image)
    return folder / label


@pytest.mark.parametrize("format", [*WRITTEN, "robndbox", "ucas-aod", "vedai"])
@OPTIONS
@given(data=st.data())
def test_labels(format: str, tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = label_file(folder, format)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    survives(lambda: read_dataset(folder, format=format))


@pytest.mark.parametrize("format", [*WRITTEN, "robndbox", "ucas-aod", "vedai"])
def test_the_undamaged_ones_are_read(format: str, tmp_path: Path) -> None:
    label_file(tmp_path, format)
    assert sum(len(s.objects) for s in read_dataset(tmp_path, format=format).samples) >= 1


CONTENTS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "run.json": (
        json.dumps(RunRecord(
            task="match", command="x", started="2026-01-01T00:00:00Z", seconds=1.0, inputs=(),
            parameters={}, status="ok", outputs={"a": "b"},
        ).to_dict()).encode(),
        lambda path: RunRecord.load(path.parent),
    ),
    "settings.toml": (
        b"seed = 1\nsteps = 5\nlearning_rate = 1e-3\nprecision = '32-true'\n",
        lambda path: read_config(path, TrainSettings),
    ),
    "jobs.toml": (
        b'task = "detect"\n[options]\nscore = 0.5\n[[items]]\nid = "a"\nscene = "a.tif"\n',
        read_jobs,
    ),
    "sources.toml": (
        b'[s.a]\nendpoint = "http://x"\ncollection = "c"\nassets = ["b"]\n',
        lambda path: read_sources("s", path),
    ),
    "catalog.json": (
        json.dumps({
            "type": "Feature", "id": "a", "properties": {}, "assets": {"v": {"href": "./a.tif"}},
            "links": [{"rel": "item", "href": "./b.json"}],
        }).encode(),
        lambda path: read_stac(str(path), "detect", {"scene": "v"}, {}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
@OPTIONS
@given(data=st.data())
def test_files_of_our_own(name: str, tmp_path: Path, data: st.DataObject) -> None:
    content, read = CONTENTS[name]
    path = tmp_path / name
    path.write_bytes(data.draw(damaged(content)))
    survives(lambda: read(path))


@OPTIONS
@given(data=st.data())
def test_transforms(tmp_path: Path, data: st.DataObject) -> None:
    from rsfuse.simulate import render, simulate_scene

    path = tmp_path / "transform.json"
    if not (tmp_path / "good.json").exists():
        import rsfuse

        scene = simulate_scene(200, gsd_m=1.0, seed=12)
        result = rsfuse.match(render(scene, "pan").data, render(scene, "pan").data, upright=True)
        result.save(tmp_path / "run")
        shutil.copy(tmp_path / "run" / "transform.json", tmp_path / "good.json")
    path.write_bytes(data.draw(damaged((tmp_path / "good.json").read_bytes())))
    survives(lambda: StoredTransform.load(path))


@OPTIONS
@given(data=st.data())
def test_bundles(tmp_path: Path, data: st.DataObject) -> None:
    good = load_bundle("simulated-objects")
    folder = tmp_path / "bundle"
    if not folder.exists():
        shutil.copytree(good.path, folder)
        zip_bundle(good, tmp_path / "good.zip")
    name = data.draw(st.sampled_from(("bundle.json", "model.safetensors")))
    content = (good.path / name).read_bytes()
    for file in ("bundle.json", "model.safetensors"):
        shutil.copy(good.path / file, folder / file)
    (folder / name).write_bytes(data.draw(damaged(content)))
    survives(lambda: load_bundle(folder, "detect").state())
    whole = (tmp_path / "good.zip").read_bytes()
    (tmp_path / "bad.zip").write_bytes(data.draw(damaged(whole)))
    survives(lambda: load_bundle(tmp_path / "bad.zip", "detect").state())


def test_a_zip_that_unpacks_to_too_much_or_names_other_folders(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(40):
            archive.writestr(f"{number}.txt", "")
        archive.writestr("bundle.json", "{}")
    with pytest.raises(RsfuseError, match="unpacks to more"):
        load_bundle(bomb)
    outside = tmp_path / "outside.zip"
    good = load_bundle("simulated-objects")
    card = good.card.model_dump(mode="json")
    card["files"]["../../escaped.txt"] = "0" * 64
    with zipfile.ZipFile(outside, "w") as archive:
        archive.writestr("bundle.json", json.dumps(card))
        archive.writestr("../../escaped.txt", "x")
    bundle = load_bundle(outside)
    with pytest.raises(RsfuseError):
        bundle.state()
    assert not (tmp_path.parent.parent / "escaped.txt").exists()
