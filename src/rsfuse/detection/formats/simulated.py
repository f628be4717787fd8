"""Scenes that `rsfuse simulate` wrote: a folder of folders, each with scene.json and truth.

The parts are stretches of the sorted scenes: "train" is the first 80 %, "val" the rest.
"""

from collections import Counter
from pathlib import Path

from rsfuse.detection.data import Dataset
from rsfuse.detection.formats.assemble import Parsed, Wanted, assemble
from rsfuse.detection.formats.dota import parse
from rsfuse.errors import InputError
from rsfuse.runs import read_json

# The image that is looked at where none is named, in the order of preference.
IMAGES = ("pan", "ms", "thermal", "sar")

_TRAIN_SHARE = 0.8


def read(folder: Path, wanted: Wanted) -> Dataset:
    """Read a scene, or a folder of scenes; the image is the first of `IMAGES` where none is named.

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
    if wanted.split is not None and wanted.split not in parts:
        raise InputError(
            f"simulated scenes have no part {wanted.split!r}", "they have train and val", "name one"
        )
    notes: Counter[str] = Counter()
    parsed = {}
    for scene in scenes if wanted.split is None else parts[wanted.split]:
        rows, gsd_m = parse(_truth(scene, wanted.image), notes)
        parsed[scene.name] = Parsed(
            rows,
            gsd_m or float(read_json(scene / "scene.json")["gsd_m"]),
            image=_image(scene, wanted.image),
            partner=scene / f"{wanted.partner}.tif" if wanted.partner else None,
        )
    return assemble(folder, parsed, {}, wanted, notes=notes)


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
