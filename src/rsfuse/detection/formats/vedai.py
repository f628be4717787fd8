"""VEDAI: vehicles in colour and near infrared images of 512 or 1024 px.

`annotation512.txt` (or 1024) has a line per vehicle: image, centre x and y, orientation, four x,
four y, class id, whether it is whole and whether it is hidden. Images are Vehicules512/ID_co.png
and ID_ir.png: the first is the image, the second its partner. Ids are those of the development kit;
an unknown one becomes class-ID.
"""

import math
from collections import Counter, defaultdict
from pathlib import Path

from rsfuse.detection.data import Dataset
from rsfuse.detection.formats.assemble import Parsed, Row, Wanted, assemble
from rsfuse.errors import InputError

CLASSES = {
    1: "car", 2: "truck", 4: "tractor", 5: "camping-car", 7: "motorcycle", 8: "bus", 9: "van",
    10: "other", 11: "pickup", 23: "boat", 31: "plane",
}  # fmt: skip


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read the data set; a split is a fold list such as fold01 (fold01.txt).

    Raises:
        InputError: No annotation file, or a damaged line.
    """
    files = [p for n in ("512", "1024") for p in sorted(folder.rglob(f"annotation{n}.txt"))]
    if not files:
        raise InputError(
            f"{folder} holds no annotation512.txt or annotation1024.txt",
            "VEDAI has all labels in one such file",
            "check the path",
        )
    rows = parse(files[0])
    images = {p.stem.removesuffix("_co"): p for p in sorted(folder.rglob("*_co.png"))}
    partners = {p.stem.removesuffix("_ir"): p for p in sorted(folder.rglob("*_ir.png"))}
    listed = None if wanted.split is None else _fold(folder, wanted.split)
    stems = sorted({*rows, *images} if listed is None else listed)
    parsed = {
        stem: Parsed(rows.get(stem, []), image=images.get(stem), partner=partners.get(stem))
        for stem in stems
    }
    notes: Counter[str] = Counter()
    return assemble(folder, parsed, images, wanted, notes=notes, listed=listed)


def parse(path: Path) -> dict[str, list[Row]]:
    """Objects by image."""
    found: dict[str, list[Row]] = defaultdict(list)
    for number, line in enumerate(
        path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1
    ):
        fields = line.split()
        if not fields:
            continue
        try:
            values = [float(field) for field in fields[1:15]]
        except ValueError:
            values = []
        if len(values) < 12 or not all(map(math.isfinite, values)):
            raise InputError(
                f"{path}, line {number}: {line.strip()!r}",
                "a line is image, x, y, angle, four x, four y, class, whole, hidden",
                "correct or remove the line",
            )
        corners = tuple(v for pair in zip(values[3:7], values[7:11], strict=True) for v in pair)
        kind = int(values[11])
        found[fields[0]].append((corners, CLASSES.get(kind, f"class-{kind}"), 0))
    return dict(found)


def _fold(folder: Path, split: str) -> set[str]:
    path = next(iter(folder.rglob(f"{split}.txt")), None)
    if path is None:
        raise InputError(
            f"{folder} has no {split}.txt", "a split of VEDAI is a fold list", "check its name"
        )
    return set(path.read_text(encoding="utf-8-sig", errors="replace").split())
