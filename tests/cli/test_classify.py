"""`rsfuse classify`: what is given stays as it is, and what cannot work ends before any work."""

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely

from rsfuse import classify as classify_scene
from rsfuse.cli.main import main
from rsfuse.errors import InputError
from rsfuse.geo.raster import open_raster
from rsfuse.geo.write import write_cog, write_shapes
from rsfuse.runs import RunRecord

MODEL = "simulated-land-cover"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MS of 64 x 64 pixels and PAN of 256 x 256, with the classes of the model."""
    folder = tmp_path_factory.mktemp("scene")
    assert main(["simulate", "-o", str(folder), "--size", "256", "--gsd", "0.5", "--modalities",
                 "ms,pan", "--ratio", "4", "--seed", "104", "--overwrite", "-q"]) == 0  # fmt: skip
    return folder


@pytest.fixture
def images(scene: Path, tmp_path: Path) -> Path:
    """A folder of one's own with `ms.tif`, `pan.tif` and `labels.tif`."""
    for name in ("ms.tif", "pan.tif", "truth/labels.tif"):
        (tmp_path / Path(name).name).write_bytes((scene / name).read_bytes())
    return tmp_path


def classify(images: Path, *words: str) -> int:
    return main(["classify", f"{images}/ms.tif", f"{images}/pan.tif", "-m", MODEL, "-q",
                 "--progress", "none", *words])  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["-o", "map.tif", "--confidence", "pan.tif"], "pan.tif is an input"),
        (["-o", "ms.tif"], "ms.tif is an input"),
        (["-o", "link.tif"], "link.tif is an input"),
        (["-o", "labels.tif", "--labels", "labels.tif"], "labels.tif is an input"),
        (["-o", "m.tif", "--aoi", "m_areas.csv"], "m_areas.csv is an input"),
        (["-o", "map.tif", "--probs", "map.tif"], "two results"),
        (["-o", "map.tif", "--probs", "map_run/confidence.tif"], "two results"),
        (["-o", "map.tif", "--probs", "./p.tif", "--confidence", "p.tif"], "two results"),
    ],
)
def test_a_result_takes_the_place_of_no_input_and_no_other_result(
    images: Path, words: list[str], what: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(images)
    (images / "link.tif").symlink_to("ms.tif")
    before = content(images)
    assert classify(images, *words, "--overwrite") == 2
    assert what in capsys.readouterr().err
    assert content(images) == before


def test_a_result_takes_the_place_of_no_input_in_python(images: Path) -> None:
    before = content(images)
    with open_raster(images / "ms.tif") as ms:
        for image in (ms, images / "ms.tif"):
            with pytest.raises(InputError, match="is an input"):
                classify_scene(image, images / "pan.tif", MODEL, images / "ms.tif")
    assert content(images) == before


@pytest.mark.parametrize(
    "name", ["map.tif", "map.qml", "map_areas.csv", "c.tif", "p.tif", "v.gpkg"]
)
def test_no_result_is_replaced_unasked(
    images: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / name).write_text("mine")
    words = ["-o", f"{images}/map.tif", "--confidence", f"{images}/c.tif", "--probs",
             f"{images}/p.tif", "--vector", f"{images}/v.gpkg"]  # fmt: skip
    before = content(images)
    assert classify(images, *words) == 2
    assert f"{name} exists" in capsys.readouterr().err
    assert content(images) == before


@pytest.fixture
def far(images: Path) -> Path:
    """Polygons of a class, beside the images."""
    with open_raster(images / "ms.tif") as source:
        box, crs = source.geobox.extent.boundingbox, source.geobox.crs
    shape = shapely.box(box.right + 1000, box.top + 1000, box.right + 1100, box.top + 1100)
    path = images / "far.gpkg"
    write_shapes(path, np.array([shape], object), {"class": ["water"]}, str(crs))
    return path


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--labels", "none.tif"], "none.tif"),
        (["--labels", "far.gpkg"], "far.gpkg"),
        (["--labels", "far.gpkg", "--class-column", "kind"], "no column 'kind'"),
        (["--labels", "other.tif"], "class 'glacier'"),
        (["--vector", "map.shp"], "'.shp'"),
        (["--aoi", "small.tif"], "the mask is 9 x 9"),
        (["--aoi", "far.gpkg"], "shares no ground"),
    ],
)
def test_what_does_not_fit_is_found_before_the_map_is_made(
    images: Path, far: Path, words: list[str], what: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(images)
    with open_raster(images / "ms.tif") as source:
        write_cog(
            images / "other.tif", np.zeros((1, *source.shape), np.uint8), geobox=source.geobox,
            class_names={0: "glacier"},
        )  # fmt: skip
    write_cog(images / "small.tif", np.ones((1, 9, 9), np.uint8))
    before = content(images)
    assert classify(images, "-o", "map.tif", *words) == 2
    said = capsys.readouterr().err
    assert what in said
    assert "Traceback" not in said
    assert content(images) == before
    assert classify(images, "-o", "map.tif", "--dry-run", *words) == 2


def test_labels_where_there_will_be_no_map_are_found_before_it_is_made(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, half in (("ms", slice(None, 32)), ("labels", slice(128, None))):
        with open_raster(images / f"{name}.tif") as source:
            raster, names = source.read(), dict(source.class_names)
        valid = raster.valid.copy()
        valid[:, half] = False
        write_cog(
            images / f"{name}.tif", raster.data.astype(np.uint16), geobox=raster.geobox,
            nodata=65535, bands=raster.bands, class_names=names, valid=valid,
        )  # fmt: skip
    before = content(images)
    assert classify(images, "-o", f"{images}/map.tif", "--labels", f"{images}/labels.tif") == 2
    assert "lies where there will be a map" in capsys.readouterr().err
    assert content(images) == before


def test_an_earlier_run_outlives_one_that_cannot_work(images: Path) -> None:
    words = ["-o", f"{images}/map.tif", "--overwrite"]
    assert classify(images, *words) == 0
    before = content(images)
    assert "map_run/run.json" in before
    assert classify(images, *words, "--labels", f"{images}/none.tif") == 2
    assert content(images) == before


def test_the_record_of_an_earlier_run_is_replaced_last(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["-o", f"{images}/map.tif", "--overwrite"]
    assert classify(images, *words) == 0
    before = (images / "map_run" / "run.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("rsfuse.classification.output.write_previews", full)
    assert classify(images, *words) == 1
    assert (images / "map_run" / "run.json").read_bytes() == before


def reordered(images: Path, order: tuple[int, ...], names: tuple[str, ...]) -> Path:
    """The same images with the bands of MS in another order, under other names."""
    folder = images / "reordered"
    folder.mkdir()
    with open_raster(images / "ms.tif") as source:
        data, grid = source.read().data, source.geobox
    write_cog(folder / "ms.tif", data[list(order)].astype(np.uint16), geobox=grid, bands=names)
    (folder / "pan.tif").write_bytes((images / "pan.tif").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ((3, 2, 1, 0), ("nir", "red", "green", "blue")),
        ((0, 0, 1, 2, 3, 3), ("coastal", "blue", "green", "red", "nir", "swir")),
    ],
)
def test_the_order_of_named_bands_changes_nothing(
    images: Path, order: tuple[int, ...], names: tuple[str, ...]
) -> None:
    other = reordered(images, order, names)
    assert classify(images, "-o", f"{images}/a.tif") == 0
    assert classify(other, "-o", f"{images}/b.tif") == 0
    with rasterio.open(images / "a.tif") as a, rasterio.open(images / "b.tif") as b:
        assert (a.read() == b.read()).all()
    assert RunRecord.load(images / "b_run").inputs[0]["bands"] == ["blue", "green", "red", "nir"]


def test_bands_with_other_names_are_told_of_in_the_record(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = reordered(images, (0, 1, 2, 3), ("B2", "B3", "B4", "B8"))
    words = ["classify", f"{other}/ms.tif", f"{other}/pan.tif", "-m", MODEL, "-o"]
    assert main([*words, f"{images}/map.tif", "--progress", "none"]) == 0
    assert "the bands are named B2, B3, B4, B8" in capsys.readouterr().err
    record = RunRecord.load(images / "map_run")
    assert "the bands are named B2, B3, B4, B8" in " ".join(record.inputs[0]["notes"])
    assert record.status == "ok"


def test_an_area_of_interest_without_data_is_what_a_refused_map_tells_of(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_raster(images / "ms.tif") as source:
        write_cog(
            images / "aoi.tif", np.zeros((1, *source.shape), np.uint8), geobox=source.geobox
        )  # fmt: skip
    assert classify(images, "-o", f"{images}/m.tif", "--aoi", f"{images}/aoi.tif", "--json") == 3
    assert json.loads(capsys.readouterr().out)["status"] == "refused"
    message = RunRecord.load(images / "m_run").reasons[0]["message"]
    assert message == "Nowhere in the area of interest do both images hold data."
