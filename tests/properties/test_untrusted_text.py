"""Files from elsewhere: any content ends in a value or in an RsfuseError in three beats.

A good file of each kind is made first, then its bytes are changed, cut, doubled or replaced by what
breaks parsers. `tests/fuzz.py` does the same guided by coverage, for as long as one likes.
"""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsfuse.detection.data import Dataset
from rsfuse.engine.bundle import load_bundle
from rsfuse.errors import RsfuseError
from untrusted import GIVEN, READERS, WRITTEN, survives

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


OPTIONS = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(READERS) - {"raster"}))  # test_geo_fuzz.py, in a child
@OPTIONS
@given(data=st.data())
def test_damage(name: str, tmp_path: Path, data: st.DataObject) -> None:
    reader = READERS[name]
    folder = tmp_path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = reader.make(folder)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    survives(lambda: reader.read(folder))


@pytest.mark.parametrize("name", READERS)
def test_the_undamaged_ones_are_read(name: str, tmp_path: Path) -> None:
    READERS[name].make(tmp_path)
    if name == "catalog":  # its link leads nowhere
        with pytest.raises(RsfuseError):
            READERS[name].read(tmp_path)
        return
    found = READERS[name].read(tmp_path)
    assert found
    if isinstance(found, Dataset):
        assert name in (*WRITTEN, *GIVEN)
        assert sum(len(sample.objects) for sample in found.samples) >= 1


@pytest.mark.parametrize("name", ["coco", "raster"])
def test_the_fuzzer_runs(name: str, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris has no wheel for this machine")
    command = [sys.executable, str(repository / "tests" / "fuzz.py"), name, "-runs=300", "-seed=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done 300 runs" in done.stderr


# What fuzzing has found: each broke a reader once.
BROKE = {
    "a name that no file can have": ("coco", b'"a"', b'"' + b"a" * 300 + b'"'),
    "a flag beyond any integer": ("dota", b"ship 0", b"ship " + b"9" * 30),
    "a class without end": ("vedai", b"8 8 18", b"8 inf 18"),
    "a ring that is not closed": ("area", b"[3, 48]]]", b"[5, 48]]]"),
    "a CRS that there is not": ("transform", b"EPSG:32631", b"EPSG:65262"),
    "assets in a list": ("catalog", b'{"v": {"href": "./a.tif"}}', b"[]"),
}


@pytest.mark.parametrize("case", BROKE)
def test_what_once_broke_a_reader(case: str, tmp_path: Path) -> None:
    name, good, bad = BROKE[case]
    path = READERS[name].make(tmp_path)
    content = path.read_bytes()
    assert good in content
    path.write_bytes(content.replace(good, bad))
    survives(lambda: READERS[name].read(tmp_path))


def test_a_zip_without_its_directory(tmp_path: Path) -> None:
    path = READERS["bundle-zip"].make(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02")] ^= 1
    path.write_bytes(content)
    with pytest.raises(RsfuseError, match="not a model bundle"):
        READERS["bundle-zip"].read(tmp_path)


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
