"""What a detector learns from: windows of whole images; and how it is scored on whole images."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rsfuse.detection import predict
from rsfuse.detection.augment import darkened
from rsfuse.detection.config import DetectTrainConfig
from rsfuse.detection.loss import Targets, detection_loss, pair_loss
from rsfuse.detection.metrics import PROTOCOLS, Answers, Truth, average_precision
from rsfuse.detection.model import Cells, Detector
from rsfuse.detection.network import detect_array
from rsfuse.detection.views import (
    PairJitter,
    PartnerView,
    Scale,
    TrainImage,
    mosaic,
    partner_view,
    window_view,
)
from rsfuse.engine.bundle import InputInfo
from rsfuse.engine.learner import Learner
from rsfuse.engine.pictures import WHITE, Canvas, rgb_of, write_sheet
from rsfuse.ops.boxes import corners_of

# Weight of the coarse matching in a training with pairs.
PAIR_WEIGHT = 0.5

# The Gaussian term of the loss fades out over this share of the steps.
_FADED = 0.5

# Score from which a box is drawn in the pictures of a training.
_SHOWN = 0.3

# No mosaics from this share of the steps on: the last steps see images as they are.
_WHOLE_FROM = 0.85

# Colours of the classes on pages, bright enough for grey and green ground.
COLORS = (
    "#ff5a5f", "#31c7f3", "#ffd23f", "#8ae234", "#c792ea", "#ff9f40", "#4de0b0", "#f78fb3",
    "#7aa2ff", "#e3b341", "#b8e986", "#ff7ad9", "#57d9ff", "#d0a070", "#a0a8ff", "#f2f2f2",
)  # fmt: skip


class DetectLearner(Learner):
    """Windows around objects, the detection loss, mAP50 on whole validation images."""

    monitor = "map50"
    higher_is_better = True

    def __init__(
        self,
        model: Detector,
        images: Sequence[TrainImage],
        validation: Sequence[TrainImage],
        classes: Sequence[str],
        config: DetectTrainConfig,
    ) -> None:
        self.model = model
        self.images = list(images)
        self.validation = list(validation)
        self.classes = tuple(classes)
        self.config = config
        self._odds = image_odds(self.images, len(classes), config.balance)
        self._cells: Cells = model.cells(config.window, config.window)
        # Values of both images as the network wants them.
        self.scaled = _scaling("image", config.low, config.high)
        self.scaled_partner = _scaling("partner", config.partner_low, config.partner_high)

    def sample(self, index: int) -> tuple[Tensor, Targets, PartnerView | None]:
        """A window (C, s, s), its objects, and its second image where the training has pairs."""
        rng = np.random.default_rng((self.config.seed, index))
        config = self.config
        whole = index >= _WHOLE_FROM * config.steps * config.batch
        parts, size = 1, config.window
        if config.mosaic and not whole and rng.random() < config.mosaic:
            parts, size = 4, config.window // 2
        views = []
        for _ in range(parts):
            image = self.images[int(rng.choice(len(self.images), p=self._odds))]
            views.append(window_view(image, size, rng, config.jitter, self.scaled))
        view = mosaic(views) if parts > 1 else views[0]
        pixels, targets = view.tensors()
        dark = config.night and rng.random() < config.night
        if dark:
            pixels = torch.from_numpy(darkened(view.pixels, rng))
        if not config.partner:
            return pixels, targets, None
        # In the dark nothing in the images tells how the second lies: only its georeference does.
        varied = PairJitter(displaced=0.0) if dark else PairJitter()
        other = self.images[int(rng.integers(len(self.images)))]
        light = (config.jitter, self.scaled_partner)
        return pixels, targets, partner_view(view, image, other, rng, varied, *light)

    def collate(self, samples: list[Any]) -> tuple[Any, ...]:
        """Images stacked, objects in a list; with pairs: partner, present, related, shift."""
        stacked = torch.stack([image for image, *_ in samples])
        images = stacked.contiguous(memory_format=torch.channels_last)
        targets = [t for _, t, _ in samples]
        if samples[0][2] is None:
            return images, targets
        pairs: list[Tensor] = torch.utils.data.default_collate([p for *_, p in samples])
        return images, targets, *(part.float() for part in pairs)

    def loss(self, model: nn.Module, batch: Any, step: int) -> Mapping[str, Tensor]:
        """The detection loss; its Gaussian term fades out."""
        images, targets, *pair = batch
        cells = self._cells.to(images.device)
        faded = max(0.0, 1.0 - step / (_FADED * self.config.steps))
        if not pair:
            return detection_loss(model(images), targets, cells, gaussian=faded)
        partner, present, related, shift = pair
        said = model(images, partner, present)
        parts = detection_loss(said, targets, cells, gaussian=faded)
        parts["match"] = pair_loss(said.match, shift, related, present)
        parts["loss"] = parts["loss"] + PAIR_WEIGHT * parts["match"]
        return parts

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """mAP50 and mAP75 (VOC12, difficult ignored) on the validation images."""
        limit = self.config.validation_images or len(self.validation)
        step = max(1, len(self.validation) // limit)
        chosen = self.validation[::step]
        config = self.config
        scores = score(
            model,
            chosen,
            self.classes,
            self.scaled,
            device,
            nms=config.nms,
            scaled_partner=self.scaled_partner if config.partner else None,
            night=config.night > 0,
        )
        return {
            "map50": scores["map50"],
            "map75": scores["map75"],
            **{f"ap50 {name}": entry["ap50"] for name, entry in scores["classes"].items()},
        }

    def pictures(self, model: nn.Module, folder: Path, step: int) -> None:
        """Six validation images: objects in white, what is found in the colours of the classes."""
        sheet = []
        every = max(1, len(self.validation) // 6)
        for image in self.validation[::every][:6]:
            pixels = torch.from_numpy(self.scaled(image.pixels))
            partner = None
            if self.config.partner and image.partner is not None:
                partner = torch.from_numpy(self.scaled_partner(image.partner))
            device = next(model.parameters()).device
            boxes, _, labels = detect_array(
                model,
                pixels.to(device),
                None if partner is None else partner.to(device),
                score=_SHOWN,
                nms=self.config.nms,
            )
            canvas = Canvas(pixels.numpy())
            for corners in image.corners:
                canvas.polygon(corners, WHITE)
            for corners, label in zip(corners_of(boxes[:, :5]), labels, strict=True):
                canvas.polygon(corners, rgb_of(COLORS[label % len(COLORS)]))
            sheet.append(canvas.picture)
        write_sheet(sheet, folder / f"step_{step:06d}.png")


def _scaling(name: str, low: tuple[float, ...], high: tuple[float, ...]) -> Scale:
    """What scales an image by the range of its bands; one range may stand for all bands."""
    return partial(predict.scaled, info=InputInfo(name=name, bands=(), low=low, high=high))


def image_odds(images: Sequence[TrainImage], classes: int, power: float) -> npt.NDArray[np.float64]:
    """(I,): chance of each image to be drawn: larger where a rare class occurs.

    An image's weight is the largest (N / n_k)^power over its classes k, n_k the images of N that
    hold k; images without objects weigh 1.
    """
    present = np.zeros((len(images), classes), bool)
    for i, image in enumerate(images):
        present[i, image.labels[image.difficult == 0]] = True
    rarity = (len(images) / np.maximum(present.sum(axis=0), 1)) ** power
    weight = np.maximum(np.where(present, rarity, 0.0).max(axis=1, initial=0.0), 1.0)
    return np.asarray(weight / weight.sum())


@torch.no_grad()
def score(
    model: nn.Module,
    images: Sequence[TrainImage],
    classes: Sequence[str],
    scaled: Scale,
    device: torch.device,
    *,
    protocol: str = "voc12",
    least: float = 0.01,
    nms: float = 0.1,
    scaled_partner: Scale | None = None,
    night: bool = False,
) -> dict[str, Any]:
    """Scores of a network on whole images.

    Args:
        model: The network.
        images: With their objects.
        classes: Names.
        scaled: Values as the network wants them.
        device: Where it lies.
        protocol: One of `PROTOCOLS`.
        least: Lowest score.
        nms: Largest overlap of two boxes of a class.
        scaled_partner: Values of the second images; None to leave them out.
        night: Darken every second image, always the same way.
    """
    answers: list[tuple[int, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]] = []
    for i, image in enumerate(images):
        seen = scaled(image.pixels)
        if night and i % 2:
            seen = darkened(seen, np.random.default_rng(i))
        partner = None
        if scaled_partner is not None and image.partner is not None:
            partner = torch.from_numpy(scaled_partner(image.partner)).to(device)
        pixels = torch.from_numpy(seen).to(device)
        boxes, values, labels = detect_array(model, pixels, partner, score=least, nms=nms)
        answers.append((i, corners_of(boxes[:, :5]), values, labels))
    found = Answers(
        np.concatenate([np.full(len(v), i) for i, _, v, _ in answers]).astype(np.int64),
        np.concatenate([c for _, c, _, _ in answers]),
        np.concatenate([label for *_, label in answers]),
        np.concatenate([v for _, _, v, _ in answers]),
    )
    truth = Truth(
        np.concatenate([np.full(len(m.labels), i) for i, m in enumerate(images)]).astype(np.int64),
        np.concatenate([m.corners for m in images]),
        np.concatenate([m.labels for m in images]),
        np.concatenate([m.difficult for m in images]),
    )
    return average_precision(truth, found, classes, PROTOCOLS[protocol]).to_dict()
