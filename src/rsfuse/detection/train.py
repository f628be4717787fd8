"""Training of the detector: windows cut from whole images, the engine's loop, a bundle at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor, nn

from rsfuse.detection.augment import (
    IGNORED_SHARE,
    LEARNED_SHARE,
    Jitter,
    cut,
    moved,
    other_light,
    random_window,
    visible_share,
)
from rsfuse.detection.data import Dataset, Sample
from rsfuse.detection.loss import Targets, detection_loss
from rsfuse.detection.metrics import PROTOCOLS, Answers, Truth, average_precision
from rsfuse.detection.model import Cells, Detector
from rsfuse.detection.predict import boxes_of
from rsfuse.engine.config import TrainSettings
from rsfuse.engine.learner import Learner
from rsfuse.ops.boxes import corners_of, from_corners

# The Gaussian term of the loss fades out over this share of the steps.
_FADED = 0.5


class DetectTrainConfig(TrainSettings):
    """A training of `rsfuse detect`: the settings of the loop, and those of the task.

    Attributes:
        name: Name of the bundle.
        data: Folder of the data set.
        format: Its format; "auto" looks.
        train_split: Part that is learned from.
        validation_split: Part that chooses the best weights.
        classes: Names in the order of the labels; those of the data set when empty.
        ignored: Classes whose objects are neither right nor wrong.
        bands: Bands of the images that are used, by number from 1; all when empty.
        backbone: "tiny", "r18", "r34" or "r50".
        weights: File with published weights of a ResNet; none when empty.
        width: Channels of pyramid and head.
        finest: Finest stride, 8 or 4.
        window: Side of training windows in pixels.
        scale_low: Smallest enlargement of a window.
        scale_high: Largest.
        rotation: Chance of a free rotation.
        low: Value that becomes 0, per band or for all.
        high: Value that becomes 1.
        balance: Power of the inverse frequency by which images with rare classes are drawn.
        validation_images: At most so many images are validated on; 0 takes all.
        gsd_m: Ground sampling distance of the images; 0 where it varies or is unknown.
        licence: Licence of the data, for the model card.
    """

    name: str = "detector"
    data: str
    format: str = "auto"
    train_split: str = "train"
    validation_split: str = "val"
    classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    bands: tuple[int, ...] = ()
    backbone: Literal["tiny", "r18", "r34", "r50"] = "tiny"
    weights: str = ""
    width: int = pydantic.Field(64, ge=8)
    finest: Literal[4, 8] = 8
    window: int = pydantic.Field(320, ge=64)
    scale_low: float = pydantic.Field(0.6, gt=0)
    scale_high: float = pydantic.Field(1.6, gt=0)
    rotation: float = pydantic.Field(0.5, ge=0, le=1)
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (255.0,)
    balance: float = pydantic.Field(0.5, ge=0, le=1)
    validation_images: int = pydantic.Field(0, ge=0)
    gsd_m: float = pydantic.Field(0.0, ge=0)
    licence: str = "not stated"

    @property
    def jitter(self) -> Jitter:
        """How training windows vary."""
        return Jitter(scale=(self.scale_low, self.scale_high), rotation=self.rotation)


@dataclass(frozen=True, eq=False)
class TrainImage:
    """An image in memory, in the type of its file, with its objects.

    Attributes:
        pixels: (C, h, w).
        corners: (N, 4, 2).
        labels: (N,).
        difficult: (N,).
    """

    pixels: npt.NDArray[Any]
    corners: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    difficult: npt.NDArray[np.int64]


ReadImage = Callable[[Path], npt.NDArray[Any]]


def load_images(
    samples: Sequence[Sample], read: ReadImage, bands: Sequence[int] = ()
) -> list[TrainImage]:
    """The images of samples that have one; bands by number from 1."""
    images = []
    for sample in samples:
        if sample.image is None:
            continue
        pixels = read(sample.image)
        if bands:
            pixels = pixels[[band - 1 for band in bands]]
        found = sample.objects
        images.append(TrainImage(pixels, found.corners, found.labels, found.difficult))
    return images


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
        self._low = np.asarray(config.low, np.float32)[:, None, None]
        self._range = np.asarray(config.high, np.float32)[:, None, None] - self._low

    def scaled(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Values as the network wants them."""
        return ((pixels.astype(np.float32) - self._low) / self._range).astype(np.float32)

    def sample(self, index: int) -> tuple[Tensor, Targets]:
        """A window (C, s, s) and its objects."""
        random = np.random.default_rng((self.config.seed, index))
        image = self.images[int(random.choice(len(self.images), p=self._odds))]
        size = self.config.window
        jitter = self.config.jitter
        centres = image.corners[image.difficult == 0].mean(axis=1)
        shape = (image.pixels.shape[1], image.pixels.shape[2])
        matrix = random_window(random, size, shape, centres, jitter)
        pixels = other_light(self.scaled(cut(image.pixels, matrix, size)), random, jitter)
        corners = moved(image.corners, matrix)
        share = visible_share(corners, size)
        learned = (share >= LEARNED_SHARE) & (image.difficult == 0)
        ignored = (share > IGNORED_SHARE) & ~learned
        boxes = torch.from_numpy(from_corners(corners).astype(np.float32).reshape(-1, 5))
        return torch.from_numpy(pixels), Targets(
            boxes[torch.from_numpy(learned)],
            torch.from_numpy(image.labels[learned]),
            boxes[torch.from_numpy(ignored)],
        )

    def collate(self, samples: list[Any]) -> tuple[Tensor, list[Targets]]:
        """Images stacked, objects in a list."""
        images = torch.stack([image for image, _ in samples])
        return images.contiguous(memory_format=torch.channels_last), [t for _, t in samples]

    def loss(self, model: nn.Module, batch: Any, step: int) -> Mapping[str, Tensor]:
        """The detection loss; its Gaussian term fades out."""
        images, targets = batch
        cells = Cells(*(part.to(images.device) for part in self._cells))
        faded = max(0.0, 1.0 - step / (_FADED * self.config.steps))
        return detection_loss(model(images), targets, cells, gaussian=faded)

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """mAP50 and mAP75 (VOC12, difficult ignored) on the validation images."""
        limit = self.config.validation_images or len(self.validation)
        step = max(1, len(self.validation) // limit)
        scores = score(model, self.validation[::step], self.classes, self.scaled, device)
        return {
            "map50": scores["map50"],
            "map75": scores["map75"],
            **{f"ap50 {name}": entry["ap50"] for name, entry in scores["classes"].items()},
        }


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
    scaled: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]],
    device: torch.device,
    *,
    protocol: str = "voc12",
    least: float = 0.01,
) -> dict[str, Any]:
    """Scores of a network on whole images."""
    answers: list[tuple[int, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]] = []
    for i, image in enumerate(images):
        batch = torch.from_numpy(scaled(image.pixels))[None].to(device)
        boxes, values, labels = boxes_of(model(batch), least=least)[0]
        answers.append((i, corners_of(boxes), values, labels))
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


def class_names(dataset: Dataset, config: DetectTrainConfig) -> tuple[str, ...]:
    """The classes that are learned."""
    return config.classes or dataset.classes
