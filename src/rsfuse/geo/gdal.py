"""How rsfuse uses GDAL: its settings, its silence, and its failures in words."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from rsfuse.errors import RasterError, RsfuseError

CACHE_BYTES = 128 * 2**20

# Whatever GDAL, rasterio or the decoders behind them raise over a file that is not as it should be.
GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError, ValueError, OverflowError, SystemError)

# By default GDAL's block cache takes 5 % of the memory of the machine, per process. Decoders get
# one thread: parallel reads use one handle per worker, and OpenJPEG reports the errors of its own
# threads to stderr and calls the read a success.
_SETTINGS: dict[str, str | int] = {
    "GDAL_CACHEMAX": CACHE_BYTES,
    "GDAL_NUM_THREADS": "1",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": str(8 * 2**20),
}
# Listing the folder of a remote file costs many requests and is often forbidden.
_REMOTE_SETTINGS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}

_WARNING_FILTER = threading.Lock()


@contextmanager
def gdal_settings(*, remote: bool = False, **settings: str) -> Iterator[None]:
    """GDAL with bounded cache and timeouts; variables of the environment take precedence.

    Args:
        remote: Do not list the folder of the file.
        **settings: Further configuration options.
    """
    options: dict[str, str | int] = {
        **_SETTINGS,
        **(_REMOTE_SETTINGS if remote else {}),
        **settings,
    }
    with rasterio.Env(**{key: value for key, value in options.items() if key not in os.environ}):
        yield


@contextmanager
def no_georeference_warnings() -> Iterator[None]:
    """No warning about images without georeference: that is a note of the source, not an alarm."""
    with _WARNING_FILTER, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@contextmanager
def reading(name: str, where: str = "") -> Iterator[None]:
    """Turns what GDAL raises into a `RasterError` about the file.

    Args:
        name: The file.
        where: Which part of it, with a leading space.
    """
    try:
        yield
    except RsfuseError:
        raise
    except GDAL_ERRORS as error:
        raise RasterError(
            f"{name} cannot be read{where}: {reason_of(error)}",
            "the file is damaged, incomplete, or of a format that GDAL does not know",
            "check it with gdalinfo, or copy it again from where it came",
        ) from error


def reason_of(error: BaseException) -> str:
    """What GDAL said, from the innermost cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def is_remote(name: str) -> bool:
    """Whether a raster is read over the network."""
    remote = ("http://", "https://", "ftp://", "s3://", "gs://", "az://", "oss://")
    curl = ("/vsicurl", "/vsis3", "/vsigs", "/vsiaz", "/vsioss", "/vsiadls", "/vsiswift")
    return name.startswith(remote) or name.startswith(curl)
