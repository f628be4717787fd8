"""Scenes that `rsfuse simulate` wrote: a folder of folders, each with scene.json and truth.

The parts are stretches of the sorted scenes: "train" is the first 80 %, "val" the rest.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rsfuse.detection.data import Dataset, Objects, Sample
from rsfuse.detection.formats.dota import parse
from rsfuse.errors import InputError
from rsfuse.runs import read_json

# The image that is looked at where none is named, in the order of preference.
IMAGES = ("pan", "ms", "thermal", "sar")

_TRAIN_SHARE = 0.8


def read(
    folder: Path,
    *,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    ignored: Sequence[str] = (),
    image: str = "",
    partner: str = "",
) -> Dataset:
    """Read simulated scenes.

    Args:
        folder: A scene, or a folder of scenes.
        split: "train", "val", or everything when None.
        classes: Names in the order of the labels; those that occur, sorted, when None.
        ignored: Classes whose objects become difficult.
        image: The image of each scene, for example "pan"; the first of `IMAGES` when empty.
        partner: A second image of each scene, for example "thermal"; none when empty.

    Raises:
        InputError: No scenes, no such image, or an unknown class or part.
    """
    scenes = [folder] if (folder / "scene.json").is_file() else []
    scenes += sorted(path.parent for path in folder.glob("*/scene.json"))
    if not scenes:
        raise InputError(
            f"{folder} holds no simulated scenes",
            "a scene is a folder with scene.json",
            "make one with rsfuse simulate -o DIR",
        )
    cut = max(1, min(round(_TRAIN_SHARE * len(scenes)), len(scenes) - 1))
    parts = {"train": scenes[:cut], "val": scenes[cut:]}
    if split is not None and split not in parts:
        raise InputError(
            f"simulated scenes have no part {split!r}", "they have train and val", "name one"
        )
    notes: Counter[str] = Counter()
    chosen = scenes if split is None else parts[split]
    parsed = [(scene, _image(scene, image), parse(_truth(scene, image), notes)) for scene in chosen]
    occurring = sorted({row[1] for _, _, (rows, _) in parsed for row in rows} - set(ignored))
    names = tuple(classes or occurring)
    unknown = sorted(set(occurring) - set(names))
    if unknown:
        raise InputError(
            f"{folder} holds objects of the class {unknown[0]!r}",
            f"the classes asked for are {', '.join(names)}",
            "add it to the classes or to those that are ignored",
        )
    samples = []
    for scene, file, (rows, gsd) in parsed:
        found = Objects.of(
            [
                (values, names.index(name) if name in names else 0, flag if name in names else 1)
                for values, name, flag in rows
            ]
        )
        other = scene / f"{partner}.tif" if partner else None
        gsd = gsd or float(read_json(scene / "scene.json")["gsd_m"])
        samples.append(Sample(scene.name, file, found, partner=other, gsd_m=gsd))
    return Dataset(names, tuple(samples), dict(notes))


def _image(scene: Path, named: str) -> Path:
    for name in (named,) if named else IMAGES:
        path = scene / f"{name}.tif"
        if path.is_file():
            return path
    raise InputError(
        f"{scene} holds no image {named or ' or '.join(IMAGES)}",
        "the modalities of a scene are chosen when it is simulated",
        "simulate it again with --modalities",
    )


def _truth(scene: Path, named: str) -> Path:
    return scene / "truth" / "labelTxt" / f"{_image(scene, named).stem}.txt"
