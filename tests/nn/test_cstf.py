"""The CSTF block: shapes, variants, invariances, the coarse classification."""

import math

import pytest
import torch

from rsfuse.nn.cstf import CSTF, FUSIONS, CoarseMatcher, Fusion, parts_of, sine_positions

B, GRID, D = 2, (3, 5), 32
N = GRID[0] * GRID[1]


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(B, N, D, generator=generator) for _ in range(2))  # type: ignore[return-value]


def block(**arguments: object) -> CSTF:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return CSTF(D, heads=4, depth=2, **arguments).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("temporal", [True, False])
def test_every_variant_gives_tokens_of_both_images(
    fusion: Fusion, temporal: bool, tokens: tuple[torch.Tensor, torch.Tensor]
) -> None:
    fused = block(fusion=fusion, temporal=temporal)(*tokens, GRID)
    assert fused.tokens0.shape == fused.tokens1.shape == fused.aligned0.shape == (B, N, D)
    assert (fused.map0 is None) == ("sca" not in parts_of(fusion))
    if fused.map0 is not None:
        torch.testing.assert_close(fused.map0.sum(dim=-1), torch.ones(B, N))


def test_without_fusion_the_images_never_meet(
    tokens: tuple[torch.Tensor, torch.Tensor],
) -> None:
    model = block(fusion="none")
    alone = model(tokens[0], tokens[1], GRID).tokens0
    beside_another = model(tokens[0], -tokens[1], GRID).tokens0
    torch.testing.assert_close(alone, beside_another)


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if f != "none"])
def test_with_fusion_they_do(fusion: Fusion, tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = block(fusion=fusion)
    one = model(tokens[0], tokens[1], GRID).tokens0
    other = model(tokens[0], -tokens[1], GRID).tokens0
    assert (one - other).abs().max() > 1e-3


def test_concatenation_and_sum_differ_in_weights_only_by_the_joint() -> None:
    count = {f: sum(p.numel() for p in block(fusion=f).parameters()) for f in FUSIONS}
    assert count["ca||sca"] - count["ca+sca"] == 2 * (2 * D * D + D)
    assert count["none"] < min(count["ca"], count["sca"])


def test_keypoints_attract_attention(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = block(fusion="sca")
    mass = torch.zeros(B, N)
    mass[:, 7] = 1
    for layer in model.blocks:
        torch.nn.init.constant_(layer.spatial.attraction, 2.0)
    even = model(*tokens, GRID).map0
    drawn = model(*tokens, GRID, None, mass).map0
    assert (drawn[:, :, 7] > even[:, :, 7]).all()


def test_both_directions_share_their_weights(
    tokens: tuple[torch.Tensor, torch.Tensor],
) -> None:
    model = block()  # the view embedding starts at zero, so nothing tells the two apart
    there = model(tokens[0], tokens[1], GRID)
    back = model(tokens[1], tokens[0], GRID)
    torch.testing.assert_close(there.tokens0, back.tokens1)
    torch.testing.assert_close(there.map0, back.map1)


def test_equal_tokens_cost_the_logarithm_of_the_number_of_classes() -> None:
    coarse = CoarseMatcher(D)
    there, back = coarse(torch.zeros(1, 1024, D), torch.zeros(1, 1024, D))
    assert there.shape == back.shape == (1, 1024, 1025)
    assert float(-there.detach().mean()) == pytest.approx(math.log(1025), abs=1e-5)  # 6.93


def test_positions_of_patches_are_all_different() -> None:
    places = sine_positions(GRID, D)
    assert places.shape == (N, D)
    assert torch.cdist(places, places).fill_diagonal_(1.0).min() > 0.1
