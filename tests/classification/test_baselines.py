"""The U-Net and the random forest that DAS2F is measured against."""

import sys

import numpy as np
import pytest
import torch

from rsfuse.classification.baselines import UNet, fit_forest, pixel_features
from rsfuse.errors import RsfuseError


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def unet(**arguments: object) -> UNet:
    torch.manual_seed(0)
    return UNet(5, **arguments).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("resolution", ["ms", "pan"])
@pytest.mark.parametrize(("ratio", "bands"), [(1, 3), (2, 6), (4, 4), (5, 1)])
def test_logits_have_the_size_of_the_map(ratio: int, bands: int, resolution: str) -> None:
    model = unet(bands=bands, ratio=ratio, width=8, resolution=resolution)
    factor = ratio if resolution == "pan" else 1
    # Sides that no level divides.
    found = model(torch.randn(2, bands, 9, 14), torch.randn(2, 1, 9 * ratio, 14 * ratio))
    assert found.shape == (2, 5, 9 * factor, 14 * factor)
    assert model.factor == factor


def test_it_costs_about_as_much_as_the_network_it_is_compared_with() -> None:
    parameters = sum(p.numel() for p in UNet(7, bands=4, ratio=4).parameters())
    assert 0.2e6 < parameters < 0.6e6


@pytest.mark.parametrize("resolution", ["ms", "pan"])
def test_a_class_depends_on_nothing_beyond_the_halo(resolution: str) -> None:
    model = unet(bands=2, ratio=2, width=4, resolution=resolution)
    side = 96
    ms = torch.randn(1, 2, side, side, requires_grad=True)
    pan = torch.randn(1, 1, 2 * side, 2 * side, requires_grad=True)
    row, column = 44, 47
    at = (row * model.factor, column * model.factor)
    model(ms, pan)[0, :, at[0], at[1]].sum().backward()
    assert ms.grad is not None
    assert pan.grad is not None
    for grad, pixels in ((ms.grad, 1), (pan.grad, 2)):
        rows, columns = np.nonzero(grad[0].abs().sum(0).numpy())
        # The halo is counted from the MS pixel that holds the class pixel.
        assert (rows // pixels).min() >= row - model.halo
        assert (rows // pixels).max() <= row + model.halo
        assert (columns // pixels).min() >= column - model.halo
        assert (columns // pixels).max() <= column + model.halo
        assert (rows // pixels).max() - row > 4, "and on more than the pixel itself"


def test_a_tile_with_its_halo_gives_what_the_whole_scene_gives() -> None:
    model = unet(bands=2, ratio=2, width=4)
    ms, pan = torch.randn(1, 2, 96, 96), torch.randn(1, 1, 192, 192)
    with torch.inference_mode():
        whole = model(ms, pan)
        tile = model(ms[..., 12:80, 8:88], pan[..., 24:160, 16:176])
    halo = model.halo
    core = tile[..., halo:-halo, halo:-halo]
    expected = whole[..., 12 + halo : 80 - halo, 8 + halo : 88 - halo]
    torch.testing.assert_close(core, expected, atol=1e-5, rtol=1e-5)


def test_both_images_are_used() -> None:
    model = unet(bands=2, ratio=2, width=4)
    ms, pan = torch.randn(1, 2, 16, 16), torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        first = model(ms, pan)
        assert (model(ms + 1, pan) - first).abs().max() > 1e-4
        assert (model(ms, pan + torch.randn_like(pan)) - first).abs().max() > 1e-4


def test_features_of_a_checked_pan_worked_out_on_paper() -> None:
    # MS 1 x 1 pixel of 5; PAN 2 x 2 around 1..4: mean 2.5.
    ms = np.full((1, 1, 1), 5, np.float32)
    pan = np.array([[[1, 2], [3, 4]]], np.float32)
    found = pixel_features(ms, pan, 1)
    assert found.shape == (6, 1, 1), "a band; PAN; mean and deviation of 3 x 3; of 7 x 7"
    assert found[0, 0, 0] == 5.0
    assert found[1, 0, 0] == pytest.approx(2.5)
    assert found[2, 0, 0] == pytest.approx(2.5), "edges repeat evenly on both sides"


def test_deviation_of_even_ground_is_zero_and_of_a_checkerboard_near_half_its_range() -> None:
    ms = np.zeros((1, 8, 8), np.float32)
    even = pixel_features(ms, np.full((1, 16, 16), 0.7, np.float32), 1)
    np.testing.assert_allclose(even[[3, 5]], 0.0, atol=1e-3)
    board = (np.indices((16, 16)).sum(axis=0) % 2).astype(np.float32)[None]
    found = pixel_features(ms, board, 1)
    # 4 or 5 of 9 pixels are one: sqrt(20/81).
    np.testing.assert_allclose(found[3, 2:-2, 2:-2], np.sqrt(20 / 81), atol=1e-3)


def test_features_at_pan_resolution_repeat_ms() -> None:
    ms = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    found = pixel_features(ms, np.zeros((1, 6, 6), np.float32), 3)
    assert found.shape[1:] == (6, 6)
    assert (found[0, :3, 3:] == 1).all()
    assert (found[0, 3:, :3] == 2).all()


def test_forest_learns_what_a_threshold_tells_apart(rng: np.random.Generator) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn comes with rsfuse[train]")
    features = rng.random((120, 3)).astype(np.float32)
    labels = (features[:, 1] > 0.5).astype(np.int64)
    forest = fit_forest(features[:80], labels[:80], seed=0)
    assert (forest.predict(features[80:]) == labels[80:]).mean() > 0.9
    odds = forest.predict_proba(features[80:])
    again = fit_forest(features[:80], labels[:80], seed=0).predict_proba(features[80:])
    np.testing.assert_array_equal(odds, again)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(RsfuseError) as caught:
        fit_forest(np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]), 0)
    assert "rsfuse[train]" in caught.value.fix
