"""What is wrong with a detection data set, told before a training shows it as a score of zero."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rsfuse.detection.data import Dataset, Sample
from rsfuse.ops.boxes import from_corners
from rsfuse.ops.polygons import crosses_itself

Level = Literal["error", "warning", "note"]

FEW_OBJECTS = 20  # of a class, for a training
TINY_PX = 2.0  # shorter side of an object that no detector sees
SHOWN = 3  # examples of a finding


@dataclass(frozen=True)
class Finding:
    """Something to know about a data set.

    Attributes:
        level: "error" makes it useless, "warning" costs accuracy, "note" is good to know.
        what: What was found.
        why: What it does.
        count: How often.
        examples: The first places.
    """

    level: Level
    what: str
    why: str
    count: int
    examples: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "level": self.level,
            "what": self.what,
            "why": self.why,
            "count": self.count,
            "examples": list(self.examples),
        }


@dataclass(frozen=True)
class Examined:
    """A sample with the size of its image where that is known."""

    sample: Sample
    size: tuple[int, int] | None


def validate(
    dataset: Dataset, *, size_of: Callable[[Path], tuple[int, int]] | None = None
) -> tuple[Finding, ...]:
    """Look for the classic causes of a score of zero.

    Args:
        dataset: The data set.
        size_of: Gives (h, w) of an image file; without it only sizes that labels state are used.

    Returns:
        Findings, errors first.
    """
    samples = []
    findings: list[Finding] = []
    unreadable = []
    for sample in dataset.samples:
        size = sample.size
        if sample.image is not None and size_of is not None:
            try:
                size = size_of(sample.image)
            except Exception as error:  # whatever a damaged image raises is the finding
                unreadable.append(f"{sample.image}: {error}")
        samples.append(Examined(sample, size))
    findings += _found(unreadable, "error", "images that cannot be read", "training stops there")
    for level, what, why, places in _checks(dataset, samples):
        findings += _found(list(places), level, what, why)
    for name, count in dataset.notes.items():
        findings.append(Finding("warning", name, "they were left out or changed on reading", count))
    order = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(findings, key=lambda f: order[f.level]))


def _found(places: Sequence[str], level: Level, what: str, why: str) -> list[Finding]:
    if not places:
        return []
    return [Finding(level, what, why, len(places), tuple(places[:SHOWN]))]


Check = tuple[Level, str, str, Iterator[str]]


def _checks(dataset: Dataset, samples: Sequence[Examined]) -> Iterator[Check]:
    counts = dataset.count()
    if counts.sum() == 0:
        yield "error", "no object counts", "there is nothing to learn", iter(["all images"])
    yield (
        "warning",
        f"classes with fewer than {FEW_OBJECTS} objects",
        "they are hardly learned, and their average precision is noise",
        (f"{n}: {c}" for n, c in zip(dataset.classes, counts, strict=True) if c < FEW_OBJECTS),
    )
    yield (
        "warning",
        "classes with names that differ by case or separators only",
        "one class was probably spelt in two ways",
        _alike(dataset.classes),
    )
    yield (
        "error",
        "objects wholly outside their image",
        "coordinates are of another image size, swapped (y, x), or shares instead of pixels",
        _each(samples, _outside),
    )
    yield (
        "warning",
        "objects all within one or two pixels of the upper left corner",
        "coordinates are shares of the image's sides (YOLO) read as pixels",
        _each(samples, _shares),
    )
    yield (
        "warning",
        "quadrilaterals that cross themselves",
        "corners are in the wrong order; the hull is used",
        _each(samples, lambda e: crosses_itself(e.sample.objects.corners)),
    )
    yield (
        "warning",
        "boxes much wider than their image",
        "width and height, or degrees and radians, may be mixed up",
        _each(samples, _too_long),
    )
    yield (
        "warning",
        f"objects with a side below {TINY_PX:g} px",
        "a detector cannot see them",
        _each(samples, lambda e: _boxes(e)[:, 3] < TINY_PX),
    )
    yield (
        "warning",
        "objects given twice",
        "the second counts as missed in every score",
        _each(samples, _repeated),
    )
    yield (
        "note",
        "images without objects",
        "they teach what is no object; too many slow a training down",
        (e.sample.name for e in samples if not len(e.sample.objects)),
    )
    yield (
        "note",
        "data sets whose boxes are all upright",
        "angles cannot be learned from them",
        iter(["all objects"] if _all_upright(samples) else []),
    )
    yield (
        "warning",
        "labels whose stated image size is not that of the image",
        "the image was resized after it was labelled",
        (
            f"{e.sample.name}: {e.sample.size} stated, {e.size} found"
            for e in samples
            if e.sample.size is not None and e.size is not None and e.sample.size != e.size
        ),
    )


def _each(
    samples: Sequence[Examined], test: Callable[[Examined], npt.NDArray[np.bool_]]
) -> Iterator[str]:
    """Places of the objects that a test is true of."""
    for examined in samples:
        if len(examined.sample.objects):
            for index in np.flatnonzero(test(examined)):
                yield f"{examined.sample.name}, object {index + 1}"


def _boxes(examined: Examined) -> npt.NDArray[np.float64]:
    boxes: npt.NDArray[np.float64] = from_corners(examined.sample.objects.corners)
    return boxes.reshape(-1, 5)


def _outside(examined: Examined) -> npt.NDArray[np.bool_]:
    corners = examined.sample.objects.corners
    if examined.size is None:
        return np.asarray((corners.max(axis=1) <= 0).any(axis=1))
    h, w = examined.size
    beyond = (corners.min(axis=1) >= (w, h)).any(axis=1)
    return np.asarray(beyond | (corners.max(axis=1) <= 0).any(axis=1))


def _shares(examined: Examined) -> npt.NDArray[np.bool_]:
    corners = examined.sample.objects.corners
    return np.full(len(corners), bool(corners.max() <= 2.0))


def _too_long(examined: Examined) -> npt.NDArray[np.bool_]:
    if examined.size is None:
        return np.zeros(len(examined.sample.objects), bool)
    return np.asarray(_boxes(examined)[:, 2] > 1.5 * float(np.hypot(*examined.size)))


def _repeated(examined: Examined) -> npt.NDArray[np.bool_]:
    objects = examined.sample.objects
    rows = np.column_stack([objects.corners.reshape(-1, 8), objects.labels])
    _, first = np.unique(rows.round(3), axis=0, return_index=True)
    repeated = np.ones(len(rows), bool)
    repeated[first] = False
    return repeated


def _all_upright(samples: Sequence[Examined]) -> bool:
    angles = [_boxes(e)[:, 4] for e in samples if len(e.sample.objects)]
    if not angles:
        return False
    turned = np.abs(np.sin(2 * np.concatenate(angles)))
    return bool(len(turned) >= FEW_OBJECTS and turned.max() < 1e-3)


def _alike(names: Sequence[str]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name in names:
        key = "".join(c for c in name.lower() if c.isalnum())
        if key in seen:
            yield f"{seen[key]} and {name}"
        seen.setdefault(key, name)
