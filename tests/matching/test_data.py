"""Readers: what a dataset folder holds becomes pairs, and what is wrong with it is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsfuse.errors import InputError
from rsfuse.matching.data import read_image, read_pairs

AFFINE = [[1.0, 0.0, 2.0], [0.0, 1.0, -3.0]]


def write_dataset(folder: Path, entries: list[dict]) -> Path:
    """An index and the images that it names, 8 x 6 pixels."""
    folder.mkdir(exist_ok=True)
    for number, entry in enumerate(entries):
        for key in ("image1", "image2"):
            if key in entry:
                pixels = np.full((6, 8), 10 * number, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / entry[key])
    (folder / "index.json").write_text(json.dumps(entries))
    return folder


def entry(number: int = 1, **changes: object) -> dict:
    base: dict = {
        "set": "tiny",
        "category": "Optical-SAR",
        "pair": number,
        "use": "dev",
        "licence": "B",
        "image1": f"{number}_1.png",
        "image2": f"{number}_2.png",
        "affine_1to2": AFFINE,
    }
    base.update(changes)
    return {key: value for key, value in base.items() if value is not None}


def test_entry_becomes_a_pair_with_a_square_truth(tmp_path: Path) -> None:
    (pair,) = read_pairs(write_dataset(tmp_path / "set", [entry(residual_px=[1, -1])]))
    assert pair.id == "tiny/Optical-SAR/1"
    assert pair.modality == ("optical", "sar")
    assert pair.truth.tolist() == [[1, 0, 2], [0, 1, -3], [0, 0, 1]]
    assert pair.residual_px is not None
    assert pair.residual_px.tolist() == [1, -1]
    assert pair.points is None


def test_homography_is_read_as_it_is(tmp_path: Path) -> None:
    matrix = [[1.0, 0.1, 0.0], [0.0, 1.0, 0.0], [0.001, 0.0, 1.0]]
    content = [entry(affine_1to2=None, homography_1to2=matrix)]
    (pair,) = read_pairs(write_dataset(tmp_path / "set", content))
    assert pair.truth.tolist() == matrix


def test_group_names_optical_first_whichever_image_it_is(tmp_path: Path) -> None:
    content = [entry(1), entry(2, modality=["sar", "optical"]), entry(3, category="Nighttime")]
    groups = [pair.group for pair in read_pairs(write_dataset(tmp_path / "set", content))]
    assert groups == ["optical-sar", "optical-sar", "infrared-night"]


def test_image_is_channels_first_float32(tmp_path: Path) -> None:
    path = tmp_path / "rgb.png"
    pixels = np.zeros((4, 5, 3), dtype=np.uint8)
    pixels[1, 2] = [10, 20, 30]
    Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.shape == (3, 4, 5)
    assert image.dtype == np.float32
    assert image[:, 1, 2].tolist() == [10, 20, 30]


def test_only_the_stated_bands_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rgb.png"
    Image.fromarray(np.dstack([np.full((4, 5), v, dtype=np.uint8) for v in (1, 2, 3)])).save(path)
    assert read_image(path, bands=(3, 1))[:, 0, 0].tolist() == [3, 1]


def test_check_points_are_read_as_four_columns(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [entry(points="p.txt", points_rmse_px=0.5)])
    (folder / "p.txt").write_text("# x1 y1 x2 y2\n1 2 3 4\n")
    (pair,) = read_pairs(folder)
    assert pair.points is not None
    assert pair.points.tolist() == [[1, 2, 3, 4]]
    assert pair.points_rmse_px == 0.5


@pytest.mark.parametrize("key", ["pair", "category", "image1", "image2"])
def test_missing_key_is_named_with_its_entry(tmp_path: Path, key: str) -> None:
    folder = write_dataset(tmp_path / "set", [entry(1), entry(2, **{key: None})])
    with pytest.raises(InputError, match=f"entry 1 has no key `{key}`"):
        read_pairs(folder)


def test_missing_image_is_named(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [entry()])
    (folder / "1_2.png").unlink()
    with pytest.raises(InputError, match=r"1_2\.png does not exist"):
        read_pairs(folder)


def test_entry_without_transform_says_which_keys_would_do(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [entry(affine_1to2=None)])
    with pytest.raises(InputError, match="has no transform") as caught:
        read_pairs(folder)
    assert "homography_1to2" in caught.value.fix


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        ([[1, 0], [0, 1]], "has the shape"),
        ([[1, 0, 0], [2, 0, 0]], "cannot be inverted"),
        ([[1, 0, None], [0, 1, 0]], "finite numbers"),
        ("identity", "finite numbers"),
    ],
)
def test_unusable_transform_is_an_error(tmp_path: Path, matrix: object, words: str) -> None:
    folder = write_dataset(tmp_path / "set", [entry(affine_1to2=matrix)])
    with pytest.raises(InputError, match=words):
        read_pairs(folder)


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is not JSON"), ("{}", "not a list"), ("[]", "lists no pairs")]
)
def test_unusable_index_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_pairs(tmp_path)


def test_folder_without_index_says_what_a_dataset_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist") as caught:
        read_pairs(tmp_path)
    assert "index.json" in caught.value.why


def test_damaged_check_points_are_an_error(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [entry(points="p.txt")])
    (folder / "p.txt").write_text("1 2 3\n")
    with pytest.raises(InputError, match="holds 3 columns"):
        read_pairs(folder)


def test_same_name_twice_is_an_error(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [entry(1), entry(1)])
    with pytest.raises(InputError, match="more than once"):
        read_pairs(folder)


def test_limit_takes_from_every_modality_and_from_all_over_the_list(tmp_path: Path) -> None:
    sar = [entry(n) for n in range(8)]
    maps = [entry(n + 8, category="Optical-Map") for n in range(4)]
    folder = write_dataset(tmp_path / "set", sar + maps)
    chosen = [pair.id.rsplit("/", 1)[1] for pair in read_pairs(folder, limit=4)]
    assert chosen == ["0", "4", "8", "10"]


def test_limit_above_the_size_takes_all_and_zero_is_an_error(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", [entry(1), entry(2)])
    assert len(read_pairs(folder, limit=99)) == 2
    with pytest.raises(InputError, match="limit is 0"):
        read_pairs(folder, limit=0)


@pytest.mark.parametrize(
    ("name", "count", "groups"),
    [
        ("srif", 475, 6),
        ("cfog", 10, 5),
        ("s1s2", 45, 1),
        ("gloucester_spot_ers", 2, 2),
    ],
)
def test_published_sets_are_read_whole(
    rsfuse_data: Path, name: str, count: int, groups: int
) -> None:
    pairs = read_pairs(rsfuse_data / "matching" / name)
    assert len(pairs) == count
    assert len({pair.group for pair in pairs}) == groups
    assert pairs[0].read_query().ndim == 3


def test_cfog_truth_fits_its_check_points_as_stated(rsfuse_data: Path) -> None:
    from rsfuse.matching.metrics import checkpoint_rmse

    for pair in read_pairs(rsfuse_data / "matching" / "cfog"):
        assert pair.points is not None
        assert checkpoint_rmse(pair.truth, pair.points) == pytest.approx(
            pair.points_rmse_px, abs=0.02
        )
