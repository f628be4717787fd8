"""Grids: pixel mappings, ground distances, overlaps, sizes of memory."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyproj
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from rsfuse.errors import GridError, InputError, MissingCrsError, NoOverlapError
from rsfuse.geo.grid import (
    Window,
    gsd_m,
    integer_ratio,
    overlap,
    parse_memory,
    pixel_geobox,
    pixel_mapping,
    same_grid,
    window_geobox,
)

UTM = "EPSG:32631"


def north_up(
    shape: tuple[int, int] = (100, 80),
    step: float = 10.0,
    left: float = 500_000.0,
    top: float = 5_400_000.0,
    crs: str | None = UTM,
) -> GeoBox:
    return GeoBox(shape, Affine(step, 0, left, 0, -step, top), crs)


def test_window_is_clipped_to_the_raster() -> None:
    window = Window(x=-3, y=15, w=10, h=10)
    assert window.shape == (10, 10)
    assert window.clipped((20, 30)) == Window(0, 15, 7, 5)
    away = Window(50, 0, 4, 4).clipped((20, 30))
    assert (away.w, away.h) == (0, 4)


def test_window_knows_its_place_in_another() -> None:
    outer, inner = Window(10, 20, 30, 40), Window(12, 25, 5, 6)
    image = np.arange(40 * 30).reshape(40, 30)
    rows, columns = inner.slices_in(outer)
    assert image[rows, columns].shape == inner.shape
    assert image[rows, columns][0, 0] == image[5, 2]


def test_window_geobox_is_where_the_window_lies() -> None:
    whole = north_up()
    part = window_geobox(whole, Window(x=7, y=-2, w=11, h=13))
    assert tuple(part.shape) == (13, 11)
    assert part.crs == whole.crs
    moved = pixel_mapping(part, whole)(np.array([[0.0, 0.0], [11.0, 13.0]]))
    np.testing.assert_allclose(moved, [[7, -2], [18, 11]], atol=1e-9)


def test_mapping_between_crs_is_that_of_pyproj() -> None:
    utm = north_up()
    geographic = north_up(step=1e-4, left=2.9, top=48.8, crs="EPSG:4326")
    points = np.array([[0.0, 0.0], [40.5, 70.25], [80.0, 100.0]])
    mapped = pixel_mapping(utm, geographic)(points)
    east, north = 500_000 + 10 * points[:, 0], 5_400_000 - 10 * points[:, 1]
    change = pyproj.Transformer.from_crs(UTM, "EPSG:4326", always_xy=True)
    lon, lat = change.transform(east, north)
    expected = np.column_stack(((lon - 2.9) / 1e-4, (48.8 - lat) / 1e-4))
    np.testing.assert_allclose(mapped, expected, atol=1e-6)


def test_mapping_of_rasters_without_crs_is_through_their_transforms() -> None:
    half = GeoBox((16, 24), Affine.scale(2.0), None)
    mapped = pixel_mapping(half, pixel_geobox((32, 48)))(np.array([[3.0, 5.0]]))
    np.testing.assert_array_equal(mapped, [[6.0, 10.0]])


def test_mapping_is_not_a_number_where_a_projection_ends() -> None:
    world = north_up((180, 360), 1.0, -180.0, 90.0, "EPSG:4326")
    view = GeoBox((100, 100), Affine(1e5, 0, -5e6, 0, -1e5, 5e6), "+proj=ortho +lat_0=0 +lon_0=0")
    mapped = pixel_mapping(world, view)(np.array([[180.0, 90.0], [359.0, 90.0]]))
    np.testing.assert_allclose(mapped[0], [50.0, 50.0], atol=1e-6)
    assert np.isnan(mapped[1]).all()


def test_mapping_of_no_points_is_no_points() -> None:
    for target in (north_up(), north_up(step=1e-4, left=2.9, top=48.8, crs="EPSG:4326")):
        assert pixel_mapping(north_up(), target)(np.empty((0, 2))).shape == (0, 2)


def test_mapping_works_in_threads_and_other_processes() -> None:
    mapping = pixel_mapping(north_up(), north_up(step=1e-4, left=2.9, top=48.8, crs="EPSG:4326"))
    points = np.random.default_rng(0).uniform(0, 80, (500, 2))
    expected = mapping(points)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mapping))(points), expected)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(mapping, [points] * 16):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("swapped", [False, True])
def test_mapping_with_one_crs_is_refused(swapped: bool) -> None:
    pair = (pixel_geobox((10, 10)), north_up())
    with pytest.raises(GridError, match="no CRS"):
        pixel_mapping(*(pair[::-1] if swapped else pair))


def test_gsd_of_a_national_grid_is_the_stated_one() -> None:
    assert gsd_m(north_up()) == 10.0
    assert gsd_m(GeoBox((50, 50), Affine(10, 0, 5e5, 0, -40, 54e5), UTM)) == pytest.approx(20.0)


def test_gsd_does_not_change_with_rotation() -> None:
    turned = GeoBox(
        (50, 50),
        Affine(8.0, 6.0, 500_000.0, 6.0, -8.0, 5_400_000.0),
        UTM,
    )
    assert gsd_m(turned) == pytest.approx(10.0, rel=2e-3)


def test_gsd_of_web_mercator_is_on_the_ground() -> None:
    # At 60 degrees north Web Mercator shows everything twice as large as it is.
    _, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(0.0, 60.0)
    geobox = GeoBox((10, 10), Affine(10, 0, 0, 0, -10, y + 50), "EPSG:3857")
    assert gsd_m(geobox) == pytest.approx(5.0, rel=5e-3)


def test_gsd_of_a_grid_in_feet_is_in_metres() -> None:
    geobox = GeoBox((10, 10), Affine(10, 0, 6_000_000, 0, -10, 2_100_000), "EPSG:2227")
    assert gsd_m(geobox) == pytest.approx(3.048, rel=1e-3)


def test_gsd_needs_a_crs() -> None:
    with pytest.raises(MissingCrsError, match="no CRS"):
        gsd_m(pixel_geobox((10, 10)))


def test_gsd_outside_the_map_is_refused() -> None:
    with pytest.raises(GridError):
        gsd_m(GeoBox((10, 10), Affine(1, 0, 1e9, 0, -1, 1e9), "+proj=ortho +lat_0=0 +lon_0=0"))


def test_same_grid_means_shape_place_and_crs() -> None:
    grid = north_up()
    assert same_grid(grid, north_up(left=500_000.0 + 1e-4))
    assert not same_grid(grid, north_up(left=500_000.1))
    assert not same_grid(grid, north_up(step=10.001))
    assert not same_grid(grid, north_up(shape=(80, 100)))
    assert not same_grid(grid, north_up(crs="EPSG:32632"))
    assert same_grid(pixel_geobox((5, 6)), pixel_geobox((5, 6)))


def test_integer_ratio_counts_fine_pixels() -> None:
    assert integer_ratio(north_up((400, 320), 2.5), north_up()) == 4
    assert integer_ratio(north_up(), north_up()) == 1
    moved = north_up((10, 10), 10.0, 500_000 + 7 * 2.5, 5_400_000 - 3 * 2.5)
    assert integer_ratio(north_up((400, 320), 2.5), moved) == 4


@pytest.mark.parametrize(
    ("coarse", "said"),
    [
        (north_up(step=7.0), "integer"),
        (north_up(left=500_001.25), "corners"),
        (north_up(crs="EPSG:32632"), "CRS"),
        (GeoBox((10, 10), Affine(10, 0.5, 5e5, 0.5, -10, 54e5), UTM), "sheared"),
        (north_up(step=1.0), "integer"),
    ],
)
def test_integer_ratio_refuses_grids_that_do_not_nest(coarse: GeoBox, said: str) -> None:
    with pytest.raises(GridError, match=said):
        integer_ratio(north_up((400, 320), 2.5), coarse)


def test_overlap_is_the_common_window_in_pixels_of_the_first() -> None:
    a = north_up((100, 80))
    b = north_up((50, 50), 20.0, 500_300.0, 5_399_800.0)
    assert overlap(a, b) == Window(30, 20, 50, 80)
    assert overlap(b, a) == Window(0, 0, 25, 40)


def test_overlap_of_a_raster_with_its_part_is_the_part() -> None:
    a = north_up()
    part = Window(12, 7, 30, 20)
    assert overlap(a, window_geobox(a, part)) == part
    assert overlap(window_geobox(a, part), a) == Window(0, 0, 30, 20)


def test_overlap_through_two_crs_holds_every_common_pixel() -> None:
    a = north_up((200, 200))
    b = north_up((60, 60), 2e-4, 3.005, 48.745, "EPSG:4326")
    found = overlap(a, b)
    inner = np.stack(np.meshgrid(np.arange(60) + 0.5, np.arange(60) + 0.5), -1).reshape(-1, 2)
    points = pixel_mapping(b, a)(inner)
    shown = points[((points >= 0) & (points < 200)).all(axis=1)]
    assert len(shown) > 100
    low, high = shown.min(axis=0), shown.max(axis=0)
    assert (np.array([found.x, found.y]) <= low).all()
    assert (np.array([found.x + found.w, found.y + found.h]) >= high).all()
    assert found == found.clipped((200, 200))


def test_overlap_of_disjoint_rasters_is_refused() -> None:
    with pytest.raises(NoOverlapError, match="share no ground"):
        overlap(north_up(), north_up(left=600_000.0))


def test_overlap_of_touching_rasters_is_refused() -> None:
    with pytest.raises(NoOverlapError):
        overlap(north_up(), north_up(left=500_800.0))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2_000_000_000),
        ("500M", 500_000_000),
        ("1.5GiB", 1_610_612_736),
        ("64 kib", 65_536),
        ("4000000", 4_000_000),
        ("10b", 10),
        (" 1 TB ", 10**12),
    ],
)
def test_memory_sizes(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "lots", "0GB", "-1GB", "2XB", "1e9", "GB", "0.1B", "2 G B"])
def test_memory_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="not an amount of memory"):
        parse_memory(text)


WORLD = GeoBox((1800, 3600), Affine(0.1, 0, -180, 0, -0.1, 90), "EPSG:4326")
SCENE = north_up()
FIJI = GeoBox((2000, 2000), Affine(100, 0, 720_000, 0, -100, 8_100_000), "EPSG:32760")


def pixel_centres(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(shape)
    return np.column_stack((x.ravel(), y.ravel())) + 0.5


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_overlap_of_a_scene_with_a_map_of_the_world_is_the_scene(crs: str) -> None:
    world = WORLD
    if crs == "EPSG:3857":
        world = GeoBox(
            (4000, 4000), Affine(10_018.75, 0, -2.00375e7, 0, -10_018.75, 2.00375e7), crs
        )
    assert overlap(SCENE, world) == Window(0, 0, 80, 100)
    part = overlap(world, SCENE)
    assert (part.w, part.h) <= (2, 2)


def test_overlap_across_the_meridian_of_180_degrees_is_what_both_show() -> None:
    east = GeoBox((500, 500), Affine(0.01, 0, 175, 0, -0.01, -15), "EPSG:4326")
    west = GeoBox((500, 500), Affine(0.01, 0, -180, 0, -0.01, -15), "EPSG:4326")
    for other in (east, west):
        seen_by_other = pixel_mapping(other, FIJI)(pixel_centres((500, 500)))
        shared = ((seen_by_other > 0) & (seen_by_other < 2000)).all(axis=1).reshape(500, 500)
        rows, columns = np.nonzero(shared)
        window = overlap(other, FIJI)
        margin = 500 // 64
        for start, size, found in (
            (window.x, window.w, columns), (window.y, window.h, rows),
        ):  # fmt: skip
            assert found.min() - margin <= start <= found.min()
            assert found.max() < start + size <= found.max() + 1 + margin
    assert overlap(FIJI, WORLD) == Window(0, 0, 2000, 2000)


def test_overlap_with_a_map_around_the_pole_reaches_the_pole() -> None:
    polar = GeoBox((2000, 2000), Affine(1000, 0, -1e6, 0, -1000, 1e6), "EPSG:3413")
    assert overlap(polar, WORLD) == Window(0, 0, 2000, 2000)
    window = overlap(WORLD, polar)
    assert (window.x, window.y, window.w) == (0, 0, 3600)
    corner_lat = 90 - (window.y + window.h) / 10
    assert 90 - 13.2 - 180 / 64 < corner_lat < 90 - 12.7


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32760"])
def test_longitudes_beyond_180_degrees_are_the_same_places(crs: str) -> None:
    pacific = GeoBox((1800, 3600), Affine(0.1, 0, 0, 0, -0.1, 90), "EPSG:4326")
    source = FIJI
    if crs == "EPSG:4326":
        source = GeoBox((100, 100), Affine(0.01, 0, -179, 0, -0.01, -17), crs)
    through_world = pixel_mapping(source, WORLD)(pixel_centres((100, 100)))
    through_pacific = pixel_mapping(source, pacific)(pixel_centres((100, 100)))
    turned = through_pacific - through_world
    np.testing.assert_allclose(turned[:, 1], 0, atol=1e-9)
    np.testing.assert_allclose(turned[:, 0] % 3600, 1800, atol=1e-6)
    assert overlap(source, pacific) == Window(0, 0, *source.shape[::-1])


def test_both_edges_of_a_world_map_keep_their_place() -> None:
    edges = np.array([[0.0, 900.0], [3600.0, 900.0]])
    finer = GeoBox((3600, 7200), Affine(0.05, 0, -180, 0, -0.05, 90), "EPSG:4326")
    np.testing.assert_allclose(pixel_mapping(WORLD, finer)(edges), 2 * edges, atol=1e-6)


def test_pixel_numbers_under_the_name_of_degrees_are_not_wrapped() -> None:
    grid = GeoBox((5000, 5000), Affine(1, 0, 0, 0, -1, 5000), "EPSG:4326")
    xy = np.array([[0.5, 0.5], [4999.5, 2500.0]])
    np.testing.assert_allclose(pixel_mapping(grid, grid)(xy), xy)


def test_crs_without_a_place_on_the_ground_is_refused() -> None:
    drawing = GeoBox((9, 9), Affine(1, 0, 0, 0, -1, 0), 'LOCAL_CS["site",UNIT["metre",1]]')
    for pair in ((drawing, SCENE), (SCENE, drawing)):
        with pytest.raises(GridError, match="no transformation leads"):
            pixel_mapping(*pair)
        with pytest.raises(GridError, match="no transformation leads"):
            overlap(*pair)
    assert gsd_m(drawing) == 1.0
