"""Detection with a second image: what it may change, how it is aligned, and that it is learned."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rsfuse.detection.augment import Jitter
from rsfuse.detection.config import DetectTrainConfig
from rsfuse.detection.learner import DetectLearner
from rsfuse.detection.loss import pair_loss
from rsfuse.detection.model import Detector
from rsfuse.detection.network import detect_array
from rsfuse.detection.pair import (
    PATCH,
    Match,
    corner_mass,
    displaced,
    in_windows,
    made_whole,
)
from rsfuse.detection.run import DetectJob, detect
from rsfuse.detection.train import start_from, train
from rsfuse.detection.views import PairJitter, TrainImage, partner_view, window_view
from rsfuse.engine.seeds import seeded
from rsfuse.errors import BandError, InputError
from rsfuse.nn.cstf import FUSIONS, Fusion, patch_centres
from rsfuse.simulate import make_warp, simulate_scene, write_scene


def pair_detector(**arguments: object) -> Detector:
    with seeded(2):
        return Detector(2, 1, width=32, partner_bands=1, **arguments).eval()  # type: ignore[arg-type]


def awake(model: Detector) -> Detector:
    """With the last layers of the fusion away from zero, as after training."""
    with seeded(3):
        for layer in model.pair.added:
            torch.nn.init.normal_(layer.weight, std=0.5)
    return model


@pytest.mark.parametrize("fusion", FUSIONS)
def test_training_begins_with_the_detector_for_one_image(fusion: Fusion) -> None:
    model = pair_detector(fusion=fusion)
    image, query = torch.rand(2, 1, 100, 170), torch.rand(2, 1, 100, 170)
    with torch.no_grad():
        alone, paired = model(image), model(image, query)
    torch.testing.assert_close(alone.logits, paired.logits)
    assert alone.match is None
    assert paired.match is not None
    assert paired.match.there.shape == (2, 64, 65)


def test_an_absent_query_changes_nothing_and_a_present_one_does() -> None:
    model = awake(pair_detector())
    image, query = torch.rand(2, 1, 128, 128), torch.rand(2, 1, 128, 128)
    with torch.no_grad():
        alone = model(image).logits
        mixed = model(image, query, torch.tensor([0.0, 1.0])).logits
    torch.testing.assert_close(mixed[0], alone[0])
    assert (mixed[1] - alone[1]).abs().max() > 1e-3


def test_features_are_read_where_the_match_says() -> None:
    features = torch.arange(48.0).reshape(1, 1, 6, 8)
    offset = torch.zeros(1, 2, 6, 8)
    offset[:, 0] = 2
    offset[:, 1] = 1
    moved = displaced(features, offset)
    torch.testing.assert_close(moved[0, 0, :5, :6], features[0, 0, 1:, 2:])
    assert moved[0, 0, 5].abs().max() == 0


def test_where_nothing_is_seen_the_query_lies_where_its_georeference_says() -> None:
    model = pair_detector()
    features = model.features(torch.zeros(1, 1, 256, 256))
    masses = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    with torch.no_grad():
        _, match = model.pair(features, features, masses, torch.ones(1))
    inner = [9 * k + 9 for k in range(6)]  # patches off the border of the window, on its diagonal
    place = match.there[0, inner, :-1].softmax(dim=-1) @ patch_centres((8, 8)).float()
    torch.testing.assert_close(place, patch_centres((8, 8)).float()[inner], rtol=0, atol=0.6)


def test_windows_come_back_made_whole() -> None:
    grid = torch.randn(2, 3, 11, 5)
    cut = in_windows(grid)
    assert cut.shape == (2 * 2 * 1, 64, 3)
    torch.testing.assert_close(made_whole(cut, 2, (2, 1), (11, 5)), grid)


def test_corners_are_keypoints_and_edges_are_not() -> None:
    image = torch.zeros(1, 1, 64, 64)
    image[:, :, 16:, 16:] = 1  # one corner in the upper left patch; edges leave through the others
    mass = corner_mass(image)
    assert mass.shape == (1, 1, 2, 2)
    assert mass[0, 0, 0, 0] == 1


def certain(shift_patches: int) -> Match:
    """A match of one window that is sure that everything lies so many patches to the right."""
    there = torch.full((1, 64, 65), -30.0)
    back = torch.full((1, 64, 65), -30.0)
    for i in range(64):
        j = i + shift_patches if i % 8 + shift_patches < 8 else 64
        k = i - shift_patches if i % 8 - shift_patches >= 0 else 64
        there[0, i, j] = back[0, i, k] = 0
    return Match(there, back, (1, 1))


def test_a_right_match_costs_nothing_and_a_wrong_one_much() -> None:
    one = torch.ones(1)
    shift = torch.zeros(1, 2, 8, 8)
    shift[:, 0] = PATCH
    right = pair_loss(certain(1), shift, one, one)
    assert float(right) == pytest.approx(0, abs=1e-5)
    assert float(pair_loss(certain(0), shift, one, one)) == pytest.approx(30, rel=0.01)
    assert float(pair_loss(certain(1), shift, one, 0 * one)) == 0
    lost = Match(*(torch.full((1, 64, 65), -30.0) for _ in range(2)), (1, 1))
    for part in lost[:2]:
        part[..., -1] = 0
    assert float(pair_loss(lost, shift, 0 * one, one)) == pytest.approx(0, abs=1e-5)


def test_the_truth_of_a_moved_query() -> None:
    rng = np.random.default_rng(4)
    pixels = np.zeros((1, 256, 256), np.float32)
    spots = [(80, 96), (176, 112), (112, 176)]
    for x, y in spots:
        pixels[0, y - 2 : y + 2, x - 2 : x + 2] = 1.0
    empty = np.zeros((0, 4, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64)
    image = TrainImage(pixels, *empty, partner=pixels)
    plain = Jitter(scale=(1.0, 1.0), gain=0, offset=0)
    jitter = PairJitter(absent=0, unrelated=0, displaced=1)
    view = window_view(image, 256, rng, plain, lambda p: p)
    query = partner_view(view, image, image, rng, jitter, plain, lambda p: p)
    assert query.present
    assert query.related
    from scipy import ndimage

    def places(picture: np.ndarray) -> np.ndarray:
        labels, count = ndimage.label(picture > 0.2)
        found = ndimage.center_of_mass(picture, labels, range(1, count + 1))
        return np.array(found)[:, ::-1] + 0.5

    before, after = places(view.pixels[0]), places(query.pixels[0])
    grid = query.shift.reshape(2, 8, 8)
    for place in before:
        column, row = ((place - PATCH / 2) / PATCH).clip(0, 6)
        shift = np.array(
            [ndimage.map_coordinates(part, [[row], [column]], order=1)[0] for part in grid]
        )
        assert np.hypot(*(after - (place + shift)).T).min() < 0.5


def test_windows_keeps_the_order_of_patches() -> None:
    shift = torch.zeros(1, 2, 8, 8)
    shift[0, 0, 3, 5] = 7
    assert in_windows(shift)[0, 3 * 8 + 5, 0] == 7


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for seed in (1, 2):
        scene = simulate_scene(192, gsd_m=0.5, seed=seed)
        write_scene(
            folder / f"s{seed}", scene, modalities=("pan", "thermal"),
            warp=make_warp("none", scene),
        )  # fmt: skip
    return folder


SETTINGS = {
    "format": "simulated", "window": 128, "width": 32, "steps": 2, "batch": 2, "warmup": 1,
    "validate_every": 2, "device": "cpu", "threads": 1, "low": [300.0], "high": [6500.0],
    "partner": "thermal", "partner_low": [27500.0], "partner_high": [32500.0], "night": 0.5,
    "gsd_m": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = DetectTrainConfig(data=str(scenes), **SETTINGS)  # type: ignore[arg-type]
    return train(config, folder).bundle.path


def test_a_trained_pair_detector_takes_one_image_or_two(scenes: Path, bundle: Path) -> None:
    card = json.loads((bundle / "bundle.json").read_text())
    assert [entry["name"] for entry in card["inputs"]] == ["image", "partner"]
    scene = scenes / "s1"
    for partner in (None, scene / "thermal.tif"):
        found = detect(scene / "pan.tif", bundle, partner=partner, score=0.0)
        assert found.geobox is not None


def test_what_cannot_be_a_second_image_is_refused(scenes: Path, bundle: Path) -> None:
    scene = scenes / "s1"
    with pytest.raises(InputError, match="takes one image"):
        detect(scene / "pan.tif", "simulated-objects", partner=scene / "thermal.tif")
    with pytest.raises(InputError, match="no common georeference"):
        detect(np.ones((1, 64, 64), np.float32), bundle, partner=np.ones((1, 32, 32), np.float32))
    with pytest.raises(BandError, match="3 bands"):
        detect(np.ones((1, 64, 64), np.float32), bundle, partner=np.ones((3, 64, 64), np.float32))


def test_pairs_need_whole_patches() -> None:
    with pytest.raises(ValueError, match="whole 32 pixels"):
        DetectTrainConfig(data="", partner="thermal", window=100)


def test_a_pair_training_starts_from_a_detector_of_one_image() -> None:
    model = pair_detector()
    single = Detector(2, 1, width=32)

    bundle = SimpleNamespace(
        card=SimpleNamespace(arguments={"classes": 2, "bands": 1, "width": 32}),
        load_into=lambda target: target.load_state_dict(single.state_dict()),
    )
    start_from(model, bundle)  # type: ignore[arg-type]
    torch.testing.assert_close(
        model.head.score.weight,
        single.head.score.weight,  # type: ignore[arg-type]
    )
    ours = model.state_dict()  # both images begin with the same eyes
    eyes = [n for n in single.state_dict() if n.startswith(("backbone.", "pyramid."))]
    assert len(eyes) > 50
    for name in eyes:
        torch.testing.assert_close(ours[f"partner_{name}"], single.state_dict()[name])


def test_what_is_frozen_stays_the_detector_of_one_image(scenes: Path, tmp_path: Path) -> None:
    alone = {k: v for k, v in SETTINGS.items() if not k.startswith("partner")}
    start = train(DetectTrainConfig(data=str(scenes), **alone), tmp_path / "one").bundle  # type: ignore[arg-type]
    config = DetectTrainConfig(
        data=str(scenes),
        start=str(start.path),
        freeze_single=True,
        **SETTINGS,  # type: ignore[arg-type]
    )
    bundle = train(config, tmp_path / "two").bundle
    single, pair = Detector(**start.card.arguments), Detector(**bundle.card.arguments)
    start.load_into(single)
    bundle.load_into(pair)
    kept, ours = single.state_dict(), pair.state_dict()
    for name, value in kept.items():  # the statistics of norms as well
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
    assert any(ours[f"partner_{n}"].ne(v).any() for n, v in kept.items() if "backbone" in n)
    assert pair.pair.added[0].weight.abs().max() > 0


def test_nothing_is_frozen_without_a_start() -> None:
    with pytest.raises(ValueError, match="freeze_single needs"):
        DetectTrainConfig(data="", partner="thermal", freeze_single=True)


def test_weights_for_other_classes_are_refused() -> None:
    bundle = SimpleNamespace(
        path="b",
        card=SimpleNamespace(arguments={"classes": 5, "bands": 1, "width": 32}),
        load_into=lambda target: None,
    )
    with pytest.raises(InputError, match=r"head\.score\.weight is of another shape"):
        start_from(pair_detector(), bundle)  # type: ignore[arg-type]


def test_a_sample_of_a_pair_depends_on_its_number_alone() -> None:
    image = TrainImage(
        np.random.default_rng(0).integers(0, 255, (1, 160, 160)).astype(np.uint8),
        np.array([[[20, 20], [60, 20], [60, 40], [20, 40]]], np.float64),
        np.zeros(1, np.int64),
        np.zeros(1, np.int64),
        partner=np.zeros((1, 160, 160), np.uint8),
    )
    settings = DetectTrainConfig(data="", window=128, partner="x", night=0.5, batch=2)
    learner = DetectLearner(pair_detector(), [image], [image], ("a", "b"), settings)
    one, again = learner.sample(3), learner.sample(3)
    assert torch.equal(one[0], again[0])
    np.testing.assert_array_equal(one[2].shift, again[2].shift)  # type: ignore[union-attr]
    dark = DetectLearner(
        pair_detector(), [image], [image], ("a", "b"), settings.model_copy(update={"night": 1.0})
    )
    shifts = [np.abs(dark.sample(k)[2].shift).max() for k in range(8)]  # type: ignore[union-attr]
    assert max(shifts) == 0  # what nothing tells is not asked for
    batch = learner.collate([one, learner.sample(4)])
    parts = learner.loss(learner.model, batch, 0)
    assert torch.isfinite(parts["loss"])
    assert parts["match"] > 0


def test_tiles_take_their_part_of_the_query() -> None:
    model = awake(pair_detector())
    image, query = torch.rand(1, 300, 300), torch.rand(1, 300, 300)
    whole = detect_array(model, image, query, score=0.0, tile=320)
    tiled = detect_array(model, image, query, score=0.0, tile=256, overlap=64)
    assert len(whole[0]) > 0
    assert len(tiled[0]) > 0
    assert DetectJob("x").partner is None
