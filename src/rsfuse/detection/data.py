"""Detection data sets as values: objects, samples, data sets, and the door to the formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rsfuse.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".vrt")


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image.

    Attributes:
        corners: (N, 4, 2) in pixels, corner convention, clockwise on the screen.
        labels: (N,) class numbers.
        difficult: (N,) 0 counts, 1 is marked as difficult, 2 was cut off by a tile.
        headings: (N,) direction of the front in radians, clockwise from +x; NaN where unknown, None
            where the data set has none.
    """

    corners: Floats
    labels: Ints
    difficult: Ints
    headings: Floats | None = None

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.corners.shape != (count, 4, 2) or len(self.difficult) != count:
            raise InputError(
                f"corners {self.corners.shape}, {count} labels, {len(self.difficult)} flags",
                "one quadrilateral, one label and one flag are needed per object",
                "check the reader",
            )

    @classmethod
    def none(cls) -> "Objects":
        """No object."""
        return cls(np.zeros((0, 4, 2)), np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[float], int, int]]) -> "Objects":
        """From (eight coordinates, label, difficult) per object."""
        if not rows:
            return cls.none()
        return cls(
            np.array([row[0] for row in rows], np.float64).reshape(-1, 4, 2),
            np.array([row[1] for row in rows], np.int64),
            np.array([min(max(row[2], -9), 9) for row in rows], np.int64),  # a flag, not a number
        )

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.labels)

    def at(self, which: npt.NDArray[np.bool_] | Ints) -> "Objects":
        """Those of an index or a mask."""
        headings = None if self.headings is None else self.headings[which]
        return Objects(self.corners[which], self.labels[which], self.difficult[which], headings)


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its objects.

    Attributes:
        name: Stem of the image.
        image: Its file; None where only labels are known.
        objects: Its objects.
        partner: A second image of the same ground, by another sensor.
        size: (h, w) where the labels tell; None otherwise.
        gsd_m: Metres per pixel where the labels tell.
    """

    name: str
    image: Path | None
    objects: Objects
    partner: Path | None = None
    size: tuple[int, int] | None = None
    gsd_m: float | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with objects of named classes.

    Attributes:
        classes: Names, in the order of the labels.
        samples: The images.
        notes: What was skipped or repaired while reading, with numbers.
    """

    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    notes: Mapping[str, int] = field(default_factory=dict)

    def count(self) -> Ints:
        """(K,) objects of each class that are not difficult."""
        total = np.zeros(len(self.classes), np.int64)
        for sample in self.samples:
            plain = sample.objects.labels[sample.objects.difficult == 0]
            total += np.bincount(plain, minlength=len(self.classes))
        return total

    def with_classes(self, classes: Sequence[str], ignored: Sequence[str] = ()) -> "Dataset":
        """The same objects numbered by `classes`; those of `ignored` become difficult.

        Difficult objects of ignored classes take label 0, which never counts.

        Raises:
            InputError: An object is of a class that is in neither list.
        """
        unknown = sorted(set(self.classes) - set(classes) - set(ignored))
        if unknown:
            raise InputError(
                f"the data hold the class {unknown[0]!r}",
                f"the classes asked for are {', '.join(classes)}",
                "add it to classes, or to ignored",
            )
        table = np.array(
            [classes.index(name) if name in classes else -1 for name in self.classes], np.int64
        )
        samples = []
        for sample in self.samples:
            objects = sample.objects
            labels = table[objects.labels] if len(objects) else objects.labels
            difficult = np.where(labels < 0, 1, objects.difficult)
            renamed = Objects(objects.corners, np.maximum(labels, 0), difficult, objects.headings)
            samples.append(
                Sample(
                    sample.name, sample.image, renamed, sample.partner, sample.size, sample.gsd_m
                )
            )
        return Dataset(tuple(classes), tuple(samples), self.notes)


Reader = Callable[..., Dataset]


def find_images(folder: Path) -> dict[str, Path]:
    """Stem -> file of the images of a folder.

    Raises:
        InputError: Two images have the same stem.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in found:
                raise InputError(
                    f"{folder} holds {found[path.stem].name} and {path.name}",
                    "labels are found by the name of the image without its ending",
                    "rename one of them",
                )
            found[path.stem] = path
    return found
