"""`rsfuse train classify`: from rasters and labels to a bundle with honest scores."""

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsfuse.classification import metrics
from rsfuse.classification.baselines import fit_forest, pixel_features
from rsfuse.classification.config import ClassifyTrainConfig
from rsfuse.classification.data import Pair, open_as, open_pair, robust_range, wald_pair
from rsfuse.classification.labels import Labels, read_labels
from rsfuse.classification.learner import ClassifyLearner, LabelledScene
from rsfuse.classification.model import build_model
from rsfuse.classification.predict import map_geobox, scaled
from rsfuse.classification.splits import Split, leakage, split_labels
from rsfuse.engine.bundle import Bundle, BundleCard, ClassInfo, InputInfo, load_bundle, save_bundle
from rsfuse.engine.fit import Progress, fit
from rsfuse.engine.seeds import seeded
from rsfuse.errors import InputError
from rsfuse.geo.grid import gsd_m
from rsfuse.runs import staged, write_json

CONFIG = ClassifyTrainConfig

FOREST = "forest"

# Scores that repeats are compared by.
REPEATED = ("overall_accuracy", "kappa", "mean_f1", "ece")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What is ready to be learned from.

    Attributes:
        scenes: Scaled images with labels and parts.
        classes: Names and colours.
        inputs: Bands and ranges, from training areas only.
        ratio: PAN pixels per MS pixel.
        leakage: Share of test labels whose surroundings reach into training areas.
        notes: What the user should know.
    """

    scenes: tuple[LabelledScene, ...]
    classes: tuple[ClassInfo, ...]
    inputs: tuple[InputInfo, InputInfo]
    ratio: int
    leakage: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        bundle: The trained model; None for the random forest, which is measured only.
        scores: On the test labels.
        notes: What the user should know.
        validation: The best value of what the weights were chosen by; NaN without validation.
    """

    bundle: Bundle | None
    scores: Mapping[str, Any]
    notes: tuple[str, ...]
    validation: float = math.nan

    def summary(self) -> dict[str, Any]:
        """For the terminal."""
        kept = ("repeats", "labels", *REPEATED, *(f"{name}_std" for name in REPEATED), "leakage")
        return {
            "bundle": None if self.bundle is None else str(self.bundle.path),
            **{key: self.scores[key] for key in kept if key in self.scores},
            "notes": list(self.notes),
        }


def train(
    config: ClassifyTrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Train a network, calibrate it, measure it on the test labels once, and write a bundle.

    Args:
        config: The settings.
        folder: Run folder: bundle/, scores.json, and what the engine writes; with repeats, a folder
            repeat_N of these for each.
        resume: Go on where an interrupted training stopped.
        progress: As in `fit`.

    Raises:
        InputError: Images and labels do not fit together, or there is too little to learn from.
    """
    if config.repeats > 1:
        return _repeated(config, folder, resume, progress)
    ready = prepare(config)
    for note in ready.notes:
        log.warning(note)
    if config.model == FOREST:
        scores = _measure_forest(ready, config)
        write_json(folder / "scores.json", scores)
        return Outcome(None, scores, ready.notes)
    arguments = {
        "classes": len(ready.classes),
        "bands": len(ready.inputs[0].bands),
        "pan_bands": len(ready.inputs[1].bands),
        "ratio": ready.ratio,
        "resolution": config.resolution,
        **config.arguments,
    }
    with seeded(config.seed):
        model = build_model(config.model, **arguments)
    learner = ClassifyLearner(model, ready.scenes, len(ready.classes), config)
    result = fit(learner, config, folder, resume=resume, progress=progress)
    device = torch.device("cpu")
    model.to(device)
    logits, labels = learner.predictions("validation", device)
    temperature = metrics.fit_temperature(logits.double().numpy(), labels.numpy())
    logits, labels = learner.predictions("test", device)
    scores = _scores(ready, logits / temperature, labels)
    write_json(folder / "scores.json", scores)
    card = BundleCard(
        task="classify",
        name=config.name,
        architecture=config.model,
        arguments=arguments,
        inputs=ready.inputs,
        classes=ready.classes,
        training={
            "data": [Path(path).name for path in config.ms],
            "licence": config.licence,
            "split": config.split,
            "steps": result.steps,
            "best_step": result.best_step,
            "seed": config.seed,
            "seconds": round(result.seconds, 1),
            "settings": config.model_dump(mode="json", exclude={"ms", "pan", "labels"}),
        },
        scores={k: v for k, v in scores.items() if isinstance(v, int | float)},
        extra={"temperature": temperature},
    )
    bundle = save_bundle(
        folder / "bundle", card, model.state_dict(), readme=model_card(card, ready.notes)
    )
    return Outcome(bundle, scores, ready.notes, result.best)


def _repeated(
    config: ClassifyTrainConfig, folder: Path, resume: bool, progress: Progress | None
) -> Outcome:
    """Train with several seeds: mean and spread of the scores, the best bundle by validation."""
    outcomes = []
    for number in range(config.repeats):
        once = config.model_copy(update={"seed": config.seed + number, "repeats": 1})
        place = folder / f"repeat_{number + 1}"
        place.mkdir(parents=True, exist_ok=True)
        outcomes.append(train(once, place, resume=resume, progress=progress))
    scores: dict[str, Any] = {"repeats": config.repeats}
    for name in REPEATED:
        values = [float(outcome.scores[name]) for outcome in outcomes if name in outcome.scores]
        if values:
            scores[name] = float(np.mean(values))
            scores[f"{name}_std"] = float(np.std(values, ddof=1))
    scores["runs"] = [dict(outcome.scores) for outcome in outcomes]
    write_json(folder / "scores.json", scores)
    best = max(outcomes, key=lambda outcome: np.nan_to_num(outcome.validation, nan=-math.inf))
    bundle = None
    if best.bundle is not None:
        with staged(folder / "bundle", overwrite=True) as scratch:
            shutil.copytree(best.bundle.path, scratch, dirs_exist_ok=True)
        bundle = load_bundle(folder / "bundle")
    notes = tuple(dict.fromkeys(note for outcome in outcomes for note in outcome.notes))
    return Outcome(bundle, scores, notes, best.validation)


def prepare(config: ClassifyTrainConfig) -> Prepared:
    """Read images and labels, draw the parts, and scale by what training areas hold."""
    pairs: list[Pair] = []
    for ms, pan in zip(config.ms, config.pan, strict=True):
        pairs.append(_open(config, ms, pan, pairs[0] if pairs else None))
    ratio = pairs[0].ratio
    for pair, name in zip(pairs, config.ms, strict=True):
        if pair.ratio != ratio:
            raise InputError(
                f"{name} has {pair.ratio} PAN pixels along one MS pixel",
                f"the first scene has {ratio}",
                "train on scenes of one kind",
            )
    factor = ratio if config.resolution == "pan" else 1
    labels = [
        read_labels(path, map_geobox(pair, factor), column=config.class_column)
        for path, pair in zip(config.labels, pairs, strict=True)
    ]
    classes = _classes(config, labels)
    labels = [
        found.as_classes(classes, path) for found, path in zip(labels, config.labels, strict=True)
    ]
    splits = [
        _split(config, found, path, factor)
        for found, path in zip(labels, config.labels, strict=True)
    ]
    images = [_read(pair) for pair in pairs]
    inputs = _inputs(pairs, images, labels, splits, factor)
    scenes = tuple(
        LabelledScene(
            scaled(ms, ms_valid, inputs[0]),
            scaled(pan, pan_valid, inputs[1]),
            np.where(_usable(ms_valid, pan_valid, ratio, factor), found.numbers, -1),
            split.train,
            split.validation,
            split.test,
        )
        for (ms, ms_valid, pan, pan_valid), found, split in zip(images, labels, splits, strict=True)
    )
    reach = config.tile * factor // 2
    tested = [(leakage(s, reach), int(s.test.sum())) for s in splits if s.test.any()]
    leak = (
        sum(share * count for share, count in tested) / sum(count for _, count in tested)
        if tested
        else float("nan")
    )
    notes = tuple(note for split in splits for note in split.notes)
    if config.split == "random-pixel":
        warning = f"{100 * leak:.0f} % of the test pixels lie within {reach} pixels of a training "
        notes += (warning + "pixel: this score measures interpolation between neighbours",)
    return Prepared(scenes, classes, inputs, ratio, leak, notes)


def _open(config: ClassifyTrainConfig, ms: str, pan: str, first: Pair | None) -> Pair:
    """The pair of a scene, with the bands of the first one.

    "simulated" in place of PAN makes one from MS by a sensor model.
    """
    inputs: tuple[InputInfo, ...] = ()
    if first is not None:
        inputs = tuple(
            InputInfo(name=name, bands=source.bands)
            for name, source in (("ms", first.ms), ("pan", first.pan))
        )
    if pan == "simulated":
        with open_as(ms, inputs[0] if inputs else None) as source:
            return wald_pair(source.read(), config.simulated_ratio)
    return open_pair(ms, pan, inputs=inputs)


Arrays = tuple[Any, Any, Any, Any]


def _read(pair: Pair) -> Arrays:
    ms, pan = pair.ms.read(), pair.pan.read()
    return ms.data, ms.valid, pan.data, pan.valid


def _usable(ms_valid: Any, pan_valid: Any, ratio: int, factor: int) -> Any:
    """Which label pixels both images show."""
    h, w = ms_valid.shape
    cells = pan_valid.reshape(h, ratio, w, ratio).all(axis=(1, 3)) & ms_valid
    return cells.repeat(factor, 0).repeat(factor, 1)


def _classes(config: ClassifyTrainConfig, labels: Sequence[Labels]) -> tuple[ClassInfo, ...]:
    """Those asked for, else all that occur, in the order in which they appear."""
    known: dict[str, ClassInfo] = {}
    for found in labels:
        for item, count in zip(found.classes, found.counts(), strict=True):
            if count:
                known.setdefault(item.name, item)
    if not config.classes:
        return tuple(known.values())
    return tuple(known.get(name, ClassInfo(name=name, color="#808080")) for name in config.classes)


def _split(config: ClassifyTrainConfig, labels: Labels, path: str, factor: int) -> Split:
    known = labels.numbers >= 0
    none = np.zeros_like(known)
    if path in config.test_labels:
        return Split(none, none, known, "blocks")
    if config.split == "rasters":
        raise InputError(
            f"{path} is learned from, and the split is by rasters",
            "test_labels names the scenes that are kept for the test, and validation needs a part "
            "of the others",
            "use split = 'blocks' or 'polygons' for the training scenes, and test_labels",
        )
    share = 0.0 if config.test_labels else config.test_share
    return split_labels(
        labels,
        config.split,
        test=share,
        validation=config.validation_share,
        block=config.block * factor,
        buffer=config.buffer * factor,
        seed=config.seed,
    )


def _inputs(
    pairs: Sequence[Pair],
    images: Sequence[Arrays],
    labels: Sequence[Labels],
    splits: Sequence[Split],
    factor: int,
) -> tuple[InputInfo, InputInfo]:
    """Bands and their ranges around the training labels."""
    ratio = pairs[0].ratio
    areas = []
    for split, found in zip(splits, labels, strict=True):
        wanted = split.train & (found.numbers >= 0)
        h, w = wanted.shape[0] // factor, wanted.shape[1] // factor
        areas.append(wanted.reshape(h, factor, w, factor).any(axis=(1, 3)))
    ms = robust_range([(i[0], i[1] & area) for i, area in zip(images, areas, strict=True)])
    pan = robust_range(
        [
            (i[2], i[3] & area.repeat(ratio, 0).repeat(ratio, 1))
            for i, area in zip(images, areas, strict=True)
        ]
    )
    first = pairs[0]
    known = first.ms.is_georeferenced

    def info(name: str, source: Any, limits: Any) -> InputInfo:
        gsd = gsd_m(source.geobox) if known else None
        return InputInfo(name=name, bands=source.bands, low=limits[0], high=limits[1], gsd_m=gsd)

    return info("ms", first.ms, ms), info("pan", first.pan, pan)


def _scores(ready: Prepared, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    if not len(labels):
        return {"labels": 0, "classes": [item.name for item in ready.classes]}
    odds = torch.softmax(logits.double(), dim=1)
    confidence, found = (part.numpy() for part in odds.max(dim=1))
    return _summary(ready, labels.numpy(), found, confidence)


def _summary(ready: Prepared, truth: Any, found: Any, confidence: Any) -> dict[str, Any]:
    names = [item.name for item in ready.classes]
    scores = metrics.summary(truth, found, names, confidence=confidence)
    return {**scores, "leakage": ready.leakage}


def _measure_forest(ready: Prepared, config: ClassifyTrainConfig) -> dict[str, Any]:
    """The random forest under the same protocol."""
    tables: list[Any] = []
    truths: list[Any] = []
    tests: list[Any] = []
    answers: list[Any] = []
    for scene in ready.scenes:
        features = pixel_features(scene.ms, scene.pan, scene.factor)
        for part, table, truth in (
            (scene.train, tables, truths),
            (scene.test, tests, answers),
        ):
            use = part & (scene.labels >= 0)
            table.append(features[:, use].T)
            truth.append(scene.labels[use])
    forest = fit_forest(np.concatenate(tables), np.concatenate(truths), config.seed)
    odds = forest.predict_proba(np.concatenate(tests))
    found = forest.classes_[odds.argmax(axis=1)]
    return _summary(ready, np.concatenate(answers), found, odds.max(axis=1))


def model_card(card: BundleCard, notes: Sequence[str] = ()) -> str:
    """The model card as Markdown."""
    training = card.training
    what = f"{card.architecture}, {len(card.classes)} classes"
    story = (
        f"Trained on {', '.join(training['data'])} ({training['licence']}), split by "
        f"{training['split']}, {training['steps']} steps, seed {training['seed']}."
    )
    limits = (
        "It knows the classes, the sensor, the season and the light that it was trained on. "
        "Another sensor or another country needs labels of its own."
    )
    lines = [
        f"# {card.name}",
        "",
        f"A land-cover model for `rsfuse classify`: {what}.",
        "",
        "| class | colour |",
        "| --- | --- |",
        *[f"| {item.name} | {item.color} |" for item in card.classes],
        "",
        "| input | bands | pixel size | values that become 0 and 1 |",
        "| --- | --- | --- | --- |",
    ]
    for item in card.inputs:
        size = "unknown" if item.gsd_m is None else f"{item.gsd_m:g} m"
        low, high = (", ".join(f"{v:.5g}" for v in values) for values in (item.low, item.high))
        lines.append(f"| {item.name} | {', '.join(item.bands)} | {size} | {low} and {high} |")
    lines += [
        "",
        story,
        "",
        "Scores on labels that took no part in training or in the choice of the weights:",
        "",
        *[f"- {name.replace('_', ' ')}: {value:.4g}" for name, value in card.scores.items()],
        "",
        limits,
        *[f"\n{note}." for note in notes],
        "",
    ]
    return "\n".join(lines)
