"""AROSICS' local co-registration, with the largest shift raised to what the pairs need.

Both images get the same made-up 10 m grid, the query's centre on the reference's. Answer: the
affine that fits the tie points it calls valid; with fewer than three the global shift; else none.

These releases use `gdal.config_options` and data sets as context managers, which GDAL has since 3.7
and 3.8; stand-ins are put there first.
"""

from contextlib import contextmanager

import numpy as np
from osgeo import gdal, ogr
from serve import centre_offset, fit_affine, serve, to_gray


@contextmanager
def config_options(options, **_):
    """Set GDAL options for a while."""
    before = {key: gdal.GetConfigOption(key) for key in options}
    for key, value in options.items():
        gdal.SetConfigOption(key, value)
    try:
        yield
    finally:
        for key, value in before.items():
            gdal.SetConfigOption(key, value)


if not hasattr(gdal, "config_options"):
    gdal.config_options = config_options


def close(dataset, *_):
    """Write what is pending and let go of the file."""
    type(dataset).__swig_destroy__(dataset)
    dataset.thisown, dataset.this = 0, None


for kind in (gdal.Dataset, ogr.DataSource):
    if not hasattr(kind, "__enter__"):
        kind.__enter__, kind.__exit__ = (lambda dataset: dataset), close

from arosics import COREG, COREG_LOCAL  # noqa: E402
from geoarray import GeoArray  # noqa: E402
from pyproj import CRS  # noqa: E402

GSD_M = 10.0
ORIGIN = (500_000.0, 5_000_000.0)
WINDOW = 128
SPACING = 32
MAX_SHIFT = 70  # pixels; the default of 5 would refuse every pair that is farther off


def georeferenced(gray, first_x, first_y):
    """The image on the 10 m grid, its first pixel that many pixels from the origin."""
    transform = (ORIGIN[0] + GSD_M * first_x, GSD_M, 0.0, ORIGIN[1] - GSD_M * first_y, 0.0, -GSD_M)
    return GeoArray(gray, geotransform=transform, projection=CRS.from_epsg(32631).to_wkt())


def match(image0, image1):
    """Local co-registration, global where that keeps nothing."""
    offset = centre_offset(image0, image1)
    reference = georeferenced(to_gray(image0), 0.0, 0.0)
    query = georeferenced(to_gray(image1), *-offset)
    common = {"max_shift": MAX_SHIFT, "CPUs": 1, "progress": False, "q": True}
    local = COREG_LOCAL(reference, query, SPACING, window_size=(WINDOW, WINDOW), **common)
    try:
        table = local.tiepoint_grid.CoRegPoints_table
        valid = table[(table.OUTLIER == False) & (table.X_SHIFT_M != -9999)]  # noqa: E712
    except Exception:  # it raises when no point is left
        valid = None
    if valid is not None and len(valid) >= 3:
        points0 = np.column_stack(
            [(valid.X_MAP - ORIGIN[0]) / GSD_M, (ORIGIN[1] - valid.Y_MAP) / GSD_M]
        ).astype(float)
        # The shift corrects the query, so the content lies that far the other way in it.
        moved = np.column_stack([valid.X_SHIFT_M, -valid.Y_SHIFT_M]).astype(float) / GSD_M
        points1 = points0 - moved + offset
        return {"matrix": fit_affine(points0, points1), "points0": points0, "points1": points1}
    whole = COREG(reference, query, ignore_errors=True, **common)
    whole.calculate_spatial_shifts()
    if not whole.success:
        return {"matrix": None}
    matrix = np.eye(3)
    matrix[:2, 2] = offset - [whole.x_shift_map / GSD_M, -whole.y_shift_map / GSD_M]
    return {"matrix": matrix}


if __name__ == "__main__":
    serve(match)
