"""The detector: backbone, pyramid, one head for all levels, boxes by dual-frequency angles.

Anchor-free: each cell of each level says for every class how well the box that it gives would fit
an object there, where that box lies, and its direction. The angle is given as two phases, (cos 2t,
sin 2t) and (cos 4t, sin 4t): the first is continuous over the half turn after which an oblong looks
the same, the second over the quarter turn of a square, where the first has no meaning. The finer
phase gives the angle and the coarser tells which of its two quarters (PSC, arXiv 2211.06368).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rsfuse.detection.pair import Match, PairFusion, corner_mass
from rsfuse.nn.backbone import FPN, STRIDES, make_backbone, padded
from rsfuse.nn.cstf import Fusion

# Share of positives that an untrained cell expects; keeps the first steps calm.
_PRIOR = 0.01

# Largest |log| of a side in strides: 1/55 to 400.
_LOG_LOW, _LOG_HIGH = -4.0, 6.0


class Prediction(NamedTuple):
    """What the network says of N cells.

    Attributes:
        logits: (B, N, K), one per class.
        boxes: (B, N, 5): cx, cy, w, h, angle; w need not be the longer side, the angle not wrapped.
        phases: (B, N, 4): cos 2t, sin 2t, cos 4t, sin 4t, not normalised.
        fronts: (B, N, 2): x and y of the direction of the front, not normalised; None where the
            network was not made for headings.
        match: What the matching of two images said; None for one image.
    """

    logits: Tensor
    boxes: Tensor
    phases: Tensor
    fronts: Tensor | None = None
    match: Match | None = None


class Cells(NamedTuple):
    """The cells of all levels, fine to coarse.

    Attributes:
        centres: (N, 2), x and y in pixels.
        strides: (N,) pixels.
        levels: (h, w, stride) of each; its cells are numbered along rows.
    """

    centres: Tensor
    strides: Tensor
    levels: tuple[tuple[int, int, int], ...]

    def to(self, device: torch.device) -> "Cells":
        """The same on a device."""
        return Cells(self.centres.to(device), self.strides.to(device), self.levels)


class Head(nn.Module):
    """Two towers of separable convolutions, shared by the levels but for their norms.

    Sharing the convolutions and not the norms is RTMDet's choice (arXiv 2212.07784).
    """

    def __init__(
        self, width: int, classes: int, levels: int, depth: int = 2, heading: bool = False
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleList(_Tower(width, levels, depth) for _ in range(2))
        self.score = nn.Conv2d(width, classes, 1)
        self.place = nn.Conv2d(width, 4, 1)
        self.phase = nn.Conv2d(width, 4, 1)
        self.front = nn.Conv2d(width, 2, 1) if heading else None
        self.scales = nn.Parameter(torch.ones(levels))
        for layer in filter(None, (self.score, self.place, self.phase, self.front)):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.score.bias, -math.log((1 - _PRIOR) / _PRIOR))  # type: ignore[arg-type]
        with torch.no_grad():
            self.place.bias.copy_(torch.tensor([0.0, 0.0, 0.7, 0.7]))  # type: ignore[union-attr]
            self.phase.bias.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]))  # type: ignore[union-attr]

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Of all cells: scores (B, N, K), places and phases (B, N, 4), fronts (B, N, 2) or None."""
        scores, places, phases, fronts = [], [], [], []
        for level, x in enumerate(features):
            seen, placed = self.towers[0](x, level), self.towers[1](x, level)
            scores.append(self.score(seen))
            places.append(self.place(placed) * self.scales[level])
            phases.append(self.phase(placed))
            if self.front is not None:
                fronts.append(self.front(placed))
        return (
            _joined(scores),
            _joined(places),
            _joined(phases),
            _joined(fronts) if fronts else None,
        )


def _joined(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, h, w) of all levels as (B, N, C)."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)


class _Tower(nn.Module):
    def __init__(self, width: int, levels: int, depth: int) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False) for _ in range(depth)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels)) for _ in range(depth)
        )
        self.activation = nn.SiLU(inplace=True)

    def forward(self, x: Tensor, level: int) -> Tensor:
        for depthwise, pointwise, norms in zip(
            self.depthwise, self.pointwise, self.norms, strict=True
        ):
            x = self.activation(norms[level](pointwise(depthwise(x))))  # type: ignore[index]
        return x


class Detector(nn.Module):
    """An oriented object detector for one image, or for two of the same ground.

    Args:
        classes: Number of classes.
        bands: Bands of the image.
        backbone: "tiny", "r18", "r34" or "r50".
        width: Channels of the pyramid and the head.
        finest: Finest stride: 8, or 4 for tiny objects.
        depth: Convolutions in each tower of the head.
        heading: Whether it says where the front of an object is.
        partner_bands: Bands of the second image; 0 for a detector of one image.
        fusion: How the second image enters, see `nn.cstf`.
        temporal: Whether the fusion has a temporal step.
        keypoint_bias: Whether keypoints attract the attention of the fusion.
    """

    def __init__(
        self,
        classes: int,
        bands: int = 3,
        backbone: str = "tiny",
        width: int = 64,
        finest: int = 8,
        depth: int = 2,
        heading: bool = False,
        partner_bands: int = 0,
        fusion: Fusion = "ca||sca",
        temporal: bool = True,
        keypoint_bias: bool = True,
    ) -> None:
        super().__init__()
        self.strides = tuple(s for s in STRIDES if s >= finest)
        self.backbone = make_backbone(backbone, bands)
        skipped = len(STRIDES) - len(self.strides)
        self.skipped = skipped
        self.pyramid = FPN(self.backbone.channels[skipped:], width)
        self.head = Head(width, classes, len(self.strides), depth, heading)
        self.classes = classes
        self.partner_bands = partner_bands
        self._frozen: tuple[nn.Module, ...] = ()
        if partner_bands:
            self.partner_backbone = make_backbone(backbone, partner_bands)
            self.partner_pyramid = FPN(self.partner_backbone.channels[skipped:], width)
            self.pair = PairFusion(
                width,
                self.strides,
                fusion=fusion,
                temporal=temporal,
                keypoint_bias=keypoint_bias,
            )

    def freeze_single(self) -> None:
        """Freeze the part for one image: training changes what a second image adds alone."""
        self._frozen = (self.backbone, self.pyramid, self.head)
        for part in self._frozen:
            part.requires_grad_(False)
            part.eval()

    def train(self, mode: bool = True) -> "Detector":
        """As in PyTorch; what is frozen keeps its statistics."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def features(self, image: Tensor) -> list[Tensor]:
        """(B, bands, H, W), already padded, to pyramid levels (B, width, H/s, W/s)."""
        levels: list[Tensor] = self.pyramid(self.backbone(image)[self.skipped :])
        return levels

    def forward(
        self, image: Tensor, partner: Tensor | None = None, present: Tensor | None = None
    ) -> Prediction:
        """Predictions for an image (B, bands, H, W) of any size, scaled to about 0..1.

        Args:
            image: The reference; boxes are in its frame.
            partner: (B, partner_bands, H, W) the query, on about the same pixels; None without.
            present: (B,) whether an image of the batch has a query; all have when None.
        """
        image = padded(image, self.strides[-1])
        levels = self.features(image)
        if partner is None or not self.partner_bands:
            return self.predict(levels)
        partner = padded(partner, self.strides[-1])
        if present is None:
            present = torch.ones(len(image), device=image.device)
        query = self.partner_pyramid(self.partner_backbone(partner)[self.skipped :])
        masses = corner_mass(image), corner_mass(partner)
        levels, match = self.pair(levels, query, masses, present.to(image.dtype))
        return self.predict(levels)._replace(match=match)

    def predict(self, levels: Sequence[Tensor]) -> Prediction:
        """Predictions from the levels of a pyramid."""
        scores, places, phases, fronts = self.head(levels)
        shapes = [(x.shape[-2], x.shape[-1]) for x in levels]
        cells = cells_of(shapes, self.strides, scores.device)
        return Prediction(scores, decode(places, phases, cells), phases, fronts)

    def cells(self, height: int, width: int) -> Cells:
        """The cells of an image of a size."""
        coarsest = self.strides[-1]
        h, w = (-(-side // coarsest) * coarsest for side in (height, width))
        shapes = [(h // s, w // s) for s in self.strides]
        return cells_of(shapes, self.strides, torch.device("cpu"))


class Decoded(nn.Module):
    """A detector that gives scores and boxes as one plain tensor: what is exported.

    The layout is that of oriented boxes of Ultralytics, which other programs read.

    Args:
        detector: The detector.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.train(detector.training)

    def forward(self, image: Tensor, *pair: Tensor) -> Tensor:
        """(B, 4 + K + 1, N): cx, cy, w, h, K scores, angle.

        Args:
            image: (B, bands, H, W).
            *pair: Of a detector of two images: `partner` and `present` of `Detector`.
        """
        found = self.detector(image, *pair)
        boxes = found.boxes
        return torch.cat([boxes[..., :4], found.logits.sigmoid(), boxes[..., 4:]], -1).mT


def cells_of(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device
) -> Cells:
    """Centres and strides of the cells of levels of given (h, w)."""
    centres, sizes = [], []
    for (h, w), stride in zip(shapes, strides, strict=True):
        y = (torch.arange(h, device=device, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(w, device=device, dtype=torch.float32) + 0.5) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centres.append(torch.stack([grid_x, grid_y], dim=-1).reshape(-1, 2))
        sizes.append(torch.full((h * w,), float(stride), device=device))
    levels = tuple((h, w, stride) for (h, w), stride in zip(shapes, strides, strict=True))
    return Cells(torch.cat(centres), torch.cat(sizes), levels)


def decode(places: Tensor, phases: Tensor, cells: Cells) -> Tensor:
    """Boxes (B, N, 5) in pixels from the raw numbers of the head, with standard operators only."""
    places, phases = places.float(), phases.float()
    stride = cells.strides[:, None]
    centre = cells.centres + places[..., :2] * stride
    size = torch.exp(places[..., 2:].clamp(_LOG_LOW, _LOG_HIGH)) * stride
    return torch.cat([centre, size, angle_of(phases)[..., None]], dim=-1)


def angle_of(phases: Tensor) -> Tensor:
    """The angle in radians of phases (..., 4): cos 2t, sin 2t, cos 4t, sin 4t."""
    coarse = torch.atan2(phases[..., 1], phases[..., 0]) / 2
    fine = torch.atan2(phases[..., 3], phases[..., 2]) / 4
    quarter = math.pi / 2
    return fine + quarter * torch.round((coarse - fine).detach() / quarter)


def heading_of(angle: Tensor, fronts: Tensor) -> Tensor:
    """Direction of the front in radians: of the two ends of the box, that on the side of `fronts`.

    Args:
        angle: (...) of the boxes.
        fronts: (..., 2).
    """
    along = torch.cos(angle) * fronts[..., 0] + torch.sin(angle) * fronts[..., 1]
    return torch.where(along < 0, angle + math.pi, angle)


def phases_of(angle: Tensor) -> Tensor:
    """Phases (..., 4) of an angle in radians."""
    return torch.stack(
        [torch.cos(2 * angle), torch.sin(2 * angle), torch.cos(4 * angle), torch.sin(4 * angle)],
        dim=-1,
    )


__all__ = [
    "Cells",
    "Decoded",
    "Detector",
    "Head",
    "Prediction",
    "angle_of",
    "cells_of",
    "decode",
    "heading_of",
    "phases_of",
]
