"""The one door: formats, bands, validity, georeference, windows, reductions, handles."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning

from rsfuse.errors import BandError, GridError, InputError, RasterError
from rsfuse.geo.gdal import gdal_settings
from rsfuse.geo.grid import Window, pixel_geobox
from rsfuse.geo.raster import Raster, open_raster

Write = Callable[..., Path]
PLACE = Affine(10, 0, 500_000, 0, -10, 5_400_000)


def pattern(shape: tuple[int, int], dtype: str = "uint16") -> np.ndarray:
    """An image in which every pixel tells its place, never zero."""
    y, x = np.indices(shape)
    return ((y * 37 + x * 11) % 251 + 1).astype(dtype)


def write_png(path: Path, image: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1))).save(path)


# --- formats and types ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
)
def test_numbers_of_every_type_are_read(write_raster: Write, dtype: str) -> None:
    image = (pattern((20, 30)) % 100).astype(dtype)
    with open_raster(write_raster(image)) as source:
        assert source.dtype == dtype
        raster = source.read()
    np.testing.assert_array_equal(raster.data[0], image.astype(np.float32))
    assert raster.valid.all()


@pytest.mark.parametrize(
    ("driver", "suffix", "options"),
    [
        ("COG", ".tif", {}),
        ("PNG", ".png", {}),
        ("JP2OpenJPEG", ".jp2", {"QUALITY": "100", "REVERSIBLE": "YES"}),
        ("NITF", ".ntf", {}),
        ("VRT", ".vrt", {}),
        ("HFA", ".img", {}),
        ("ENVI", ".dat", {}),
    ],
)
def test_formats_of_gdal_give_the_same_pixels(
    write_raster: Write, tmp_path: Path, driver: str, suffix: str, options: dict[str, str]
) -> None:
    image = pattern((70, 90))
    first = write_raster(image, crs="EPSG:4326", transform=(0.1, 0, 5.0, 0, -0.1, 50.0))
    path = tmp_path / f"copy{suffix}"
    rasterio.shutil.copy(first, path, driver=driver, **options)
    with open_raster(path) as source:
        raster = source.read()
        assert source.is_georeferenced
        assert source.geobox.crs == "EPSG:4326"
        np.testing.assert_allclose(list(source.geobox.affine)[:6], [0.1, 0, 5, 0, -0.1, 50], 1e-4)
    np.testing.assert_array_equal(raster.data[0], image)


def test_image_inside_a_zip_is_read(write_raster: Write, tmp_path: Path) -> None:
    import zipfile

    image = pattern((8, 9))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(write_raster(image, "a.tif"), "a.tif")
    raster = open_raster(f"/vsizip/{tmp_path}/a.zip/a.tif").read()
    np.testing.assert_array_equal(raster.data[0], image)


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "complex_int16"])
def test_complex_radar_is_amplitude_or_decibel(tmp_path: Path, dtype: str) -> None:
    image = np.full((1, 12, 14), 3 - 4j, np.complex64)
    image[0, 2, 3] = 0
    path = tmp_path / "slc.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=14, height=12, count=1, dtype=dtype,
        crs="EPSG:32631", transform=PLACE,
    ) as file:  # fmt: skip
        file.write(image)
    amplitude = open_raster(path).read()
    in_db = open_raster(path, complex_as="db").read()
    assert amplitude.valid.all()
    assert (amplitude.data[0, 0, 0], amplitude.data[0, 2, 3]) == (5.0, 0.0)
    assert in_db.data[0, 0, 0] == pytest.approx(13.9794, abs=1e-4)
    assert not in_db.valid[2, 3]
    assert in_db.valid.sum() == in_db.valid.size - 1
    reduced = open_raster(path).read(shape=(6, 7))
    assert reduced.data[0, 5, 5] == 5.0
    assert reduced.data[0, 1, 1] == pytest.approx(15 / 4)


def test_complex_array_is_amplitude() -> None:
    image = np.full((6, 5), 6 + 8j)
    image[1, 1] = complex(np.nan, 0)
    raster = open_raster(image).read()
    assert raster.radiometry == "amplitude"
    assert raster.data[0, 0, 0] == 10.0
    assert (~raster.valid).nonzero() == (1, 1)


def test_radiometry_is_taken_from_tag_or_unit(write_raster: Write) -> None:
    tagged = write_raster(pattern((4, 4)), "tagged.tif")
    with rasterio.open(tagged, "r+") as file:
        file.update_tags(radiometry="reflectance")
    unit = write_raster(pattern((4, 4), "float32"), "unit.tif")
    with rasterio.open(unit, "r+") as file:
        file.units = ("dB",)
    found = [open_raster(path).radiometry for path in (tagged, unit)]
    assert found == ["reflectance", "db"]


# --- arrays --------------------------------------------------------------------------------------


def test_arrays_are_rasters_in_their_pixel_frame() -> None:
    image = pattern((7, 9), "int16")
    for array, shape in ((image, (1, 7, 9)), (np.stack([image, image]), (2, 7, 9))):
        with open_raster(array) as source:
            assert source.read().data.shape == shape
            assert source.geobox == pixel_geobox((7, 9))
            assert not source.is_georeferenced
            assert source.notes


def test_array_with_a_place_is_georeferenced() -> None:
    source = open_raster(pattern((5, 6)), transform=(10, 0, 500, 0, -10, 900), crs="EPSG:32631")
    assert source.geobox == GeoBox((5, 6), Affine(10, 0, 500, 0, -10, 900), "EPSG:32631")
    assert source.notes == ()


def test_masked_array_and_nodata_of_an_array_are_invalid() -> None:
    image = pattern((5, 6), "float32")
    masked = np.ma.masked_array(image, mask=np.zeros((5, 6), bool))
    masked.mask[1, 2] = True
    assert (~open_raster(masked).read().valid).nonzero() == (1, 2)
    image[3, 3] = -99
    assert (~open_raster(image, nodata=-99).read().valid).nonzero() == (3, 3)


def test_raster_goes_in_as_it_came_out(tiny_raster: Path) -> None:
    raster = open_raster(tiny_raster).read()
    again = open_raster(raster).read()
    np.testing.assert_array_equal(again.data, raster.data)
    np.testing.assert_array_equal(again.valid, raster.valid)
    assert (again.geobox, again.bands) == (raster.geobox, raster.bands)


def test_reading_never_changes_the_array_that_was_given() -> None:
    image = pattern((6, 6), "float32")
    image[0, 0] = np.nan
    before = image.copy()
    raster = open_raster(image).read()
    raster.data[:] = -1
    np.testing.assert_array_equal(image, before)


def test_open_source_is_returned_as_it_is(tiny_raster: Path) -> None:
    source = open_raster(tiny_raster)
    assert open_raster(source) is source
    with pytest.raises(InputError, match="open already"):
        open_raster(source, bands=("red",))


@pytest.mark.parametrize(
    "array",
    [np.zeros(5), np.zeros((2, 2, 2, 2)), np.zeros((0, 4)), np.array([["a"]])],
    ids=["one axis", "four axes", "no pixel", "text"],
)
def test_array_that_is_no_image_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match="not an image"):
        open_raster(array)


def test_channels_last_is_refused_with_the_call_that_helps() -> None:
    with pytest.raises(InputError, match=r"numpy\.moveaxis"):
        open_raster(np.zeros((40, 50, 3)))


def test_raster_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="do not fit"):
        Raster(np.zeros((2, 3, 4), np.float32), np.ones((3, 4), bool), pixel_geobox((3, 4)), ("a",))


# --- bands ---------------------------------------------------------------------------------------


def test_bands_are_asked_for_by_name_or_number_in_any_order(write_raster: Write) -> None:
    image = np.stack([pattern((6, 7)) + i for i in range(4)])
    path = write_raster(image, bands=("blue", "green", "Red", "nir"))
    with open_raster(path, bands=("red", 1)) as source:
        assert source.bands == ("Red", "blue")
        np.testing.assert_array_equal(source.read().data, image[[2, 0]])
        np.testing.assert_array_equal(source.read(bands=["blue"]).data, image[[0]])
        np.testing.assert_array_equal(source.read(bands=[1]).data, image[[2]])
    np.testing.assert_array_equal(open_raster(path, bands=["4"]).read().data, image[[3]])


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("B4, central wavelength 665 nm", "B4"),
        ("Band 8 (0.842 micrometers)", "Band 8"),
        ("B11 (1610 nm)", "B11"),
        ("sigma0 VV", "sigma0 VV"),
    ],
)
def test_wavelength_is_no_part_of_a_name(write_raster: Write, description: str, name: str) -> None:
    path = write_raster(pattern((4, 4)), bands=(description,))
    assert open_raster(path).bands == (name,)
    assert open_raster(path, bands=(description,)).bands == (name,)


def test_bands_without_names_are_colours_or_numbers(tmp_path: Path, write_raster: Write) -> None:
    write_png(tmp_path / "rgb.png", np.ones((3, 4, 4), np.uint8))
    assert open_raster(tmp_path / "rgb.png").bands == ("red", "green", "blue")
    assert open_raster(write_raster(np.ones((2, 4, 4), np.uint16))).bands == ("band1", "band2")


def test_names_that_repeat_are_told_apart(write_raster: Write) -> None:
    path = write_raster(np.ones((2, 4, 4), np.uint16), bands=("vv", "vv"))
    assert open_raster(path).bands == ("vv", "vv_2")


@pytest.mark.parametrize("band", ["gren", 0, 3, -1, "9", "²", 1.5])
def test_missing_band_names_those_that_exist(tiny_raster: Path, band: str | int) -> None:
    with pytest.raises(BandError, match="1 red, 2 nir"):
        open_raster(tiny_raster, bands=(band,))
    with pytest.raises(BandError, match="1 red, 2 nir"):
        open_raster(tiny_raster).read(bands=(band,))


def test_misspelt_band_names_the_nearest(tiny_raster: Path) -> None:
    with pytest.raises(BandError, match="did you mean 'nir'"):
        open_raster(tiny_raster, bands=("nirr",))


def test_subdatasets_are_chosen_by_number_or_name(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    for index in range(2):
        with rasterio.open(
            path, "w", driver="GTiff", width=5, height=4, count=1, dtype="uint8",
            crs="EPSG:4326", transform=PLACE,
            **({} if index == 0 else {"APPEND_SUBDATASET": "YES"}),
        ) as file:  # fmt: skip
            file.write(np.full((1, 4, 5), index + 1, np.uint8))
    assert open_raster(path).read().data.max() == 1
    assert any("2 rasters" in note for note in open_raster(path).notes)
    assert open_raster(path, subdataset=2).read().data.max() == 2
    with rasterio.open(path) as file:
        name = file.subdatasets[1]
    assert open_raster(path, subdataset=name).read().data.max() == 2
    for wrong in (3, "nope"):
        with pytest.raises(RasterError, match="GTIFF_DIR"):
            open_raster(path, subdataset=wrong)


def test_colour_table_is_index_or_colours(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    index = (pattern((6, 8)) % 3).astype(np.uint8)
    colours = {0: (255, 0, 0), 1: (0, 120, 0), 2: (9, 8, 7)}
    with rasterio.open(
        path, "w", driver="GTiff", width=8, height=6, count=1, dtype="uint8",
        crs="EPSG:32631", transform=PLACE,
    ) as file:  # fmt: skip
        file.write(index, 1)
        file.write_colormap(1, colours)
    with open_raster(path) as source:
        np.testing.assert_array_equal(source.read().data[0], index)
        assert source.colours[1] == (0, 120, 0)
        assert any("palette_as" in note for note in source.notes)
    with open_raster(path, palette_as="rgb") as source:
        assert source.bands == ("red", "green", "blue")
        table = np.array([colours[i] for i in range(3)])
        np.testing.assert_array_equal(source.read().data, np.moveaxis(table[index], -1, 0))
        green = source.read(bands=["green"]).data[0]
        np.testing.assert_array_equal(green, table[index][..., 1])
    only_blue = open_raster(path, palette_as="rgb", bands=["blue"])
    np.testing.assert_array_equal(only_blue.read().data[0], table[index][..., 2])


# --- validity ------------------------------------------------------------------------------------


def test_pixel_is_valid_where_every_band_that_is_read_is(write_raster: Write) -> None:
    image = np.stack([pattern((6, 7)), pattern((6, 7))])
    image[0, 1, 1] = 0
    image[1, 2, 2] = 0
    path = write_raster(image, nodata=0)
    invalid = np.argwhere(~open_raster(path).read().valid)
    assert invalid.tolist() == [[1, 1], [2, 2]]
    assert np.argwhere(~open_raster(path, bands=[2]).read().valid).tolist() == [[2, 2]]


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [
        ("float32", -3.4028234663852886e38),
        ("float32", np.nan),
        ("int16", -32768),
        ("uint32", 2**32 - 1),
    ],
)
def test_nodata_is_found_in_the_type_of_the_file(
    write_raster: Write, dtype: str, nodata: float
) -> None:
    image = pattern((5, 5), dtype)
    image[2, 2] = nodata
    raster = open_raster(write_raster(image, nodata=nodata)).read()
    assert np.argwhere(~raster.valid).tolist() == [[2, 2]]
    assert raster.data[0, 2, 2] == 0


def test_nodata_that_is_given_replaces_that_of_the_file(write_raster: Write) -> None:
    image = pattern((5, 5))
    image[0, 0], image[4, 4] = 0, 9999
    path = write_raster(image, nodata=0)
    assert np.argwhere(~open_raster(path, nodata=9999).read().valid).tolist() == [[4, 4]]


def test_transparent_pixels_are_invalid_and_alpha_is_no_band(tmp_path: Path) -> None:
    path = tmp_path / "rgba.png"
    image = np.full((4, 5, 6), 200, np.uint8)
    image[3] = 255
    image[3, 1, 2] = 0
    write_png(path, image)
    with open_raster(path) as source:
        assert source.bands == ("red", "green", "blue")
        assert np.argwhere(~source.read().valid).tolist() == [[1, 2]]
        assert np.argwhere(~source.read(bands=["green"]).valid).tolist() == [[1, 2]]


def write_four(path: Path, values: tuple[int, ...], dtype: str, names: tuple[str, ...]) -> Path:
    """A GeoTIFF of four bands of which GDAL declares the last as alpha."""
    declared = {} if dtype == "uint8" else {"photometric": "RGB", "alpha": "YES"}
    with rasterio.open(
        path, "w", driver="GTiff", width=5, height=4, count=4, dtype=dtype, crs="EPSG:32631",
        transform=PLACE, **declared,
    ) as file:  # fmt: skip
        for index, value in enumerate(values, 1):
            file.write(np.full((4, 5), value, dtype), index)
        for index, name in enumerate(names, 1):
            file.set_band_description(index, name)
        assert file.colorinterp[3] == ColorInterp.alpha
    return path


def test_infrared_band_that_gdal_calls_alpha_is_data_where_it_has_a_name(tmp_path: Path) -> None:
    names = ("red", "green", "blue", "nir")
    path = write_four(tmp_path / "rgbn.tif", (9, 8, 7, 20), "uint8", names)
    with open_raster(path) as source:
        assert source.bands == names
        raster = source.read()
        assert raster.valid.all()
        np.testing.assert_array_equal(raster.data[:, 0, 0], (9, 8, 7, 20))
        assert source.notes == ()


def test_infrared_band_that_gdal_calls_alpha_is_data_where_its_number_is_given(
    tmp_path: Path,
) -> None:
    path = write_four(tmp_path / "rgbn.tif", (9, 8, 7, 20), "uint8", ())
    with open_raster(path) as source:
        assert source.bands == ("red", "green", "blue")
        assert not source.read().valid.any()
        assert "ask for 4" in source.notes[0]
    with open_raster(path, bands=(4, 1)) as source:
        assert source.bands == ("band4", "red")
        assert source.read().valid.all()
        np.testing.assert_array_equal(source.read().data[:, 0, 0], (20, 9))


@pytest.mark.parametrize("opaque", [1, 255, 65535])
def test_alpha_of_16_bits_is_opaque_by_any_custom(tmp_path: Path, opaque: int) -> None:
    path = write_four(
        tmp_path / "rgba.tif", (900, 800, 700, opaque), "uint16", ("", "", "", "alpha")
    )
    with rasterio.open(path, "r+") as file:
        alpha = np.full((4, 5), opaque, np.uint16)
        alpha[2, 3] = 0
        file.write(alpha, 4)
    with open_raster(path) as source:
        assert source.bands == ("red", "green", "blue")
        assert np.argwhere(~source.read().valid).tolist() == [[2, 3]]


@pytest.mark.parametrize("internal", ["YES", "NO"])
def test_mask_of_the_file_is_respected_at_every_resolution(
    tmp_path: Path, write_raster: Write, internal: str
) -> None:
    path = write_raster(pattern((64, 64), "uint8"))
    mask = np.full((64, 64), 255, np.uint8)
    mask[:, :32] = 0
    with gdal_settings(GDAL_TIFF_INTERNAL_MASK=internal), rasterio.open(path, "r+") as file:
        file.write_mask(mask)
    assert (tmp_path / "raster.tif.msk").exists() == (internal == "NO")
    with open_raster(path) as source:
        np.testing.assert_array_equal(source.read().valid, mask > 0)
        np.testing.assert_array_equal(source.read(shape=(16, 16)).valid, mask[::4, ::4] > 0)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.average)
    with open_raster(path) as source:
        np.testing.assert_array_equal(source.read(shape=(16, 16)).valid, mask[::4, ::4] > 0)


def test_too_large_for_float32_is_invalid(write_raster: Write) -> None:
    image = pattern((4, 4), "float64")
    image[1, 1] = 1e300
    raster = open_raster(write_raster(image)).read()
    assert np.argwhere(~raster.valid).tolist() == [[1, 1]]
    assert np.isfinite(raster.data).all()


def test_raster_of_nothing_but_nodata_has_no_valid_pixel(write_raster: Write) -> None:
    raster = open_raster(write_raster(np.zeros((9, 9), np.uint8), nodata=0)).read(shape=(3, 3))
    assert not raster.valid.any()
    assert not raster.data.any()


# --- georeference --------------------------------------------------------------------------------

ROTATED = tuple(Affine.translation(5e5, 5.4e6) @ Affine.rotation(30) @ Affine.scale(10, -4))[:6]


@pytest.mark.parametrize(
    "transform",
    [(10, 0, 5e5, 0, 10, 5.4e6), (10, 0, 5e5, 0, -4, 5.4e6), ROTATED],
    ids=["south-up", "not square", "rotated"],
)
def test_any_geotransform_is_kept_also_by_windows(
    write_raster: Write, transform: tuple[float, ...]
) -> None:
    path = write_raster(pattern((20, 30)), transform=transform)
    with open_raster(path) as source:
        np.testing.assert_allclose(list(source.geobox.affine)[:6], transform, atol=1e-6)
        part = source.read(Window(4, 6, 10, 8), shape=(4, 5))
    affine = Affine(*transform)
    np.testing.assert_allclose(part.geobox.affine @ (0, 0), affine @ (4, 6), atol=1e-6)
    np.testing.assert_allclose(part.geobox.affine @ (5, 4), affine @ (14, 14), atol=1e-6)


def test_image_without_georeference_says_so_and_does_not_warn(plain_image: Path) -> None:
    source = open_raster(plain_image)  # a warning would be an error here
    assert source.geobox == pixel_geobox((32, 48))
    assert source.notes == ("no georeference: positions are pixels",)


def test_control_points_are_not_used_and_said(tmp_path: Path) -> None:
    path = tmp_path / "gcp.tif"
    corners = [(0, 0), (0, 9), (9, 0), (9, 9)]
    points = [GroundControlPoint(r, c, 5 + c / 10, 50 - r / 10) for r, c in corners]
    with rasterio.open(
        path, "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8",
        gcps=points, crs="EPSG:4326",
    ) as file:  # fmt: skip
        file.write(np.ones((1, 9, 9), np.uint8))
    source = open_raster(path)
    assert source.geobox == pixel_geobox((9, 9))
    assert not source.is_georeferenced
    assert "4 ground control points" in source.notes[0]


def test_geotransform_without_crs_is_not_used_until_the_crs_is_given(tmp_path: Path) -> None:
    path = tmp_path / "nocrs.tif"
    transform = Affine(2, 0, 100, 0, -2, 300)
    with rasterio.open(
        path, "w", driver="GTiff", width=5, height=4, count=1, dtype="uint8", transform=transform
    ) as file:
        file.write(np.ones((1, 4, 5), np.uint8))
    assert open_raster(path).geobox == pixel_geobox((4, 5))
    assert "CRS" in open_raster(path).notes[0]
    placed = open_raster(path, crs="EPSG:32631", transform=transform)
    assert placed.geobox == GeoBox((4, 5), transform, "EPSG:32631")
    assert open_raster(path, crs=32631).geobox == placed.geobox


def test_geotransform_without_area_is_a_note_and_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "flat.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=5, height=4, count=1, dtype="uint8", crs="EPSG:32631",
        transform=Affine(0, 0, 5, 0, 0, 5),
    ) as file:  # fmt: skip
        file.write(np.ones((1, 4, 5), np.uint8))
    with open_raster(path) as source:
        assert source.geobox == pixel_geobox((4, 5))
        assert "no area" in source.notes[0]
    with open_raster(path, transform=PLACE, crs="EPSG:32631") as source:
        assert source.geobox == GeoBox((4, 5), PLACE, "EPSG:32631")
        assert source.notes == ()
    with pytest.raises(GridError, match="no geotransform"):
        open_raster(path, crs="EPSG:32631")


def test_place_that_is_given_replaces_that_of_the_file(tiny_raster: Path) -> None:
    moved = open_raster(tiny_raster, transform=(10, 0, 7, 0, -10, 9))
    assert moved.geobox == GeoBox((40, 60), Affine(10, 0, 7, 0, -10, 9), "EPSG:32631")
    assert moved.fingerprint != open_raster(tiny_raster).fingerprint


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crs": "EPSG:32631"}, "no geotransform"),
        ({"crs": "EPSG:0", "transform": (1, 0, 0, 0, -1, 0)}, "not a CRS"),
        ({"crs": "EPSG:32631", "transform": (0, 0, 0, 0, 0, 0)}, "unusable"),
    ],
)
def test_impossible_place_is_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(GridError, match=match):
        open_raster(np.ones((4, 4)), **options)


# --- windows and reductions ----------------------------------------------------------------------


@pytest.mark.parametrize("block", [16, None])
@pytest.mark.parametrize(
    "window", [Window(3, 5, 20, 10), Window(-4, -2, 9, 9), Window(55, 30, 30, 30)]
)
def test_window_is_that_part_of_the_whole(
    tmp_path: Path, window: Window, block: int | None
) -> None:
    image = np.stack([pattern((40, 60)), pattern((40, 60)) + 300])
    tiling = {} if block is None else {"tiled": True, "blockxsize": block, "blockysize": block}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=60, height=40, count=2, dtype="uint16",
        crs="EPSG:32631", transform=PLACE, **tiling,
    ) as file:  # fmt: skip
        file.write(image)
    with open_raster(tmp_path / "a.tif") as source:
        assert source.block == ((block, block) if block else source.block)
        raster = source.read(window)
    y, x = np.mgrid[window.y : window.y + window.h, window.x : window.x + window.w]
    inside = (y >= 0) & (y < 40) & (x >= 0) & (x < 60)
    np.testing.assert_array_equal(raster.valid, inside)
    np.testing.assert_array_equal(raster.data[:, inside], image[:, y[inside], x[inside]])
    assert not raster.data[:, ~inside].any()


def test_window_that_misses_the_raster_is_invalid(tiny_raster: Path) -> None:
    for shape in (None, (3, 3)):
        raster = open_raster(tiny_raster).read(Window(100, 100, 9, 9), shape=shape)
        assert not raster.valid.any()


def test_empty_window_is_refused(tiny_raster: Path) -> None:
    with pytest.raises(InputError, match="at least one pixel"):
        open_raster(tiny_raster).read(Window(0, 0, 0, 5))


@pytest.mark.parametrize("window", [(0, 0, 2), (0, 0, 2, 2, 2), (0.5, 0, 2, 2), "abcd"])
def test_what_is_no_window_is_refused(tiny_raster: Path, window: object) -> None:
    with pytest.raises(InputError, match="is not a window"):
        open_raster(tiny_raster).read(window)


def test_reduced_read_is_the_mean_of_the_valid_pixels(write_raster: Write) -> None:
    image = pattern((40, 60), "float32")
    image[5, 7] = np.nan
    reduced = open_raster(write_raster(image)).read(shape=(10, 15))
    expected = np.nanmean(image.reshape(10, 4, 15, 4), axis=(1, 3))
    np.testing.assert_allclose(reduced.data[0], expected, rtol=1e-6)
    assert reduced.valid.all()


def test_reduced_pixel_is_valid_when_half_of_it_is(write_raster: Write) -> None:
    image = pattern((4, 8), "uint8")
    image[:, :2] = 0  # half of the first
    image[:3, 4:] = 0  # three quarters of the second
    reduced = open_raster(write_raster(image, nodata=0)).read(shape=(1, 2))
    assert reduced.valid.tolist() == [[True, False]]
    assert reduced.data[0, 0, 0] == pytest.approx(image[:, 2:4].mean())


@pytest.mark.parametrize("overviews", [False, True])
def test_reduced_read_of_a_colour_table_invents_no_class(tmp_path: Path, overviews: bool) -> None:
    path = tmp_path / "classes.tif"
    rng = np.random.default_rng(3)
    classes = rng.choice(np.array([1, 200], np.uint8), (1, 64, 60))
    with rasterio.open(
        path, "w", driver="GTiff", width=60, height=64, count=1, dtype="uint8", nodata=0,
        crs="EPSG:32631", transform=PLACE,
    ) as file:  # fmt: skip
        file.write(classes)
        file.write_colormap(1, {1: (255, 0, 0, 255), 200: (0, 0, 255, 255)})
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2], Resampling.nearest)
    with open_raster(path) as source:
        raster = source.read(Window(-12, 0, 72, 64), shape=(16, 18))
        assert set(np.unique(raster.data[0][raster.valid])) == {1.0, 200.0}
        assert not raster.valid[:, :3].any()
        assert raster.valid[:, 3:].all()
        if not overviews:
            np.testing.assert_array_equal(raster.data[0, :, 3:], classes[0, 2::4, 2::4])
    if not overviews:
        mean = open_raster(path, palette_as="rgb").read(shape=(1, 1)).data[:, 0, 0]
        red = 255 * (classes == 1).mean()
        np.testing.assert_allclose(mean, (red, 0, 255 - red), rtol=1e-4)


@pytest.mark.parametrize("size", [(7, 9), (13, 59), (40, 10), (1, 1)])
def test_reduction_by_any_ratio_keeps_the_mean(write_raster: Write, size: tuple[int, int]) -> None:
    image = pattern((40, 60), "float32")
    reduced = open_raster(write_raster(image)).read(shape=size)
    assert reduced.data.mean() == pytest.approx(image.mean(), rel=1e-5)


def test_reduction_in_strips_equals_that_at_once(
    write_raster: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_raster(np.stack([pattern((90, 70)), pattern((90, 70)) + 5]))
    whole = open_raster(path).read(Window(-3, 2, 66, 90), shape=(31, 17))
    monkeypatch.setattr("rsfuse.geo.raster._STRIP_PIXELS", 500)
    strips = open_raster(path).read(Window(-3, 2, 66, 90), shape=(31, 17))
    np.testing.assert_array_equal(strips.valid, whole.valid)
    np.testing.assert_allclose(strips.data, whole.data, rtol=1e-6)


def test_overview_is_read_where_it_is_fine_enough(write_raster: Write) -> None:
    image = pattern((64, 96), "uint8")
    path = write_raster(image)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4], Resampling.nearest)
        levels = {1: image.astype(np.float32)}
    for level, factor in enumerate((2, 4)):
        with rasterio.open(path, OVERVIEW_LEVEL=level) as file:
            levels[factor] = file.read(1).astype(np.float32)
    with open_raster(path) as source:
        # 3 is averaged from the overview of 2, 4 is the overview of 4, 8 its average.
        np.testing.assert_array_equal(source.read(shape=(16, 24)).data[0], levels[4])
        expected = levels[4].reshape(8, 2, 12, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(source.read(shape=(8, 12)).data[0], expected, rtol=1e-6)
        window = Window(0, 0, 96, 60)
        third = source.read(window, shape=(20, 32)).data[0]
    fine = levels[2][:30].repeat(2, 0).repeat(2, 1).reshape(20, 3, 32, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(third, fine, rtol=1e-5)


def test_enlarged_read_repeats_pixels() -> None:
    image = pattern((4, 5), "float32")
    raster = open_raster(image).read(shape=(8, 10))
    np.testing.assert_allclose(raster.data[0], image.repeat(2, 0).repeat(2, 1), rtol=1e-6)


def test_reading_more_than_the_memory_of_the_machine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "huge.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=2_000_000, height=2_000_000, count=1, dtype="uint8",
        tiled=True, sparse_ok=True, bigtiff="YES", blockxsize=4096, blockysize=4096,
        crs="EPSG:32631", transform=PLACE,
    ):  # fmt: skip
        pass
    with open_raster(path) as source:
        with pytest.raises(RasterError, match="read a window"):
            source.read()
        assert source.read(Window(1_999_000, 5, 10, 10)).valid.all()


# --- handles -------------------------------------------------------------------------------------


def test_threads_read_the_same_file_at_once(write_raster: Write) -> None:
    image = pattern((300, 300))
    with open_raster(write_raster(image)) as source:
        start = threading.Barrier(4)

        def read(row: int) -> bool:
            if row < 4:
                start.wait(timeout=30)
            found = source.read(Window(0, row, 300, 5)).data[0]
            return np.array_equal(found, image[row : row + 5])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(200)))


def test_source_travels_by_pickle(tiny_raster: Path) -> None:
    with open_raster(tiny_raster, bands=("nir",)) as source:
        expected = source.read()
        copy = pickle.loads(pickle.dumps(source))
    with copy:
        found = copy.read()
    np.testing.assert_array_equal(found.data, expected.data)
    assert (copy.bands, copy.fingerprint) == (source.bands, source.fingerprint)


def _read_in_child(source: object, row: int) -> float:
    return float(source.read(Window(0, row, 300, 1)).data.sum())  # type: ignore[attr-defined]


def test_source_is_used_after_a_fork_without_sharing_its_handle(write_raster: Write) -> None:
    image = pattern((200, 300))
    with open_raster(write_raster(image)) as source:
        source.read(Window(0, 0, 1, 1))
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            total = sum(_read_in_child(source, row) for row in range(0, 200, 10))
            os.write(write_end, str(total).encode())
            os._exit(0)
        found = sum(_read_in_child(source, row) for row in range(5, 200, 10))
        os.waitpid(child, 0)
        other = float(os.read(read_end, 100))
        os.close(read_end)
        os.close(write_end)
    assert found == image[5::10].sum()
    assert other == image[::10].sum()


def test_closed_source_opens_again(tiny_raster: Path) -> None:
    source = open_raster(tiny_raster)
    first = source.read()
    source.close()
    np.testing.assert_array_equal(source.read().data, first.data)
    source.close()


def test_fingerprint_changes_with_content(write_raster: Write) -> None:
    image = pattern((9, 9))
    path = write_raster(image)
    first = open_raster(path).fingerprint
    assert open_raster(path).fingerprint == first
    write_raster(image + 1)
    os.utime(path, (1, 1))
    assert open_raster(path).fingerprint != first
    changed = image.copy()
    changed[0, 0] += 1
    assert open_raster(image).fingerprint == open_raster(image.copy()).fingerprint
    assert open_raster(image).fingerprint != open_raster(changed).fingerprint


def test_fingerprint_changes_with_the_files_that_belong_to_it(write_raster: Write) -> None:
    path = write_raster(pattern((64, 64), "uint8"))
    first = open_raster(path).fingerprint
    (path.parent / "raster.tif.aux.xml").write_text("<PAMDataset></PAMDataset>")
    assert open_raster(path).fingerprint == first
    vrt = path.with_suffix(".vrt")
    rasterio.shutil.copy(path, vrt, driver="VRT")
    through_vrt = open_raster(vrt).fingerprint
    stat = path.stat()
    with gdal_settings(GDAL_TIFF_INTERNAL_MASK="NO"), rasterio.open(path, "r+") as file:
        file.write_mask(np.zeros((64, 64), np.uint8))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_raster(path).fingerprint != first
    os.utime(path, (5, 5))
    assert open_raster(vrt).fingerprint != through_vrt


def test_fingerprint_changes_with_what_is_read(tmp_path: Path, write_raster: Write) -> None:
    path = write_raster(np.full((2, 9, 9), 3 + 4j, np.complex64))
    options = ({}, {"bands": [1]}, {"nodata": 5}, {"complex_as": "db"})
    assert len({open_raster(path, **each).fingerprint for each in options}) == len(options)


def test_many_reads_keep_one_handle(tiny_raster: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with open_raster(tiny_raster) as source:
        source.read()
        before = descriptors()
        for _ in range(20):
            source.read(Window(0, 0, 3, 3))
        assert descriptors() == before


# --- what is not a raster ------------------------------------------------------------------------


def check_three_beats(error: RasterError) -> None:
    assert all((error.what, error.why, error.fix))
    assert error.exit_code == 2


def test_missing_file_names_the_nearest(tiny_raster: Path) -> None:
    with pytest.raises(RasterError, match=r"tiny\.tif") as caught:
        open_raster(tiny_raster.with_name("tiny.tiff"))
    check_three_beats(caught.value)
    with pytest.raises(RasterError, match="no folder"):
        open_raster("/nowhere/at/all.tif")


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n" * 50, b"II*\0", b"\x89PNG\r\n"])
def test_file_that_is_no_raster_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(RasterError, match=r"a\.tif") as caught:
        open_raster(path).read()
    check_three_beats(caught.value)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("", "name of the raster is empty"),
        (" ", "name of the raster is empty"),
        ("a" * 5000, "does not exist"),
        ("a\0b", "does not exist"),
        ("nowhere/a.tif", "no folder nowhere"),
    ],
)
def test_name_that_can_be_no_file_is_refused(name: str, match: str) -> None:
    with pytest.raises(RasterError, match=match) as caught:
        open_raster(name)
    assert all((caught.value.what, caught.value.why, caught.value.fix))


@pytest.mark.parametrize("options", [{"complex_as": "dB"}, {"palette_as": "colours"}])
def test_unknown_choice_names_the_known_ones(tiny_raster: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="it is one of"):
        open_raster(tiny_raster, **options)


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterError) as caught:
        open_raster(tmp_path)
    check_three_beats(caught.value)


@pytest.mark.parametrize(
    ("driver", "suffix"), [("GTiff", ".tif"), ("PNG", ".png"), ("JP2OpenJPEG", ".jp2")]
)
def test_truncated_file_is_refused_in_silence(
    tmp_path: Path,
    rng: np.random.Generator,
    capfd: pytest.CaptureFixture[str],
    driver: str,
    suffix: str,
) -> None:
    whole = tmp_path / f"whole{suffix}"
    image = rng.integers(0, 60_000, (1, 300, 300)).astype(np.uint16)
    with rasterio.MemoryFile() as memory:
        with memory.open(
            driver="GTiff", width=300, height=300, count=1, dtype="uint16",
            crs="EPSG:32631", transform=PLACE,
        ) as file:  # fmt: skip
            file.write(image)
        with memory.open() as file:
            rasterio.shutil.copy(file, whole, driver=driver)
    path = tmp_path / f"half{suffix}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(RasterError, match="half") as caught:
        open_raster(path).read()
    check_three_beats(caught.value)
    assert capfd.readouterr() == ("", "")


def test_damaged_part_is_named_and_the_rest_is_read(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=512, height=512, count=1, dtype="uint16", tiled=True,
        blockxsize=256, blockysize=256, compress="deflate",
        crs="EPSG:32631", transform=PLACE,
    ) as file:  # fmt: skip
        file.write(rng.integers(0, 60_000, (1, 512, 512)).astype(np.uint16))
    with rasterio.open(path) as file:
        last = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    content = bytearray(path.read_bytes())
    content[last : last + 100] = bytes(100)
    path.write_bytes(content)
    with open_raster(path) as source:
        assert source.read(Window(0, 0, 256, 256)).valid.all()
        with pytest.raises(RasterError, match="columns 256 to 512, rows 256 to 512"):
            source.read(Window(256, 256, 256, 256))
        assert source.read(Window(0, 0, 256, 256)).valid.all()


def test_url_that_does_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_HTTP_MAX_RETRY", "0")
    with pytest.raises(RasterError, match="localhost") as caught:
        open_raster("http://localhost:9/a.tif")
    check_three_beats(caught.value)


def test_url_is_read_by_ranges_without_listing_its_folder(
    write_raster: Write, tmp_path: Path
) -> None:
    import http.server

    path = write_raster(pattern((600, 600)), "remote.tif")
    asked: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            asked.append((self.path, self.headers.get("Range", "")))
            if self.path != "/remote.tif":
                self.send_error(404)
                return
            content = path.read_bytes()
            first, last = 0, len(content) - 1
            if asked[-1][1]:
                start, stop = asked[-1][1].removeprefix("bytes=").split("-")
                first, last = int(start), min(int(stop), last)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if body:
                self.wfile.write(content[first : last + 1])

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            with open_raster(f"http://127.0.0.1:{server.server_port}/remote.tif") as source:
                raster = source.read(Window(10, 20, 30, 5))
        finally:
            server.shutdown()
            thread.join()
    np.testing.assert_array_equal(raster.data[0], pattern((600, 600))[20:25, 10:40])
    assert {name for name, _ in asked} == {"/remote.tif"}


def test_warnings_of_other_code_are_left_alone(plain_image: Path) -> None:
    open_raster(plain_image).read()
    with pytest.warns(NotGeoreferencedWarning), rasterio.open(plain_image):
        pass


def test_representation_names_the_file_and_its_bands(tiny_raster: Path) -> None:
    assert "tiny.tif: red, nir; 60 x 40 uint16" in repr(open_raster(tiny_raster))


def test_reduced_read_of_a_large_file_holds_strips_only(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=12_000, height=12_000, count=1, dtype="uint16",
        tiled=True, sparse_ok=True, bigtiff="YES", crs="EPSG:32631", transform=PLACE,
    ):  # fmt: skip
        pass
    code = (
        "import sys\n"
        "from rsfuse.geo.raster import open_raster\n"
        "with open_raster(sys.argv[1]) as source:\n"
        "    source.read(shape=(30, 30))\n"
        "status = open('/proc/self/status').read()\n"  # ru_maxrss starts at the parent's peak
        "print(int(status.split('VmHWM:')[1].split()[0]) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=100
    )
    # Interpreter and libraries, GDAL's cache, and a strip in its forms: 8 M pixels x (2 + 4 + 4).
    assert int(done.stdout) < 500 * 2**20 < 12_000**2 * (2 + 4)
