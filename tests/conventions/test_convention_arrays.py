"""Order of axes, masks, bands, radiometry: docs/conventions.md, "Arrays" and "Classes"."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rsfuse.errors import BandError
from rsfuse.geo.raster import Raster, open_raster
from rsfuse.geo.write import write_cog

Write = Callable[..., Path]


def test_convention_arrays_are_channels_first_float32(tiny_raster: Path) -> None:
    with open_raster(tiny_raster) as source:
        raster = source.read()
    assert raster.data.shape == (2, 40, 60)
    assert raster.data.dtype == np.float32


def test_convention_valid_is_true_where_usable(tiny_raster: Path) -> None:
    with open_raster(tiny_raster) as source:
        raster = source.read()
    assert raster.valid.dtype == bool
    assert raster.valid.shape == (40, 60)
    assert not raster.valid[:4, :6].any()
    assert raster.valid.sum() == 40 * 60 - 24


def test_convention_not_finite_is_invalid(write_raster: Write) -> None:
    image = np.ones((8, 8), np.float32)
    image[2, 3], image[4, 5], image[6, 7] = np.nan, np.inf, -np.inf
    for source in (open_raster(image), open_raster(write_raster(image))):
        raster = source.read()
        assert (~raster.valid).nonzero()[0].tolist() == [2, 4, 6]
        assert np.isfinite(raster.data[:, raster.valid]).all()


def test_convention_bands_have_names(tiny_raster: Path) -> None:
    with open_raster(tiny_raster) as source:
        assert tuple(source.bands) == ("red", "nir")
        both = source.read()
        nir = source.read(bands=["nir"])
    assert tuple(nir.bands) == ("nir",)
    np.testing.assert_array_equal(nir.data[0], both.data[1])
    with pytest.raises(BandError, match="green"):
        open_raster(tiny_raster, bands=["green"]).read()


def test_convention_radiometry_travels_with_the_raster(write_raster: Write) -> None:
    complex_image = np.full((8, 8), 3 + 4j, np.complex64)
    path = write_raster(complex_image)
    amplitude = open_raster(path).read()
    decibel = open_raster(path, complex_as="db").read()
    assert (amplitude.radiometry, decibel.radiometry) == ("amplitude", "db")
    np.testing.assert_allclose(amplitude.data, 5.0)
    np.testing.assert_allclose(decibel.data, 20 * np.log10(5.0), rtol=1e-5)


def test_convention_class_names_and_colours_travel(tmp_path: Path, tiny_raster: Path) -> None:
    import rasterio

    with open_raster(tiny_raster) as source:
        geobox = source.geobox
    classes = (np.indices((40, 60)).sum(axis=0) % 3).astype(np.float32)
    raster = Raster(
        data=classes[None],
        valid=np.ones((40, 60), bool),
        geobox=geobox,
        bands=("class",),
        radiometry="dn",
    )
    colours = {0: (0, 0, 200), 1: (0, 120, 0), 2: (200, 30, 30)}
    names = ("water", "forest", "built")
    write_cog(
        tmp_path / "classes.tif",
        raster,
        nodata=255,
        dtype="uint8",
        colours=colours,
        class_names=names,
    )
    with rasterio.open(tmp_path / "classes.tif") as file:
        assert {i: file.colormap(1)[i][:3] for i in range(3)} == colours
        tags = {**file.tags(), **file.tags(1)}
        assert all(any(name in value for value in tags.values()) for name in names)
        np.testing.assert_array_equal(file.read(1), classes.astype(np.uint8))
