"""Images of 1024 x 1024 per second: PyTorch, ONNX Runtime in fp32 and in int8, side by side.

    python benchmarks/detect_fps.py --threads 2

Batch 1, suppression included, the engines by turns in one run. Weights of `r18` are random: its
work is measured, not its boxes. With --data, the scores of the three forms of hit-uav-tiny on the
validation part of HIT-UAV are printed as well, int8 calibrated on images of the training part.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from rsfuse.detection import evaluate as scoring
from rsfuse.detection import onnx
from rsfuse.detection.formats import read_dataset
from rsfuse.detection.model import Detector
from rsfuse.detection.runtime import load_detector
from rsfuse.detection.scene import detect_dataset
from rsfuse.engine.bundle import BundleCard, load_bundle, save_bundle

SIDE = 1024


def random_r18(folder: Path):
    """A bundle of a detector with a ResNet-18 and random weights."""
    card = load_bundle("hit-uav-tiny").card
    arguments = {**card.arguments, "backbone": "r18", "width": 128}
    card = BundleCard(**{**card.model_dump(), "name": "r18", "arguments": arguments})
    state = Detector(**arguments).state_dict()
    return save_bundle(folder, card, state, readme="random weights")


def forms_of(bundle, folder: Path, images, tile: int):
    """The bundle by three engines."""
    exact = onnx.export(bundle, folder / "fp32", tile=tile)
    small = onnx.export(bundle, folder / "int8", tile=tile, precision="int8", calibration=images)
    return {"torch": (bundle, "torch"), "onnx fp32": (exact, "onnx"), "onnx int8": (small, "onnx")}


def fps(forms, image, threads: int, rounds: int) -> None:
    """Print images per second of every form, the best of interleaved rounds."""
    torch.set_num_threads(threads)
    valid = np.ones(image.shape[1:], bool)
    ready = {
        name: load_detector(bundle, runtime=runtime, threads=threads)
        for name, (bundle, runtime) in forms.items()
    }
    seconds = {name: [] for name in ready}
    for _ in range(rounds + 1):
        for name, detector in ready.items():
            begun = time.perf_counter()
            detector(image, valid)
            seconds[name].append(time.perf_counter() - begun)
    first = min(seconds["torch"][1:])
    for name, values in seconds.items():
        best = min(values[1:])
        print(f"  {name:10} {1 / best:6.2f} images/s  {first / best:5.2f} x PyTorch")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--data", type=Path, help="folder of HIT-UAV")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (1, SIDE, SIDE)).astype(np.float32)
    images = [image[:, :512, :512]]
    if options.data:
        part = read_dataset(options.data, split="train", ignored=("DontCare",))
        files = [s.image for s in part.samples if s.image][::64]
        images = onnx.read_calibration(files, None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, bundle in (
            ("hit-uav-tiny", load_bundle("hit-uav-tiny")),
            ("r18, width 128, random weights", random_r18(folder / "r18")),
        ):
            print(f"{name}, {SIDE} x {SIDE}, {options.threads} threads")
            forms = forms_of(bundle, folder / bundle.card.name, images, SIDE)
            fps(forms, image, options.threads, options.rounds)
        if options.data:
            bundle = load_bundle("hit-uav-tiny")
            data = read_dataset(options.data, split="val", ignored=("DontCare",))
            data = data.with_classes([c.name for c in bundle.card.classes])
            for name, (form, runtime) in forms_of(bundle, folder / "val", images, 640).items():
                found = detect_dataset(form, data, runtime=runtime)
                scores = scoring.evaluate(data, scoring.answers_of_images(found, data), "voc12")
                content = scores.to_dict()
                print(name, json.dumps({k: round(content[k], 4) for k in ("map50", "map75")}))


if __name__ == "__main__":
    main()
