"""Fixtures that several folders share: tiny rasters, seeded generators, the measured data sets."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from chromium import NAMES, Browser

# Numerical libraries start a thread per core each; on tiny arrays that only costs time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _log_level() -> None:
    """A command that was quiet before, in a fixture too, leaves the log as it is by default."""
    logging.getLogger("rsfuse").setLevel(logging.NOTSET)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(20261125)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def rsfuse_data() -> Path:
    """The folder with the measured data sets: `RSFUSE_DATA`, else `../shared/data`."""
    named = os.environ.get("RSFUSE_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "matching").is_dir():
        pytest.skip(f"no data sets in {folder}; name their folder with RSFUSE_DATA")
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; skipped with a reason where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    browser = Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def write_raster(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small GeoTIFF into the temporary folder and returns its path.

    Its arguments are the array (C, H, W) or (H, W), and by name: the file name, the CRS (None for
    an image without georeference), the affine transform, the nodata value, the band names.
    """

    def write(
        array: np.ndarray,
        name: str = "raster.tif",
        *,
        crs: str | None = "EPSG:32631",
        transform: tuple[float, ...] = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_400_000.0),
        nodata: float | None = None,
        bands: tuple[str, ...] = (),
    ) -> Path:
        import warnings

        import rasterio
        from affine import Affine
        from rasterio.errors import NotGeoreferencedWarning

        array = array[None] if array.ndim == 2 else array
        path = tmp_path / name
        georeference = {} if crs is None else {"crs": crs, "transform": Affine(*transform)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(
                path,
                "w",
                driver="GTiff",
                count=array.shape[0],
                height=array.shape[1],
                width=array.shape[2],
                dtype=array.dtype,
                nodata=nodata,
                **georeference,
            ) as file:
                file.write(array)
                for index, band in enumerate(bands, start=1):
                    file.set_band_description(index, band)
        return path

    return write


@pytest.fixture
def tiny_raster(write_raster: Callable[..., Path], rng: np.random.Generator) -> Path:
    """A 40 x 60 uint16 GeoTIFF with two named bands, 10 m pixels and a nodata corner."""
    array = rng.integers(1, 4000, (2, 40, 60)).astype(np.uint16)
    array[:, :4, :6] = 0
    return write_raster(array, "tiny.tif", nodata=0, bands=("red", "nir"))


@pytest.fixture
def plain_image(write_raster: Callable[..., Path], rng: np.random.Generator) -> Path:
    """A 32 x 48 uint8 image with one band and no georeference."""
    array = rng.integers(0, 255, (32, 48)).astype(np.uint8)
    return write_raster(array, "plain.tif", crs=None)
