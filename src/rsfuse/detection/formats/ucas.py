"""UCAS-AOD: folders CAR and PLANE with a text file per image, P0001.txt beside P0001.png.

A line is `x1 y1 x2 y2 x3 y3 x4 y4 theta x y w h`: the corners in pixels, then the angle and the
upright box, which are not needed.
"""

from collections import Counter
from pathlib import Path

from rsfuse.detection.data import Dataset, find_images
from rsfuse.detection.formats.assemble import Parsed, Row, Wanted, assemble
from rsfuse.errors import InputError

FOLDERS = {"CAR": "car", "PLANE": "plane"}


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read both folders; the data set has no parts of its own.

    Raises:
        InputError: Neither folder exists, a damaged line, or a split was asked for.
    """
    if wanted.split is not None:
        raise InputError(
            "UCAS-AOD has no parts", f"{wanted.split!r} was asked for", "leave the split out"
        )
    parsed: dict[str, Parsed] = {}
    images: dict[str, Path] = {}
    for name, label in FOLDERS.items():
        root = folder / name
        if not root.is_dir():
            continue
        found = find_images(root)
        for path in sorted(root.glob("*.txt")):
            stem = f"{label}_{path.stem}"
            parsed[stem] = Parsed(parse(path, label), image=found.get(path.stem))
            if path.stem in found:
                images[stem] = found[path.stem]
    if not parsed:
        raise InputError(
            f"{folder} holds no UCAS-AOD labels",
            "folders CAR and PLANE with P0001.txt are needed",
            "check the path, or name the format with --format",
        )
    known = tuple(FOLDERS.values())
    notes: Counter[str] = Counter()
    return assemble(folder, parsed, images, wanted, known=known, notes=notes)


def parse(path: Path, label: str) -> list[Row]:
    """The objects of one label file."""
    rows: list[Row] = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1
    ):
        fields = line.split()
        if not fields:
            continue
        try:
            values = tuple(float(field) for field in fields[:8])
        except ValueError:
            values = ()
        if len(values) != 8:
            raise InputError(
                f"{path}, line {number}: {line.strip()!r}",
                "a line begins with eight coordinates",
                "correct or remove the line",
            )
        rows.append((values, label, 0))
    return rows
