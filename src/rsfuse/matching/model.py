"""CSTF for matching: learned features, several regions at once, positions by SoftMax.

A CSTF-style matcher after arXiv 2507.19118; what is read into the paper is said in `nn.cstf`. Both
images lie on one lattice, so what is asked is a displacement of a few pixels:

1. A small fully convolutional encoder adds to the structure channels what training found useful.
   Its last layer starts at zero, so an untrained network sees what the training-free matcher sees.
2. Patch tokens of both images pass the CSTF block, with the keypoints of each image as bias. What
   comes out weighs the channels: which of them to trust, here, between these two sensors.
3. Correlation maps over all displacements of a place itself and of its four neighbours, each for a
   small and a large template.
4. A fully convolutional head reads the maps of a place; a SoftMax over the positions and "no match"
   makes them probabilities. No fully connected layer describes anything.

Letters: B pairs, H x W lattice, r radius, S = 2r + 1, A anchors, R = 10 maps of an anchor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsfuse.nn.cstf import CSTF, CoarseMatcher, Fused, Fusion
from rsfuse.ops.correlation import block_correlation

CHANNELS = 6  # re and im of both harmonics, grey value, strength
STRUCTURE = 4
STRIDE = 2  # pixels between samples of a correlation
BLOCK = 4  # samples along a block
CELL = STRIDE * BLOCK  # pixels along a block: anchors are corners of blocks
TEMPLATES = (4, 8)  # sides of the templates in blocks: 32 and 64 px
MAPS = 5 * len(TEMPLATES)
MOST_PATCHES = 32  # along a side of the grid of tokens; a larger lattice has larger patches
VALID_SHARE = 0.6  # of a template that must be known


class Described(NamedTuple):
    """An image as it is correlated.

    Attributes:
        features: (B, C, H, W), 0 where unknown.
        known: (B, 1, H, W) 1 where known, else 0.
    """

    features: Tensor
    known: Tensor


class Maps(NamedTuple):
    """Correlation of anchors at every displacement.

    Attributes:
        scores: (B, A, R, S, S) normalised correlations, -1 to 1; first the small templates (own,
            left, right, above, below), then the large ones.
        known: (B, A) whether enough of the large template and of its counterpart is known.
    """

    scores: Tensor
    known: Tensor


class Positions(NamedTuple):
    """What the head says of anchors.

    Attributes:
        logits: (B, A, S * S + 1): displacements row by row, dy first, then "no match".
        maps: What it was read from.
        coarse: Log-probabilities over patches in both directions, see `CoarseMatcher`.
        fused: Tokens after the CSTF block.
    """

    logits: Tensor
    maps: Maps
    coarse: tuple[Tensor, Tensor]
    fused: Fused


class CstfMatcher(nn.Module):
    """The matching network.

    Args:
        width: Width of the tokens.
        heads: Heads of the attentions.
        depth: CSTF blocks.
        features: Channels of the encoder at half resolution.
        learned: Feature channels beside the four structure channels.
        patch: Side of a patch in pixels: 16, 32 or 64.
        fusion: See `nn.cstf`.
        temporal: Whether there is a temporal step.
        keypoint_bias: Whether keypoints attract attention.
        head: "fcn" or "fc", the baseline that describes templates by a fully connected layer.
    """

    def __init__(
        self,
        width: int = 64,
        *,
        heads: int = 4,
        depth: int = 2,
        features: int = 32,
        learned: int = 8,
        patch: int = 16,
        fusion: Fusion = "ca||sca",
        temporal: bool = True,
        keypoint_bias: bool = True,
        head: str = "fcn",
    ) -> None:
        super().__init__()
        self.patch = patch
        self.encoder = Encoder(features, STRUCTURE + learned)
        self.embed = nn.Linear(features + 1, width)
        self.cstf = CSTF(
            width,
            heads=heads,
            depth=depth,
            fusion=fusion,
            temporal=temporal,
            keypoint_bias=keypoint_bias,
        )
        self.gate = nn.Linear(width, STRUCTURE + learned)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.coarse = CoarseMatcher(width)
        self.head: PositionHead | VectorHead = (
            PositionHead() if head == "fcn" else VectorHead(STRUCTURE + learned)
        )

    def forward(
        self,
        image0: Tensor,
        image1: Tensor,
        mass0: Tensor,
        mass1: Tensor,
        anchors: Tensor,
        *,
        radius: int,
    ) -> Positions:
        """Where the surroundings of anchors of image 0 lie in image 1.

        Args:
            image0: (B, 6, H, W), see `NetworkInput`; H and W multiples of the patch.
            image1: (B, 6, H, W).
            mass0: (B, 1, H / 8, W / 8) keypoints per block of image 0.
            mass1: (B, 1, H / 8, W / 8).
            anchors: (B, A, 2) integers, column and row of the block corner; pixel = 8 x corner.
            radius: r in pixels.
        """
        own, other, coarse, fused = self.describe(image0, image1, mass0, mass1)
        maps = self.head.maps(own, other, anchors, radius)
        return Positions(self.head(maps.scores), maps, coarse, fused)

    def describe(
        self, image0: Tensor, image1: Tensor, mass0: Tensor, mass1: Tensor
    ) -> tuple[Described, Described, tuple[Tensor, Tensor], Fused]:
        """Both images as they are correlated, coarse log-probabilities, tokens."""
        b = len(image0)
        features, context = self.encoder(torch.cat([image0, image1]))
        size = patch_of(image0.shape[-2:], self.patch)
        grid = (image0.shape[-2] // size, image0.shape[-1] // size)
        pooled = F.avg_pool2d(context, size // STRIDE)
        mass = F.avg_pool2d(torch.cat([mass0, mass1]), size // CELL)
        mass = mass / mass.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        tokens = self.embed(torch.cat([pooled, mass], dim=1).flatten(2).transpose(1, 2))
        flat = mass.flatten(1)
        fused = self.cstf(tokens[:b], tokens[b:], grid, flat[:b], flat[b:])
        both = torch.cat([fused.tokens0, fused.tokens1])
        gain = self.gate(both).transpose(1, 2).reshape(2 * b, -1, *grid)
        gain = F.interpolate(gain, size=image0.shape[-2:], mode="bilinear", align_corners=False)
        features = features * torch.exp(gain.clamp(-3, 3))
        coarse = self.coarse(fused.tokens0, fused.tokens1)
        known = known_pixels(torch.cat([image0, image1]))
        own, other = (Described(features[part], known[part]) for part in (np.s_[:b], np.s_[b:]))
        return own, other, coarse, fused


class Encoder(nn.Module):
    """(B, 6, H, W) to features (B, C, H, W) and context (B, F, H / 2, W / 2)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(nn.Conv2d(CHANNELS, half, 3, padding=1), nn.ReLU())
        layers: list[nn.Module] = [nn.Conv2d(half, width, 3, stride=2, padding=1), nn.ReLU()]
        for dilation in (1, 2, 4):
            layers += [
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation),
                nn.GroupNorm(4, width),
                nn.ReLU(),
            ]
        self.body = nn.Sequential(*layers)
        self.up = nn.Conv2d(width, half, 1)
        self.last = nn.Conv2d(half, out, 3, padding=1)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        # Structure channels pass unchanged at first. The learned ones start small, not at zero:
        # a product of two zeros has no gradient.
        with torch.no_grad():
            self.last.weight[:STRUCTURE] = 0
            self.last.weight[STRUCTURE:] *= 0.3

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features are 0 where the image is unknown."""
        fine = self.stem(image)
        context = self.body(fine)
        up = F.interpolate(self.up(context), scale_factor=2, mode="bilinear", align_corners=False)
        features = self.last(F.relu(fine + up))
        base = F.pad(image[:, :STRUCTURE], (0, 0, 0, 0, 0, features.shape[1] - STRUCTURE))
        return (base + features) * known_pixels(image), context


class PositionHead(nn.Module):
    """Correlation maps of an anchor to logits over displacements and "no match"."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.full((MAPS,), math.log(1 / 30)))
        self.fcn = nn.Sequential(
            nn.Conv2d(MAPS, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 1, 1),
        )
        nn.init.zeros_(self.fcn[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.fcn[-1].bias)  # type: ignore[arg-type]
        self.no_match = NoMatch()

    def maps(self, own: Described, other: Described, anchors: Tensor, radius: int) -> Maps:
        """See `correlation_maps`."""
        return correlation_maps(own, other, anchors, radius)

    def forward(self, scores: Tensor) -> Tensor:
        """(B, A, R, S, S) to (B, A, S * S + 1)."""
        b, a, _, side, _ = scores.shape
        maps = scores.flatten(0, 1) / self.log_temperature.exp()[:, None, None]
        own = maps[:, MAPS // 2]  # the large template
        logits = (own + self.fcn(0.2 * maps)[:, 0]).flatten(1)
        return torch.cat([logits, self.no_match(logits)], dim=1).reshape(b, a, side * side + 1)


class NoMatch(nn.Module):
    """The logit of "no match", from how the best position stands out from the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]
        nn.init.constant_(self.layers[-1].bias, 4.0)  # type: ignore[arg-type]

    def forward(self, logits: Tensor) -> Tensor:
        """(N, S * S) to (N, 1), relative to the mean of the logits."""
        mean = logits.mean(dim=1, keepdim=True)
        spread = (logits.var(dim=1, keepdim=True) + 1e-6).sqrt()
        best = logits.topk(2, dim=1).values - mean
        gathered = torch.logsumexp(logits, dim=1, keepdim=True) - mean
        statistics = torch.cat([best[:, :1], best[:, :1] / (spread + 0.1), spread, gathered], 1)
        return mean + self.layers(0.2 * statistics)  # type: ignore[no-any-return]


class VectorHead(nn.Module):
    """The baseline that the paper argues against: templates described by a fully connected layer.

    Each template becomes one vector (pseudo-Siamese, after Hughes et al. 2018, with shared
    weights), compared by its cosine; the SoftMax over positions is the same.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        self.describe = nn.Linear(channels * TEMPLATES[-1] ** 2, width)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(1 / 15)))
        self.no_match = NoMatch()

    def maps(self, own: Described, other: Described, anchors: Tensor, radius: int) -> Maps:
        """The cosines as one map (B, A, 1, S, S)."""
        side = 2 * radius + 1
        step = torch.arange(-radius, radius + 1, device=anchors.device)
        shifts = torch.stack(torch.meshgrid(step, step, indexing="xy"), -1).reshape(-1, 2)
        centres = anchors * CELL
        here = self._at(self.vectors(own.features), centres[:, :, None])
        there = self._at(self.vectors(other.features), centres[:, :, None] + shifts)
        scores = (here * there).sum(dim=-1).reshape(*anchors.shape[:2], 1, side, side)
        return Maps(scores, _known(own, other, anchors))

    def vectors(self, features: Tensor) -> Tensor:
        """(B, V, H + 1, W + 1) unit vector of the template around every pixel corner.

        A fully connected layer at every place is a convolution, here over means of blocks.
        """
        count = TEMPLATES[-1]
        half = count * CELL // 2
        means = F.avg_pool2d(F.pad(features, (half, half, half, half)), CELL, stride=1)
        weight = self.describe.weight.reshape(-1, count, count, features.shape[1])
        found = F.conv2d(means, weight.permute(0, 3, 1, 2), self.describe.bias, dilation=CELL)
        return F.normalize(found, dim=1)

    def forward(self, scores: Tensor) -> Tensor:
        """(B, A, 1, S, S) to (B, A, S * S + 1)."""
        logits = scores.flatten(2) / self.log_temperature.exp()
        flat = logits.flatten(0, 1)
        return torch.cat([flat, self.no_match(flat)], dim=1).reshape(*logits.shape[:2], -1)

    @staticmethod
    def _at(vectors: Tensor, xy: Tensor) -> Tensor:
        """(B, A, N, V) vectors at (B, A, N, 2) corners; those of the border beyond it."""
        limit = torch.tensor(vectors.shape[-2:][::-1], device=xy.device) - CELL
        x, y = torch.minimum(xy.clamp(min=0), limit).unbind(-1)
        batch = torch.arange(len(vectors), device=xy.device)[:, None, None]
        return vectors.permute(0, 2, 3, 1)[batch, y, x]


def correlation_maps(own: Described, other: Described, anchors: Tensor, radius: int) -> Maps:
    """Normalised correlation of the regions of anchors.

    Args:
        own: The image of the anchors.
        other: The image that they are looked for in.
        anchors: (B, A, 2) column and row of block corners.
        radius: Largest displacement in pixels.
    """
    size = {"radius": radius, "stride": STRIDE, "block": BLOCK}
    products = block_correlation(own.features, other.features, **size)
    power1 = other.features.square().sum(dim=1, keepdim=True)
    energy1 = block_correlation(own.known, power1, **size)
    power0 = own.features.square().sum(dim=1, keepdim=True)[:, :, ::STRIDE, ::STRIDE]
    energy0 = F.avg_pool2d(power0, BLOCK) * float(BLOCK * BLOCK)
    side = 2 * radius + 1
    maps = []
    for blocks in TEMPLATES:
        step = blocks // 2
        sums = [box_sums(part, blocks) for part in (products, energy0, energy1)]
        for column, row in ((0, 0), (-step, 0), (step, 0), (0, -step), (0, step)):
            place = anchors + torch.tensor([column, row], device=anchors.device)
            product, here, there = (at_corners(part, place) for part in sums)
            norm = (here * there).clamp(min=1e-6).sqrt() + 1e-3 * blocks * blocks
            maps.append((product / norm).reshape(*place.shape[:2], side, side))
    return Maps(torch.stack(maps, dim=2), _known(own, other, anchors))


def box_sums(blocks: Tensor, side: int) -> Tensor:
    """Sums over `side` x `side` blocks around every block corner; blocks outside count 0.

    Args:
        blocks: (B, D, Y, X).
        side: Even.

    Returns:
        (B, D, Y + 1, X + 1).
    """
    half = side // 2
    total = blocks
    # One axis after the other, as sums of pairs: a box filter of side 2^k in 2k additions.
    for axis in (2, 3):
        pad = [half, half, 0, 0] if axis == 3 else [0, 0, half, half]
        total = F.pad(total, pad)
        width = 1
        while width < side:
            length = total.shape[axis] - width
            total = total.narrow(axis, 0, length) + total.narrow(axis, width, length)
            width *= 2
    return total


def at_corners(sums: Tensor, anchors: Tensor) -> Tensor:
    """(B, A, D) of (B, D, Y, X) at (B, A, 2) columns and rows; those outside count at the edge."""
    b, d, rows, columns = sums.shape
    index = anchors[..., 1].clamp(0, rows - 1) * columns + anchors[..., 0].clamp(0, columns - 1)
    return sums.flatten(2).gather(2, index[:, None].expand(b, d, -1)).transpose(1, 2)


def _known(own: Described, other: Described, anchors: Tensor) -> Tensor:
    """(B, A) whether enough of the largest template is known in both."""
    side = TEMPLATES[-1]
    shares = [
        at_corners(box_sums(F.avg_pool2d(image.known, CELL), side), anchors)[..., 0] / side**2
        for image in (own, other)
    ]
    return torch.minimum(*shares) >= VALID_SHARE


def known_pixels(image: Tensor) -> Tensor:
    """(B, 1, H, W) 1 where any channel says something."""
    return (image.abs().amax(dim=1, keepdim=True) > 0).to(image.dtype)


def patch_of(shape: torch.Size | tuple[int, int], patch: int) -> int:
    """Side of a patch on a lattice: `patch`, doubled while there would be too many."""
    while max(shape) > MOST_PATCHES * patch:
        patch *= 2
    return patch


def expected_position(logits: Tensor, radius: int, *, reach: int = 2) -> Tensor:
    """Sub-pixel displacement: the expectation around the most probable position.

    Args:
        logits: (..., S * S) without "no match".
        radius: r.
        reach: Half side of the neighbourhood.

    Returns:
        (..., 2) dx, dy in pixels.
    """
    side = 2 * radius + 1
    best = logits.argmax(dim=-1)
    y, x = best // side, best % side
    cells = torch.arange(side, device=logits.device)
    near = ((cells[:, None] - y[..., None, None]).abs() <= reach) & (
        (cells[None, :] - x[..., None, None]).abs() <= reach
    )
    weights = logits.masked_fill(~near.flatten(-2), -torch.inf).softmax(dim=-1)
    grid = weights.reshape(*weights.shape[:-1], side, side)
    offset = (cells - radius).to(weights.dtype)
    return torch.stack(
        [(grid.sum(dim=-2) * offset).sum(-1), (grid.sum(dim=-1) * offset).sum(-1)], -1
    )
