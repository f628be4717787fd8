"""Masks from elsewhere end in the one valid mask."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyogrio.raw
import pyproj
import pytest
import shapely
from affine import Affine

from rsfuse.errors import GridError, InputError, NoOverlapError, RasterError
from rsfuse.geo.grid import Window
from rsfuse.geo.raster import Raster, RasterSource, area_of, open_raster

Write = Callable[..., Path]
LEFT, TOP = 500_000.0, 5_400_000.0


@pytest.fixture
def image(write_raster: Write) -> Path:
    """40 x 60 pixels of 10 m."""
    return write_raster(np.ones((40, 60), np.uint8), "image.tif")


def write_polygons(path: Path, shapes: list[shapely.Geometry], crs: str | None) -> Path:
    kinds = {shape.geom_type for shape in shapes}
    pyogrio.raw.write(
        path,
        geometry=np.array(shapely.to_wkb(shapes)),
        field_data=[],
        fields=[],
        crs=crs,
        geometry_type=kinds.pop() if len(kinds) == 1 else "Unknown",
    )
    return path


def on_map(column: float, row: float, right: float, bottom: float) -> shapely.Polygon:
    """A rectangle of image pixels on the map."""
    return shapely.box(LEFT + 10 * column, TOP - 10 * bottom, LEFT + 10 * right, TOP - 10 * row)


def box_mask(column: int, row: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((40, 60), bool)
    mask[row:bottom, column:right] = True
    return mask


def test_mask_on_the_same_grid_is_usable_where_not_zero(image: Path, write_raster: Write) -> None:
    mask = box_mask(5, 3, 30, 20)
    path = write_raster(mask.astype(np.uint8) * 255, "mask.tif")
    with open_raster(image, mask=path) as source:
        np.testing.assert_array_equal(source.read().valid, mask)
        np.testing.assert_array_equal(source.read(Window(2, 1, 10, 10)).valid, mask[1:11, 2:12])


def test_nodata_of_a_mask_is_not_usable(image: Path, write_raster: Write) -> None:
    mask = np.where(box_mask(5, 3, 30, 20), 1, 7).astype(np.uint8)
    path = write_raster(mask, "mask.tif", nodata=7)
    np.testing.assert_array_equal(open_raster(image, mask=path).read().valid, mask == 1)


def test_mask_on_a_coarser_grid_is_taken_by_its_nearest_pixel(
    image: Path, write_raster: Write
) -> None:
    coarse = np.zeros((10, 10), np.uint8)
    coarse[2:5, 3:7] = 1  # 40 m pixels that begin 40 m left of the image
    path = write_raster(coarse, "mask.tif", transform=(40.0, 0, LEFT - 40, 0, -40.0, TOP))
    expected = box_mask(8, 8, 24, 20)
    np.testing.assert_array_equal(open_raster(image, mask=path).read().valid, expected)


def test_mask_in_another_crs_falls_where_it_lies_on_the_ground(
    image: Path, write_raster: Write
) -> None:
    to_lonlat = pyproj.Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    west, north = to_lonlat.transform(LEFT - 200, TOP + 200)
    step = 2e-5  # about 1.5 m to 2.2 m
    size = (400, 600)
    column, row = np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5)
    back = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True)
    x, y = back.transform(west + column * step, north - row * step)
    usable = (x > LEFT + 100) & (x < LEFT + 400) & (y < TOP - 50) & (y > TOP - 300)
    path = write_raster(
        usable.astype(np.uint8), "mask.tif", crs="EPSG:4326",
        transform=(step, 0, west, 0, -step, north),
    )  # fmt: skip
    valid = open_raster(image, mask=path).read().valid
    np.testing.assert_array_equal(valid, box_mask(10, 5, 40, 30))


def test_mask_of_an_array_has_its_size(image: Path) -> None:
    mask = box_mask(1, 2, 3, 4)
    np.testing.assert_array_equal(open_raster(image, mask=mask).read().valid, mask)
    with pytest.raises(GridError, match="60 x 41"):
        open_raster(image, mask=np.ones((41, 60)))


def test_mask_is_respected_by_reduced_reads(image: Path, write_raster: Write) -> None:
    mask = box_mask(8, 4, 32, 20)
    path = write_raster(mask.astype(np.uint8), "mask.tif")
    reduced = open_raster(image, mask=path).read(shape=(10, 15))
    np.testing.assert_array_equal(reduced.valid, mask[::4, ::4])


def test_pixels_are_valid_inside_of_polygons(image: Path, tmp_path: Path) -> None:
    path = write_polygons(
        tmp_path / "aoi.gpkg", [on_map(5, 3, 30, 20), on_map(40, 30, 50, 35)], "EPSG:32631"
    )
    expected = box_mask(5, 3, 30, 20) | box_mask(40, 30, 50, 35)
    with open_raster(image, mask=path) as source:
        np.testing.assert_array_equal(source.read().valid, expected)
        window = Window(20, 10, 40, 40)
        part = np.zeros((40, 40), bool)
        part[:30] = expected[10:, 20:]
        np.testing.assert_array_equal(source.read(window).valid, part)
        np.testing.assert_array_equal(
            source.read(Window(40, 30, 20, 10), shape=(2, 4)).valid,
            [[True, True, False, False], [False, False, False, False]],
        )


def test_polygons_in_another_crs_with_holes_and_parts(image: Path, tmp_path: Path) -> None:
    to_lonlat = pyproj.Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    ring = on_map(4, 4, 36, 36).difference(on_map(10, 10, 20, 20))
    both = shapely.MultiPolygon([ring, on_map(50, 5, 55, 10)])
    lonlat = shapely.transform(
        both, lambda p: np.column_stack(to_lonlat.transform(p[:, 0], p[:, 1]))
    )
    path = write_polygons(tmp_path / "aoi.geojson", [lonlat], "EPSG:4326")
    expected = (box_mask(4, 4, 36, 36) & ~box_mask(10, 10, 20, 20)) | box_mask(50, 5, 55, 10)
    np.testing.assert_array_equal(open_raster(image, mask=path).read().valid, expected)


def test_polygons_on_an_image_without_georeference_are_in_its_pixels(
    plain_image: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="crs"):
        path = write_polygons(tmp_path / "aoi.gpkg", [shapely.box(3, 2, 9, 7)], None)
    expected = np.zeros((32, 48), bool)
    expected[2:7, 3:9] = True
    np.testing.assert_array_equal(open_raster(plain_image, mask=path).read().valid, expected)


def test_file_without_polygons_leaves_nothing(image: Path, tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "aoi.gpkg", [shapely.Point(LEFT + 5, TOP - 5)], "EPSG:32631")
    assert not open_raster(image, mask=path).read().valid.any()


def test_polygons_with_a_crs_do_not_fit_an_image_without(plain_image: Path, tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "aoi.gpkg", [shapely.box(0, 0, 1, 1)], "EPSG:4326")
    with pytest.raises(GridError, match="only one"):
        open_raster(plain_image, mask=path)


def test_missing_or_damaged_mask_is_refused(image: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gpkg").write_text("text")
    for name in ("none.gpkg", "text.gpkg", "none.tif"):
        with pytest.raises(RasterError, match=name):
            open_raster(image, mask=tmp_path / name)


def test_mask_travels_by_pickle(image: Path, write_raster: Write, tmp_path: Path) -> None:
    import pickle

    mask = box_mask(5, 3, 30, 20)
    raster = write_raster(
        mask.astype(np.uint8), "mask.tif", transform=tuple(Affine(10, 0, LEFT, 0, -10, TOP))[:6]
    )
    polygons = write_polygons(tmp_path / "aoi.gpkg", [on_map(5, 3, 30, 20)], "EPSG:32631")
    for path in (raster, polygons):
        source = pickle.loads(pickle.dumps(open_raster(image, mask=path)))
        np.testing.assert_array_equal(source.read().valid, mask)


def test_fingerprint_tells_masks_apart(image: Path, tmp_path: Path) -> None:
    first = write_polygons(tmp_path / "a.gpkg", [on_map(5, 3, 30, 20)], "EPSG:32631")
    second = write_polygons(tmp_path / "b.gpkg", [on_map(5, 3, 30, 21)], "EPSG:32631")
    array = box_mask(5, 3, 30, 20)
    masks = (None, first, second, array, ~array)
    assert len({open_raster(image, mask=mask).fingerprint for mask in masks}) == len(masks)
    again = open_raster(image, mask=first).fingerprint
    assert again == open_raster(image, mask=first).fingerprint


def test_long_edges_of_polygons_follow_the_map_they_were_drawn_on(
    write_raster: Write, tmp_path: Path
) -> None:
    # A parallel is curved in UTM: the middle of a chord of 2 degrees lies kilometres away from it.
    place = (1000.0, 0.0, 400_000.0, 0.0, -1000.0, 7_000_000.0)
    image = write_raster(np.ones((200, 200), np.uint8), "wide.tif", transform=place)
    lat = 62.2
    path = write_polygons(tmp_path / "aoi.gpkg", [shapely.box(-20, 40, 26, lat)], "EPSG:4326")
    y, x = np.indices((200, 200)) + 0.5
    to_lonlat = pyproj.Transformer.from_crs("EPSG:32631", "EPSG:4326", always_xy=True)
    _, north = to_lonlat.transform(400_000 + 1000 * x, 7_000_000 - 1000 * y)
    wrong = open_raster(image, mask=path).read().valid != (north < lat)
    assert 0.2 < (north < lat).mean() < 0.9
    assert np.abs(north[wrong] - lat).max(initial=0) < 1e-3  # a tenth of a pixel


def test_polygon_of_the_whole_world_leaves_the_whole_image(
    write_raster: Write, image: Path, tmp_path: Path
) -> None:
    world = write_polygons(tmp_path / "w.gpkg", [shapely.box(-180, -90, 180, 90)], "EPSG:4326")
    assert open_raster(image, mask=world).read().valid.all()
    place = (20_000.0, 0.0, -800_000.0, 0.0, -20_000.0, 800_000.0)
    polar = write_raster(np.ones((80, 80), np.uint8), "p.tif", crs="EPSG:3413", transform=place)
    assert open_raster(polar, mask=world).read().valid.mean() > 0.95


def test_mask_is_the_same_in_parts_and_at_once(
    image: Path, write_raster: Write, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    finer = (rng.uniform(size=(317, 401)) < 0.5).astype(np.uint8)
    path = write_raster(finer, "finer.tif", transform=(1.5, 0.1, LEFT, -0.2, -1.4, TOP))
    at_once = open_raster(image, mask=path).read().valid
    read = RasterSource.read
    sizes = []

    def counted(self: RasterSource, window: Window) -> Raster:
        sizes.append(window.w * window.h)
        return read(self, window)

    monkeypatch.setattr("rsfuse.geo.mask._POINTS_AT_ONCE", 200)
    monkeypatch.setattr("rsfuse.geo.mask._PIXELS_AT_ONCE", 3000)
    monkeypatch.setattr(RasterSource, "read", counted)
    whole = Window(0, 0, 60, 40)
    np.testing.assert_array_equal(open_raster(image, mask=path).read(whole).valid, at_once)
    image_itself, *of_mask = sizes
    assert image_itself == 60 * 40
    assert len(of_mask) > 4
    assert max(of_mask) <= 3000


def test_collections_of_polygons_are_taken_apart(image: Path, tmp_path: Path) -> None:
    parts = shapely.MultiPolygon([on_map(0, 0, 5, 5), on_map(10, 10, 20, 20)])
    both = shapely.GeometryCollection([parts, on_map(30, 0, 40, 5), shapely.Point(LEFT, TOP)])
    path = write_polygons(tmp_path / "aoi.gpkg", [both], "EPSG:32631")
    expected = box_mask(0, 0, 5, 5) | box_mask(10, 10, 20, 20) | box_mask(30, 0, 40, 5)
    np.testing.assert_array_equal(open_raster(image, mask=path).read().valid, expected)


def test_polygons_beside_the_raster_are_no_area_of_interest(image: Path, tmp_path: Path) -> None:
    beside = on_map(1000, 0, 1010, 20)
    path = write_polygons(tmp_path / "aoi.gpkg", [beside], "EPSG:32631")
    with pytest.raises(NoOverlapError) as told:
        area_of(path, open_raster(image))
    assert "(510000, 5399800, 510100, 5400000)" in told.value.what  # the area
    assert "(500000, 5399600, 500600, 5400000) in EPSG:32631" in told.value.what  # the raster
    assert not open_raster(image, mask=path).read().valid.any()


def test_bounds_of_an_area_in_another_crs_are_told_in_that_of_the_raster(
    image: Path, tmp_path: Path
) -> None:
    path = write_polygons(tmp_path / "aoi.geojson", [shapely.box(3.0, 47, 3.001, 48)], "EPSG:4326")
    with pytest.raises(NoOverlapError, match=r"lies at \(500000, 5205\d+\.\d+, 500076\.\d+, "):
        area_of(path, open_raster(image))


def test_metres_that_are_read_as_degrees_are_told_as_they_are(image: Path, tmp_path: Path) -> None:
    path = write_polygons(tmp_path / "aoi.gpkg", [on_map(5, 3, 30, 20)], "EPSG:4326")
    with pytest.raises(NoOverlapError, match=r"\(500050, 5399800, .* in WGS 84, which is nowhere"):
        area_of(path, open_raster(image))


def test_polygons_that_only_touch_the_edge_are_no_area_of_interest(
    image: Path, tmp_path: Path
) -> None:
    path = write_polygons(tmp_path / "aoi.gpkg", [on_map(60, 0, 70, 40)], "EPSG:32631")
    with pytest.raises(NoOverlapError):
        area_of(path, open_raster(image))


def test_file_without_polygons_is_no_area_of_interest(image: Path, tmp_path: Path) -> None:
    points = write_polygons(tmp_path / "a.gpkg", [shapely.Point(LEFT + 5, TOP - 5)], "EPSG:32631")
    empty = tmp_path / "empty.geojson"
    empty.write_text('{"type": "FeatureCollection", "features": []}')
    for path in (points, empty):
        with pytest.raises(InputError, match="holds no polygon"):
            area_of(path, open_raster(image))


def test_raster_beside_the_raster_is_no_area_of_interest(image: Path, write_raster: Write) -> None:
    far = (10.0, 0, LEFT + 90_000, 0, -10.0, TOP)
    path = write_raster(np.ones((10, 10), np.uint8), "far.tif", transform=far)
    with pytest.raises(
        NoOverlapError, match=r"\(590000, 5399900, 590100, 5400000\) and the raster"
    ):
        area_of(path, open_raster(image))
    assert not open_raster(image, mask=path).read().valid.any()


def test_area_of_interest_may_cross_itself(image: Path, tmp_path: Path) -> None:
    corners = [(5, 5), (20, 20), (20, 5), (5, 20)]
    bow = shapely.Polygon([(LEFT + 10 * x, TOP - 10 * y) for x, y in corners])
    path = write_polygons(tmp_path / "aoi.gpkg", [bow], "EPSG:32631")
    assert area_of(path, open_raster(image)).at(Window(0, 0, 60, 40), (40, 60)).any()


def test_area_of_interest_of_the_whole_world_is_one(image: Path, tmp_path: Path) -> None:
    world = write_polygons(tmp_path / "w.gpkg", [shapely.box(-180, -90, 180, 90)], "EPSG:4326")
    assert area_of(world, open_raster(image)).at(Window(0, 0, 60, 40), (40, 60)).all()
