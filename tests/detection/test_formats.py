"""Label formats: what is written is read again, what the wild holds is understood or explained."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsfuse.detection.data import Dataset, Objects, Sample
from rsfuse.detection.formats import FORMATS, read_dataset, sniff, writable, write_dataset
from rsfuse.detection.formats.hrsc import class_of
from rsfuse.detection.formats.yolo import class_names
from rsfuse.errors import InputError, RsfuseError
from rsfuse.geo.write import write_cog
from rsfuse.ops.boxes import corners_of, from_corners, smallest_box

SIZE = (120, 160)

boxes_in_image = st.lists(
    st.tuples(
        st.floats(20, 140), st.floats(20, 100), st.floats(12, 40), st.floats(3, 11),
        st.floats(-1.5, 1.5),
    ),
    min_size=1,
    max_size=4,
)  # fmt: skip


def picture(path: Path, *, placed: bool = False) -> Path:
    from affine import Affine
    from odc.geo.geobox import GeoBox

    path.parent.mkdir(parents=True, exist_ok=True)
    grid = GeoBox(SIZE, Affine(0.5, 0, 500000, 0, -0.5, 5500000), "EPSG:32631") if placed else None
    write_cog(path, np.ones((1, *SIZE), np.uint8), geobox=grid)
    return path


def data_of(folder: Path, boxes: list[tuple[float, ...]], *, placed: bool = False) -> Dataset:
    """Two images, ships and planes by turns; the first object is difficult."""
    corners = corners_of(np.array(boxes, np.float64))
    labels = np.arange(len(boxes)) % 2
    flags = (np.arange(len(boxes)) == 1).astype(np.int64)
    samples = []
    for name in ("a", "b"):
        image = picture(folder / "images" / f"{name}.tif", placed=placed)
        samples.append(Sample(name, image, Objects(corners, labels, flags), size=SIZE))
    return Dataset(("plane", "ship"), tuple(samples))


@pytest.mark.parametrize("format", ["dota", "yolo-obb", "coco", "vectors"])
@settings(max_examples=6, deadline=None)
@given(boxes=boxes_in_image)
def test_what_is_written_is_read_again(
    format: str, boxes: list[tuple[float, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("set")
    dataset = data_of(folder, boxes, placed=format == "vectors")
    target = folder / "images" if format == "vectors" else folder
    write_dataset(target, dataset, format=format)
    again = read_dataset(target, format=format, classes=dataset.classes)
    assert again.classes == dataset.classes
    for before, after in zip(dataset.samples, again.samples, strict=True):
        kept = before.objects
        if format == "yolo-obb":
            kept = kept.at(kept.difficult == 0)
        assert after.name == before.name
        assert after.image is not None
        np.testing.assert_array_equal(after.objects.labels, kept.labels)
        gap = (
            np.abs(after.objects.corners[:, :, None] - kept.corners[:, None])
            .sum(axis=3)
            .min(axis=2)
        )  # the first corner may be another one
        assert gap.max(initial=0) < 1e-4
        if format in ("dota", "coco"):
            np.testing.assert_array_equal(after.objects.difficult, kept.difficult)


def test_hrsc_round_trip_with_bows(tmp_path: Path) -> None:
    box = np.array([[60.0, 50.0, 40.0, 10.0, 0.5]])
    headings = np.array([0.5 + math.pi])
    objects = Objects(corners_of(box), np.zeros(1, np.int64), np.ones(1, np.int64), headings)
    dataset = Dataset(("ship",), (Sample("s", None, objects, size=SIZE, gsd_m=1.07),))
    write_dataset(tmp_path, dataset, format="hrsc2016")
    assert sniff(tmp_path) == "hrsc2016"
    again = read_dataset(tmp_path).samples[0]
    np.testing.assert_allclose(from_corners(again.objects.corners), box, atol=1e-9)
    assert again.objects.headings is not None
    assert math.cos(again.objects.headings[0] - headings[0]) == pytest.approx(1)
    assert again.objects.difficult.tolist() == [1]
    assert again.size == SIZE
    assert again.gsd_m == 1.07
    with pytest.raises(InputError, match="no class 'plane'"):
        write_dataset(tmp_path, Dataset(("plane",), dataset.samples), format="hrsc2016")


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (100000013, ("ship", "aircraft-carrier", "kuznetsov")),
        (100000027, ("ship", "submarine", "submarine")),
        (100000001, ("ship", "ship", "ship")),
        (100000099, ("class-99",) * 3),
    ],
)
def test_hrsc_levels(number: int, names: tuple[str, ...]) -> None:
    assert tuple(class_of(number, level) for level in (1, 2, 3)) == names


VOC = """<annotation><size><width>160</width><height>120</height></size>
<object><name>{name}</name><difficult>{flag}</difficult>{shape}</object></annotation>"""
SHAPES = {
    "dior-r": (
        "<robndbox><x_left_top>10</x_left_top><y_left_top>20</y_left_top>"
        "<x_right_top>40</x_right_top><y_right_top>20</y_right_top>"
        "<x_right_bottom>40</x_right_bottom><y_right_bottom>30</y_right_bottom>"
        "<x_left_bottom>10</x_left_bottom><y_left_bottom>30</y_left_bottom></robndbox>"
    ),
    "robndbox": ("<robndbox><cx>25</cx><cy>25</cy><w>30</w><h>10</h><angle>0.0</angle></robndbox>"),
    "dronevehicle": (
        "<polygon><x1>10</x1><y1>20</y1><x2>40</x2><y2>20</y2>"
        "<x3>40</x3><y3>30</y3><x4>10</x4><y4>30</y4></polygon>"
    ),
    "upright": "<bndbox><xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>",
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_of_voc_is_the_same_box(kind: str, tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "1.tif")
    folder = tmp_path / "Annotations"
    folder.mkdir()
    text = VOC.format(name="ship", flag=1, shape=SHAPES[kind])
    (folder / "1.xml").write_text(text)
    found = read_dataset(tmp_path)
    np.testing.assert_allclose(
        from_corners(found.samples[0].objects.corners)[0], [25, 25, 30, 10, 0]
    )
    assert found.samples[0].objects.difficult.tolist() == [1]
    assert found.samples[0].size == SIZE
    assert found.samples[0].image is not None


def test_dronevehicle_has_pairs_and_one_spelling(tmp_path: Path) -> None:
    for name in ("trainimg", "trainimgr"):
        picture(tmp_path / "train" / name / "7.tif")
    labels = tmp_path / "train" / "trainlabelr"
    labels.mkdir()
    shape = SHAPES["dronevehicle"]
    parts = [VOC.format(name=n, flag=0, shape=shape) for n in ("feright_car", "feright car")]
    (labels / "7.xml").write_text(parts[0])
    (labels / "8.xml").write_text(parts[1])
    found = read_dataset(tmp_path, split="train")
    assert found.classes == ("freight-car",)
    assert found.samples[0].partner == tmp_path / "train" / "trainimgr" / "7.tif"
    assert found.notes == {"labels without an image": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "cannot be read"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares entities"),
        (VOC.format(name="a", flag=0, shape=SHAPES["robndbox"]).replace("30", "nan"), "<w>"),
    ],
)
def test_damaged_xml_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path, format="dior-r")


def test_ucas_and_vedai(tmp_path: Path) -> None:
    ucas = tmp_path / "ucas"
    picture(ucas / "CAR" / "P0001.tif")
    (ucas / "CAR" / "P0001.txt").write_text("10 20 40 20 40 30 10 30 0.1 10 20 30 10\r\n")
    found = read_dataset(ucas)
    assert found.classes == ("car", "plane")
    assert found.samples[0].image == ucas / "CAR" / "P0001.tif"
    vedai = tmp_path / "vedai"
    vedai.mkdir()
    line = "00000001 25 25 0.1 10 40 40 10 20 20 30 30 11 1 0\n"
    (vedai / "annotation512.txt").write_text(line + line.replace(" 11 1 0", " 77 1 0"))
    found = read_dataset(vedai)
    assert found.classes == ("class-77", "pickup")
    corners = found.samples[0].objects.corners[0]
    assert corners.tolist() == [[10, 20], [40, 20], [40, 30], [10, 30]]


@pytest.mark.parametrize(
    "text",
    [
        "names: [plane, 'ship']\n",
        "nc: 2\nnames:\n  0: plane\n  1: ship # boats\n",
        'names:\n- "plane"\n- ship\nother: 1\n',
    ],
)
def test_class_names_of_yolo(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert class_names(tmp_path) == ("plane", "ship")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1 0.1", "eight coordinates"),
        ("0 10 20 40 20 40 30 10 30", "shares of the image"),
        ("ship 0 0 1 0 1 1 0 1", "class number"),
    ],
)
def test_other_dialects_of_yolo_are_named(line: str, message: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.tif")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(line)
    with pytest.raises(InputError) as caught:
        read_dataset(tmp_path, format="yolo-obb")
    assert message in str(caught.value)


def test_coco_polygons_become_the_smallest_box(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    box = np.array([50.0, 40.0, 30.0, 12.0, 0.4])
    inside = corners_of(box[None])[0]
    middles = (inside + np.roll(inside, -1, axis=0)) / 2
    points = np.concatenate([inside, middles])[rng.permutation(8)]
    order = np.argsort(np.arctan2(*(points - points.mean(axis=0)).T[::-1]))
    polygon = points[order].ravel().tolist()
    content = {
        "images": [{"id": 5, "file_name": "x.png", "height": 120, "width": 160}],
        "categories": [{"id": 9, "name": "ship"}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 9, "segmentation": [polygon]},
            {"id": 2, "image_id": 5, "category_id": 9, "bbox": [1, 2, 10, 4]},
            {"id": 3, "image_id": 5, "category_id": 9, "segmentation": []},
        ],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = read_dataset(tmp_path)
    boxes = from_corners(found.samples[0].objects.corners)
    np.testing.assert_allclose(boxes[0], box, atol=1e-9)
    np.testing.assert_allclose(boxes[1], [6, 4, 10, 4, 0], atol=1e-9)
    assert found.notes == {"objects without a shape": 1}
    content["annotations"][0]["image_id"] = 6
    (tmp_path / "instances.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="annotation 1"):
        read_dataset(tmp_path)


@settings(max_examples=30, deadline=None)
@given(angle=st.floats(-1.5, 1.5), w=st.floats(5, 50), h=st.floats(1, 4.9), seed=st.integers(0, 99))
def test_smallest_box_of_points_in_a_box(angle: float, w: float, h: float, seed: int) -> None:
    box = np.array([3.0, -7.0, w, h, angle])
    corners = corners_of(box[None])[0]
    shares = np.random.default_rng(seed).dirichlet(np.ones(4), 6)
    found = smallest_box(np.concatenate([shares @ corners, corners]))
    assert found is not None
    assert found[2] * found[3] <= w * h * (1 + 1e-9)


def test_no_area_no_box() -> None:
    assert smallest_box(np.array([[0, 0], [1, 1], [2, 2]])) is None
    assert smallest_box(np.zeros((2, 2))) is None


def test_vectors_need_a_class_and_a_georeference(tmp_path: Path) -> None:
    picture(tmp_path / "a.tif")
    with pytest.raises(InputError, match="no labels"):
        read_dataset(tmp_path, format="vectors")
    area = {"type": "Polygon", "coordinates": [[[500010, 5499990], [500020, 5499990],
            [500020, 5499980], [500010, 5499990]]]}  # fmt: skip
    feature = {"type": "Feature", "geometry": area, "properties": {"kind": "ship"}}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32631"}}
    content = {"type": "FeatureCollection", "crs": crs, "features": [feature]}
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no georeference"):
        read_dataset(tmp_path)
    picture(tmp_path / "a.tif", placed=True)
    with pytest.raises(InputError, match="no column 'class'"):
        read_dataset(tmp_path)
    feature["properties"]["class"] = "ship"
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    found = read_dataset(tmp_path)
    assert found.samples[0].gsd_m == pytest.approx(0.5, rel=1e-3)
    boxes = from_corners(found.samples[0].objects.corners)
    np.testing.assert_allclose(np.sort(boxes[0, 2:4]), [20, 20], atol=0.1)


def test_every_format_says_that_an_empty_folder_is_empty(tmp_path: Path) -> None:
    for format in FORMATS:
        with pytest.raises(RsfuseError):
            read_dataset(tmp_path, format=format)
    assert set(writable()) == {"dota", "hrsc2016", "yolo-obb", "coco", "vectors"}
    with pytest.raises(InputError, match="cannot be written"):
        write_dataset(tmp_path, Dataset((), ()), format="vedai")


def test_formats_with_one_image_take_no_partner(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one image per scene"):
        read_dataset(tmp_path, format="dota", partner="thermal")


@pytest.mark.parametrize(
    ("name", "format", "count"),
    [("dior_r_sample", "dior-r", 1), ("dota", "dota", 1185), ("ucas_aod", "dota", 258)],
)
def test_real_labels(name: str, format: str, count: int, rsfuse_data: Path) -> None:
    found = read_dataset(rsfuse_data / "detection" / name, format=format)
    # Of the 1,187 lines of DOTA two have no area.
    assert sum(len(s.objects) for s in found.samples) == count


def test_real_hrsc_label(rsfuse_data: Path) -> None:
    found = read_dataset(rsfuse_data / "detection" / "hrsc2016_sample", format="hrsc2016")
    ship = found.samples[0].objects
    assert from_corners(ship.corners)[0, 2] == pytest.approx(778.4297)
    assert ship.headings is not None
    assert found.samples[0].gsd_m == 1.07
