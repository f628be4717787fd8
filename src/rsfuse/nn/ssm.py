"""State-space blocks on images: SPVM and the exchange between sensors, after DAS2F.

Letters, as in arXiv 2504.16665 and its public code:

    D       width of a token, c * p^2
    c, p    a token is unfolded to p x p pixels of c channels for the local convolution
    N       states per channel
    R       rank of the step sizes
    K = 4   directions: rows, columns, rows backwards, columns backwards

SPVM (space-preserving visual Mamba) filters the tokens of one sensor. The cross block filters the
tokens of each sensor by the dynamics (step sizes, input and output weights, and in the published
form also rates, skip and bias) of the other: what both have in common. All scans of a stage are
independent of each other and go through one call.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsfuse.ops.scan import selective_scan

DIRECTIONS = 4

Norm = Literal["batch", "layer"]
Swap = Literal["all", "dBC"]


@dataclass(frozen=True)
class SSMSize:
    """Sizes of the blocks; the defaults are those of the public code.

    Attributes:
        width: D, channels of a token.
        cell: p, side of the cell that a token is unfolded to; p^2 must divide D.
        states: N.
        rank: R.
        mlp: Inner width of the MLP in tokens.
        norm: "batch" as published; "layer" over the channels of each token, which does not depend
            on the scene or on the size of a tile.
        window: Side of the windows that are scanned apart, in tokens; 0 scans a tile as a whole.
        swap: What the cross block exchanges: "all", or step sizes, B and C only.
        shared_norms: Whether one norm serves before the mixer and before the MLP, as published.
    """

    width: int = 64
    cell: int = 4
    states: int = 24
    rank: int = 24
    mlp: int = 4
    norm: Norm = "batch"
    window: int = 16
    swap: Swap = "all"
    shared_norms: bool = True

    @property
    def latent(self) -> int:
        """c, channels of the unfolded tokens."""
        return self.width // self.cell**2


@dataclass(frozen=True)
class Sequences:
    """The arguments of one scan: k directions, L steps.

    Attributes:
        u: (b, k, D, L).
        delta: (b, k, D, L), before bias and softplus.
        rates: (k, D, N), negative.
        B: (b, k, N, L).
        C: (b, k, N, L).
        skip: (k, D).
        bias: (k, D) of delta.
    """

    u: Tensor
    delta: Tensor
    rates: Tensor
    B: Tensor
    C: Tensor
    skip: Tensor
    bias: Tensor


def scan_all(sequences: Sequence[Sequences]) -> list[Tensor]:
    """Scan all in one call; (b, k, D, L) each."""

    def join(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(s, name) for s in sequences], dim=dim)

    y = selective_scan(
        join("u", 1),
        join("delta", 1),
        join("rates", 0),
        join("B", 1),
        join("C", 1),
        join("skip", 0),
        join("bias", 0),
        delta_softplus=True,
    )
    return list(y.split([s.u.shape[1] for s in sequences], dim=1))


def unfold(image: Tensor) -> Tensor:
    """(B, D, H, W) to the four sequences (B, 4, D, H W)."""
    rows = image.flatten(2)
    columns = image.transpose(2, 3).flatten(2)
    both = torch.stack([rows, columns], dim=1)
    return torch.cat([both, both.flip(-1)], dim=1)


def fold(sequences: Tensor, height: int, width: int) -> Tensor:
    """The sum of the four sequences (B, 4, D, H W), brought back to the image (B, D, H, W)."""
    both = sequences[:, :2] + sequences[:, 2:].flip(-1)
    rows = both[:, 0].unflatten(-1, (height, width))
    columns = both[:, 1].unflatten(-1, (width, height)).transpose(2, 3)
    return rows + columns


def to_windows(image: Tensor, side: int, shift: int) -> Tensor:
    """(B, C, H, W) to windows (B n, C, side, side), the grid moved by `shift`; zeros around it."""
    if shift:
        image = F.pad(image, (side - shift, shift, side - shift, shift))
    b, c, h, w = image.shape
    cut = image.reshape(b, c, h // side, side, w // side, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, side, side)


def from_windows(windows: Tensor, height: int, width: int, side: int, shift: int) -> Tensor:
    """The inverse of `to_windows`, (B, C, height, width)."""
    around = side if shift else 0
    h, w = (height + around) // side, (width + around) // side
    c = windows.shape[1]
    image = windows.reshape(-1, h, w, c, side, side).permute(0, 3, 1, 4, 2, 5)
    image = image.reshape(-1, c, h * side, w * side)
    if not shift:
        return image
    first = side - shift
    return image[..., first : first + height, first : first + width]


class Local(nn.Module):
    """Tokens unfolded to pixels, a 3 x 3 convolution across token borders, folded again."""

    def __init__(self, size: SSMSize) -> None:
        super().__init__()
        c, p = size.latent, size.cell
        self.cell = p
        self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.fold = nn.Conv2d(c, size.width, p, stride=p)
        self.bn: nn.Module = (
            nn.BatchNorm2d(size.width) if size.norm == "batch" else ChannelNorm(size.width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, D) to (B, D, H, W)."""
        pixels = F.pixel_shuffle(tokens.permute(0, 3, 1, 2), self.cell)
        out: Tensor = self.bn(self.fold(F.silu(self.depthwise(pixels))))
        return out


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of (B, C, H, W)."""

    def forward(self, image: Tensor) -> Tensor:
        """Same shape."""
        return super().forward(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Dynamics(nn.Module):
    """The state-space parameters of K directions, and what follows from an input.

    `norm` belongs to the block that owns these parameters; the cross block has one for all.
    """

    def __init__(self, size: SSMSize, *, with_norm: bool) -> None:
        super().__init__()
        d, n, r = size.width, size.states, size.rank
        self.rank, self.states = r, n
        bound = d**-0.5
        self.x_proj = nn.Parameter(torch.empty(DIRECTIONS, r + 2 * n, d).uniform_(-bound, bound))
        self.dt_weight = nn.Parameter(torch.empty(DIRECTIONS, d, r).uniform_(-(r**-0.5), r**-0.5))
        # softplus(bias) is log-uniform in [0.001, 0.1].
        step = torch.exp(
            torch.rand(DIRECTIONS, d) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)
        ).clamp(min=1e-4)
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        rates = torch.arange(1, n + 1, dtype=torch.float32).log()
        self.A_log = nn.Parameter(rates.expand(DIRECTIONS, d, n).clone())
        self.D = nn.Parameter(torch.ones(DIRECTIONS, d))
        for parameter in (self.A_log, self.D, self.dt_bias):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]
        if with_norm:
            self.norm = nn.LayerNorm(d)

    def sequences(self, u: Tensor, of: Tensor, swap: "Dynamics | None" = None) -> Sequences:
        """The scan of sequences `u` by the dynamics that these parameters give for `of`.

        Args:
            u: (b, 4, D, L) what is filtered.
            of: (b, 4, D, L) what step sizes, B and C are computed from.
            swap: Take rates, skip and bias from here instead (`swap="dBC"`).
        """
        owner = self if swap is None else swap
        found = torch.einsum("bkdl,kcd->bkcl", of, self.x_proj)
        low, B, C = found.split([self.rank, self.states, self.states], dim=2)
        delta = torch.einsum("bkrl,kdr->bkdl", low, self.dt_weight)
        return Sequences(u, delta, -torch.exp(owner.A_log), B, C, owner.D, owner.dt_bias)


class Mlp(nn.Module):
    """Two linear layers with GELU between, on tokens."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class Mixer(nn.Module):
    """One sensor's part of a block: gate, local convolution, dynamics, output, MLP."""

    def __init__(self, size: SSMSize, *, own_norms: bool) -> None:
        super().__init__()
        d = size.width
        if own_norms:
            self.norm = nn.LayerNorm(d)
        if not size.shared_norms:
            self.norm_mlp = nn.LayerNorm(d)
        self.gate = nn.Linear(d, d, bias=False)
        self.local = Local(size)
        self.scan = Dynamics(size, with_norm=own_norms)
        self.out = nn.Linear(d, d, bias=False)
        self.mlp = Mlp(d, size.mlp * d)

    def finish(
        self, tokens: Tensor, seen: Tensor, mixed: Tensor, norm: nn.Module, scan_norm: nn.Module
    ) -> Tensor:
        """The rest of the block after its scan.

        Args:
            tokens: (B, H, W, D) the block's input.
            seen: (B, H, W, D) its norm.
            mixed: (B, D, H, W) what the scan gave.
            norm: Before the MLP where norms are shared.
            scan_norm: After the scan.
        """
        gated = scan_norm(mixed.permute(0, 2, 3, 1)) * F.silu(self.gate(seen))
        tokens = tokens + self.out(gated)
        before_mlp = getattr(self, "norm_mlp", norm)
        out: Tensor = tokens + self.mlp(before_mlp(tokens))
        return out


class Cross(nn.Module):
    """The exchange: each sensor filtered by the dynamics of the others, norms shared."""

    def __init__(self, size: SSMSize, sensors: Sequence[str]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.width)
        self.scan_norm = nn.LayerNorm(size.width)
        for sensor in sensors:
            setattr(self, sensor, Mixer(size, own_norms=False))

    def mixer(self, sensor: str) -> Mixer:
        """The part of a sensor."""
        found = getattr(self, sensor)
        assert isinstance(found, Mixer)
        return found


class Exchange(nn.Module):
    """SPVM of every sensor and the cross block between them, all scans in one call.

    Args:
        size: Sizes.
        sensors: Names, two or more.
        shift: How far the windows of this block are moved, in tokens.
    """

    def __init__(self, size: SSMSize, sensors: Sequence[str], shift: int = 0) -> None:
        super().__init__()
        self.size, self.sensors, self.shift = size, tuple(sensors), shift
        self.own = nn.ModuleDict({s: Mixer(size, own_norms=True) for s in sensors})
        self.cross = Cross(size, sensors)

    def forward(self, tokens: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens (B, H, W, D) of each sensor to own features and common features, same shapes."""
        height, width = tokens[0].shape[1:3]
        side = self.size.window
        # A moved window reaches over the edges of a tile even where the tile is one window.
        whole = not side or (not self.shift and (height, width) == (side, side))
        shape = (height, width) if whole else (side, side)

        def cut(image: Tensor) -> Tensor:
            return unfold(image if whole else to_windows(image, side, self.shift))

        def joined(y: Tensor) -> Tensor:
            image = fold(y, *shape)
            return image if whole else from_windows(image, height, width, side, self.shift)

        own: list[Any] = [self.own[s] for s in self.sensors]
        crossed: list[Any] = [self.cross.mixer(s) for s in self.sensors]
        seen = [part.norm(t) for part, t in zip(own, tokens, strict=True)]
        shared = [self.cross.norm(t) for t in tokens]
        u_own = [cut(part.local(x)) for part, x in zip(own, seen, strict=True)]
        u_cross = [cut(part.local(x)) for part, x in zip(crossed, shared, strict=True)]
        scans = [part.scan.sequences(u, u) for part, u in zip(own, u_own, strict=True)]
        pairs = [(i, j) for i in range(len(tokens)) for j in range(len(tokens)) if i != j]
        for i, j in pairs:
            kept = crossed[i].scan if self.size.swap == "dBC" else None
            scans.append(crossed[j].scan.sequences(u_cross[i], u_cross[j], kept))
        found = scan_all(scans)
        partners = len(tokens) - 1
        mine = []
        for i, part in enumerate(own):
            mixed = joined(found[i])
            mine.append(part.finish(tokens[i], seen[i], mixed, part.norm, part.scan.norm))
        common = []
        for i, part in enumerate(crossed):
            first = len(tokens) + i * partners
            mixed = joined(torch.stack(found[first : first + partners]).mean(0))
            common.append(
                part.finish(tokens[i], shared[i], mixed, self.cross.norm, self.cross.scan_norm)
            )
        return mine, common
