"""Cross Spatial Temporal Fusion: the attention block that matching and detection share.

A CSTF-style model after arXiv 2507.19118 (Amit et al., 2025). What is public of the paper is its
abstract, one caption and a summary; sizes, equations and the meaning of CA and SCA are read from
them and from two related papers (CM-Net, DCA), not reproduced.

Letters:

    B          pairs
    0, 1       reference and query, the two "time steps"
    n = g x g  patch tokens of one image, row by row
    d          width of a token
    h          heads

Of one block, for the direction query -> reference (the other direction is its mirror, with the
same weights):

    SCA   spatial cross-attention: where in the query each reference patch has its counterpart. Its
          map, the mean over the heads, is the coarse correspondence map; keypoints of the query
          attract it.
    CA    channel cross-attention: which features of the query agree with which of the reference,
          on the query as SCA aligned it.
    T     the temporal step: attention along the sequence of a patch and its aligned counterpart.

"Fusion" says how CA and SCA come together: "ca||sca" (concatenated, the best one in the paper),
"ca+sca" (summed), "ca", "sca", or "none", where the images never meet.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fusion = Literal["ca||sca", "ca+sca", "ca", "sca", "none"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)

# Keeps the logarithm of a keypoint mass finite where there is no keypoint.
_MASS_FLOOR = 0.05

# Share of a patch that others must claim before it has a counterpart.
CLAIMED = 0.3


class Fused(NamedTuple):
    """Tokens after the exchange.

    Attributes:
        tokens0: (B, n, d) of the reference, normalised.
        tokens1: (B, n, d) of the query, normalised.
        aligned0: (B, n, d) of the query, brought to the patches of the reference by SCA; in their
            own places where the fusion has no SCA.
        aligned1: (B, n, d) of the reference, brought to the patches of the query.
        map0: (B, n, n) what each reference patch took from each query patch; rows sum to 1. None
            where the fusion has no SCA.
        map1: (B, n, n) the same for query patches.
    """

    tokens0: Tensor
    tokens1: Tensor
    aligned0: Tensor
    aligned1: Tensor
    map0: Tensor | None
    map1: Tensor | None


class CSTF(nn.Module):
    """A stack of CSTF blocks and the final normalisation.

    Args:
        width: d, a multiple of `heads` and of 4.
        heads: h of both attentions.
        depth: Blocks.
        fusion: How CA and SCA come together.
        temporal: Whether there is a temporal step.
        keypoint_bias: Whether keypoints attract SCA.
    """

    def __init__(
        self,
        width: int = 64,
        *,
        heads: int = 4,
        depth: int = 2,
        fusion: Fusion = "ca||sca",
        temporal: bool = True,
        keypoint_bias: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.view = nn.Parameter(torch.zeros(2, width))
        self.blocks = nn.ModuleList(
            CSTFBlock(width, heads, fusion=fusion, temporal=temporal, keypoint_bias=keypoint_bias)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        tokens0: Tensor,
        tokens1: Tensor,
        grid: tuple[int, int],
        mass0: Tensor | None = None,
        mass1: Tensor | None = None,
    ) -> Fused:
        """Exchange between two images.

        Args:
            tokens0: (B, n, d) patches of the reference, n = rows x columns of `grid`.
            tokens1: (B, n, d) patches of the query.
            grid: Rows and columns.
            mass0: (B, n) share of keypoints in each patch of the reference, 0 to 1; None for even.
            mass1: (B, n) the same for the query.
        """
        place = sine_positions(grid, self.width).to(tokens0)
        z0 = tokens0 + place + self.view[0]
        z1 = tokens1 + place + self.view[1]
        fused = Fused(z0, z1, z1, z0, None, None)
        for block in self.blocks:
            fused = block(fused.tokens0, fused.tokens1, mass0, mass1)
        return fused._replace(tokens0=self.norm(fused.tokens0), tokens1=self.norm(fused.tokens1))


class CSTFBlock(nn.Module):
    """One exchange between two images in both directions; arguments as of `CSTF`."""

    def __init__(
        self, width: int, heads: int, *, fusion: Fusion, temporal: bool, keypoint_bias: bool
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.norm = nn.LayerNorm(width)
        self.channel = ChannelCrossAttention(width, heads) if "ca" in parts_of(fusion) else None
        self.spatial = (
            SpatialCrossAttention(width, heads, keypoint_bias=keypoint_bias)
            if "sca" in parts_of(fusion)
            else None
        )
        self.temporal = TemporalStep(width, heads) if temporal and fusion != "none" else None
        self.join = nn.Linear(2 * width, width) if fusion == "ca||sca" else None
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, z0: Tensor, z1: Tensor, mass0: Tensor | None, mass1: Tensor | None) -> Fused:
        """(B, n, d) twice and keypoint masses (B, n) to the exchanged tokens."""
        n0, n1 = self.norm(z0), self.norm(z1)
        y0, aligned0, map0 = self._towards(z0, n0, n1, mass1)
        y1, aligned1, map1 = self._towards(z1, n1, n0, mass0)
        return Fused(y0, y1, aligned0, aligned1, map0, map1)

    def _towards(
        self, z: Tensor, own: Tensor, other: Tensor, mass: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What one image becomes after a look at the other: tokens, the aligned other, the map."""
        aligned, correspondence = other, None
        taken: list[Tensor] = []
        if self.spatial is not None:
            out, aligned, correspondence = self.spatial(own, other, mass)
            taken.append(out)
        if self.channel is not None:
            taken.append(self.channel(own, aligned))
        if self.temporal is not None:
            z = z + self.temporal(own, aligned)
        if self.join is not None:
            z = z + self.join(torch.cat(taken[::-1], dim=-1))
        elif taken:
            z = z + torch.stack(taken).sum(dim=0)
        z = z + self.mlp(self.mlp_norm(z))
        return z, aligned, correspondence


class ChannelCrossAttention(nn.Module):
    """CA: channels of one image as queries, channels of the other as keys and values.

    With patches as the axis of the vectors the matrix is (d/h, d/h) in each head: the SoftMax over
    the other's channels of the product of L2-normalised channels times a learned temperature.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), 4.0))
        self.out = nn.Linear(width, width)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """(B, n, d) twice, patch i of both about the same ground, to (B, n, d)."""
        q = self._channels(self.query(own))
        k, v = (self._channels(part) for part in self.key_value(other).chunk(2, dim=-1))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        weights = (q @ k.transpose(-1, -2) * self.temperature).softmax(dim=-1)
        b, n, d = own.shape
        return self.out((weights @ v).reshape(b, d, n).transpose(1, 2))

    def _channels(self, x: Tensor) -> Tensor:
        """(B, n, d) -> (B, h, d/h, n)."""
        b, n, d = x.shape
        return x.transpose(1, 2).reshape(b, self.heads, d // self.heads, n)


class SpatialCrossAttention(nn.Module):
    """SCA: patches of one image as queries, patches of the other as keys and values."""

    def __init__(self, width: int, heads: int, *, keypoint_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attraction = nn.Parameter(torch.zeros(heads)) if keypoint_bias else None
        self.out = nn.Linear(width, width)

    def forward(
        self, own: Tensor, other: Tensor, mass: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What SCA adds (B, n, d), the other image aligned (B, n, d), the map (B, n, n)."""
        q = self._heads(self.query(own))
        k, v = (self._heads(part) for part in self.key_value(other).chunk(2, dim=-1))
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.attraction is not None and mass is not None:
            pull = torch.log(_MASS_FLOOR + mass)[:, None, None, :]
            logits = logits + self.attraction[:, None, None] * pull
        weights = logits.softmax(dim=-1)
        b, n, d = own.shape
        out = self.out((weights @ v).transpose(1, 2).reshape(b, n, d))
        correspondence = weights.mean(dim=1)
        return out, correspondence @ other, correspondence

    def _heads(self, x: Tensor) -> Tensor:
        """(B, n, d) -> (B, h, n, d/h)."""
        b, n, d = x.shape
        return x.reshape(b, n, self.heads, d // self.heads).transpose(1, 2)


class TemporalStep(nn.Module):
    """T: attention along the sequence of a patch and its counterpart, read at the patch."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, own: Tensor, aligned: Tensor) -> Tensor:
        """(B, n, d) twice to (B, n, d); cost grows with n, not with its square."""
        b, n, d = own.shape
        shape = (b, n, 2, self.heads, d // self.heads)
        k, v = self.key_value(torch.stack([own, aligned], dim=2)).chunk(2, dim=-1)
        q = self.query(own).reshape(b, n, 1, self.heads, d // self.heads)
        logits = (q * k.reshape(shape)).sum(dim=-1, keepdim=True) / math.sqrt(shape[-1])
        mixed = (logits.softmax(dim=2) * v.reshape(shape)).sum(dim=2)
        return self.out(mixed.reshape(b, n, d))


class CoarseMatcher(nn.Module):
    """Matching of patches as classification: (n+1)-way SoftMax with a learned "no match".

    S = Y0 Y1^T / (sqrt(d) tau) with tau = 0.1 at the start, and one score for "no match" beside
    every row and column.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = width**-0.5
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1)))
        self.no_match = nn.Parameter(torch.zeros(()))

    def forward(
        self, tokens0: Tensor, tokens1: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, n, d) twice to log-probabilities.

        Args:
            tokens0: Of the reference.
            tokens1: Of the query.
            prior: (n, n) symmetric, what is known of places before the images are looked at, as
                log-odds; None for nothing.

        Returns:
            (B, n, n+1) over query patches and "no match" for each reference patch, and the mirror.
        """
        scores = tokens0 @ tokens1.transpose(-1, -2) * (self.scale / self.log_temperature.exp())
        if prior is not None:
            scores = scores + prior
        return tuple(self._classified(s) for s in (scores, scores.transpose(-1, -2)))  # type: ignore[return-value]

    def _classified(self, scores: Tensor) -> Tensor:
        dustbin = self.no_match.expand(*scores.shape[:-1], 1)
        return torch.cat([scores, dustbin], dim=-1).log_softmax(dim=-1)


def patch_centres(grid: tuple[int, int]) -> Tensor:
    """(n, 2) column and row of the patches of a grid."""
    index = torch.arange(grid[0] * grid[1])
    return torch.stack([index % grid[1], index // grid[1]], dim=-1)


def patch_labels(place: Tensor, related: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, n, n + 1): the true patch, spread bilinearly over its neighbours, or "no match".

    Args:
        place: (B, n, 2) where each patch of one image lies in the other, columns and rows.
        related: (B, n) whether it is there at all; so are the shares that fall outside.
        grid: Rows and columns.
    """
    rows, columns = grid
    size = torch.tensor([columns, rows], device=place.device)
    label = torch.zeros(*place.shape[:2], rows * columns + 1, device=place.device)
    low = place.floor()
    for dx in (0, 1):
        for dy in (0, 1):
            cell = low + torch.tensor([dx, dy], device=place.device)
            share = (1 - (place - cell).abs()).clamp(min=0).prod(dim=-1)
            inside = ((cell >= 0) & (cell < size)).all(dim=-1) & related
            index = (cell[..., 1] * columns + cell[..., 0]).long()
            index = torch.where(inside, index, rows * columns)
            label.scatter_add_(2, index[..., None], share[..., None])
    return label


def mirrored_labels(label: Tensor) -> Tensor:
    """Labels of the other direction: the transposed matrix; what nobody claims has no match."""
    back = label[..., :-1].transpose(1, 2)
    total = back.sum(dim=-1, keepdim=True)
    claimed = total > CLAIMED
    back = torch.where(claimed, back / total.clamp(min=1e-6), 0.0)
    return torch.cat([back, (~claimed).to(back.dtype)], dim=-1)


def soft_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """(...) cross-entropy of (..., K) logits or log-probabilities with soft labels."""
    total: Tensor = (label * logits.log_softmax(dim=-1)).sum(dim=-1)
    return -total


def parts_of(fusion: Fusion) -> frozenset[str]:
    """The attentions of a fusion: "ca", "sca", both or none."""
    return frozenset(fusion.replace("||", "+").split("+")) - {"none"}


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """(n, d) sines and cosines of the row and the column of each patch, as in DETR."""
    quarter = width // 4
    rate = torch.exp(-math.log(100.0) * torch.arange(quarter) / quarter)
    parts = []
    for axis, size in enumerate(grid):
        angle = torch.arange(size)[:, None] * rate
        wave = torch.cat([angle.sin(), angle.cos()], dim=1)
        wave = wave[:, None] if axis == 0 else wave[None, :]
        parts.append(wave.expand(*grid, 2 * quarter))
    return torch.cat(parts, dim=-1).reshape(grid[0] * grid[1], 4 * quarter)
