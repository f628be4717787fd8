"""What DAS2F is measured against: a small U-Net of about equal cost, and a random forest."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter
from torch import Tensor, nn

from rsfuse.errors import RsfuseError


class UNet(nn.Module):
    """A U-Net (arXiv 1505.04597) on MS with PAN folded into channels.

    Args:
        classes: K.
        bands: Bands of MS.
        pan_bands: Bands of PAN.
        ratio: PAN pixels per MS pixel.
        width: Channels at full resolution; doubled twice.
        resolution: Whether a class is given to every MS or every PAN pixel.

    Attributes:
        align: Tiles are multiples of this.
        halo: MS pixels that a class depends on.
        factor: Class pixels per MS pixel.
    """

    def __init__(
        self,
        classes: int,
        bands: int = 4,
        pan_bands: int = 1,
        ratio: int = 4,
        width: int = 24,
        resolution: str = "ms",
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.resolution = resolution
        self.factor = ratio if resolution == "pan" else 1
        self.align, self.halo = 4, 24
        self.down1 = _double(bands + pan_bands * ratio**2, width)
        self.down2 = _double(width, 2 * width)
        self.down3 = _double(2 * width, 4 * width)
        self.up2 = _double(6 * width, 2 * width)
        self.up1 = _double(3 * width, width)
        channels = width
        if resolution == "pan":
            self.detail = nn.Sequential(
                nn.Conv2d(pan_bands, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
            )
            self.blend = nn.Conv2d(width + 16, width, 1)
        self.out = nn.Conv2d(channels, classes, 1)

    def forward(self, ms: Tensor, pan: Tensor) -> Tensor:
        """MS (B, C, H, W) and PAN (B, P, r H, r W) to logits (B, K, factor H, factor W)."""
        height, width = ms.shape[-2:]
        below, right = -height % self.align, -width % self.align
        ms = F.pad(ms, (0, right, 0, below), mode="replicate")
        pan = F.pad(pan, (0, right * self.ratio, 0, below * self.ratio), mode="replicate")
        x = torch.cat([ms, F.pixel_unshuffle(pan, self.ratio)], dim=1)
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        three = self.down3(F.max_pool2d(two, 2))
        two = self.up2(torch.cat([F.interpolate(three, scale_factor=2), two], dim=1))
        one = self.up1(torch.cat([F.interpolate(two, scale_factor=2), one], dim=1))
        if self.resolution == "pan":
            one = F.interpolate(one, scale_factor=self.ratio, mode="bilinear", align_corners=False)
            one = F.relu(self.blend(torch.cat([one, F.relu(self.detail(pan))], dim=1)))
        out: Tensor = self.out(one)
        return out[..., : height * self.factor, : width * self.factor]


def _double(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def pixel_features(
    ms: npt.NDArray[np.float32], pan: npt.NDArray[np.float32], factor: int
) -> npt.NDArray[np.float32]:
    """(F, factor H, factor W): bands, PAN, and mean and deviation of PAN around each pixel.

    Args:
        ms: (C, H, W).
        pan: (P, r H, r W).
        factor: Pixels of the result per MS pixel: 1 or r.
    """
    ratio = pan.shape[1] // ms.shape[1]
    layers = [band.repeat(factor, 0).repeat(factor, 1) for band in ms]
    for band in pan:
        for side in (1, 3, 7):
            mean = uniform_filter(band, side, mode="nearest")
            square = uniform_filter(band**2, side, mode="nearest")
            layers.append(_reduced(mean, ratio, factor))
            if side > 1:
                spread = np.sqrt(np.maximum(square - mean**2, 0))
                layers.append(_reduced(spread, ratio, factor))
    return np.stack(layers).astype(np.float32)


def _reduced(image: npt.NDArray[Any], ratio: int, factor: int) -> npt.NDArray[Any]:
    if factor == ratio:
        return image
    h, w = image.shape[0] // ratio, image.shape[1] // ratio
    return np.asarray(image.reshape(h, ratio, w, ratio).mean(axis=(1, 3)))


def fit_forest(features: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], seed: int) -> Any:
    """A random forest of 300 trees, classes weighted evenly, on features (N, F).

    Raises:
        RsfuseError: scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise RsfuseError(
            "scikit-learn is not installed",
            "the random forest is taken from it",
            'pip install "rsfuse[train]"',
        ) from error
    forest = RandomForestClassifier(
        300, min_samples_leaf=3, class_weight="balanced", n_jobs=1, random_state=seed
    )
    return forest.fit(features, labels)
