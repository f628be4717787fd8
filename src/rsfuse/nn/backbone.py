"""Feature pyramids: a small backbone of our own, ResNets that take published weights, and an FPN.

Backbones give features at strides 4, 8, 16 and 32. The names of the ResNets' parameters are those
of torchvision and timm, so that published files load (`load_backbone`).
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rsfuse.errors import InputError

STRIDES = (4, 8, 16, 32)


class ConvNorm(nn.Sequential):
    """Convolution, BatchNorm, and SiLU where asked for; (B, C, H, W) to (B, C', H/s, W/s)."""

    def __init__(
        self, channels: int, out: int, kernel: int = 3, stride: int = 1, *, groups: int = 1,
        activation: bool = True,
    ) -> None:  # fmt: skip
        padding = kernel // 2
        layers: list[nn.Module] = [
            nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(out),
        ]
        if activation:
            layers.append(nn.SiLU(inplace=True))
        super().__init__(*layers)


class FusedBlock(nn.Module):
    """A dense 3 x 3 convolution that widens, a 1 x 1 that narrows, a residual where shapes agree.

    The fused inverted bottleneck of MobileNetV4 (arXiv 2404.10518): at the fine strides of a small
    network, a dense convolution runs faster on processors than a depthwise one of equal accuracy.
    """

    def __init__(self, channels: int, out: int, stride: int = 1, widen: int = 2) -> None:
        super().__init__()
        self.widen = ConvNorm(channels, channels * widen, 3, stride)
        self.narrow = ConvNorm(channels * widen, out, 1, activation=False)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H/s, W/s)."""
        y: Tensor = self.narrow(self.widen(x))
        return x + y if self.residual else y


class InvertedBlock(nn.Module):
    """Widen by 1 x 1, depthwise 5 x 5, narrow by 1 x 1, residual where shapes agree.

    The inverted bottleneck of MobileNetV4 with the larger kernel, for the coarse strides.
    """

    def __init__(self, channels: int, out: int, stride: int = 1, widen: int = 3) -> None:
        super().__init__()
        inner = channels * widen
        self.widen = ConvNorm(channels, inner, 1)
        self.depthwise = ConvNorm(inner, inner, 5, stride, groups=inner)
        self.narrow = ConvNorm(inner, out, 1, activation=False)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, out, H/s, W/s)."""
        y: Tensor = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.residual else y


class TinyNet(nn.Module):
    """A small backbone: dense blocks at strides 4 and 8, inverted bottlenecks at 16 and 32.

    Args:
        bands: Bands of the image.
        widths: Channels at strides 4, 8, 16 and 32.
        depths: Blocks at each.
    """

    def __init__(
        self,
        bands: int = 3,
        widths: Sequence[int] = (24, 48, 96, 160),
        depths: Sequence[int] = (1, 3, 3, 2),
    ) -> None:
        super().__init__()
        self.channels = tuple(widths)
        self.stem = ConvNorm(bands, 16, 3, 2)
        stages = []
        before = 16
        for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            block = FusedBlock if level < 2 else InvertedBlock
            blocks: list[nn.Module] = [block(before, width, 2)]
            blocks += [block(width, width) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            before = width
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, bands, H, W) to features at strides 4, 8, 16, 32."""
        x = self.stem(image)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


class BasicBlock(nn.Module):
    """The residual block of ResNet-18 and -34, with torchvision's names."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width, H/s, W/s)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Bottleneck(nn.Module):
    """The residual block of ResNet-50 (stride in the 3 x 3), with torchvision's names."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _projection(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 4 width, H/s, W/s)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


def _projection(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(nn.Module):
    """ResNet without its classifier (arXiv 1512.03385), parameters named as in torchvision."""

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], bands: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for level, depth in enumerate(depths):
            width = 64 * 2**level
            layers = []
            for index in range(depth):
                stride = 2 if level and not index else 1
                layers.append(block(channels, width, stride))
                channels = width * block.expansion
            setattr(self, f"layer{level + 1}", nn.Sequential(*layers))
        self.channels = tuple(64 * 2**level * block.expansion for level in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, bands, H, W) to features at strides 4, 8, 16, 32."""
        x = F.relu(self.bn1(self.conv1(image)), inplace=True)
        x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for level in range(1, 5):
            x = getattr(self, f"layer{level}")(x)
            features.append(x)
        return features


BACKBONES = ("tiny", "r18", "r34", "r50")


def make_backbone(name: str, bands: int = 3) -> TinyNet | ResNet:
    """A backbone by name.

    Raises:
        InputError: Unknown.
    """
    if name == "tiny":
        return TinyNet(bands)
    if name == "r18":
        return ResNet(BasicBlock, (2, 2, 2, 2), bands)
    if name == "r34":
        return ResNet(BasicBlock, (3, 4, 6, 3), bands)
    if name == "r50":
        return ResNet(Bottleneck, (3, 4, 6, 3), bands)
    raise InputError(
        f"backbone {name!r} is unknown", f"known are {', '.join(BACKBONES)}", "choose one of them"
    )


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load published weights of a ResNet; a classifier in them is left out.

    A first convolution of three bands is adapted to another number: its mean over the bands,
    repeated, keeps the scale of the response.

    Raises:
        InputError: The names or shapes are of another network; nothing is loaded then.
    """
    ours = backbone.state_dict()
    given = {k: v for k, v in state.items() if not k.startswith(("fc.", "head."))}
    first = next(iter(ours))
    if first in given and given[first].shape != ours[first].shape:
        bands = ours[first].shape[1]
        mean = given[first].mean(dim=1, keepdim=True)
        given[first] = mean.expand(-1, bands, -1, -1) * (given[first].shape[1] / bands)
    needed = {name for name in ours if not name.endswith("num_batches_tracked")}
    missing, unknown = sorted(needed - given.keys()), sorted(given.keys() - ours.keys())
    wrong = sorted(k for k in needed & given.keys() if given[k].shape != ours[k].shape)
    if missing or unknown or wrong:
        raise InputError(
            "the weights are of another backbone: "
            f"{len(missing)} names missing, {len(unknown)} unknown, {len(wrong)} of another shape",
            f"the first is {(missing or unknown or wrong)[0]}",
            "give weights of the same ResNet, by torchvision's or timm's names",
        )
    backbone.load_state_dict({**ours, **given})


class FPN(nn.Module):
    """Feature pyramid (arXiv 1612.03144): 1 x 1 to one width, coarse added to fine, smoothed.

    Args:
        channels: Channels of each level, fine to coarse.
        width: Channels of each result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(ConvNorm(c, width, 1, activation=False) for c in channels)
        self.smooth = nn.ModuleList(
            nn.Sequential(ConvNorm(width, width, 3, groups=width), ConvNorm(width, width, 1))
            for _ in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of falling size to features of `width` channels and the same sizes."""
        levels = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            finer = levels[i - 1]
            levels[i - 1] = finer + F.interpolate(levels[i], size=finer.shape[-2:], mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]


def padded(image: Tensor, stride: int) -> Tensor:
    """The image with zeros at its right and lower edge, up to whole strides."""
    below, right = -image.shape[-2] % stride, -image.shape[-1] % stride
    return F.pad(image, (0, right, 0, below)) if below or right else image


def parameters_of(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


__all__ = [
    "BACKBONES",
    "FPN",
    "STRIDES",
    "ConvNorm",
    "ResNet",
    "TinyNet",
    "load_backbone",
    "make_backbone",
    "padded",
    "parameters_of",
]
