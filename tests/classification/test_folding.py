"""Shorter forms of a network give the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rsfuse.classification.folding import (
    collapsed_head,
    folded,
    ms_embedding_kernel,
    pan_embedding_kernel,
    with_sliding_head,
    without_batch_norm,
)
from rsfuse.classification.model import DAS2F, Embed, FlattenHead, build_model
from rsfuse.errors import InputError


def test_two_linear_layers_are_one() -> None:
    head = FlattenHead(8, 4, 16, 3).double()
    x = torch.randn(5, 2, 4, 4, dtype=torch.float64)
    weight, bias = collapsed_head(head)
    torch.testing.assert_close(head(x), x.flatten(1) @ weight.T + bias, rtol=0, atol=1e-13)


def test_the_sliding_head_is_the_flattened_one_on_every_patch() -> None:
    model = build_model("das2f-reference-1").double().eval()
    sliding = with_sliding_head(model)
    features = torch.randn(1, 2 * 20, 2 * 21, 16, dtype=torch.float64)
    with torch.no_grad():
        mapped = sliding.head(features)
        assert mapped.shape == (1, 7, 20, 21)
        for row, column in ((7, 7), (9, 11), (11, 12)):  # index 7 of 16: all of the patch is inside
            top, left = 2 * (row - 7), 2 * (column - 7)
            patch = features[:, top : top + 32, left : left + 32]
            torch.testing.assert_close(mapped[..., row, column], model.head(patch))


def test_a_patch_network_maps_tiles() -> None:
    model = with_sliding_head(build_model("das2f-reference-1").eval())
    with torch.no_grad():
        logits = model(torch.randn(1, 4, 32, 16), torch.randn(1, 1, 128, 64))
    assert logits.shape == (1, 7, 32, 16)


def test_only_flatten_heads_slide() -> None:
    with pytest.raises(InputError, match="dense head"):
        with_sliding_head(DAS2F(3))


@pytest.mark.parametrize("ratio", [2, 3, 4, 5])
def test_embeddings_fold(ratio: int) -> None:
    ms_embed = Embed(3, 8, ratio).double()
    pan_embed = Embed(3, 8, ratio, lift=2).double()
    ms = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    pan = torch.randn(1, 2, 6 * ratio, 7 * ratio, dtype=torch.float64)
    with torch.no_grad():
        up = F.interpolate(ms, scale_factor=ratio, mode="bilinear", align_corners=False)
        kernel = ms_embedding_kernel(ms_embed.conv)
        around = F.pad(ms, (1, 1, 1, 1), mode="replicate")
        torch.testing.assert_close(
            ms_embed.conv(up), F.conv2d(around, kernel, ms_embed.conv.bias), rtol=0, atol=1e-13
        )
        weight, bias = pan_embedding_kernel(pan_embed.lift, pan_embed.conv)
        torch.testing.assert_close(
            pan_embed.conv(pan_embed.lift(pan)),
            F.conv2d(pan, weight, bias, stride=ratio),
            rtol=0,
            atol=1e-13,
        )


def test_batch_norm_folds_in_evaluation() -> None:
    conv, norm = nn.Conv2d(4, 6, 4, stride=4).double(), nn.BatchNorm2d(6).double()
    with torch.no_grad():
        for parameter in (*norm.parameters(), norm.running_mean, norm.running_var):
            parameter.copy_(torch.rand_like(parameter) + 0.5)
    norm.eval()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(norm(conv(x)), without_batch_norm(conv, norm)(x))


@pytest.mark.parametrize(("stages", "size"), [(1, 317_800), (2, 627_016)])
def test_a_folded_network_gives_the_same_numbers(stages: int, size: int) -> None:
    torch.manual_seed(0)
    model = build_model(f"das2f-reference-{stages}").double()
    ms = torch.randn(2, 4, 16, 16, dtype=torch.float64)
    pan = torch.randn(2, 1, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        model(ms, pan)  # moves the statistics of BatchNorm away from 0 and 1
        short = folded(model)
        expected = model.eval()(ms, pan)
        torch.testing.assert_close(short(ms, pan), expected, rtol=0, atol=1e-12)
    classes = expected.shape[1]
    assert sum(p.numel() for p in short.head.parameters()) == 16_384 * classes + classes
    assert sum(p.numel() for p in model.parameters()) > 20 * sum(
        p.numel() for p in short.parameters()
    )
    assert not any(isinstance(m, nn.BatchNorm2d) for m in short.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())  # the original is untouched
    long_head = sum(p.numel() for p in model.head.parameters())
    assert sum(p.numel() for p in model.parameters()) - long_head == size


@pytest.mark.parametrize(("ratio", "resolution"), [(2, "ms"), (3, "pan")])
def test_a_folded_dense_network_gives_the_same_numbers(ratio: int, resolution: str) -> None:
    torch.manual_seed(0)
    model = DAS2F(3, bands=5, pan_bands=2, ratio=ratio, resolution=resolution)  # type: ignore[arg-type]
    model = model.double().eval()
    ms = torch.randn(1, 5, 18, 20, dtype=torch.float64)
    pan = torch.randn(1, 2, 18 * ratio, 20 * ratio, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(model)(ms, pan), model(ms, pan), rtol=0, atol=1e-12)
