"""What the engine is given: samples by number, images from memory or disk, and that it learns."""

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydantic
import pytest
import torch

from rsfuse.detection.config import DetectTrainConfig
from rsfuse.detection.data import Objects, Sample
from rsfuse.detection.learner import DetectLearner, image_odds
from rsfuse.detection.model import Detector
from rsfuse.detection.network import detect_tile
from rsfuse.detection.train import _published, train
from rsfuse.detection.views import TrainImage, load_images
from rsfuse.engine.config import read_config
from rsfuse.engine.fit import fit
from rsfuse.errors import InputError
from rsfuse.nn.backbone import make_backbone
from rsfuse.ops.boxes import corners_of


def bars(count: int, seed: int) -> list[TrainImage]:
    """Images with bright bars (class 0) and dark squares (class 1) on grey; headings are known."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        pixels = random.integers(110, 130, (1, 96, 96)).astype(np.uint8)
        y, x = np.mgrid[0.5:96, 0.5:96]
        boxes, labels = [], []
        for cx, cy in ((26, 28), (70, 30), (30, 70), (68, 68)):
            label = int(random.integers(2))
            w, h = ((26, 9), (15, 15))[label]
            angle = random.uniform(-1.5, 1.5)
            dx, dy = x - cx, y - cy
            u = dx * math.cos(angle) + dy * math.sin(angle)
            v = dy * math.cos(angle) - dx * math.sin(angle)
            pixels[0, (abs(u) < w / 2) & (abs(v) < h / 2)] = (230, 20)[label]
            boxes.append((cx, cy, w, h, angle))
            labels.append(label)
        found = np.array(boxes, np.float64)
        images.append(
            TrainImage(
                pixels, corners_of(found), np.array(labels), np.zeros(4, np.int64), found[:, 4]
            )
        )
    return images


def config(**changes: Any) -> DetectTrainConfig:
    settings: dict[str, Any] = {
        "data": "", "window": 96, "width": 32, "steps": 40, "batch": 4, "learning_rate": 4e-3,
        "warmup": 5, "clip": 10, "ema": 0.8, "validate_every": 40, "rotation": 0.3,
        "scale_low": 0.9, "scale_high": 1.1, "device": "cpu", "threads": 1,
    }  # fmt: skip
    return DetectTrainConfig(**{**settings, **changes})


def learner(images: list[TrainImage], **changes: Any) -> DetectLearner:
    settings = config(**changes)
    torch.manual_seed(0)
    model = Detector(2, bands=1, width=settings.width, heading=settings.heading)
    return DetectLearner(model, images, images, ("bar", "square"), settings)


def equal(a: Any, b: Any) -> bool:
    return torch.equal(a[0], b[0]) and all(
        torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True)
    )


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_a_sample_depends_on_its_number_and_the_seed_alone(mosaic: float) -> None:
    images = bars(3, 0)
    one, two = (
        learner(images, mosaic=mosaic, heading=True),
        learner(images, mosaic=mosaic, heading=True),
    )
    first = one.sample(5)
    one.sample(6)
    assert equal(first, two.sample(5))
    assert equal(first, one.sample(5))
    assert not equal(first, one.sample(6))
    assert not equal(first, learner(images, mosaic=mosaic, seed=1).sample(5))
    assert first[0].shape == (1, 96, 96)


def test_the_last_steps_see_no_mosaics() -> None:
    mixed = learner(bars(3, 0), mosaic=1.0, steps=20, batch=5)
    plain = learner(bars(3, 0), mosaic=0.0, steps=20, batch=5)
    same = [torch.equal(mixed.sample(i)[0], plain.sample(i)[0]) for i in (0, 84, 85, 99)]
    assert same == [False, False, True, True]


def test_a_mosaic_needs_quarters() -> None:
    with pytest.raises(pydantic.ValidationError, match="even window"):
        config(mosaic=0.5, window=97)


def test_images_with_rare_classes_are_drawn_more_often() -> None:
    images = bars(4, 0)
    for i, image in enumerate(images):
        image.labels[:] = int(i == 3)
    odds = image_odds(images, 2, 1.0)
    np.testing.assert_allclose(odds, np.array([4 / 3, 4 / 3, 4 / 3, 4]) / 8)
    np.testing.assert_allclose(image_odds(images, 2, 0.0), 0.25)


def test_images_beyond_the_memory_are_read_once_and_mapped(tmp_path: Path) -> None:
    reads: list[str] = []

    def read(path: Path) -> np.ndarray:
        reads.append(path.name)
        return np.full((1, 10, 10), int(path.stem), np.uint8)

    samples = []
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"pixels")
        samples.append(Sample(str(i), tmp_path / f"{i}.png", Objects.none()))
    samples.append(Sample("labels alone", None, Objects.none()))
    spill = tmp_path / "spill"
    images = load_images(samples, read, most_bytes=100, spill=spill)
    assert [int(image.pixels[0, 5, 5]) for image in images] == [0, 1, 2]
    assert [isinstance(image.pixels, np.memmap) for image in images] == [False, True, True]
    load_images(samples, read, most_bytes=100, spill=spill)
    assert reads == ["0.png", "1.png", "2.png", "0.png"]
    (tmp_path / "2.png").write_bytes(b"other pixels")
    load_images(samples, read, most_bytes=100, spill=spill)
    assert reads[-2:] == ["0.png", "2.png"]
    assert not any(isinstance(x.pixels, np.memmap) for x in load_images(samples, read))


def test_the_gaussian_term_is_gone_after_half_of_the_steps() -> None:
    task = learner(bars(2, 0))
    batch = task.collate([task.sample(i) for i in range(2)])
    early, late = task.loss(task.model, batch, 0), task.loss(task.model, batch, 20)
    assert float(early["gaussian"].detach()) > 0
    assert "gaussian" not in late


def test_two_images_are_learned_by_heart(tmp_path: Path) -> None:
    images = bars(2, 3)
    task = learner(images, steps=110, validate_every=110, heading=True, rotation=0.0)
    result = fit(task, task.config, tmp_path)
    assert result.best > 0.9
    picture = cv2.imread(str(tmp_path / "pictures" / "step_000110.png"))
    assert picture.shape == (496, 984, 3)  # two images, side by side
    assert (np.ptp(picture.astype(int), axis=2) > 60).any()  # and boxes in colours
    # Angles are right too, to a quarter turn: class 1 are squares.
    hits = total = 0
    for image in images:
        boxes, scores, _ = detect_tile(
            task.model.eval(), torch.from_numpy(task.scaled(image.pixels)), score=0.3
        )
        assert boxes.shape[1] == 6  # the heading is the last
        folded = (boxes[:, 5] - boxes[:, 4] + math.pi / 4) % (math.pi / 2) - math.pi / 4
        np.testing.assert_allclose(folded, 0, atol=1e-5)
        assert (np.diff(scores) <= 0).all()
        for centre, angle in zip(image.corners.mean(axis=1), image.headings, strict=True):
            nearest = np.hypot(*(boxes[:, :2] - centre).T).argmin()
            off = (boxes[nearest, 4] - angle + math.pi / 4) % (math.pi / 2) - math.pi / 4
            hits += abs(off) < 0.2
            total += 1
    assert hits >= 0.75 * total


def test_published_weights_are_read_as_data(tmp_path: Path) -> None:
    state = {"state_dict": {"conv1.weight": torch.ones(64, 3, 7, 7)}}
    torch.save(state, tmp_path / "resnet.pth")
    assert set(_published(tmp_path / "resnet.pth")) == {"conv1.weight"}
    with pytest.raises(InputError, match="does not exist"):
        _published(tmp_path / "none.pth")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image", "labels"),
    [
        ("dota_r18", "dota/images/P0706.png", "dota/labelTxt/P0706.txt"),
        ("hrsc_r18", "hrsc2016_sample/100001675.jpg", "hrsc2016_sample/100001675_labelTxt.txt"),
    ],
)
def test_configs_for_data_that_we_cannot_ship_run_on_a_real_image(
    rsfuse_data: Path, repository: Path, tmp_path: Path, name: str, image: str, labels: str
) -> None:
    source = rsfuse_data / "detection"
    for part in ("train", "val"):
        (tmp_path / part / "images").mkdir(parents=True)
        (tmp_path / part / "labelTxt").mkdir()
        (tmp_path / part / "images" / f"1{Path(image).suffix}").symlink_to(source / image)
        (tmp_path / part / "labelTxt" / "1.txt").symlink_to(source / labels)
    torch.save(make_backbone("r18").state_dict(), tmp_path / "r18.pth")
    settings = read_config(
        repository / "configs" / "detect" / f"{name}.toml",
        DetectTrainConfig,
        {
            "data": str(tmp_path), "weights": str(tmp_path / "r18.pth"), "window": 64, "width": 16,
            "steps": 2, "batch": 1, "warmup": 0, "validate_every": 2, "workers": 0,
            "device": "cpu", "threads": 1,
        },
    )  # fmt: skip
    outcome = train(settings, tmp_path / "run")
    card = outcome.bundle.card
    assert tuple(item.name for item in card.classes) == settings.classes
    assert card.arguments["bands"] == len(card.inputs[0].bands) == 3
    assert card.inputs[0].low == settings.low
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert sum(entry["positives"] for entry in scores["classes"].values()) > 0
