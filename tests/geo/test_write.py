"""What the writers leave on the disk, opened with the libraries that a GIS uses."""

import csv
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.vrt import WarpedVRT

from rsfuse.errors import InputError, OutputError, RasterError
from rsfuse.geo.gdal import no_georeference_warnings
from rsfuse.geo.grid import pixel_geobox
from rsfuse.geo.raster import Raster
from rsfuse.geo.write import (
    cog_from_tiff,
    converted,
    rewrite_geotransform,
    tiled_writer,
    write_cog,
    write_gcp_vrt,
    write_points,
    write_polygons,
    write_qgis_points,
)

UTM = "EPSG:32631"


def grid(height: int, width: int) -> GeoBox:
    return GeoBox((height, width), Affine(10, 0, 500_000, 0, -10, 5_400_000), UTM)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    with no_georeference_warnings():
        file = rasterio.open(path)
    with file:
        yield file


def features(path: Path) -> tuple[dict[str, Any], list[Any], dict[str, np.ndarray]]:
    """Metadata, geometries and columns of a vector file."""
    meta, _, wkb, values = pyogrio.raw.read(path)
    return meta, list(shapely.from_wkb(wkb)), dict(zip(meta["fields"], values, strict=True))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Cloud-optimised GeoTIFF


def test_a_raster_becomes_a_cog_with_its_grid_bands_and_nodata(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = rng.uniform(1, 4000, (2, 600, 700)).astype(np.float32)
    valid = np.ones((600, 700), bool)
    valid[:100, :50] = False
    raster = Raster(data, valid, grid(600, 700), ("red", "nir"), "reflectance")
    write_cog(tmp_path / "a.tif", raster, nodata=0, dtype="uint16")
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.crs.to_epsg() == 32631
        assert file.transform == raster.geobox.affine
        assert file.descriptions == ("red", "nir")
        assert (file.dtypes[0], file.nodata) == ("uint16", 0)
        assert file.tags()["radiometry"] == "reflectance"
        assert file.overviews(1) == [2]
        np.testing.assert_array_equal(file.dataset_mask() > 0, valid)
        np.testing.assert_array_equal(file.read()[:, valid], np.rint(data)[:, valid])
    assert names_in(tmp_path) == ["a.tif"]


def test_without_nodata_invalid_pixels_are_in_a_mask(tmp_path: Path) -> None:
    data = np.arange(48, dtype=np.float32).reshape(6, 8)
    data[2, 3] = np.nan
    valid = np.ones((6, 8), bool)
    valid[0] = False
    write_cog(tmp_path / "a.tif", data, geobox=grid(6, 8), valid=valid)
    write_cog(tmp_path / "b.tif", np.ones((6, 8), np.float32), geobox=grid(6, 8))
    valid[2, 3] = False
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.nodata is None
        assert file.mask_flag_enums[0] == [MaskFlags.per_dataset]
        np.testing.assert_array_equal(file.dataset_mask() > 0, valid)
        np.testing.assert_array_equal(file.read(1)[valid], data[valid])
    with rasterio.open(tmp_path / "b.tif") as file:
        assert file.mask_flag_enums[0] == [MaskFlags.all_valid]
    assert names_in(tmp_path) == ["a.tif", "b.tif"]


def test_integers_are_rounded_and_clipped(tmp_path: Path) -> None:
    write_cog(tmp_path / "a.tif", np.array([[-3.0, 1.4, 1.6, 900.0]]), dtype="uint8")
    with opened(tmp_path / "a.tif") as file:
        assert file.read(1).tolist() == [[0, 1, 2, 255]]
    whole = np.array([[[-(2.0**40), 2.0**40]]])
    everywhere = np.ones((1, 2), bool)
    assert converted(whole, everywhere, "int32", None).tolist() == [[[-(2**31), 2**31 - 1]]]


@pytest.mark.parametrize(
    ("dtype", "nodata", "stored"),
    [("uint16", 0, 1), ("uint8", 255, 254), ("int16", -9999, -9998), ("float32", 0, 1e-45)],
)
def test_a_valid_value_is_never_the_nodata_value(dtype: str, nodata: int, stored: float) -> None:
    data = np.full((1, 1, 2), nodata, np.float32)
    result = converted(data, np.array([[True, False]]), dtype, nodata)
    assert result[0, 0].tolist() == [np.array(stored, dtype), nodata]
    assert result[0, 0, 0] != nodata


def test_nan_can_be_the_nodata_value(tmp_path: Path) -> None:
    data = np.array([[1.0, np.nan, 3.0]], np.float32)
    write_cog(tmp_path / "a.tif", data, nodata=np.nan)
    with opened(tmp_path / "a.tif") as file:
        assert np.isnan(file.nodata)
        np.testing.assert_array_equal(file.read(1), data)
        assert (file.dataset_mask() > 0).tolist() == [[True, False, True]]


def test_classes_have_colours_and_names_and_keep_their_ids_in_overviews(tmp_path: Path) -> None:
    classes = np.zeros((1100, 1100), np.uint8)
    classes[:, 1::3] = 2
    write_cog(
        tmp_path / "a.tif",
        classes,
        geobox=grid(1100, 1100),
        nodata=255,
        bands=("class",),
        colours={0: (0, 0, 200), 2: (200, 30, 30)},
        class_names={0: "water", 2: "Gebäude"},
    )
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.colorinterp[0] == ColorInterp.palette
        assert [file.colormap(1)[i][:3] for i in (0, 2)] == [(0, 0, 200), (200, 30, 30)]
        assert json.loads(file.tags()["class_names"]) == {"0": "water", "2": "Gebäude"}
        assert set(np.unique(file.read(1, out_shape=(275, 275)))) <= {0, 2}
        np.testing.assert_array_equal(file.read(1), classes)


def test_classes_without_colours_keep_their_ids_in_overviews(tmp_path: Path) -> None:
    classes = np.zeros((1100, 1100), np.uint8)
    classes[:, 1::3] = 2
    write_cog(tmp_path / "a.tif", classes, class_names=("water", "forest", "built"))
    with opened(tmp_path / "a.tif") as file:
        assert file.colorinterp[0] != ColorInterp.palette
        assert set(np.unique(file.read(1, out_shape=(275, 275)))) <= {0, 2}


def test_overviews_can_average_or_be_left_out(tmp_path: Path) -> None:
    stripes = np.zeros((1100, 1100), np.uint8)
    stripes[:, 1::2] = 200
    write_cog(tmp_path / "average.tif", stripes)
    write_cog(tmp_path / "none.tif", stripes, overviews=False)
    with opened(tmp_path / "average.tif") as file:
        assert set(np.unique(file.read(1, out_shape=(550, 550)))) == {100}
    with opened(tmp_path / "none.tif") as file:
        assert file.overviews(1) == []
    with pytest.raises(InputError, match="'cubic'"):
        write_cog(tmp_path / "other.tif", stripes, overviews="cubic")  # type: ignore[arg-type]


def test_the_fourth_band_of_bytes_is_not_transparency(tmp_path: Path) -> None:
    write_cog(tmp_path / "four.tif", np.ones((4, 5, 6), np.uint8))
    write_cog(tmp_path / "rgb.tif", np.ones((3, 5, 6), np.uint8), bands=("red", "green", "blue"))
    with opened(tmp_path / "four.tif") as file:
        assert file.colorinterp == (ColorInterp.gray, *[ColorInterp.undefined] * 3)
        assert file.mask_flag_enums[0] == [MaskFlags.all_valid]
    with opened(tmp_path / "rgb.tif") as file:
        assert file.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def test_an_image_without_georeference_stays_without(tmp_path: Path) -> None:
    write_cog(tmp_path / "a.tif", np.ones((5, 6), bool))
    with opened(tmp_path / "a.tif") as file:
        assert (file.crs, file.transform) == (None, Affine.identity())
        assert file.dtypes == ("uint8",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": np.ones(3)}, "no raster"),
        ({"data": np.ones((0, 3))}, "no raster"),
        ({"data": np.ones((2, 3), np.complex64)}, "complex64"),
        ({"data": np.ones((2, 3)), "geobox": grid(3, 2)}, "must agree"),
        ({"data": np.ones((2, 3)), "valid": np.ones((3, 2), bool)}, "must agree"),
        ({"data": np.ones((2, 3)), "bands": ("a", "b")}, "2 band names for 1"),
        ({"data": np.ones((2, 3)), "dtype": "uint8", "nodata": -1}, "nodata -1 for uint8"),
        ({"data": np.ones((2, 3)), "dtype": "uint8", "nodata": np.nan}, "nodata nan"),
        ({"data": np.ones((2, 3)), "colours": {1: (0, 0, 0)}}, "a palette for 1 bands of float64"),
        ({"data": np.ones((2, 3), "u1"), "nodata": 1, "class_names": ("a", "b")}, "class 1 is"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_and_leave_nothing(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write_cog(tmp_path / "a.tif", **arguments)
    assert names_in(tmp_path) == []


def test_a_file_written_by_windows_becomes_a_cog(tmp_path: Path, rng: np.random.Generator) -> None:
    data = rng.integers(0, 1000, (2, 530, 540)).astype(np.int32)
    valid = rng.random((530, 540)) > 0.1
    temporary, path = tmp_path / "work.tif", tmp_path / "a.tif"
    with tiled_writer(
        temporary, grid(530, 540), 2, dtype="int32", bands=("a", "b"), tags={"source": "test"}
    ) as file:
        file.write(data)
        file.write_mask(valid)
    cog_from_tiff(temporary, path)
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.descriptions == ("a", "b")
        assert file.tags()["source"] == "test"
        np.testing.assert_array_equal(file.read(), data)
        np.testing.assert_array_equal(file.dataset_mask() > 0, valid)
    assert names_in(tmp_path) == ["a.tif", "work.tif"]


def test_a_file_that_lost_its_end_does_not_become_a_cog(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    temporary = tmp_path / "work.tif"
    with tiled_writer(temporary, grid(530, 540), 1, dtype="uint8") as file:
        file.write(rng.integers(0, 255, (1, 530, 540)).astype(np.uint8))
    content = temporary.read_bytes()
    temporary.write_bytes(content[: len(content) - 100_000])
    with pytest.raises(OutputError, match=r"cannot write .*a\.tif"):
        cog_from_tiff(temporary, tmp_path / "a.tif")
    assert names_in(tmp_path) == ["work.tif"]


def test_a_file_whose_blocks_were_never_written_does_not_become_a_cog(tmp_path: Path) -> None:
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True}
    with rasterio.open(
        tmp_path / "work.tif",
        "w",
        driver="GTiff",
        height=530,
        width=540,
        count=1,
        dtype="uint8",
        crs=UTM,
        transform=grid(530, 540).affine,
        **options,
    ):
        pass
    with pytest.raises(OutputError, match="block 0_0 of the file is missing"):
        cog_from_tiff(tmp_path / "work.tif", tmp_path / "a.tif")
    assert names_in(tmp_path) == ["work.tif"]


# Points and polygons

XY = np.array([[500_010.25, 5_399_990.5], [501_000.0, 5_398_000.0], [502_000.0, 5_397_000.125]])
COLUMNS = {
    "id": np.arange(3),
    "score": np.array([0.5, np.nan, 1.0]),
    "kept": np.array([True, False, True]),
    "reason": np.array(["", "outlier", 'ä, "b"'], object),
}


@pytest.mark.parametrize("crs", [UTM, 32631, pyproj.CRS(UTM), grid(2, 2).crs])
def test_points_in_a_geopackage_keep_crs_and_columns(tmp_path: Path, crs: Any) -> None:
    write_points(tmp_path / "p.gpkg", XY, COLUMNS, crs, "tie_points")
    meta, shapes, values = features(tmp_path / "p.gpkg")
    assert meta["crs"] == UTM
    assert pyogrio.list_layers(tmp_path / "p.gpkg").tolist() == [["tie_points", "Point"]]
    np.testing.assert_array_equal([(p.x, p.y) for p in shapes], XY)
    assert list(values) == list(COLUMNS)
    np.testing.assert_array_equal(values["score"], COLUMNS["score"])
    assert values["kept"].tolist() == [True, False, True]
    assert values["reason"].tolist() == ["", "outlier", 'ä, "b"']
    assert names_in(tmp_path) == ["p.gpkg"]


def test_geopandas_reads_what_was_written(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    write_points(tmp_path / "p.gpkg", XY, COLUMNS, UTM)
    frame = geopandas.read_file(tmp_path / "p.gpkg")
    assert frame.crs == UTM
    np.testing.assert_array_equal(frame.geometry.x, XY[:, 0])
    assert frame["id"].tolist() == [0, 1, 2]


def test_names_that_sql_takes_for_the_same_get_a_suffix(tmp_path: Path) -> None:
    columns = {"x_ref": [1.0], "X_ref": [2.0], "fid": [7], "geom": [8]}
    write_points(tmp_path / "p.gpkg", [[0, 0]], columns)
    _, _, values = features(tmp_path / "p.gpkg")
    told = {name: column.tolist() for name, column in values.items()}
    assert told == {"x_ref": [1.0], "X_ref_2": [2.0], "fid_2": [7], "geom_2": [8]}


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "uint32", "uint64", "float16"])
def test_every_type_of_number_is_stored(tmp_path: Path, suffix: str, dtype: str) -> None:
    highest = np.finfo(dtype).max if dtype == "float16" else np.iinfo(dtype).max
    column = np.array([0, highest], dtype)
    write_points(tmp_path / f"p{suffix}", [[0, 0], [1, 1]], {"n": column})
    _, _, values = features(tmp_path / f"p{suffix}")
    np.testing.assert_allclose(values["n"].astype(float), column.astype(float), rtol=1e-12)


def test_geojson_is_in_longitude_and_latitude(tmp_path: Path) -> None:
    write_points(tmp_path / "p.geojson", XY, COLUMNS, UTM)
    content = json.loads((tmp_path / "p.geojson").read_text(encoding="utf-8"))
    assert "crs" not in content  # RFC 7946
    lon, lat = pyproj.Transformer.from_crs(UTM, 4326, always_xy=True).transform(*XY.T)
    found = [feature["geometry"]["coordinates"] for feature in content["features"]]
    np.testing.assert_allclose(found, np.column_stack((lon, lat)), atol=1e-9)
    assert content["features"][1]["properties"] == {
        "id": 1,
        "score": None,
        "kept": False,
        "reason": "outlier",
    }


def test_geojson_without_a_crs_keeps_the_positions(tmp_path: Path) -> None:
    write_points(tmp_path / "p.geojson", XY, COLUMNS)
    content = json.loads((tmp_path / "p.geojson").read_text(encoding="utf-8"))
    found = [feature["geometry"]["coordinates"] for feature in content["features"]]
    np.testing.assert_array_equal(found, XY)


def test_positions_without_longitude_and_latitude_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 of 2 positions"):
        write_points(tmp_path / "p.geojson", [[3.0, 95.0], [3.0, 50.0]], {}, "EPSG:4326")
    write_points(tmp_path / "p.geojson", [[350.0, 50.0]], {}, "EPSG:4326")
    content = json.loads((tmp_path / "p.geojson").read_text(encoding="utf-8"))
    assert content["features"][0]["geometry"]["coordinates"] == [-10.0, 50.0]


def test_points_in_a_csv_lose_no_digit(tmp_path: Path) -> None:
    write_points(tmp_path / "p.csv", XY, COLUMNS, UTM)
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_array_equal([(float(r["x"]), float(r["y"])) for r in rows], XY)
    assert list(rows[0]) == ["x", "y", *COLUMNS]
    assert [r["score"] for r in rows] == ["0.5", "", "1.0"]
    assert [r["kept"] for r in rows] == ["1", "0", "1"]
    assert [r["reason"] for r in rows] == ["", "outlier", 'ä, "b"']


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".csv"])
def test_polygons_are_closed_and_keep_their_corners(tmp_path: Path, suffix: str) -> None:
    ring = np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 2.0], [0.0, 2.0]])
    path = tmp_path / f"q{suffix}"
    write_polygons(path, np.stack((ring, ring + 10)), {"class": np.array(["a", "b"])})
    if suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        shapes = [shapely.from_wkt(row["wkt"]) for row in rows]
        names = [row["class"] for row in rows]
    else:
        _, shapes, values = features(path)
        names = values["class"].tolist()
    assert names == ["a", "b"]
    assert [shape.area for shape in shapes] == [8.0, 8.0]
    assert shapes[1].equals(shapely.box(10, 10, 14, 12))


def test_polygons_may_have_different_numbers_of_corners(tmp_path: Path) -> None:
    triangle, square = [[0, 0], [2, 0], [0, 2]], [[0, 0], [3, 0], [3, 3], [0, 3]]
    write_polygons(tmp_path / "q.gpkg", [triangle, square], {"n": [1, 2]}, UTM)
    meta, shapes, _ = features(tmp_path / "q.gpkg")
    assert meta["crs"] == UTM
    assert [shape.area for shape in shapes] == [2.0, 9.0]


@pytest.mark.parametrize("crs", [None, UTM])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".csv"])
def test_no_features_make_a_file_without_features(
    tmp_path: Path, suffix: str, crs: str | None
) -> None:
    columns = {"n": np.zeros(0), "name": np.zeros(0, object)}
    write_points(tmp_path / f"p{suffix}", np.zeros((0, 2)), columns, crs)
    write_polygons(tmp_path / f"q{suffix}", np.zeros((0, 4, 2)), columns, crs)
    for name in ("p", "q"):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".csv":
            assert len(path.read_text().splitlines()) == 1
        else:
            assert pyogrio.read_info(path)["features"] == 0


def test_vectors_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.shp"):
        write_points(tmp_path / "p.shp", XY, COLUMNS)
    with pytest.raises(InputError, match="'id' has shape"):
        write_points(tmp_path / "p.gpkg", XY[:2], COLUMNS)
    with pytest.raises(InputError, match="'x' exists"):
        write_points(tmp_path / "p.csv", XY, {"x": np.arange(3)})
    with pytest.raises(InputError, match="'wkt' exists"):
        write_polygons(tmp_path / "p.csv", np.zeros((1, 3, 2)), {"wkt": [1]})
    assert names_in(tmp_path) == []


# Control points


def read_qgis_points(path: Path) -> tuple[str, np.ndarray]:
    first, *rest = path.read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(rest))
    assert list(rows[0]) == [
        "mapX", "mapY", "sourceX", "sourceY", "enable", "dX", "dY", "residual"
    ]  # fmt: skip
    return first, np.array([[float(value) for value in row.values()] for row in rows])


def test_qgis_points_count_rows_downwards_as_negative_y(tmp_path: Path) -> None:
    pixel = np.array([[0.0, 0.0], [20.5, 30.25], [5.0, 7.0]])
    write_qgis_points(
        tmp_path / "a.points",
        XY,
        pixel,
        enabled=[True, False, True],
        residual=[[3, 4], [0, 0], [0, -1]],
        crs=UTM,
    )
    first, table = read_qgis_points(tmp_path / "a.points")
    assert pyproj.CRS(first.removeprefix("#CRS: ")) == pyproj.CRS(UTM)
    np.testing.assert_array_equal(table[:, :2], XY)
    np.testing.assert_array_equal(table[:, 2:4], pixel * [1, -1])
    assert "-0.0" not in (tmp_path / "a.points").read_text().splitlines()[2]
    assert table[:, 4].tolist() == [1, 0, 1]
    assert table[:, 5:].tolist() == [[3, 4, 5], [0, 0, 0], [0, -1, 1]]


def test_qgis_points_of_a_georeferenced_image_are_in_its_map_units(tmp_path: Path) -> None:
    write_qgis_points(
        tmp_path / "a.points", XY, [[0, 0], [1, 2], [3, 4]], crs=UTM, source_geobox=grid(9, 9)
    )
    _, table = read_qgis_points(tmp_path / "a.points")
    expected = [[500_000, 5_400_000], [500_010, 5_399_980], [500_030, 5_399_960]]
    assert table[:, 2:4].tolist() == expected


def test_qgis_points_need_no_crs_and_take_lengths_as_residuals(tmp_path: Path) -> None:
    write_qgis_points(tmp_path / "a.points", [[1, 2]], [[3, 4]], residual=[0.5])
    text = (tmp_path / "a.points").read_text().splitlines()
    assert text[1:] == ["1.0,2.0,3.0,-4.0,1,0.0,0.0,0.5"]
    with pytest.raises(InputError, match="lengths differ"):
        write_qgis_points(tmp_path / "b.points", XY, [[3, 4]])


CORNERS = np.array([[0.0, 0.0], [60.0, 0.0], [0.0, 40.0], [60.0, 40.0]])


def test_a_vrt_with_control_points_is_warped_to_where_they_are(
    tmp_path: Path, write_raster: Callable[..., Path], rng: np.random.Generator
) -> None:
    image = rng.integers(1, 255, (2, 40, 60)).astype(np.uint8)
    source = write_raster(image, "a & b.tif", crs=None, nodata=0, bands=("red", "<nir>"))
    on_map = CORNERS * [10, -10] + [500_000, 5_400_000]
    write_gcp_vrt(tmp_path / "a.vrt", source, CORNERS, on_map, UTM)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("a.vrt", "a & b.tif"):  # the VRT names its source relative to itself
        (tmp_path / name).rename(moved / name)
    with opened(moved / "a.vrt") as file:
        points, crs = file.gcps
        assert crs.to_epsg() == 32631
        assert [(p.col, p.row) for p in points] == [tuple(c) for c in CORNERS]
        assert [(p.x, p.y) for p in points] == [tuple(c) for c in on_map]
        assert file.descriptions == ("red", "<nir>")
        assert file.nodata == 0
        np.testing.assert_array_equal(file.read(), image)
        with WarpedVRT(file, src_crs=crs, crs=crs) as warped:
            np.testing.assert_allclose(warped.bounds, (500_000, 5_399_600, 500_600, 5_400_000))


def test_a_vrt_keeps_the_mask_and_needs_no_crs(tmp_path: Path, rng: np.random.Generator) -> None:
    valid = rng.random((40, 60)) > 0.5
    write_cog(tmp_path / "a.tif", np.ones((40, 60), np.float32), valid=valid)
    write_gcp_vrt(tmp_path / "a.vrt", tmp_path / "a.tif", CORNERS, CORNERS, None)
    with opened(tmp_path / "a.vrt") as file:
        assert len(file.gcps[0]) == 4
        np.testing.assert_array_equal(file.dataset_mask() > 0, valid)


def test_a_vrt_is_refused_without_source_or_partners(tmp_path: Path, plain_image: Path) -> None:
    with pytest.raises(RasterError, match=r"nowhere\.tif"):
        write_gcp_vrt(tmp_path / "a.vrt", tmp_path / "nowhere.tif", CORNERS, CORNERS, UTM)
    with pytest.raises(InputError, match="lengths differ"):
        write_gcp_vrt(tmp_path / "a.vrt", plain_image, CORNERS, CORNERS[:2], UTM)
    assert names_in(tmp_path) == ["plain.tif"]


# Another georeference


def test_another_georeference_moves_no_pixel(
    tmp_path: Path, tiny_raster: Path, rng: np.random.Generator
) -> None:
    turned = GeoBox((40, 60), Affine(9, 1, 500_007, 1, -9, 5_400_003), "EPSG:32632")
    rewrite_geotransform(tiny_raster, tmp_path / "b.tif", turned)
    with rasterio.open(tiny_raster) as before, rasterio.open(tmp_path / "b.tif") as after:
        assert after.transform == turned.affine
        assert after.crs.to_epsg() == 32632
        assert (after.nodata, after.descriptions) == (before.nodata, before.descriptions)
        assert after.dtypes == before.dtypes
        np.testing.assert_array_equal(after.read(), before.read())
    valid = rng.random((40, 60)) > 0.5
    write_cog(tmp_path / "masked.tif", np.ones((40, 60), np.float32), valid=valid)
    rewrite_geotransform(tmp_path / "masked.tif", tmp_path / "c.tif", turned)
    with rasterio.open(tmp_path / "c.tif") as after:
        np.testing.assert_array_equal(after.dataset_mask() > 0, valid)


def test_another_georeference_keeps_the_palette(tmp_path: Path) -> None:
    classes = np.arange(6, dtype=np.uint8).reshape(2, 3)
    colours = {i: (i, 2 * i, 3 * i) for i in range(6)}
    write_cog(tmp_path / "a.tif", classes, colours=colours, class_names=tuple("abcdef"))
    rewrite_geotransform(tmp_path / "a.tif", tmp_path / "b.tif", grid(2, 3))
    with rasterio.open(tmp_path / "b.tif") as file:
        assert {i: file.colormap(1)[i][:3] for i in range(6)} == colours
        assert json.loads(file.tags()["class_names"])["5"] == "f"


def test_another_georeference_is_refused_for_another_shape(
    tmp_path: Path, tiny_raster: Path
) -> None:
    with pytest.raises(InputError, match="40 x 60 pixels, the grid 60 x 40"):
        rewrite_geotransform(tiny_raster, tmp_path / "b.tif", grid(60, 40))
    with pytest.raises(RasterError, match=r"nowhere\.tif"):
        rewrite_geotransform(tmp_path / "nowhere.tif", tmp_path / "b.tif", grid(60, 40))
    assert names_in(tmp_path) == ["tiny.tif"]


# Disks that do not take what they are given

WRITERS = """
    import os, resource, sys
    from pathlib import Path
    import numpy as np
    import pyogrio.raw  # and pandas, where it is installed, while there are no limits yet
    from rsfuse.errors import OutputError
    from rsfuse.geo.write import (
        write_cog, write_gcp_vrt, write_points, write_polygons, write_qgis_points
    )

    folder = Path(sys.argv[1])
    noise = np.random.default_rng(0)
    image = noise.integers(1, 4000, (2, 600, 700)).astype(np.uint16)
    valid = noise.random((600, 700)) > 0.1
    xy = noise.uniform(0, 90, (2000, 2))
    n = {"n": xy[:, 0]}
    writers = {
        "masked.tif": lambda path: write_cog(path, image, valid=valid),
        "plain.tif": lambda path: write_cog(path, image, nodata=0),
        "p.gpkg": lambda path: write_points(path, xy, n, "EPSG:4326"),
        "p.geojson": lambda path: write_points(path, xy, n, "EPSG:4326"),
        "p.csv": lambda path: write_points(path, xy, n),
        "q.gpkg": lambda path: write_polygons(path, xy.reshape(-1, 4, 2), {}),
        "p.points": lambda path: write_qgis_points(path, xy, xy),
    }
"""


def run(script: str, folder: Path) -> str:
    """Run a script after `WRITERS` in its own process; returns what it printed."""
    code = textwrap.dedent(WRITERS) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_limit_on_file_size_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A file that meets the limit raises the error of a full disk at the same places."""
    pytest.importorskip("resource", reason="limits on file sizes are a matter of POSIX")
    script = """
        import rasterio.shutil
        copy = rasterio.shutil.copy
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        outcomes, scratch_size, at_copy = set(), 0, None

        def limited(source, *arguments, **options):
            global scratch_size
            scratch_size = os.path.getsize(source.name)
            size = resource.RLIM_INFINITY if at_copy is None else at_copy
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                return copy(source, *arguments, **options)
            finally:  # the temporary files of the copy are gone, and there is room again
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

        rasterio.shutil.copy = limited

        def attempt(name, size):
            path = folder / name
            path.write_text("what was there before")
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                writers[name](path)
            except OutputError as error:
                lines = str(error).splitlines()
                assert len(lines) == 3 and lines[0].startswith(f"cannot write {path}"), lines
                outcomes.add((name, "refused"))
                assert path.read_text() == "what was there before", (name, size)
            else:
                outcomes.add((name, "written"))
                if path.suffix != ".gpkg":  # it holds the time
                    assert path.read_bytes() == whole, (name, size)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            assert os.listdir(folder) == [name], os.listdir(folder)

        for name, write in writers.items():
            path = folder / name
            write(path)
            whole = path.read_bytes()
            end = len(whole)
            near_end = [end - lost for lost in (300, 150, 20, 1)]
            if path.suffix != ".tif":
                for size in (100, end // 2, *near_end, end):
                    attempt(name, size)
            else:
                first = scratch_size
                for size in (100, first // 2, first - 400, first - 100, first - 1):
                    attempt(name, size)
                for at_copy in (100, end // 3, end - 30_000, *near_end):
                    attempt(name, 10**9)
                at_copy = None
                attempt(name, 10**9)
            path.unlink()
        expected = {(name, how) for name in writers for how in ("refused", "written")}
        assert outcomes == expected, expected ^ outcomes
        print("checked")
    """
    assert run(script, tmp_path) == "checked\n"


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    script = """
        folder.chmod(0o555)
        if os.geteuid() == 0:  # permissions do not bind root
            os.chdir(folder)
            os.setuid(65534)
            folder = Path(".")
        for name, write in writers.items():
            try:
                write(folder / name)
            except OutputError as error:
                assert name in str(error) and "ermission" in str(error), error
            else:
                raise AssertionError(name)
        assert os.listdir(folder) == []
        print("checked")
    """
    assert run(script, folder) == "checked\n"


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/a\.tif"):
        write_cog(tmp_path / "file" / "a.tif", np.ones((2, 3), np.uint8))
    with pytest.raises(OutputError, match=r"file/a\.gpkg"):
        write_points(tmp_path / "file" / "a.gpkg", XY, COLUMNS, UTM)


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_cog(tmp_path / "x" / "y" / "a.tif", np.ones((2, 3)), geobox=pixel_geobox((2, 3)))
    assert os.listdir(tmp_path / "x" / "y") == ["a.tif"]
