"""Bad input ends in three lines or in a refusal with its reason, never in a traceback."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from rsfuse.cli.main import main
from rsfuse.runs import RunRecord

NORTH_UP = Affine(10, 0, 500000, 0, -10, 5700000)


def texture(rng: np.random.Generator, size: int = 96, bands: int = 1) -> np.ndarray:
    import cv2

    noise = rng.normal(size=(bands, size, size)).astype(np.float32)
    soft = np.stack([cv2.GaussianBlur(b, (0, 0), 2.0) for b in noise])
    return ((soft - soft.min()) / np.ptp(soft) * 250 + 2).astype(np.uint8)


Write = Callable[..., Path]


@pytest.fixture
def tif(tmp_path: Path) -> Write:
    def write(name: str, data: np.ndarray, *, transform: Affine = NORTH_UP, **more: object) -> Path:
        path = tmp_path / name
        profile = {
            "driver": "GTiff",
            "count": data.shape[0],
            "height": data.shape[1],
            "width": data.shape[2],
            "dtype": data.dtype,
            "crs": "EPSG:32631",
            "transform": transform,
            **more,
        }
        with rasterio.open(path, "w", **profile) as file:
            file.write(data)
        return path

    return write


def run(reference: Path, query: Path, out: Path) -> int:
    return main(["match", str(reference), str(query), "-o", str(out), "--progress", "none"])


def assert_three_lines(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert [line.split(":")[0] for line in told.strip().splitlines()[-3:]] == [
        "error",
        "why",
        "fix",
    ] or told.count("\n") >= 3
    assert not (out / "run.json").exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "truncated", "folder"])
def test_a_query_that_is_no_raster(
    tif: Write,
    tmp_path: Path,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    good = tif("good.tif", texture(rng))
    bad = tmp_path / "bad.tif"
    if damage == "empty":
        bad.write_bytes(b"")
    elif damage == "text":
        bad.write_text("hello, I am no raster\n" * 50)
    elif damage == "truncated":
        bad.write_bytes(good.read_bytes()[:300])
    elif damage == "folder":
        bad.mkdir()
    assert run(good, bad, tmp_path / "out") == 2
    assert_three_lines(capsys, tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("no overlap", "no_overlap"),
        ("nodata", "no_valid_pixels"),
        ("constant", "no_structure"),
        ("not a number", "no_valid_pixels"),
        ("one pixel", "too_small"),
    ],
)
def test_a_pair_that_cannot_match_is_refused_with_its_reason(
    tif: Write, tmp_path: Path, rng: np.random.Generator, kind: str, code: str
) -> None:
    reference = tif("reference.tif", texture(rng))
    if kind == "no overlap":
        query = tif("q.tif", texture(rng), transform=Affine.translation(90000, 0) @ NORTH_UP)
    elif kind == "nodata":
        query = tif("q.tif", np.zeros((1, 96, 96), np.uint8), nodata=0)
    elif kind == "constant":
        query = tif("q.tif", np.full((1, 96, 96), 7, np.uint8))
    elif kind == "not a number":
        query = tif("q.tif", np.full((1, 96, 96), np.nan, np.float32))
    else:
        query = tif("q.tif", np.ones((1, 1, 1), np.uint8))
    assert run(reference, query, tmp_path / "out") == 3
    record = RunRecord.load(tmp_path / "out")
    assert record.status == "refused"
    assert [r["code"] for r in record.reasons] == [code]
    assert not (tmp_path / "out" / "registered.tif").exists()
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("kind", ["holes", "bands", "no crs", "rotated", "south-up", "float"])
def test_unusual_input_is_matched(
    tif: Write, tmp_path: Path, rng: np.random.Generator, kind: str
) -> None:
    base = texture(rng, 160)
    reference, data = base[:, :128, :128], base[:, 5:133, 9:137]
    more: dict[str, object] = {}
    transform = NORTH_UP
    if kind == "holes":
        data = data.astype(np.float32)
        data[:, 20:40, 30:60] = np.nan
        data[:, 70:80, 70:80] = np.inf
    elif kind == "bands":
        reference, data = np.repeat(reference, 3, axis=0), np.repeat(data, 12, axis=0)
    elif kind == "no crs":
        more["crs"] = None
    elif kind == "rotated":
        transform = NORTH_UP @ Affine.rotation(3)
    elif kind == "south-up":
        data = data[:, ::-1]
        transform = Affine(10, 0, 500000, 0, 10, 5700000 - 1280)
    elif kind == "float":
        data = (data.astype(np.float32) / 255) ** 2 * 1e-3
    first = tif("reference.tif", np.ascontiguousarray(reference))
    second = tif("query.tif", np.ascontiguousarray(data), transform=transform, **more)
    # Without georeference the search is wide, and a small image may stay a little doubtful.
    assert run(first, second, tmp_path / "out") in ((0, 3) if kind == "no crs" else (0,))
    record = RunRecord.load(tmp_path / "out")
    found = np.array(record.result["transform_px"])
    at = found @ [64.0, 64.0, 1.0]
    expected = [55.0, 128 - 59.0] if kind == "south-up" else [55.0, 59.0]
    np.testing.assert_allclose(at[:2] / at[2], expected, atol=0.6)


def test_an_output_that_is_a_file_is_refused_before_any_work(
    tif: Write, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tif("good.tif", texture(rng))
    (tmp_path / "out").write_text("a file")
    assert main(["match", str(good), str(good), "-o", str(tmp_path / "out")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "a file"


def test_a_band_that_does_not_exist(
    tif: Write, tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tif("good.tif", texture(rng))
    words = ["match", str(good), str(good), "-o", str(tmp_path / "out"), "--band-ref", "9"]
    assert main(words) == 2
    assert_three_lines(capsys, tmp_path / "out")
