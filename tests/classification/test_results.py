"""A class map as a value, and the files that it goes into."""

import csv
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.classification.output import summarise, write_areas, write_style
from rsfuse.classification.predict import MapFiles
from rsfuse.classification.results import ClassMap, polygons_of
from rsfuse.engine.bundle import ClassInfo
from rsfuse.errors import InputError
from rsfuse.geo.vectors import read_features
from rsfuse.geo.write import write_cog

GRID = GeoBox((6, 8), Affine(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0), "EPSG:32631")
CLASSES = (ClassInfo(name="water", color="#2f6fb7"), ClassInfo(name="road <a>", color="#5a5f66"))


def write(path: Path, values: np.ndarray, valid: np.ndarray | None = None, **more: object) -> Path:
    write_cog(path, values.astype(np.uint8), geobox=GRID, nodata=255, valid=valid, **more)  # type: ignore[arg-type]
    return path


@pytest.fixture
def class_map(tmp_path: Path) -> ClassMap:
    """6 x 8 pixels of 10 m: a lake of 3 x 3 with an island of one pixel; a column without class."""
    numbers, valid = np.ones((6, 8)), np.ones((6, 8), bool)
    numbers[1:4, 1:4] = 0
    numbers[2, 2] = 1
    valid[:, 7] = False
    path = write(
        tmp_path / "map.tif", numbers, valid, bands=["class"],
        colours={0: (47, 111, 183), 1: (90, 95, 102)}, class_names={0: "water", 1: "road <a>"},
    )  # fmt: skip
    percent = np.where(numbers == 0, 90, 40)
    confidence = write(tmp_path / "confidence.tif", percent, valid, bands=["confidence"])
    return ClassMap.open(path, confidence)


def test_names_and_colours_come_from_the_file(class_map: ClassMap) -> None:
    assert class_map.classes == CLASSES


def test_a_raster_that_names_no_classes_is_refused(tiny_raster: Path) -> None:
    with pytest.raises(InputError, match="names no classes"):
        ClassMap.open(tiny_raster)


def test_areas_and_confidence_are_counted(class_map: ClassMap) -> None:
    found = class_map.summary()
    assert [area.pixels for area in found.classes] == [8, 34]
    # A pixel of 10 m in UTM at its central meridian: 100 m2 but for the scale of the map.
    assert [area.area_m2 for area in found.classes] == pytest.approx([800, 3400], rel=2e-3)
    assert [area.share for area in found.classes] == pytest.approx([8 / 42, 34 / 42])
    assert [area.mean_confidence for area in found.classes] == pytest.approx([0.9, 0.4])
    assert found.mean_confidence == pytest.approx((8 * 0.9 + 34 * 0.4) / 42)
    assert found.uncertain_share == pytest.approx(34 / 42)


def test_without_confidence_none_is_claimed(class_map: ClassMap) -> None:
    found = summarise(MapFiles(class_map.files.classes), CLASSES, 0.5)
    assert found.mean_confidence is None
    assert found.uncertain_share is None
    assert all(area.mean_confidence is None for area in found.classes)


def test_read_gives_numbers_and_mask(class_map: ClassMap) -> None:
    raster = class_map.read()
    assert raster.valid.sum() == 42
    assert (raster.data[0] == 0).sum() >= 8


def test_words_and_html_name_the_classes(class_map: ClassMap) -> None:
    assert str(class_map) == "map.tif: water 19.0 %, road <a> 81.0 %"
    page = class_map._repr_html_()
    assert "road &lt;a&gt;" in page
    assert "<a>" not in page
    assert "#2f6fb7" in page


def test_plot_shows_the_colours_of_the_classes(class_map: ClassMap) -> None:
    figure = class_map.plot()
    (axes,) = figure.axes
    picture = axes.images[0].get_array()
    assert tuple(picture[1, 1]) == (47, 111, 183)
    assert tuple(picture[0, 0]) == (90, 95, 102)
    assert tuple(picture[0, 7]) == (255, 255, 255), "no class, no colour"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["water", "road <a>"]


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_polygons_lie_on_the_ground_of_the_map(
    class_map: ClassMap, tmp_path: Path, suffix: str
) -> None:
    path = class_map.to_geopackage(tmp_path / f"map{suffix}")
    found = read_features(path, GRID)
    assert sorted(found.columns["class"]) == ["road <a>", "road <a>", "water"]
    pixels = dict.fromkeys(("water", "road <a>"), 0.0)
    for shape, name in zip(found.shapes, found.columns["class"], strict=True):
        pixels[name] += shapely.area(shape)
    # The lake has a hole where the island is.
    assert pixels == pytest.approx({"water": 8.0, "road <a>": 34.0}, abs=1e-4)
    lake = found.shapes[list(found.columns["class"]).index("water")]
    assert shapely.bounds(lake) == pytest.approx([1, 1, 4, 4], abs=1e-4)
    np.testing.assert_allclose(sorted(found.columns["area_m2"]), [100, 800, 3300], rtol=2e-3)


def test_small_polygons_take_the_class_around_them(class_map: ClassMap, tmp_path: Path) -> None:
    path = class_map.to_geopackage(tmp_path / "map.gpkg", min_area_m2=150)
    found = read_features(path, GRID)
    assert sorted(found.columns["class"]) == ["road <a>", "water"]
    areas = {n: shapely.area(s) for n, s in zip(found.columns["class"], found.shapes, strict=True)}
    assert areas == pytest.approx({"water": 9.0, "road <a>": 33.0}, abs=1e-4)


def test_a_map_without_any_class_has_no_polygons(tmp_path: Path) -> None:
    path = write(
        tmp_path / "none.tif", np.zeros((6, 8)), np.zeros((6, 8), bool), bands=["class"],
        class_names={0: "water", 1: "road"},
    )  # fmt: skip
    target = polygons_of(path, tmp_path / "none.gpkg", CLASSES)
    assert len(read_features(target, GRID)) == 0
    assert str(ClassMap.open(path)) == "none.tif: no class"


def test_style_has_an_entry_per_class(tmp_path: Path) -> None:
    write_style(tmp_path / "map.qml", CLASSES)
    entries = ElementTree.parse(tmp_path / "map.qml").findall(".//paletteEntry")
    assert [(e.get("value"), e.get("color"), e.get("label")) for e in entries] == [
        ("0", "#2f6fb7", "water"), ("1", "#5a5f66", "road <a>"),
    ]  # fmt: skip


def test_areas_as_csv(class_map: ClassMap, tmp_path: Path) -> None:
    write_areas(tmp_path / "areas.csv", class_map.summary())
    with (tmp_path / "areas.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["class"], row["name"], row["pixels"]) for row in rows] == [
        ("0", "water", "8"), ("1", "road <a>", "34"),
    ]  # fmt: skip
    assert float(rows[0]["mean_confidence"]) == pytest.approx(0.9)
