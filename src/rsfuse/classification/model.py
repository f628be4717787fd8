"""DAS2F: land-cover classes from MS and PAN images (arXiv 2504.16665), and its relatives.

Two named configurations have the data flow and the parameter counts of the public code; the general
network keeps the idea (own, common and dominant features of each sensor; dominant = own - common)
and drops what ties it to one sensor and one patch size.

Shapes: MS (B, C, H, W), PAN (B, P, r H, r W) with an integer ratio r; tokens (B, H, W, D), one per
MS pixel.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsfuse.errors import InputError
from rsfuse.nn.ssm import Exchange, Norm, SSMSize, Swap

SENSORS = ("ms", "pan")

Fusion = Literal["reference", "vector"]
HeadKind = Literal["flatten", "sliding", "dense"]
Resolution = Literal["ms", "pan"]


class Embed(nn.Module):
    """Tokens of one sensor on the PAN grid: a convolution of side and stride r, LayerNorm.

    Args:
        channels: Channels on the PAN grid.
        width: D.
        ratio: r.
        lift: Bands that a 1 x 1 convolution lifts to `channels` first; 0 for none (MS).
    """

    def __init__(self, channels: int, width: int, ratio: int, lift: int = 0) -> None:
        super().__init__()
        if lift:
            self.lift = nn.Conv2d(lift, channels, 1)
        self.has_lift = bool(lift)
        self.ratio = ratio
        self.conv = nn.Conv2d(channels, width, ratio, stride=ratio)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """MS (B, C, H, W), or PAN (B, P, r H, r W) with a lift, to (B, H, W, D)."""
        if self.has_lift:
            image = self.lift(image)
        elif self.ratio > 1:
            image = F.interpolate(
                image, scale_factor=self.ratio, mode="bilinear", align_corners=False
            )
        tokens: Tensor = self.norm(self.conv(image).permute(0, 2, 3, 1))
        return tokens


class ReferenceFuse(nn.Module):
    """AALF as published: an outer product averaged over its first index, twice.

    That mean is a scalar per position, mean_c(p_c G_c), times the second argument; the outer
    product is not formed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.dominant = nn.Linear(2 * channels, channels)
        self.common = nn.Linear(2 * channels, channels)

    def forward(self, dominants: Sequence[Tensor], common: Tensor) -> Tensor:
        """Two dominants and the common features (B, n, c) to fused features, same shape."""
        one, two = (self.norm(d) for d in dominants)
        x = _weighted(one, two, self.dominant)
        return _weighted(self.norm(x), self.norm(common), self.common)


def _weighted(p: Tensor, q: Tensor, gate: nn.Module) -> Tensor:
    share = torch.sigmoid(gate(torch.cat([p, q], dim=-1)))
    return (p * share).mean(-1, keepdim=True) * q


class VectorFuse(nn.Module):
    """Fusion with a weight per channel: a softmax over the common and the dominant features.

    Unlike the published form, the dominant features enter as vectors, not as one number.
    """

    def __init__(self, channels: int, sensors: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(sensors + 1))
        parts = sensors + 1
        self.gate = nn.Linear(parts * channels, parts * channels)

    def forward(self, dominants: Sequence[Tensor], common: Tensor) -> Tensor:
        """Dominants of all sensors and the common features (..., c) to fused features."""
        given = (common, *dominants)
        parts = [norm(x) for norm, x in zip(self.norms, given, strict=True)]
        joined = torch.cat(parts, dim=-1)
        share = self.gate(joined).unflatten(-1, (len(parts), -1)).softmax(dim=-2)
        return common + (share * torch.stack(parts, dim=-2)).sum(-2)


class Stage(Exchange):
    """Own, common and dominant features of all sensors, and the fusion of this stage."""

    def __init__(
        self, size: SSMSize, sensors: Sequence[str], fusion: Fusion, shift: int, subpixel: int
    ) -> None:
        super().__init__(size, sensors, shift)
        channels = size.width // subpixel**2
        self.fuse: nn.Module = (
            ReferenceFuse(channels) if fusion == "reference" else VectorFuse(channels, len(sensors))
        )

    def forward(self, tokens: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens of each sensor to common and dominant (own - common) features."""
        own, common = super().forward(tokens)
        return common, [a - c for a, c in zip(own, common, strict=True)]


def rearranged(tokens: Tensor, factor: int) -> Tensor:
    """Tokens (B, H, W, D) to sub-pixels (B, factor H, factor W, D / factor^2), a pixel shuffle."""
    if factor == 1:
        return tokens
    return F.pixel_shuffle(tokens.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)


class FlattenHead(nn.Module):
    """The published head: all sub-pixels of a patch through two linear layers."""

    def __init__(self, positions: int, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(positions * channels, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 2 w, 2 w, c) to (B, K)."""
        out: Tensor = self.fc2(self.fc1(features.flatten(1)))
        return out


class SlidingHead(nn.Module):
    """The published head for every MS pixel of a tile: a convolution of stride 2.

    The labelled pixel sits at index (w - 1) // 2 of w: for w = 16, seven before and eight after.
    """

    def __init__(self, window: int, channels: int, classes: int) -> None:
        super().__init__()
        self.before = 2 * ((window - 1) // 2)
        self.after = 2 * window - 2 - self.before
        self.conv = nn.Conv2d(channels, classes, 2 * window, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, 2 H, 2 W, c) to (B, K, H, W)."""
        image = features.permute(0, 3, 1, 2)
        image = F.pad(image, (self.before, self.after, self.before, self.after))
        out: Tensor = self.conv(image)
        return out


class DenseHead(nn.Module):
    """A class for every MS or PAN pixel: a little context, then 1 x 1.

    It sees the fused features, the tokens of both sensors before any stage and, for PAN pixels, the
    PAN image itself, so that edges are as sharp as the sharper sensor.
    """

    def __init__(
        self, width: int, sensors: int, classes: int, resolution: Resolution, ratio: int, pan: int
    ) -> None:
        super().__init__()
        self.resolution, self.ratio = resolution, ratio
        self.mix = nn.Conv2d(width * (1 + sensors), width, 1)
        self.context = nn.Conv2d(width, width, 3, padding=1, groups=width)
        channels = width
        if resolution == "pan":
            self.detail = nn.Sequential(
                nn.Conv2d(pan, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1)
            )
            self.blend = nn.Conv2d(width + 16, width, 1)
        self.out = nn.Conv2d(channels, classes, 1)

    def forward(self, fused: Tensor, tokens: Sequence[Tensor], pan: Tensor) -> Tensor:
        """Fused (B, H, W, D), tokens, PAN to logits (B, K, H, W) or (B, K, r H, r W)."""
        x = torch.cat([fused, *tokens], dim=-1).permute(0, 3, 1, 2)
        x = F.silu(self.mix(x))
        x = F.silu(x + self.context(x))
        if self.resolution == "pan":
            x = F.interpolate(x, scale_factor=self.ratio, mode="bilinear", align_corners=False)
            x = F.silu(self.blend(torch.cat([x, F.silu(self.detail(pan))], dim=1)))
        out: Tensor = self.out(x)
        return out


class DAS2F(nn.Module):
    """Land-cover classes from MS and PAN.

    By default windows of 16 x 16 MS pixels are scanned, as published, and every second stage moves
    them by half. Anchored windows and norms per token make the class of a pixel the same in every
    tile, so a network may be trained on small tiles and map scenes of any size; one scan of a whole
    tile (`window=0`) depends on where the tile begins.

    Args:
        classes: Number of classes.
        bands: Bands of the MS image.
        pan_bands: Bands of the PAN image.
        ratio: PAN pixels per MS pixel along an axis.
        stages: Stages; the next gets the common features of the one before.
        size: Sizes of the blocks, see `SSMSize`; a mapping of its fields will do.
        fusion: "reference" as published, or "vector".
        head: "flatten" for patches of one window, one class each; "sliding", the same for every
            pixel of a tile; "dense" (default).
        resolution: Whether a dense head gives a class to every MS or every PAN pixel.
        hidden: Inner width of the flatten head.

    Attributes:
        align: Tiles are best multiples of this many MS pixels; others are padded.
        halo: MS pixels around an aligned window that its classes depend on, at most. Scans of
            whole tiles (`window=0`) reach further; 64 keeps what they carry small.
        factor: Class pixels per MS pixel along an axis.
    """

    def __init__(
        self,
        classes: int,
        bands: int = 4,
        pan_bands: int = 1,
        ratio: int = 4,
        stages: int = 2,
        size: SSMSize | dict[str, Any] | None = None,
        fusion: Fusion = "vector",
        head: HeadKind = "dense",
        resolution: Resolution = "ms",
        hidden: int = 1024,
    ) -> None:
        super().__init__()
        size = size if isinstance(size, SSMSize) else SSMSize(**{**GENERAL, **(size or {})})
        _check(classes, bands, pan_bands, ratio, stages, size)
        _check_choices(size, fusion, head, resolution)
        self.size, self.ratio, self.head_kind = size, ratio, head
        self.subpixel = 1 if head == "dense" else 2
        self.embed = nn.ModuleDict(
            {
                "ms": Embed(bands, size.width, ratio),
                "pan": Embed(bands, size.width, ratio, lift=pan_bands),
            }
        )
        # Every second stage moves its windows by half, so that no border stays a border.
        half = size.window // 2 if head == "dense" else 0
        self.stage = nn.ModuleDict(
            {
                str(i + 1): Stage(size, SENSORS, fusion, half * (i % 2), self.subpixel)
                for i in range(stages)
            }
        )
        channels = size.width // self.subpixel**2
        self.head: nn.Module
        if head == "flatten":
            self.head = FlattenHead((2 * size.window) ** 2, channels, hidden, classes)
        elif head == "sliding":
            self.head = SlidingHead(size.window, channels, classes)
        else:
            self.head = DenseHead(size.width, len(SENSORS), classes, resolution, ratio, pan_bands)
        self.align = max(1, size.window)
        self.halo = size.window * (stages - 1) + stages + 3 if size.window else 64
        if head == "sliding":
            self.halo += size.window
        self.factor = ratio if head == "dense" and resolution == "pan" else 1

    def forward(self, ms: Tensor, pan: Tensor) -> Tensor:
        """MS (B, C, H, W) and PAN (B, P, r H, r W) to logits.

        Returns:
            (B, K) with the flatten head, else (B, K, factor H, factor W).

        Raises:
            InputError: The sizes do not have the ratio, or a patch is not of one window.
        """
        height, width = ms.shape[-2:]
        if tuple(pan.shape[-2:]) != (height * self.ratio, width * self.ratio):
            raise InputError(
                f"MS of {height} x {width} and PAN of {pan.shape[-2]} x {pan.shape[-1]}",
                f"this model takes PAN {self.ratio} times as large as MS",
                "check the order of the images, or resample PAN",
            )
        ms, pan = self._padded(ms, pan)
        first = [self.embed["ms"](ms), self.embed["pan"](pan)]
        tokens, dominants = first, []
        for stage in self.stage.values():
            tokens, dominant = stage(tokens)
            dominants.append(dominant)
        fused = rearranged(torch.stack(tokens).mean(0), self.subpixel)
        for stage, dominant in zip(
            reversed(list(self.stage.values())), reversed(dominants), strict=True
        ):
            fuse: Any = stage.fuse
            fused = fuse([rearranged(d, self.subpixel) for d in dominant], fused)
        if self.head_kind == "dense":
            out: Tensor = self.head(fused, first, pan)
        else:
            out = self.head(fused)
        if self.head_kind == "flatten":
            return out
        return out[..., : height * self.factor, : width * self.factor]

    def _padded(self, ms: Tensor, pan: Tensor) -> tuple[Tensor, Tensor]:
        height, width = ms.shape[-2:]
        window = self.size.window
        if self.head_kind == "flatten":
            if (height, width) != (window, window):
                raise InputError(
                    f"a patch of {height} x {width} MS pixels",
                    f"the flatten head takes patches of {window} x {window}",
                    "use the dense or the sliding head for other sizes",
                )
            return ms, pan
        below, right = (-height % self.align, -width % self.align) if window else (0, 0)
        if not below and not right:
            return ms, pan
        ms = F.pad(ms, (0, right, 0, below), mode="replicate")
        r = self.ratio
        return ms, F.pad(pan, (0, r * right, 0, r * below), mode="replicate")


# Sizes of the general network: small enough to train in minutes on a laptop, with norms and windows
# that make the class of a pixel the same in every tile.
GENERAL: dict[str, Any] = {
    "width": 32,
    "cell": 4,
    "states": 8,
    "rank": 4,
    "mlp": 2,
    "norm": "layer",
    "window": 16,
    "swap": "all",
    "shared_norms": False,
}


def _check(
    classes: int, bands: int, pan_bands: int, ratio: int, stages: int, size: SSMSize
) -> None:
    inner = (size.width, size.cell, size.states, size.rank, size.mlp)
    if min(classes, bands, pan_bands, ratio, stages, *inner) < 1 or size.window < 0:
        raise InputError(
            f"{classes} classes, {bands} bands, {pan_bands} PAN bands, ratio {ratio}, {stages} "
            f"stages, {size}",
            "all must be at least 1",
            "check the arguments of the model",
        )
    if size.width % size.cell**2 or size.width % 4:
        raise InputError(
            f"width {size.width} with cells of {size.cell} x {size.cell}",
            "the width must be a multiple of cell^2 and of 4",
            f"for example width {4 * size.cell**2}",
        )


def _check_choices(size: SSMSize, fusion: str, head: str, resolution: str) -> None:
    for name, found, known in (
        ("fusion", fusion, get_args(Fusion)),
        ("head", head, get_args(HeadKind)),
        ("resolution", resolution, get_args(Resolution)),
        ("norm", size.norm, get_args(Norm)),
        ("swap", size.swap, get_args(Swap)),
    ):
        if found not in known:
            raise InputError(
                f"{name} {found!r} is unknown",
                f"known are {', '.join(known)}",
                "choose one of them",
            )
    if head != "dense" and not size.window:
        raise InputError(
            f"a {head} head with window 0",
            "its weights cover one window",
            "give the window, or use the dense head",
        )
    if head != "dense" and resolution != "ms":
        raise InputError(
            f"a {head} head with resolution {resolution}",
            "only the dense head gives classes to PAN pixels",
            "use the dense head",
        )


def das2f_reference(classes: int, stages: int) -> DAS2F:
    """The network of the public code: 4 MS bands, ratio 4, patches of 16 x 16 MS pixels."""
    return DAS2F(
        classes,
        bands=4,
        pan_bands=1,
        ratio=4,
        stages=stages,
        size=SSMSize(),
        fusion="reference",
        head="flatten",
    )


def _unet(**arguments: Any) -> nn.Module:
    from rsfuse.classification.baselines import UNet

    return UNet(**arguments)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "das2f": DAS2F,
    "das2f-reference-1": lambda classes=7: das2f_reference(classes, 1),
    "das2f-reference-2": lambda classes=11: das2f_reference(classes, 2),
    "unet": _unet,
}


def build_model(name: str, **arguments: Any) -> nn.Module:
    """A network by name.

    Raises:
        InputError: An unknown name or argument.
    """
    if name not in MODELS:
        raise InputError(
            f"model {name!r} is unknown", f"known are {', '.join(MODELS)}", "choose one of them"
        )
    try:
        return MODELS[name](**arguments)
    except TypeError as error:
        raise InputError(
            f"model {name!r} does not take these arguments: {error}",
            "arguments are those of its constructor",
            "see rsfuse.classification.model",
        ) from error


__all__ = [
    "DAS2F",
    "GENERAL",
    "MODELS",
    "SENSORS",
    "DenseHead",
    "Embed",
    "FlattenHead",
    "ReferenceFuse",
    "SlidingHead",
    "Stage",
    "VectorFuse",
    "build_model",
    "das2f_reference",
    "rearranged",
]
