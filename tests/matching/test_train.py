"""Training of the matcher: samples by number, a smoke run that ends in a usable bundle."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import rsfuse
from rsfuse.cli.main import main
from rsfuse.engine.bundle import load_bundle, shipped_bundles
from rsfuse.errors import InputError
from rsfuse.matching.learned import load_measurer
from rsfuse.matching.predict import METHODS
from rsfuse.matching.train import MatchTrainConfig, pick_anchors, truth_of
from rsfuse.simulate import make_warp, render, simulate_scene
from trainings import MATCH


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    (folder / "c.toml").write_text(MATCH)
    words = ["train", "match", str(folder / "c.toml"), "-o", str(folder / "run"), "--quiet"]
    assert main([*words, "--progress", "none"]) == 0
    return folder / "run"


def test_a_training_ends_in_a_bundle_that_matches(run: Path) -> None:
    bundle = load_bundle(run / "bundle", "match")
    assert bundle.card.architecture == "cstf"
    assert bundle.card.training["data"] == ["1 simulated scenes"]
    assert "within_2px" in json.loads((run / "scores.json").read_text())
    scene = simulate_scene(256, gsd_m=1.0, seed=4)
    reference, query = render(scene, "pan").data, render(scene, "ms").data
    result = rsfuse.match(reference, query, weights=run / "bundle", upright=True)
    assert result.parameters["method"] == "cstf"
    assert result.parameters["weights"].startswith("tiny ")
    assert result.transform is not None


def test_the_shipped_matcher_registers_radar_to_optical() -> None:
    scene = simulate_scene(384, gsd_m=1.0, seed=12)
    warp = make_warp("affine", scene)
    reference = render(scene, "pan").data
    query = render(scene, "sar", warp=warp, looks=4).data
    result = rsfuse.match(reference, query, method="cstf", upright=True)
    assert result.transform is not None
    xy = np.stack(np.meshgrid([100, 200, 280], [100, 200, 280]), -1).reshape(-1, 2).astype(float)
    gap = np.hypot(*(result.transform.apply(xy) - warp.forward(xy)).T)
    assert np.median(gap) < 3.0
    assert len(result.tie_points) > 30


def test_small_enough_for_a_laptop() -> None:
    folder = shipped_bundles()["cstf"]
    model = load_measurer("cstf").model
    assert sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 8_000_000


def test_weights_of_another_task_are_refused() -> None:
    image = np.zeros((1, 64, 64), np.float32)
    with pytest.raises(InputError, match="rsfuse detect"):
        rsfuse.match(image, image, weights="hit-uav-tiny")
    with pytest.raises(InputError, match="not a model bundle"):
        rsfuse.match(image, image, weights="nowhere")
    assert METHODS == ("auto", "cstf", "classic")


def test_a_window_is_whole_patches() -> None:
    with pytest.raises(ValueError, match="not a multiple of the patch"):
        MatchTrainConfig(window=72, patch=16)


def test_truth_at_anchors_and_patches() -> None:
    rows = torch.arange(5.0)[:, None].expand(5, 5)
    shift = torch.stack([torch.full((5, 5), 20.0), rows], -1)[None]  # 32 px, patches of 16
    anchors = torch.tensor([[[1, 3]]])
    truth = truth_of(shift, torch.tensor([True]), anchors, 16)
    assert truth.shift[0, 0].tolist() == [20.0, 3.0]
    assert truth.grid == (2, 2)
    assert truth.patches[0, :, 1].tolist() == [1.0, 1.0, 3.0, 3.0]
    # Patches of the right column leave the window: 24 + 20 > 32.
    assert truth.patches_related[0].tolist() == [True, False, True, False]


def test_half_of_the_anchors_are_near_keypoints() -> None:
    from rsfuse.matching.pairs import MatchSample

    mass = np.zeros((1, 8, 8), np.float32)
    mass[0, 3, 4] = 1
    empty = np.zeros(0, np.float32)
    sample = MatchSample(empty, empty, mass, mass, empty, np.float32(1))  # type: ignore[arg-type]
    anchors = pick_anchors(np.random.default_rng(0), sample, 6)
    assert anchors.shape == (6, 2)
    assert np.abs(anchors[0] - [4.5, 3.5]).max() <= 0.5
    assert anchors.min() >= 1
    assert anchors.max() <= 7


def test_pictures_show_what_was_asked_and_said(run: Path) -> None:
    sheet = sorted((run / "pictures").glob("step_*.png"))
    assert sheet
    picture = cv2.imread(str(sheet[-1])).astype(int)
    assert picture.shape[:2] == (3 * 488 + 8, 2 * 488 + 8)  # three pairs
    assert (np.ptp(picture, axis=2) > 60).any()
