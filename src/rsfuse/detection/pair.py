"""Detection with a second image: what it adds to the pyramid, and when it may.

The second image (the query: another sensor, another date) need not lie exactly on the first (the
reference). Patches of both pass the CSTF block (`nn.cstf`), whose coarse matching says for each
patch of the reference where its counterpart lies and whether there is one. The query's features are
brought there and added, weighed by that probability: an unrelated query adds nothing, and without a
query the detector is the one for a single image. Where the images themselves do not tell (a dark
reference), a prior of learned reach has the word: the query lies about where its georeference says.

Letters: B images, d token width, g patches of a side. Patches are 32 px; they are matched in
windows of 8 x 8, so the cost grows with the area of a tile and not with its square.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsfuse.nn.cstf import CSTF, CoarseMatcher, Fusion, patch_centres

PATCH = 32
WINDOW = 8  # patches along a window of attention

# A corner is a local maximum this far above the mean of the image.
_CORNER = 2.0


class Match(NamedTuple):
    """What the coarse matching said, window by window: W = B x windows, n = 64 patches.

    Attributes:
        there: (W, n, n + 1) log-probabilities over the query's patches and "no match".
        back: (W, n, n + 1) the mirror.
        windows: Rows and columns of windows of one image.
    """

    there: Tensor
    back: Tensor
    windows: tuple[int, int]


class PairFusion(nn.Module):
    """Adds the query's features to those of the reference.

    Args:
        width: Channels of the pyramid.
        strides: Of its levels, fine to coarse.
        dim: Width of the tokens.
        fusion: How CA and SCA come together, see `nn.cstf`.
        temporal: Whether there is a temporal step.
        keypoint_bias: Whether keypoints attract attention.
    """

    def __init__(
        self,
        width: int,
        strides: Sequence[int],
        *,
        dim: int = 64,
        fusion: Fusion = "ca||sca",
        temporal: bool = True,
        keypoint_bias: bool = True,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.embed = nn.Linear(width * len(self.strides) + 1, dim)
        self.cstf = CSTF(
            dim, depth=1, fusion=fusion, temporal=temporal, keypoint_bias=keypoint_bias
        )
        self.coarse = CoarseMatcher(dim)
        self.log_reach = nn.Parameter(torch.zeros(()))  # of the prior, log of patches
        self.seen = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in self.strides)
        self.context = nn.Conv2d(2 * dim, width, 1)
        self.added = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in self.strides)
        for layer in self.added:  # training begins with the plain sum of both images
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(
        self,
        reference: Sequence[Tensor],
        query: Sequence[Tensor],
        masses: tuple[Tensor, Tensor],
        present: Tensor,
    ) -> tuple[list[Tensor], Match]:
        """Levels with what the query adds.

        Args:
            reference: Levels (B, width, H / s, W / s) of the first image.
            query: Levels of the second, placed by what is known so far.
            masses: Keypoints per patch (B, 1, H / 32, W / 32) of both, 0 to 1.
            present: (B,) 1 where there is a query, else 0.
        """
        b, _, rows, columns = masses[0].shape
        tokens = [self._tokens(*view) for view in zip((reference, query), masses, strict=True)]
        windows = (-(-rows // WINDOW), -(-columns // WINDOW))
        z0, z1 = (self.embed(in_windows(t)) for t in tokens)
        m0, m1 = (in_windows(m)[..., 0] for m in masses)
        fused = self.cstf(z0, z1, (WINDOW, WINDOW), m0, m1)
        home = patch_centres((WINDOW, WINDOW)).to(z0)
        prior = -(torch.cdist(home, home) ** 2) / (2 * torch.exp(2 * self.log_reach))
        there, back = self.coarse(fused.tokens0, fused.tokens1, prior)
        match = Match(there, back, windows)
        size = (rows, columns)
        gate = (
            made_whole(1 - there[..., -1:].exp(), b, windows, size) * present[:, None, None, None]
        )
        place = there[..., :-1].softmax(dim=-1) @ home
        offset = made_whole(place - home, b, windows, size) * float(PATCH)
        context = self.context(
            made_whole(torch.cat([fused.tokens0, fused.aligned0], dim=-1), b, windows, size)
        )
        levels = []
        for own, other, seen, added in zip(reference, query, self.seen, self.added, strict=True):
            shape = own.shape[-2:]
            moved = displaced(other, _resized(offset, shape) / (PATCH * rows / shape[0]))
            evidence = seen(torch.cat([own, moved], dim=1)) + _resized(context, shape)
            levels.append(own + _resized(gate, shape) * (moved + added(F.silu(evidence))))
        return levels, match

    def _tokens(self, levels: Sequence[Tensor], mass: Tensor) -> Tensor:
        """(B, width x levels + 1, g, g): levels pooled to patches, and the keypoints."""
        pooled = [
            F.avg_pool2d(x, PATCH // s) if s < PATCH else x
            for x, s in zip(levels, self.strides, strict=True)
        ]
        return torch.cat([*pooled, mass], dim=1)


def displaced(features: Tensor, offset: Tensor) -> Tensor:
    """Features (B, C, h, w) read `offset` (B, 2, h, w) cells away, 0 outside."""
    h, w = features.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(h, device=features.device), torch.arange(w, device=features.device),
        indexing="ij",
    )  # fmt: skip
    at_x = (x + offset[:, 0] + 0.5) * 2 / w - 1
    at_y = (y + offset[:, 1] + 0.5) * 2 / h - 1
    grid = torch.stack([at_x, at_y], dim=-1).to(features.dtype)
    return F.grid_sample(features, grid, align_corners=False)


def corner_mass(image: Tensor) -> Tensor:
    """Keypoints per patch, 0 to 1: local maxima of the smaller eigenvalue of the structure tensor.

    Each image is looked at alone (Shi and Tomasi, 1994).

    Args:
        image: (B, C, H, W), H and W multiples of 32.
    """
    grey = F.pad(image.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    gx = (grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]) / 2
    gy = (grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]) / 2
    xx, yy, xy = (F.avg_pool2d(p, 5, 1, 2) for p in (gx * gx, gy * gy, gx * gy))
    least = (xx + yy) / 2 - (((xx - yy) / 2) ** 2 + xy**2).clamp(min=1e-12).sqrt()
    peak = least >= F.max_pool2d(least, 9, 1, 4)
    strong = least > _CORNER * least.mean(dim=(2, 3), keepdim=True) + 1e-8
    count = F.avg_pool2d((peak & strong).to(image.dtype), PATCH)
    return count / count.amax(dim=(2, 3), keepdim=True).clamp(min=1e-6)


def in_windows(grid: Tensor) -> Tensor:
    """(B, C, g, g) to (W, 64, C), padded with zeros to whole windows."""
    b, c, rows, columns = grid.shape
    grid = F.pad(grid, (0, -columns % WINDOW, 0, -rows % WINDOW))
    cut = grid.reshape(b, c, grid.shape[2] // WINDOW, WINDOW, grid.shape[3] // WINDOW, WINDOW)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(-1, WINDOW * WINDOW, c)


def made_whole(
    tokens: Tensor, images: int, windows: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """(W, 64, C) back to (B, C, g, g)."""
    c = tokens.shape[-1]
    cut = tokens.reshape(images, *windows, WINDOW, WINDOW, c).permute(0, 5, 1, 3, 2, 4)
    grid = cut.reshape(images, c, windows[0] * WINDOW, windows[1] * WINDOW)
    return grid[:, :, : size[0], : size[1]]


def _resized(grid: Tensor, shape: torch.Size | tuple[int, int]) -> Tensor:
    return F.interpolate(grid, size=tuple(shape), mode="bilinear", align_corners=False)
