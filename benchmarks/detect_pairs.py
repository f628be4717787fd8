r"""What a second image adds to detection, on simulated scenes with a thermal image beside.

    python benchmarks/detect_pairs.py runs/pairs --single runs/sim_single/bundle \
        --pair runs/sim_pairs/bundle

mAP50 (VOC12) on the validation part by day and by night (the panchromatic image darkened, with
noise) of a detector for one image and of one for two, the second image aligned, moved by up to
24 px and 3 degrees, of another scene, or absent; where it lies is believed, or found by
`rsfuse.align` as `rsfuse detect --with` does. Both detectors have the same backbone, schedule and
seed; simulated scenes say nothing about real ones.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from rsfuse import align, detect
from rsfuse.detection.augment import darkened
from rsfuse.detection.evaluate import answers_of_images, evaluate
from rsfuse.detection.formats import read_dataset
from rsfuse.detection.predict import scaled
from rsfuse.engine.bundle import load_bundle
from rsfuse.geo.raster import open_raster


def read(path: Path):
    """Pixels of a file."""
    with open_raster(path) as source:
        return source.read()


def moved(image, number: int):
    """The image turned and shifted, the same way for the same number."""
    rng = np.random.default_rng(number)
    h, w = image.shape[1:]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), rng.uniform(-3, 3), 1.0)
    matrix[:, 2] += rng.uniform(-24, 24, 2)
    return np.stack([cv2.warpAffine(b, matrix, (w, h), borderValue=np.nan) for b in image])


def in_the_dark(image, info, number: int):
    """The image by night, in the numbers of its file."""
    seen = darkened(scaled(image, info), np.random.default_rng(number))
    low, high = (np.asarray(v, np.float32)[:, None, None] for v in (info.low, info.high))
    return seen * (high - low) + low


def score(bundle, data, *, night: bool, partner: str, matched: bool) -> tuple[float, int]:
    """mAP50 in percent, and how many second images were used."""
    found, used = [], 0
    others = [read(s.partner).data for s in data.samples]
    for number, sample in enumerate(data.samples):
        image = read(sample.image).data
        if night:
            image = in_the_dark(image, bundle.card.inputs[0], number)
        second = {
            "absent": None,
            "aligned": others[number],
            "moved": moved(others[number], number),
            "of other ground": others[(number + 1) % len(others)],
        }[partner]
        placement = align(image, second) if matched else None
        used += second is not None and (placement is None or placement.status != "refused")
        boxes = detect(image, bundle, partner=second, placement=placement, score=0.01)
        found.append(replace(boxes, name=sample.name))
    scores = evaluate(data, answers_of_images(found, data), "voc12").to_dict()
    return 100 * scores["map50"], used


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--single", required=True)
    parser.add_argument("--pair", required=True)
    options = parser.parse_args()
    data = read_dataset(options.data, format="simulated", split="val", partner="thermal")
    print("| detector | second image | placed by | day | night | used, day / night |")
    print("| --- | --- | --- | --- | --- | --- |")
    there = ("aligned", "moved", "of other ground")
    for name, path, rows in (
        ("one image", options.single, [("absent", False)]),
        ("two images", options.pair, [(p, m) for m in (True, False) for p in there]),
        ("two images", options.pair, [("absent", False)]),
    ):
        bundle = load_bundle(path, "detect")
        chosen = data.with_classes([c.name for c in bundle.card.classes])
        for partner, matched in rows:
            day, night = (
                score(bundle, chosen, night=n, partner=partner, matched=matched)
                for n in (False, True)
            )
            how = "-" if partner == "absent" else "rsfuse.align" if matched else "its pixels"
            print(
                f"| {name} | {partner} | {how} | {day[0]:.1f} | {night[0]:.1f} | "
                f"{day[1]} / {night[1]} of {len(data.samples)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
