"""xarray DataArrays as rasters: what notebooks and odc-stac hand over.

The grid comes from odc-geo, which reads the coordinates and `spatial_ref`. xarray itself is never
loaded here before a DataArray is there (docs/decisions/0008).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from odc.geo.geobox import GeoBox

from rsfuse.errors import InputError

# Names of the vertical and the horizontal axis.
_ROWS = ("y", "latitude", "lat", "northing")
_COLUMNS = ("x", "longitude", "lon", "easting")


def is_dataarray(source: Any) -> bool:
    """Whether something is an xarray DataArray, without loading xarray."""
    kind = type(source)
    return kind.__name__ == "DataArray" and kind.__module__.split(".")[0] == "xarray"


def of_dataarray(
    source: Any,
) -> tuple[npt.NDArray[Any], GeoBox | None, tuple[str, ...], float | None]:
    """Pixels (C, H, W), grid, names of bands and nodata value of a DataArray.

    Two of its dimensions are rows and columns (y and x, latitude and longitude, ...), in any order;
    a third may hold bands, whose coordinate gives their names. Lazy arrays are computed.

    Raises:
        InputError: Other dimensions, for example several times.
    """
    import odc.geo.xr  # noqa: F401  (adds .odc to DataArrays)

    named = [str(name) for name in source.dims]
    lower = [name.lower() for name in named]
    rows = [name for name, low in zip(named, lower, strict=True) if low in _ROWS]
    columns = [name for name, low in zip(named, lower, strict=True) if low in _COLUMNS]
    others = [name for name in named if name not in (*rows, *columns)]
    single = [name for name in others if source.sizes[name] == 1]
    if len(others) > 1:
        source = source.squeeze(single[: len(others) - 1], drop=True)
        others = [name for name in others if name in source.dims]
    if len(rows) != 1 or len(columns) != 1 or len(others) > 1:
        raise InputError(
            f"a DataArray with the dimensions {', '.join(named)}",
            "rows (y) and columns (x), and at most one of bands, are needed",
            "choose one time, for example array.isel(time=0)",
        )
    ordered = source.transpose(*others, rows[0], columns[0])
    values = np.asarray(ordered.values)
    names: tuple[str, ...] = ()
    if others and others[0] in ordered.coords:
        names = tuple(str(value) for value in ordered.coords[others[0]].values)
    elif not others and ordered.name:
        names = (str(ordered.name),)
    nodata = source.attrs.get("_FillValue", source.attrs.get("nodata"))
    if nodata is None:
        nodata = source.encoding.get("_FillValue")
    return (
        values if values.ndim == 3 else values[None],
        ordered.odc.geobox,
        names,
        None if nodata is None else float(nodata),
    )
