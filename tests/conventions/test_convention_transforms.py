"""Direction and form of transforms: docs/conventions.md, "Transforms"."""

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter

import rsfuse
from rsfuse.geo.grid import pixel_mapping


def ground(rng: np.random.Generator) -> np.ndarray:
    """A textured 240 x 240 image."""
    layers = [gaussian_filter(rng.standard_normal((240, 240)), s) * s for s in (1.0, 2.0, 4.0)]
    image = np.sum(layers, axis=0)
    return (100 + 40 * image / image.std()).astype(np.float32)


def test_convention_transform_maps_reference_to_query(rng: np.random.Generator) -> None:
    image = ground(rng)
    reference = image[20:212, 20:212]
    query = image[14:206, 29:221]  # shows pixel (x, y) of the reference at (x - 9, y + 6)
    found = rsfuse.match(reference, query, model="shift")
    moved = np.asarray(found.transform_px) @ np.array([100.5, 80.5, 1.0])
    np.testing.assert_allclose(moved[:2] / moved[2], (91.5, 86.5), atol=0.25)


def test_convention_matrices_act_on_columns(rng: np.random.Generator) -> None:
    image = ground(rng)
    found = rsfuse.match(image[20:212, 20:212], image[14:206, 29:221], model="shift")
    matrix = np.asarray(found.transform_px)
    assert matrix.shape == (3, 3)
    np.testing.assert_allclose(matrix[2], (0.0, 0.0, 1.0), atol=1e-12)
    np.testing.assert_allclose(matrix[:2, 2], (-9.0, 6.0), atol=0.25)


def test_convention_pixel_mapping_goes_from_first_to_second() -> None:
    coarse = GeoBox((50, 40), Affine(20, 0, 500_000, 0, -20, 5_400_000), "EPSG:32631")
    fine = GeoBox((100, 80), Affine(10, 0, 500_100, 0, -10, 5_400_000), "EPSG:32631")
    mapped = pixel_mapping(coarse, fine)(np.array([[0.0, 0.0], [7.0, 3.0]]))
    np.testing.assert_allclose(mapped, [[-10.0, 0.0], [4.0, 6.0]], atol=1e-9)
