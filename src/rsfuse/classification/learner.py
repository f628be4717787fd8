"""What a land-cover network learns from: tiles of scenes with sparse or dense labels.

Tiles are drawn around labelled pixels of the training part, every class equally often; what is not
labelled, or belongs to validation or test, is ignored by the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsfuse.classification.config import ClassifyTrainConfig
from rsfuse.engine.learner import Learner
from rsfuse.engine.processes import mean_over_processes

Image = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Label of pixels that the loss leaves out.
IGNORED = -1

# Side in MS pixels of the tiles that validation is done on.
_VALIDATION_TILE = 64


@dataclass(frozen=True, eq=False)
class LabelledScene:
    """One scene as a network sees it.

    Attributes:
        ms: (C, H, W), scaled to about 0..1.
        pan: (P, r H, r W), scaled.
        labels: (f H, f W), -1 where there is none.
        train: (f H, f W), labels that are learned from.
        validation: (f H, f W), labels that choose the best weights.
        test: (f H, f W), labels that are looked at once, at the end.
    """

    ms: Image
    pan: Image
    labels: Labels
    train: Mask
    validation: Mask
    test: Mask

    @property
    def ratio(self) -> int:
        """PAN pixels per MS pixel along an axis."""
        return self.pan.shape[1] // self.ms.shape[1]

    @property
    def factor(self) -> int:
        """Label pixels per MS pixel along an axis."""
        return self.labels.shape[0] // self.ms.shape[1]


class ClassifyLearner(Learner):
    """Tiles around labelled pixels, cross-entropy, scores on validation labels."""

    monitor = "mean_f1"
    higher_is_better = True

    def __init__(
        self,
        model: nn.Module,
        scenes: Sequence[LabelledScene],
        classes: int,
        config: ClassifyTrainConfig,
    ) -> None:
        self.model = model
        self.scenes = tuple(scenes)
        self.classes = classes
        self.config = config
        self.tile = min(config.tile, *(min(scene.ms.shape[1:]) for scene in self.scenes))
        self._places = [_places(self.scenes, label) for label in range(classes)]
        counts = np.array([len(places) for places in self._places], np.float64)
        odds = (counts > 0).astype(np.float64) if config.class_weights == "balanced" else counts
        self._odds = odds / odds.sum()

    def sample(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """MS (C, t, t), PAN (P, r t, r t) and labels (f t, f t) of a tile."""
        rng = np.random.default_rng((self.config.seed, index))
        label = int(rng.choice(self.classes, p=self._odds))
        number, row, column = self._places[label][int(rng.integers(len(self._places[label])))]
        scene = self.scenes[number]
        factor, ratio, side = scene.factor, scene.ratio, self.tile
        place = []
        for at, size in zip((row // factor, column // factor), scene.ms.shape[1:], strict=True):
            first = int(at - rng.integers(side))
            place.append(min(max(first, 0), size - side))
        y, x = place
        ms = scene.ms[:, y : y + side, x : x + side]
        pan = scene.pan[:, y * ratio : (y + side) * ratio, x * ratio : (x + side) * ratio]
        inside = (
            slice(y * factor, (y + side) * factor),
            slice(x * factor, (x + side) * factor),
        )
        labels = np.where(scene.train[inside], scene.labels[inside], IGNORED)
        ms, pan = self._other_light(ms, rng), self._other_light(pan, rng)
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
        turned = (_turned(array, turns, mirror) for array in (ms, pan, labels))
        one, two, three = (torch.from_numpy(array) for array in turned)
        return one, two, three

    def _other_light(self, image: Image, rng: np.random.Generator) -> Image:
        spread = self.config.brightness
        gain = 1.0 + spread * rng.standard_normal((len(image), 1, 1))
        offset = spread * rng.standard_normal((len(image), 1, 1))
        return (image * gain + offset).astype(np.float32)

    def loss(self, model: nn.Module, batch: Any, step: int) -> Mapping[str, Tensor]:
        """Cross-entropy over the labelled pixels of a batch."""
        ms, pan, labels = batch
        logits = model(ms, pan)
        loss = F.cross_entropy(
            logits.float(),
            labels,
            ignore_index=IGNORED,
            label_smoothing=self.config.label_smoothing,
            reduction="sum",
        )
        number = mean_over_processes((labels != IGNORED).sum().float())
        return {"loss": loss / number.clamp(min=1)}

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Overall accuracy, mean F1 and cross-entropy on the validation labels."""
        logits, labels = self.predictions("validation", device)
        if not len(labels):
            return {"mean_f1": float("nan"), "accuracy": float("nan"), "loss": float("nan")}
        found = logits.argmax(dim=1)
        matrix = torch.bincount(labels * self.classes + found, minlength=self.classes**2).reshape(
            self.classes, self.classes
        )
        hits, rows, columns = matrix.diag(), matrix.sum(1), matrix.sum(0)
        f1 = 2 * hits / (rows + columns).clamp(min=1)
        return {
            "mean_f1": float(f1[rows > 0].mean()),
            "accuracy": float(hits.sum() / matrix.sum()),
            "loss": float(F.cross_entropy(logits, labels)),
        }

    @torch.no_grad()
    def predictions(
        self, part: Literal["train", "validation", "test"], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and labels (N,) of every labelled pixel of a part, scene by scene."""
        align = int(getattr(self.model, "align", 1))
        halo = align * -(-int(getattr(self.model, "halo", 0)) // align)
        side = align * max(1, _VALIDATION_TILE // align)
        kept: list[Tensor] = []
        truth: list[Tensor] = []
        for scene in self.scenes:
            wanted = getattr(scene, part) & (scene.labels >= 0)
            for y, x in _tiles_with(wanted, scene.factor, side):
                logits, core = _logits(self.model, scene, (y, x), side, halo, align, device)
                chosen = torch.from_numpy(wanted[core])
                kept.append(logits[:, chosen].T.cpu())
                truth.append(torch.from_numpy(scene.labels[core])[chosen])
        if not kept:
            return torch.zeros(0, self.classes), torch.zeros(0, dtype=torch.int64)
        return torch.cat(kept), torch.cat(truth)


def _places(scenes: Sequence[LabelledScene], label: int) -> npt.NDArray[np.int64]:
    """(N, 3): scene, row and column of the training pixels of a class."""
    found = [
        np.column_stack([np.full(len(rows), number), rows, columns])
        for number, scene in enumerate(scenes)
        for rows, columns in [np.nonzero(scene.train & (scene.labels == label))]
    ]
    return np.concatenate(found).astype(np.int64)


def _turned(array: npt.NDArray[Any], turns: int, mirror: bool) -> npt.NDArray[Any]:
    """One of the eight positions of a square over the last two axes."""
    turned = np.rot90(array, turns, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if mirror else turned)


def _tiles_with(wanted: Mask, factor: int, side: int) -> list[tuple[int, int]]:
    """Upper left MS pixel of each tile that holds a wanted label."""
    step = side * factor
    h, w = wanted.shape
    return [
        (top // factor, left // factor)
        for top in range(0, h, step)
        for left in range(0, w, step)
        if wanted[top : top + step, left : left + step].any()
    ]


def _logits(
    model: nn.Module,
    scene: LabelledScene,
    corner: tuple[int, int],
    side: int,
    halo: int,
    align: int,
    device: torch.device,
) -> tuple[Tensor, tuple[slice, slice]]:
    """Logits (K, h, w) of the core of a tile, and where it lies in the labels."""
    ratio, factor = scene.ratio, scene.factor
    spans = []
    for start, size in zip(corner, scene.ms.shape[1:], strict=True):
        spans.append(
            (max(0, start - halo), min(size, start + side + halo), min(size, start + side))
        )
    (y0, y1, yc), (x0, x1, xc) = spans
    below, right = -(y1 - y0) % align, -(x1 - x0) % align
    ms = scene.ms[:, y0:y1, x0:x1]
    pan = scene.pan[:, y0 * ratio : y1 * ratio, x0 * ratio : x1 * ratio]
    ms = np.pad(ms, ((0, 0), (0, below), (0, right)), mode="symmetric")
    pan = np.pad(pan, ((0, 0), (0, below * ratio), (0, right * ratio)), mode="symmetric")
    logits = model(torch.from_numpy(ms)[None].to(device), torch.from_numpy(pan)[None].to(device))[
        0
    ].float()
    y, x = corner
    inner = logits[
        :,
        (y - y0) * factor : (yc - y0) * factor,
        (x - x0) * factor : (xc - x0) * factor,
    ]
    return inner, (slice(y * factor, yc * factor), slice(x * factor, xc * factor))
