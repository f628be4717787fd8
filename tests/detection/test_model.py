"""The detector: shapes, angles, who answers for what, and that it learns."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rsfuse.detection.assign import assign, candidates
from rsfuse.detection.augment import Jitter, cut, moved, random_window, visible_share, window_matrix
from rsfuse.detection.loss import Targets, detection_loss
from rsfuse.detection.model import Cells, Detector, angle_of, cells_of, phases_of
from rsfuse.detection.predict import boxes_of
from rsfuse.detection.train import DetectLearner, DetectTrainConfig, TrainImage
from rsfuse.engine.fit import fit
from rsfuse.errors import InputError
from rsfuse.nn.backbone import load_backbone, make_backbone
from rsfuse.ops.boxes import corners_of


@pytest.mark.parametrize("name", ["tiny", "r18", "r50"])
def test_backbones_give_four_strides(name: str) -> None:
    net = make_backbone(name, bands=2).eval()
    with torch.no_grad():
        shapes = [tuple(x.shape[1:]) for x in net(torch.zeros(1, 2, 64, 96))]
    sides = [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert shapes == [(c, *s) for c, s in zip(net.channels, sides, strict=True)]


def resnet_names(depths: tuple[int, ...], convolutions: int, first_projects: bool) -> set[str]:
    """Names of the tensors of torchvision's ResNets, without the classifier."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = {"conv1.weight"} | {f"bn1.{n}" for n in norm}
    for layer, depth in enumerate(depths, 1):
        for block in range(depth):
            stem = f"layer{layer}.{block}"
            for c in range(1, convolutions + 1):
                names |= {f"{stem}.conv{c}.weight"} | {f"{stem}.bn{c}.{n}" for n in norm}
            if block == 0 and (layer > 1 or first_projects):
                names |= {f"{stem}.downsample.0.weight"}
                names |= {f"{stem}.downsample.1.{n}" for n in norm}
    return names


def test_published_weights_have_our_names() -> None:
    assert set(make_backbone("r18").state_dict()) == resnet_names((2, 2, 2, 2), 2, False)
    assert set(make_backbone("r50").state_dict()) == resnet_names((3, 4, 6, 3), 3, True)
    donor = make_backbone("r18").state_dict() | {"fc.weight": torch.zeros(10, 512)}
    one_band = make_backbone("r18", bands=1)
    load_backbone(one_band, donor)
    torch.testing.assert_close(one_band.conv1.weight, donor["conv1.weight"].sum(1, keepdim=True))
    with pytest.raises(InputError, match="another backbone"):
        load_backbone(make_backbone("r50"), donor)
    with pytest.raises(InputError, match="unknown"):
        make_backbone("r19")


@pytest.mark.parametrize(("bands", "size", "finest"), [(1, (70, 33), 8), (5, (64, 64), 4)])
def test_any_size_and_number_of_bands(bands: int, size: tuple[int, int], finest: int) -> None:
    model = Detector(3, bands=bands, finest=finest, width=16).eval()
    with torch.no_grad():
        found = model(torch.rand(2, bands, *size))
        alone = model(torch.rand(2, bands, *size)[:1])
    cells = model.cells(*size)
    assert found.logits.shape == (2, len(cells.centres), 3)
    assert found.boxes.shape == (2, len(cells.centres), 5)
    assert alone.logits.shape[0] == 1


def test_batched_equals_single() -> None:
    model = Detector(2, bands=1, width=16).eval()
    images = torch.rand(3, 1, 64, 64)
    with torch.no_grad():
        together = model(images).boxes
        alone = torch.cat([model(images[i : i + 1]).boxes for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-3)


def test_phases_give_their_angle() -> None:
    angle = torch.linspace(-math.pi / 2, math.pi / 2 - 1e-3, 181)
    back = angle_of(phases_of(angle))
    off = torch.remainder(back - angle + math.pi / 2, math.pi) - math.pi / 2
    assert off.abs().max() < 1e-5
    # A square whose first phase says nothing still gets its angle, to a quarter turn.
    phases = phases_of(angle)
    phases[:, :2] = 0.01 * torch.randn(181, 2)
    off = torch.remainder(angle_of(phases) - angle + math.pi / 4, math.pi / 2) - math.pi / 4
    assert off.abs().max() < 1e-5


def test_candidates_lie_in_the_box_or_near_a_small_one() -> None:
    cells = cells_of([(8, 8), (4, 4)], (8, 16), torch.device("cpu"))
    boxes = torch.tensor([[32.0, 32, 40, 16, 0.0], [12.0, 12, 4, 4, 0.0]])
    obj, cell = candidates(boxes, cells)
    first = cells.centres[cell[obj == 0]]
    strides = cells.strides[cell[obj == 0]]
    inside = (first[:, 0] - 32).abs() <= torch.maximum(torch.tensor(20.0), 1.25 * strides)
    assert inside.all()
    second = cell[obj == 1]
    assert (cells.strides[second] == 8).all()  # too small for the coarse level
    assert len(second) == 9  # centres within 2.5 / 2 strides of it: 4, 12 and 20 each way


def test_the_best_cells_answer_and_none_twice() -> None:
    cells = cells_of([(4, 4)], (8,), torch.device("cpu"))
    targets = torch.tensor([[12.0, 12, 20, 20, 0.0], [20.0, 12, 20, 20, 0.0]])
    boxes = torch.cat([cells.centres, torch.full((16, 2), 20.0), torch.zeros(16, 1)], dim=1)
    scores = torch.full((16, 1), 0.5)
    found = assign(scores, boxes, targets, torch.zeros(2, dtype=torch.int64), cells)
    assert len(found.cell) == len(set(found.cell.tolist()))
    assert set(found.target.tolist()) == {0, 1}
    best = found.cell[found.quality.argmax()]
    assert float(found.quality.max()) == pytest.approx(1.0)
    assert tuple(cells.centres[best].tolist()) in {(12.0, 12.0), (20.0, 12.0)}
    none = assign(scores, boxes, targets[:0], torch.zeros(0, dtype=torch.int64), cells)
    assert len(none.cell) == 0


def test_the_loss_is_finite_without_objects_and_with_ignored_places() -> None:
    model = Detector(2, bands=1, width=16)
    images = torch.rand(2, 1, 64, 64)
    cells = model.cells(64, 64)
    empty = Targets(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5))
    whole = empty._replace(ignored=torch.tensor([[32.0, 32, 64, 64, 0.0]]))
    prediction = model(images)
    plain = detection_loss(prediction, [empty, empty], cells)["loss"]
    spared = detection_loss(prediction, [whole, whole], cells)["loss"]
    assert torch.isfinite(plain)
    assert 0 <= float(spared.detach()) < float(plain.detach())
    plain.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_windows_move_pixels_and_boxes_alike() -> None:
    image = np.zeros((1, 80, 100), np.uint8)
    image[0, 30:34, 60:72] = 200  # a bar of 12 x 4 around (66, 32)
    corners = corners_of(np.array([[66.0, 32, 12, 4, 0.0]]))
    for seed in range(6):
        random = np.random.default_rng(seed)
        jitter = Jitter(scale=(0.8, 2.0), focus=1.0)
        matrix = random_window(random, 64, (80, 100), corners.mean(axis=1), jitter)
        pixels = cut(image, matrix, 64)[0]
        shape = moved(corners, matrix)[0]
        weight = pixels / max(pixels.sum(), 1)
        y, x = np.mgrid[0.5:64, 0.5:64]
        middle = np.array([(x * weight).sum(), (y * weight).sum()])
        if visible_share(shape[None], 64)[0] > 0.999:
            np.testing.assert_allclose(middle, shape.mean(axis=0), atol=0.4)


def test_a_window_knows_how_much_it_shows() -> None:
    matrix = window_matrix(10, (5, 5), 1.0, 0.0, False)
    corners = np.array(
        [[[-5, 0], [5, 0], [5, 4], [-5, 4]], [[2, 2], [4, 2], [4, 4], [2, 4]]], float
    )
    np.testing.assert_allclose(visible_share(moved(corners, matrix), 10), (0.5, 1.0))


def bars(count: int, seed: int) -> list[TrainImage]:
    """Images with bright bars (class 0) and dark squares (class 1) on grey."""
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
        images.append(
            TrainImage(
                pixels,
                corners_of(np.array(boxes, np.float64)),
                np.array(labels),
                np.zeros(4, np.int64),
            )
        )
    return images


def test_it_learns_where_what_and_which_way(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    config = DetectTrainConfig(
        data="", window=96, width=32, steps=120, batch=8, learning_rate=4e-3, warmup=10, clip=10,
        ema=0.9, validate_every=60, rotation=0.3, scale_low=0.9, scale_high=1.1, device="cpu",
    )  # fmt: skip
    torch.manual_seed(0)
    model = Detector(2, bands=1, width=32)
    learner = DetectLearner(model, bars(24, 0), bars(6, 1), ("bar", "square"), config)
    result = fit(learner, config, tmp_path)
    assert result.best > 0.8
    image = bars(1, 2)[0]
    with torch.no_grad():
        batch = torch.from_numpy(learner.scaled(image.pixels))[None]
        boxes, scores, _ = boxes_of(model(batch), least=0.3)[0]
    assert len(boxes) >= 3
    assert (np.diff(scores) <= 0).all()


def test_cells_are_a_named_tuple() -> None:
    found = cells_of([(1, 2)], (8,), torch.device("cpu"))
    assert isinstance(found, Cells)
    assert found.centres.tolist() == [[4.0, 4.0], [12.0, 4.0]]
