"""Training of the detector: windows of whole images, the engine's loop, a bundle at the end."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic
import torch
from torch import Tensor, nn

from rsfuse.detection import predict
from rsfuse.detection.augment import Jitter, darkened
from rsfuse.detection.loss import Targets, detection_loss, pair_loss
from rsfuse.detection.metrics import PROTOCOLS, Answers, Truth, average_precision
from rsfuse.detection.model import Cells, Detector
from rsfuse.detection.network import detect_array
from rsfuse.detection.pair import PATCH
from rsfuse.detection.views import (
    PairJitter,
    PartnerView,
    Scale,
    TrainImage,
    load_images,
    mosaic,
    partner_view,
    window_view,
)
from rsfuse.engine.bundle import Bundle, BundleCard, ClassInfo, InputInfo, load_bundle, save_bundle
from rsfuse.engine.config import TrainSettings
from rsfuse.engine.fit import Progress, fit
from rsfuse.engine.learner import Learner
from rsfuse.engine.pictures import WHITE, Canvas, rgb_of, write_sheet
from rsfuse.engine.seeds import seeded
from rsfuse.errors import InputError
from rsfuse.nn.backbone import load_backbone
from rsfuse.nn.cstf import Fusion
from rsfuse.ops.boxes import corners_of
from rsfuse.runs import write_json

log = logging.getLogger(__name__)

# What each image of a pair has of its own; its names begin with "partner_" for the second.
_EYES = ("backbone.", "pyramid.")

# Weight of the coarse matching in a training with pairs.
PAIR_WEIGHT = 0.5

# The Gaussian term of the loss fades out over this share of the steps.
_FADED = 0.5

# Score from which a box is drawn in the pictures of a training.
_SHOWN = 0.3

# No mosaics from this share of the steps on: the last steps see images as they are.
_WHOLE_FROM = 0.85


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
        start: Bundle of the same architecture to start from; none when empty.
        width: Channels of pyramid and head.
        finest: Finest stride, 8 or 4.
        window: Side of training windows in pixels.
        scale_low: Smallest enlargement of a window.
        scale_high: Largest.
        rotation: Chance of a free rotation.
        mosaic: Chance of a window put together from four of half its side; none in the last steps.
        low: Value that becomes 0, per band or for all.
        high: Value that becomes 1.
        balance: Power of the inverse frequency by which images with rare classes are drawn.
        nms: Overlap of two boxes of a class from which the worse goes; small where objects never
            overlap (ships), larger where they stand close (people). Part of the model.
        validation_images: At most so many images are validated on; 0 takes all.
        heading: Learn where the front of an object is, where the labels say it.
        partner: The second image of each scene, for example "thermal"; none when empty.
        partner_low: Value of the second image that becomes 0.
        partner_high: Value of it that becomes 1.
        hold_single: Hold what `start` knows of one image: what is learned is what the second image
            adds, and without one the detector is that which it started from.
        night: Chance that the first image is dark and noisy.
        fusion: How the second image enters, see `Detector`.
        temporal: See `Detector`.
        keypoint_bias: See `Detector`.
        memory_mb: Megabytes of decoded images in memory; the others lie in the run folder.
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
    start: str = ""
    width: int = pydantic.Field(64, ge=8)
    finest: Literal[4, 8] = 8
    window: int = pydantic.Field(320, ge=64)
    scale_low: float = pydantic.Field(0.6, gt=0)
    scale_high: float = pydantic.Field(1.6, gt=0)
    rotation: float = pydantic.Field(0.5, ge=0, le=1)
    mosaic: float = pydantic.Field(0.0, ge=0, le=1)
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (255.0,)
    balance: float = pydantic.Field(0.5, ge=0, le=1)
    nms: float = pydantic.Field(0.1, ge=0, le=1)
    validation_images: int = pydantic.Field(0, ge=0)
    heading: bool = False
    partner: str = ""
    partner_low: tuple[float, ...] = (0.0,)
    partner_high: tuple[float, ...] = (255.0,)
    hold_single: bool = False
    night: float = pydantic.Field(0.0, ge=0, le=1)
    fusion: Fusion = "ca||sca"
    temporal: bool = True
    keypoint_bias: bool = True
    memory_mb: int = pydantic.Field(8192, ge=0)
    gsd_m: float = pydantic.Field(0.0, ge=0)
    licence: str = "not stated"

    @pydantic.model_validator(mode="after")
    def _quarters_fit(self) -> "DetectTrainConfig":
        if self.mosaic and self.window % 2:
            raise ValueError(f"a mosaic of quarters needs an even window, not {self.window}")
        if self.partner and (self.mosaic or self.window % PATCH):
            raise ValueError(f"pairs need mosaic = 0 and a window of whole {PATCH} pixels")
        if self.hold_single and not (self.partner and self.start):
            raise ValueError("hold_single needs a partner, and start: a bundle to hold")
        return self

    @property
    def jitter(self) -> Jitter:
        """How training windows vary."""
        return Jitter(scale=(self.scale_low, self.scale_high), rotation=self.rotation)


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


CONFIG = DetectTrainConfig


@dataclass(frozen=True)
class Outcome:
    """How a training ended: the bundle and its scores on the validation part."""

    bundle: Bundle
    scores: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """For the terminal."""
        kept = {k: self.scores[k] for k in ("protocol", "map50", "map75", "map50_95")}
        per_class = {f"ap50 {n}": e["ap50"] for n, e in self.scores["classes"].items()}
        return {"bundle": str(self.bundle.path), **kept, **per_class}


def train(
    config: DetectTrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Train a detector, measure it on the validation part, and write a bundle.

    Args:
        config: The settings.
        folder: Run folder: bundle/, scores.json, and what the engine writes.
        resume: Go on where an interrupted training stopped.
        progress: As in `fit`.

    Raises:
        InputError: No data, no images, or weights that do not fit.
    """
    from rsfuse.detection.formats import read_dataset
    from rsfuse.geo.raster import open_raster

    def read(path: Path) -> npt.NDArray[Any]:
        with open_raster(path, bands=config.bands or None) as source:
            data = source.read().data
            return data.astype(source.dtype) if source.dtype in ("uint8", "uint16") else data

    def read_whole(path: Path) -> npt.NDArray[Any]:
        with open_raster(path) as source:
            return source.read().data

    parts = {
        name: read_dataset(
            Path(config.data),
            format=config.format,
            split=split,
            classes=config.classes or None,
            ignored=config.ignored,
            partner=config.partner,
        )
        for name, split in (
            ("train", config.train_split), ("validation", config.validation_split),
        )
    }  # fmt: skip
    classes = parts["train"].classes
    images = {
        name: load_images(
            part.samples,
            read,
            most_bytes=config.memory_mb * 1_000_000 // 2,
            spill=folder / "pixels" / ("_".join(map(str, config.bands)) or "all"),
            read_partner=read_whole if config.partner else None,
        )
        for name, part in parts.items()
    }
    for name, found in images.items():
        if not found:
            raise InputError(
                f"the {name} part of {config.data} holds no images",
                f"{len(parts[name].samples)} label files were found, none with its image",
                "run rsfuse validate on the data set",
            )
    warn_of_labels(images["train"], classes)
    arguments = {
        "classes": len(classes),
        "bands": images["train"][0].pixels.shape[0],
        "backbone": config.backbone,
        "width": config.width,
        "finest": config.finest,
        "heading": config.heading,
    }
    if config.partner:
        arguments |= {
            "partner_bands": len(config.partner_low),
            "fusion": config.fusion,
            "temporal": config.temporal,
            "keypoint_bias": config.keypoint_bias,
        }
    with seeded(config.seed):
        model = Detector(**arguments)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.weights:
        load_backbone(model.backbone, _published(Path(config.weights)))
    if config.start:
        start_from(model, load_bundle(config.start, "detect"))
    if config.hold_single:
        model.hold_single()
    learner = DetectLearner(model, images["train"], images["validation"], classes, config)
    result = fit(learner, config, folder, resume=resume, progress=progress)
    model.cpu()
    scores = score(
        model,
        images["validation"],
        classes,
        learner.scaled,
        torch.device("cpu"),
        nms=config.nms,
        scaled_partner=learner.scaled_partner if config.partner else None,
        night=config.night > 0,
    )
    write_json(folder / "scores.json", scores)
    bands = tuple(str(b) for b in config.bands) or tuple(
        f"band {i + 1}" for i in range(arguments["bands"])
    )
    spread = len(bands)
    card = BundleCard(
        task="detect",
        name=config.name,
        architecture="detector",
        arguments=arguments,
        inputs=(
            InputInfo(
                name="image",
                bands=bands,
                low=config.low * (spread if len(config.low) == 1 else 1),
                high=config.high * (spread if len(config.high) == 1 else 1),
                gsd_m=config.gsd_m or None,
            ),
            *partner_input(config),
        ),
        classes=tuple(
            ClassInfo(name=name, color=COLORS[i % len(COLORS)]) for i, name in enumerate(classes)
        ),
        training={
            "data": Path(config.data).name,
            "licence": config.licence,
            "steps": result.steps,
            "best_step": result.best_step,
            "seed": config.seed,
            "seconds": round(result.seconds, 1),
            "settings": config.model_dump(mode="json", exclude={"data"}),
        },
        extra={"nms": config.nms},
        scores={f"{k} ({scores['protocol']})": scores[k] for k in ("map50", "map75", "map50_95")}
        | {f"ap50 {name}": entry["ap50"] for name, entry in scores["classes"].items()},
    )
    readme = model_card(card, len(images["train"]), len(images["validation"]))
    bundle = save_bundle(folder / "bundle", card, model.state_dict(), readme=readme)
    return Outcome(bundle, scores)


def partner_input(config: DetectTrainConfig) -> tuple[InputInfo, ...]:
    """The second image as the card describes it."""
    if not config.partner:
        return ()
    bands = tuple(f"{config.partner} {i + 1}" for i in range(len(config.partner_low)))
    return (
        InputInfo(
            name="partner", bands=bands, low=config.partner_low, high=config.partner_high,
            gsd_m=config.gsd_m or None,
        ),
    )  # fmt: skip


def start_from(model: Detector, bundle: Bundle) -> None:
    """Weights of a bundle; those of a detector of one image serve a detector of two as well.

    Both images of the detector of two begin with them, as far as their numbers of bands agree.

    Raises:
        InputError: They are of another architecture.
    """
    if not model.partner_bands or bundle.card.arguments.get("partner_bands"):
        bundle.load_into(model)
        return
    plain = Detector(**bundle.card.arguments)
    bundle.load_into(plain)
    ours, given = model.state_dict(), plain.state_dict()
    other = next((n for n, v in given.items() if n not in ours or ours[n].shape != v.shape), None)
    if other is not None:
        raise InputError(
            f"the weights of {bundle.path} do not fit: {other} is of another shape",
            f"they are for {bundle.card.arguments}",
            "use the same classes, bands, backbone and width, or leave out start",
        )
    partner = {f"partner_{n}": v for n, v in given.items() if n.startswith(_EYES)}
    fits = {n: v for n, v in partner.items() if ours[n].shape == v.shape}
    model.load_state_dict({**ours, **given, **fits})


# Colours of the classes on pages, bright enough for grey and green ground.
COLORS = (
    "#ff5a5f", "#31c7f3", "#ffd23f", "#8ae234", "#c792ea", "#ff9f40", "#4de0b0", "#f78fb3",
    "#7aa2ff", "#e3b341", "#b8e986", "#ff7ad9", "#57d9ff", "#d0a070", "#a0a8ff", "#f2f2f2",
)  # fmt: skip


def warn_of_labels(images: Sequence[TrainImage], classes: Sequence[str]) -> None:
    """Say in the log what often makes a training learn nothing."""
    counts = np.zeros(len(classes), np.int64)
    outside = total = 0
    for image in images:
        h, w = image.pixels.shape[1:]
        centres = image.corners.mean(axis=1)
        total += len(centres)
        outside += int(((centres < 0) | (centres > (w, h))).any(axis=1).sum())
        counts += np.bincount(image.labels[image.difficult == 0], minlength=len(classes))
    if total and outside > 0.05 * total:
        log.warning("%d of %d objects lie outside of their images", outside, total)
    if not total:
        log.warning("the training images hold no objects")
    for name, count in zip(classes, counts, strict=True):
        if count < 20:
            log.warning("the class %s has %d training objects", name, count)


def _published(path: Path) -> Mapping[str, Tensor]:
    """Weights of a file: safetensors, or PyTorch's own format without code."""
    if not path.is_file():
        raise InputError(
            f"{path} does not exist", "a file of weights is needed", "check weights in the config"
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    return found.get("state_dict", found)


def _told(score: float) -> str:
    return f"{score:.4f}" if math.isfinite(score) else "no objects"


def model_card(card: BundleCard, images: int, validated: int) -> str:
    """The model card as Markdown."""
    training = card.training
    story = (
        f"Trained on {images} images of {training['data']} ({training['licence']}): "
        f"{training['steps']} steps, seed {training['seed']}, best at step "
        f"{training['best_step']}, chosen on the {validated} images that the scores below are of."
    )
    lines = [
        f"# {card.name}",
        "",
        f"Oriented boxes of {', '.join(item.name for item in card.classes)}, for `rsfuse detect`.",
        "",
        story,
        "",
        *[f"- {name}: {_told(value)}" for name, value in card.scores.items()],
        "",
        "It knows the sensor, the height and the kind of place that it was trained on, no other.",
        "",
    ]
    return "\n".join(lines)
