"""Backbones: strides, bands, the names of published weights, and what loads them."""

import pytest
import torch
from torch import Tensor

from rsfuse.errors import InputError
from rsfuse.nn.backbone import (
    FPN,
    BasicBlock,
    ResNet,
    load_backbone,
    make_backbone,
    padded,
    parameters_of,
)

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def resnet_names(depths: tuple[int, ...], convolutions: int, first_projects: bool) -> set[str]:
    """Names of the tensors of torchvision's ResNets, without the classifier."""
    names = {"conv1.weight"} | {f"bn1.{n}" for n in NORM}
    for layer, depth in enumerate(depths, 1):
        for block in range(depth):
            stem = f"layer{layer}.{block}"
            for c in range(1, convolutions + 1):
                names |= {f"{stem}.conv{c}.weight"} | {f"{stem}.bn{c}.{n}" for n in NORM}
            if block == 0 and (layer > 1 or first_projects):
                names |= {f"{stem}.downsample.0.weight"}
                names |= {f"{stem}.downsample.1.{n}" for n in NORM}
    return names


def small_resnet(bands: int = 3) -> ResNet:
    """One block per stage: the names of stage 1 to 4, a fraction of the work."""
    return ResNet(BasicBlock, (1, 1, 1, 1), bands)


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_features_have_strides_4_to_32_for_any_bands(bands: int) -> None:
    for net in (make_backbone("tiny", bands), small_resnet(bands)):
        net.eval()
        with torch.no_grad():
            shapes = [tuple(x.shape[1:]) for x in net(torch.zeros(1, bands, 64, 96))]
        sides = [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert shapes == [(c, *s) for c, s in zip(net.channels, sides, strict=True)]


@pytest.mark.parametrize(
    ("name", "depths", "convolutions", "first_projects", "parameters"),
    [
        # Published totals without the classifier (512 or 2048 x 1000 + 1000).
        ("r18", (2, 2, 2, 2), 2, False, 11_689_512 - 513_000),
        ("r34", (3, 4, 6, 3), 2, False, 21_797_672 - 513_000),
        ("r50", (3, 4, 6, 3), 3, True, 25_557_032 - 2_049_000),
    ],
)
def test_resnets_have_the_published_names_and_sizes(
    name: str, depths: tuple[int, ...], convolutions: int, first_projects: bool, parameters: int
) -> None:
    with torch.device("meta"):
        net = make_backbone(name)
    assert set(net.state_dict()) == resnet_names(depths, convolutions, first_projects)
    assert parameters_of(net) == parameters


@pytest.mark.parametrize("bands", [1, 3, 5])
def test_published_weights_load_and_adapt_to_the_bands(bands: int) -> None:
    donor = small_resnet()
    state: dict[str, Tensor] = {
        name: value
        for name, value in donor.state_dict().items()
        if not name.endswith("num_batches_tracked")  # older files lack it
    }
    state |= {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    net = small_resnet(bands)
    load_backbone(net, state)
    given, ours = state["conv1.weight"], net.conv1.weight
    if bands == 3:
        torch.testing.assert_close(ours, given, rtol=0, atol=0)
    # A grey image gives the same answer as in the published network.
    grey = torch.rand(1, 1, 32, 32)
    net.eval(), donor.eval()
    with torch.no_grad():
        answer = net(grey.expand(-1, bands, -1, -1))[0]
        published = donor(grey.expand(-1, 3, -1, -1))[0]
    torch.testing.assert_close(answer, published, rtol=1e-4, atol=1e-4)


def test_weights_of_another_network_are_refused_and_nothing_is_loaded() -> None:
    net = small_resnet()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wrong = {name: torch.ones_like(value) for name, value in before.items()}
    wrong["layer4.0.conv2.weight"] = torch.ones(512, 512, 1, 1)
    with pytest.raises(InputError, match="1 of another shape"):
        load_backbone(net, wrong)
    with pytest.raises(InputError, match="names missing"):
        load_backbone(net, {"conv1.weight": before["conv1.weight"]})
    with pytest.raises(InputError, match="1 unknown"):
        load_backbone(net, {**before, "layer5.weight": torch.ones(1)})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(InputError, match="unknown"):
        make_backbone("r19")


def test_a_pyramid_hands_coarse_features_down_and_none_up() -> None:
    fpn = FPN((4, 6, 8), 8).eval()
    levels = [torch.rand(1, c, s, s) for c, s in ((4, 16), (6, 8), (8, 4))]
    with torch.no_grad():
        before = fpn(levels)
        assert [tuple(x.shape) for x in before] == [(1, 8, s, s) for s in (16, 8, 4)]
        coarse = [levels[0], levels[1], levels[2] + 1]
        fine = [levels[0] + 1, levels[1], levels[2]]
        from_coarse, from_fine = fpn(coarse), fpn(fine)
    assert all(not torch.equal(a, b) for a, b in zip(before, from_coarse, strict=True))
    assert [torch.equal(a, b) for a, b in zip(before, from_fine, strict=True)] == [
        False, True, True,
    ]  # fmt: skip


def test_padding_is_zero_at_the_right_and_below() -> None:
    image = torch.ones(1, 2, 33, 64)
    out = padded(image, 32)
    assert out.shape == (1, 2, 64, 64)
    assert torch.equal(out[..., :33, :], image)
    assert out[..., 33:, :].abs().max() == 0
    assert padded(out, 32) is out
