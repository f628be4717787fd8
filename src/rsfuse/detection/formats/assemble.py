"""What all readers share: from parsed labels and found images to a data set."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rsfuse.detection.data import Dataset, Objects, Sample, find_images
from rsfuse.errors import InputError

# Eight coordinates in pixels, class, flag of difficulty.
Row = tuple[tuple[float, ...], str, int]

LIST_FOLDERS = ("ImageSets", "ImageSets/Main", ".")


class Wanted(NamedTuple):
    """What is wanted of a data set.

    Attributes:
        split: A part of it, for example "train"; everything when None.
        classes: Names in the order of the labels; when None those of the format or of its files, or
            else those that occur, sorted.
        ignored: Classes whose objects become difficult.
        image: Which image of each scene, where a format has several.
        partner: The second image of each scene, where a format has several.
        level: Of a tree of classes: 1 for the coarsest.
    """

    split: str | None = None
    classes: Sequence[str] | None = None
    ignored: Sequence[str] = ()
    image: str = ""
    partner: str = ""
    level: int = 1


class Parsed(NamedTuple):
    """What a label file says of one image.

    Attributes:
        rows: Its objects.
        gsd_m: Metres per pixel, where it says so.
        size: (h, w), where it says so.
        headings: Direction of the front of each object in radians, NaN where unknown; None without.
        image: Its image, where the labels name it.
        partner: A second image of the same ground.
    """

    rows: list[Row]
    gsd_m: float | None = None
    size: tuple[int, int] | None = None
    headings: list[float] | None = None
    image: Path | None = None
    partner: Path | None = None


def assemble(
    root: Path,
    parsed: Mapping[str, Parsed],
    images: Mapping[str, Path],
    wanted: Wanted,
    *,
    known: Sequence[str] = (),
    notes: Counter[str] | None = None,
    listed: set[str] | None = None,
) -> Dataset:
    """A data set.

    Args:
        root: Its folder, for errors.
        parsed: Labels by the stem of the image.
        images: Image files by stem.
        wanted: What is wanted of it.
        known: All classes of the format, in its order.
        notes: What was skipped or repaired.
        listed: Stems of the part that is read; all when None.

    Raises:
        InputError: An object is of a class that is in no list.
    """
    notes = Counter() if notes is None else notes
    occurring = {row[1] for entry in parsed.values() for row in entry.rows}
    names = tuple(wanted.classes or known or sorted(occurring - set(wanted.ignored)))
    unknown = sorted(occurring - set(names) - set(wanted.ignored))
    if unknown:
        raise InputError(
            f"{root} holds objects of the class {unknown[0]!r}",
            f"the classes asked for are {', '.join(names)}",
            "add it to the classes or to those that are ignored",
        )
    kept = [name for name in names if name not in wanted.ignored]
    numbers = {name: i for i, name in enumerate(kept)}
    samples = []
    for stem, entry in parsed.items():
        found = Objects.of(
            [
                (values, numbers.get(name, 0), flag if name in numbers else 1)
                for values, name, flag in entry.rows
            ]
        )
        if entry.headings is not None and len(found):
            headings = np.array(entry.headings, np.float64)
            found = Objects(found.corners, found.labels, found.difficult, headings)
        image = entry.image or images.get(stem)
        samples.append(Sample(stem, image, found, entry.partner, entry.size, entry.gsd_m))
    if images:
        notes["labels without an image"] += sum(s.image is None for s in samples)
        absent = [s for s in images if s not in parsed and (listed is None or s in listed)]
        notes["images without labels"] += len(absent)
    return Dataset(tuple(kept), tuple(samples), {key: n for key, n in notes.items() if n})


def images_of(root: Path, folders: Iterable[str]) -> dict[str, Path]:
    """Stem -> file of the images of those folders that exist."""
    found: dict[str, Path] = {}
    for name in folders:
        if (root / name).is_dir():
            found.update(find_images(root / name))
    return found


def part_of(root: Path, split: str | None) -> set[str] | None:
    """Stems of a part that is listed in a text file; None for everything.

    Raises:
        InputError: There is no such list.
    """
    if split is None:
        return None
    for folder in LIST_FOLDERS:
        path = root / folder / f"{split}.txt"
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
            return {Path(line.split()[0]).stem for line in lines if line.strip()}
    raise InputError(
        f"{root} has no part {split!r}",
        f"a part is a list of names such as ImageSets/{split}.txt",
        "leave the split out, or check its name",
    )


def label_files(folders: Sequence[Path], suffix: str, listed: set[str] | None) -> list[Path]:
    """Label files of the first folder that holds any.

    Raises:
        InputError: There are none.
    """
    for folder in folders:
        files = sorted(folder.glob(f"*{suffix}")) if folder.is_dir() else []
        files = [path for path in files if listed is None or path.stem in listed]
        if files:
            return files
    raise InputError(
        f"{folders[0]} holds no label files *{suffix}",
        "one file per image is needed",
        "check the path, or name the format with --format",
    )
