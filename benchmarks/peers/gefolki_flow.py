"""GeFolki's dense flow (GPL-3, so only ever run as an outside program) from centres on centres.

Parameters are those of its authors' optical-radar example. The answer is the affine that fits the
flow on a 20 x 20 grid; the grid and the flow there are its tie points.

gefolki 1.1.0 was written for a `rescale_intensity` that keeps the type of the image. scikit-image
0.17 and later return floats, and GEFolki ends with an IndexError on any pair; so the function that
it sees is replaced by one that keeps the type. Nothing else of it is touched.
"""

import gefolki.adapthist
import numpy as np
from gefolki.algorithm import GEFolki
from serve import centre_offset, fit_affine, serve, to_gray
from skimage.exposure import rescale_intensity

GRID = 20


def rescale_keeping_type(image, *args, **options):
    """What GEFolki expects of scikit-image: the type of the image stays."""
    return rescale_intensity(image, *args, **options).astype(image.dtype)


gefolki.adapthist.rescale_intensity = rescale_keeping_type


def placed(image, shape, offset):
    """The query cut or padded to the reference's grid, centre on centre."""
    h, w = shape
    y0, x0 = round(offset[1]), round(offset[0])
    rows = np.clip(np.arange(h) + y0, 0, image.shape[0] - 1)
    columns = np.clip(np.arange(w) + x0, 0, image.shape[1] - 1)
    return image[np.ix_(rows, columns)], np.array([x0, y0], dtype=float)


def match(image0, image1):
    """Dense flow, sampled and fitted."""
    gray0 = to_gray(image0)
    gray1, offset = placed(to_gray(image1), gray0.shape, centre_offset(image0, image1))
    u, v = GEFolki(gray0, gray1, iteration=2, radius=range(32, 4, -4), rank=4, levels=6)
    h, w = gray0.shape
    x, y = np.meshgrid(
        np.linspace(0, w - 1, GRID).astype(int), np.linspace(0, h - 1, GRID).astype(int)
    )
    x, y = x.ravel(), y.ravel()
    points0 = np.column_stack([x, y]) + 0.5
    points1 = points0 + np.column_stack([u[y, x], v[y, x]]) + offset
    return {"matrix": fit_affine(points0, points1), "points0": points0, "points1": points1}


if __name__ == "__main__":
    serve(match)
