"""xarray DataArrays come in with their grid, and the core never loads xarray for others."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rsfuse
from rsfuse.errors import InputError
from rsfuse.geo.grid import same_grid
from rsfuse.geo.raster import open_raster
from rsfuse.geo.write import write_cog

xarray = pytest.importorskip("xarray")
xr = pytest.importorskip("odc.geo.xr")

# odc-geo multiplies affine transforms in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


@pytest.fixture
def source(tmp_path: Path) -> rsfuse.Raster:
    """A raster on a grid with rows of another size than columns."""
    from affine import Affine
    from odc.geo.geobox import GeoBox

    grid = GeoBox((30, 40), Affine(2, 0, 500_000, 0, -3, 5_000_000), "EPSG:32631")
    values = np.random.default_rng(0).integers(1, 99, (2, 30, 40)).astype(np.uint16)
    values[:, :3, :4] = 0
    valid = (values > 0).all(axis=0)
    write_cog(tmp_path / "a.tif", values, geobox=grid, nodata=0, bands=["red", "nir"], valid=valid)
    with open_raster(tmp_path / "a.tif") as opened:
        return opened.read()


def as_dataarray(raster: rsfuse.Raster, *dims: str) -> "xarray.DataArray":
    """What odc-stac hands over, with its axes in any order."""
    array = xr.wrap_xr(
        raster.data.astype(np.uint16), raster.geobox, nodata=0, axis=1, dims=("band", "y", "x")
    ).assign_coords(band=list(raster.bands))
    return array.transpose(*dims) if dims else array


@pytest.mark.parametrize("dims", [("band", "y", "x"), ("y", "x", "band"), ("x", "band", "y")])
def test_pixels_grid_bands_and_nodata_are_taken_over(
    source: rsfuse.Raster, dims: tuple[str, ...]
) -> None:
    with open_raster(as_dataarray(source, *dims)) as opened:
        found = opened.read()
    assert opened.is_georeferenced
    assert opened.dtype == "uint16"
    assert found.bands == ("red", "nir")
    assert same_grid(found.geobox, source.geobox)
    assert (found.valid == source.valid).all()
    assert not found.valid[:3, :4].any()
    np.testing.assert_array_equal(found.data[:, found.valid], source.data[:, source.valid])
    with open_raster(as_dataarray(source, *dims), bands=["nir"]) as one:
        assert one.bands == ("nir",)


def test_one_time_is_dropped_and_several_are_refused(source: rsfuse.Raster) -> None:
    array = as_dataarray(source)
    once = array.expand_dims(time=["2024-05-01"])
    with open_raster(once) as opened:
        assert opened.bands == ("red", "nir")
    twice = xarray.concat([array, array], dim="time")
    with pytest.raises(InputError, match="isel"):
        open_raster(twice)


def test_an_array_without_a_grid_is_in_pixels() -> None:
    plain = xarray.DataArray(np.ones((4, 5), np.float32), dims=("y", "x"), name="height")
    with open_raster(plain) as opened:
        assert not opened.is_georeferenced
        assert opened.bands == ("height",)
        assert opened.shape == (4, 5)


def test_the_functions_take_them() -> None:
    from rsfuse.simulate import render, simulate_scene

    scene = simulate_scene(256, gsd_m=1.0, seed=12)
    reference, query = (as_dataarray(render(scene, kind)) for kind in ("pan", "thermal"))
    result = rsfuse.match(reference, query, upright=True)
    assert result.status == "ok"
    assert result.reference.geobox.crs is not None
    assert "<td>ok</td>" in result._repr_html_()


def test_tie_points_are_a_geodataframe() -> None:
    pytest.importorskip("geopandas", reason="geopandas is in the extra [vector]")
    from rsfuse.simulate import render, simulate_scene

    scene = simulate_scene(256, gsd_m=1.0, seed=12)
    result = rsfuse.match(render(scene, "pan"), render(scene, "thermal"), upright=True)
    table = result.to_geodataframe()
    assert len(table) == len(result.tie_points)
    assert table.crs.to_epsg() == 32631
    assert table["kept"].sum() == result.tie_points.kept.sum()
    np.testing.assert_allclose(table.geometry.x, table["X_ref"])


def test_files_and_arrays_load_no_xarray(tmp_path: Path) -> None:
    write_cog(tmp_path / "a.tif", np.ones((4, 4), np.uint8))
    code = (
        "import sys, numpy; from rsfuse.geo.raster import open_raster\n"
        f"open_raster({str(tmp_path / 'a.tif')!r}).read(); open_raster(numpy.ones((4, 4))).read()\n"
        "assert 'xarray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
