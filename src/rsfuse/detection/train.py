"""`rsfuse train detect`: from a data set to a bundle with scores on its validation part."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rsfuse.detection.config import DetectTrainConfig
from rsfuse.detection.learner import COLORS, DetectLearner, score
from rsfuse.detection.model import Detector
from rsfuse.detection.views import TrainImage, load_images
from rsfuse.engine.bundle import Bundle, BundleCard, ClassInfo, InputInfo, load_bundle, save_bundle
from rsfuse.engine.fit import Progress, fit
from rsfuse.engine.seeds import seeded
from rsfuse.errors import InputError
from rsfuse.nn.backbone import load_backbone
from rsfuse.runs import write_json

log = logging.getLogger(__name__)

# What each image of a pair has of its own; its names begin with "partner_" for the second.
_EYES = ("backbone.", "pyramid.")


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
    if config.freeze_single:
        model.freeze_single()
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
