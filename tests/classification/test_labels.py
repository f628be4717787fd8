"""Labels from rasters and polygons: numbers from 0, names, colours, and what cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from rsfuse.classification.labels import Labels, read_labels
from rsfuse.engine.bundle import ClassInfo
from rsfuse.errors import GridError, InputError, NoOverlapError
from rsfuse.geo.raster import open_raster
from rsfuse.geo.write import write_cog

Writer = Callable[..., Path]


def grid_of(path: Path) -> GeoBox:
    with open_raster(path) as source:
        return source.geobox


def write_polygons(path: Path, boxes: list[tuple[tuple[float, ...], object]], column: str) -> Path:
    """GeoJSON of boxes (x0, y0, x1, y1) in EPSG:32631, one value each."""
    features = []
    for (x0, y0, x1, y1), value in boxes:
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        features.append({"type": "Feature", "properties": {column: value}, "geometry": geometry})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float32"])
def test_values_of_any_type_become_numbers_from_zero(write_raster: Writer, dtype: str) -> None:
    path = write_raster(np.array([[0, 7], [40, 7]], dtype), nodata=0)
    found = read_labels(path, grid_of(path))
    assert found.numbers.dtype == np.int64
    assert found.numbers.tolist() == [[-1, 0], [1, 0]]
    assert [item.name for item in found.classes] == ["7", "40"]
    assert found.counts().tolist() == [2, 1]


def test_signed_nodata_is_unlabelled_and_never_the_last_class(write_raster: Writer) -> None:
    path = write_raster(np.array([[-1, 0], [1, 2]], np.int16), nodata=-1)
    assert read_labels(path, grid_of(path)).numbers.tolist() == [[-1, 0], [1, 2]]


def test_nodata_can_be_given_in_place_of_that_of_the_file(write_raster: Writer) -> None:
    path = write_raster(np.array([[9, 1], [2, 2]], np.uint8))
    assert read_labels(path, grid_of(path), nodata=9).numbers.tolist() == [[-1, 0], [1, 1]]


def test_not_a_number_is_no_label(write_raster: Writer) -> None:
    path = write_raster(np.array([[np.nan, 1], [2, 2]], np.float32))
    assert read_labels(path, grid_of(path)).numbers.tolist() == [[-1, 0], [1, 1]]


def test_names_come_from_the_file_beside_and_unlabelled_is_no_class(
    write_raster: Writer, tmp_path: Path
) -> None:
    path = write_raster(np.array([[0, 1], [2, 2]], np.uint8))
    (tmp_path / "classes.json").write_text('{"0": "unlabelled", "1": "water", "2": "road"}')
    found = read_labels(path, grid_of(path))
    assert [item.name for item in found.classes] == ["water", "road"]
    assert found.numbers.tolist() == [[-1, 0], [1, 1]]


def test_names_given_win_over_those_beside(write_raster: Writer, tmp_path: Path) -> None:
    path = write_raster(np.array([[1, 1], [2, 2]], np.uint8))
    (tmp_path / "classes.json").write_text('{"1": "water", "2": "road"}')
    found = read_labels(path, grid_of(path), names={1: "lake", 2: "street"})
    assert [item.name for item in found.classes] == ["lake", "street"]


def test_names_and_colours_come_out_of_the_raster(tmp_path: Path, tiny_raster: Path) -> None:
    with open_raster(tiny_raster) as source:
        raster = source.read(bands=[1])
    numbers = (np.arange(raster.data.size) % 2).reshape(raster.data.shape).astype(np.uint8)
    path = tmp_path / "named.tif"
    write_cog(
        path, numbers, geobox=raster.geobox, bands=["class"], nodata=255,
        colours={0: (1, 2, 3), 1: (200, 100, 0)}, class_names={0: "moss", 1: "heath"},
    )  # fmt: skip
    found = read_labels(path, raster.geobox)
    assert [(c.name, c.color) for c in found.classes] == [("moss", "#010203"), ("heath", "#c86400")]


def test_labels_on_a_finer_grid_are_sampled_at_the_nearest_pixel(write_raster: Writer) -> None:
    coarse = write_raster(np.zeros((2, 2), np.uint8), "coarse.tif")
    # 3 x 3 finer pixels per coarse one; only the middle one differs, and only it is taken.
    values = np.full((6, 6), 9, np.uint8)
    values[1::3, 1::3] = [[3, 4], [5, 3]]
    fine = write_raster(
        values, "fine.tif", transform=(10 / 3, 0.0, 500_000.0, 0.0, -10 / 3, 5_400_000.0)
    )
    found = read_labels(fine, grid_of(coarse))
    assert [item.name for item in found.classes] == ["3", "4", "5"]
    assert found.numbers.tolist() == [[0, 1], [2, 0]]


def test_labels_in_another_crs_are_placed_on_the_image(write_raster: Writer) -> None:
    image = write_raster(np.zeros((8, 8), np.uint8), "image.tif")
    # About the same ground in degrees: 3 deg E, 48.75 deg N; columns 0-3 west, 4-7 east.
    values = np.ones((200, 200), np.uint8)
    values[:, 100:] = 2
    degrees = write_raster(
        values, "degrees.tif", crs="EPSG:4326",
        transform=(2e-5, 0.0, 3.0 + 40 / 73_400 - 100 * 2e-5, 0.0, -2e-5, 48.7545),
    )  # fmt: skip
    found = read_labels(degrees, grid_of(image))
    assert (found.numbers[:, :3] == 0).all()
    assert (found.numbers[:, 5:] == 1).all()


def test_labels_elsewhere_are_an_error(write_raster: Writer) -> None:
    image = write_raster(np.zeros((2, 2), np.uint8), "image.tif")
    away = write_raster(
        np.ones((2, 2), np.uint8), "away.tif",
        transform=(10.0, 0.0, 600_000.0, 0.0, -10.0, 5_400_000.0),
    )  # fmt: skip
    with pytest.raises(NoOverlapError):
        read_labels(away, grid_of(image))


def test_labels_of_another_size_without_a_crs_are_an_error(write_raster: Writer) -> None:
    image = write_raster(np.zeros((2, 3), np.uint8), "image.tif", crs=None)
    other = write_raster(np.ones((4, 4), np.uint8), "other.tif", crs=None)
    with pytest.raises(GridError, match=r"\(4, 4\) pixels and the map \(2, 3\)"):
        read_labels(other, grid_of(image))


def test_a_raster_without_labels_is_an_error(write_raster: Writer) -> None:
    path = write_raster(np.zeros((2, 2), np.uint8), nodata=0)
    with pytest.raises(InputError, match="holds no label"):
        read_labels(path, grid_of(path))


def test_polygons_are_burnt_where_they_cover_pixel_centres(
    write_raster: Writer, tmp_path: Path
) -> None:
    image = write_raster(np.zeros((2, 3), np.uint8), "image.tif")
    x, y = 500_000.0, 5_400_000.0
    path = write_polygons(
        tmp_path / "areas.geojson",
        [((x, y - 10, x + 10, y), "water"), ((x + 10, y - 20, x + 24, y), "road")],
        "class",
    )
    found = read_labels(path, grid_of(image))
    assert [item.name for item in found.classes] == ["road", "water"]
    # The second ends 4 m into the third column, short of its centre.
    assert found.numbers.tolist() == [[1, 0, -1], [-1, 0, -1]]
    assert found.groups is not None
    assert found.groups.tolist() == [[0, 1, -1], [-1, 1, -1]]


def test_numbers_of_polygons_take_their_names(write_raster: Writer, tmp_path: Path) -> None:
    image = write_raster(np.zeros((1, 2), np.uint8), "image.tif")
    x, y = 500_000.0, 5_400_000.0
    path = write_polygons(
        tmp_path / "areas.geojson",
        [((x, y - 10, x + 10, y), 4), ((x + 10, y - 10, x + 20, y), 1)],
        "kind",
    )
    found = read_labels(path, grid_of(image), column="kind", names={1: "water", 4: "building"})
    assert [item.name for item in found.classes] == ["water", "building"]
    assert found.numbers.tolist() == [[1, 0]]


def test_a_column_that_is_missing_is_named_with_those_there(
    write_raster: Writer, tmp_path: Path
) -> None:
    image = write_raster(np.zeros((1, 1), np.uint8), "image.tif")
    x, y = 500_000.0, 5_400_000.0
    path = write_polygons(tmp_path / "a.geojson", [((x, y - 10, x + 10, y), "w")], "kind")
    with pytest.raises(InputError, match="no column 'class'\nit has kind"):
        read_labels(path, grid_of(image))


def test_polygons_beside_the_image_are_an_error(write_raster: Writer, tmp_path: Path) -> None:
    image = write_raster(np.zeros((2, 2), np.uint8), "image.tif")
    path = write_polygons(tmp_path / "a.geojson", [((0.0, 0.0, 9.0, 9.0), "water")], "class")
    with pytest.raises(InputError, match="covers a pixel centre"):
        read_labels(path, grid_of(image))


WATER, ROAD, FIELD = (ClassInfo(name=name) for name in ("water", "road", "field"))


def test_labels_are_renumbered_by_name() -> None:
    labels = Labels(np.array([[0, 1], [-1, 1]]), (WATER, ROAD))
    found = labels.as_classes((FIELD, ROAD, WATER), "labels.tif")
    assert found.numbers.tolist() == [[2, 1], [-1, 1]]


def test_a_class_that_is_unknown_is_named() -> None:
    labels = Labels(np.array([[0, 1]]), (WATER, ROAD))
    with pytest.raises(InputError, match=r"labels.tif holds the class 'road'") as caught:
        labels.as_classes((WATER, FIELD), "labels.tif")
    assert "water, field" in caught.value.why


def test_an_unknown_class_that_does_not_occur_does_no_harm() -> None:
    labels = Labels(np.array([[0, 0]]), (WATER, ROAD))
    assert labels.as_classes((FIELD, WATER), "labels.tif").numbers.tolist() == [[1, 1]]


@pytest.mark.parametrize("number", [1, 2])
def test_quickbird_polygons_agree_with_their_raster(rsfuse_data: Path, number: int) -> None:
    folder = rsfuse_data / "classification" / "quickbird_toulouse"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    path = folder / f"QB_{number}_labels.tif"
    found = read_labels(path, grid_of(path))
    assert [item.name for item in found.classes] == ["water", "road", "vegetation", "building"]
    # Counts of the README of the data sets.
    listed = {1: [5374, 891, 10291, 438], 2: [4061, 562, 198, 271]}
    assert found.counts().tolist() == listed[number]


@pytest.mark.parametrize("missing", [None, "number"])
def test_polygons_without_a_class_are_left_out_and_told(
    write_raster: Writer, tmp_path: Path, missing: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    image = write_raster(np.zeros((1, 2), np.uint8), "image.tif")
    x, y = 500_000.0, 5_400_000.0
    value: object = "water" if missing is None else 3.0
    boxes = [((x, y - 10, x + 10, y), value), ((x + 10, y - 10, x + 20, y), None)]
    found = read_labels(write_polygons(tmp_path / "a.geojson", boxes, "class"), grid_of(image))
    assert len(found.classes) == 1
    assert found.numbers.tolist() == [[0, -1]]
    assert "1 polygons without a class" in caplog.text
