"""The detector as an ONNX file.

The file holds the network and the decoding of boxes, in standard operators, for an image of a fixed
side (and a second one, and whether it is there, where the detector takes two); boxes and scores of
all cells come out, and suppression stays in rsfuse. The int8 form quantises convolutions alone
(static, per channel, calibrated on images that are given): the decoding keeps its precision.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rsfuse.detection.model import Decoded, Detector
from rsfuse.detection.onnx import INPUTS, Image, fitted, need
from rsfuse.detection.predict import scaled
from rsfuse.engine.bundle import ONNX_FILE, Bundle, BundleCard, save_bundle
from rsfuse.errors import InputError

Precision = Literal["fp32", "int8"]

STRIDE = 32  # sides of the input are multiples of it
CALIBRATION_IMAGES = 32
_BYTE = 255


def export(
    bundle: Bundle,
    folder: Path,
    *,
    tile: int = 1280,
    precision: Precision = "fp32",
    calibration: Sequence[Image] = (),
) -> Bundle:
    """Write a bundle with an ONNX file in it beside the weights.

    Args:
        bundle: A detector of one image or of two.
        folder: The new bundle.
        tile: Side of the input in pixels, a multiple of 32: a tile of `rsfuse detect` with its
            halo.
        precision: "fp32" or "int8".
        calibration: Images (C, h, w) in the numbers of their files, for int8.

    Raises:
        InputError: Not a detector, an impossible tile, int8 without images or of two images, or a
            package that is not installed.
    """
    card = bundle.card
    if card.task != "detect":
        raise InputError(
            f"{card.name} is no detector",
            "detectors can be exported",
            "give a bundle of rsfuse train detect",
        )
    if precision == "int8" and len(card.inputs) > 1:
        raise InputError(
            f"{card.name} takes two images",
            "the range of its numbers is found on single images",
            "export it without --int8",
        )
    if tile < STRIDE or tile % STRIDE:
        raise InputError(f"tile {tile}", f"a multiple of {STRIDE} is needed", "try --tile 1280")
    if precision == "int8" and not calibration:
        raise InputError(
            "int8 needs images to find the range of its numbers",
            "some images of the kind that will be searched are needed",
            "give them with --calibrate",
        )
    need("onnx", "onnxscript", *(["onnxruntime"] if precision == "int8" else []))
    model = Detector(**card.arguments)
    bundle.load_into(model)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / ONNX_FILE
        _trace(model, [len(info.bands) for info in card.inputs], tile, path)
        if precision == "int8":
            exact, path = path, Path(scratch) / "int8.onnx"
            seen = [scaled(np.nan_to_num(image), card.inputs[0]) for image in calibration]
            _quantise(exact, path, [fitted(image, tile) for image in seen])
        _describe(path, bundle, tile, precision)
        extra = {**card.extra, "onnx": {"tile": tile, "precision": precision}}
        return save_bundle(
            folder,
            card.model_copy(update={"extra": extra}),
            bundle.state(),
            readme=bundle.file("README.md").decode("utf-8"),
            onnx=path,
        )


def _trace(model: Detector, bands: Sequence[int], tile: int, path: Path) -> None:
    """The network as a file; `bands` of its one or two images."""
    network = Decoded(model.eval())
    inputs = [torch.zeros(1, count, tile, tile) for count in bands]
    inputs += [torch.ones(1)] * (len(bands) - 1)
    with _quiet_exporter():
        program = torch.onnx.export(
            network, tuple(inputs), dynamo=True, verbose=False,
            input_names=INPUTS[: len(inputs)], output_names=["output0"],
        )  # fmt: skip
    if program is None:
        raise InputError("the network was not exported", "torch gave nothing", "try another torch")
    program.save(path)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter of torch warns about torch itself and about packages that it would like."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)


def _quantise(source: Path, target: Path, images: Sequence[Image]) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self._images, None)
            return None if image is None else {"image": image[None]}

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
    )


def _describe(path: Path, bundle: Bundle, tile: int, precision: Precision) -> None:
    """Metadata: what the numbers are, under the keys that the QGIS plugin Deepness reads.

    Deepness divides by 255 before it standardises, so its keys are written for 8-bit models alone.
    """
    import json

    import onnx

    card = bundle.card
    model = onnx.load(path)
    entries = {
        "class_names": {str(i): c.name for i, c in enumerate(card.classes)},
        "model_author": "rsfuse",
        "rsfuse_name": card.name,
        "rsfuse_precision": precision,
        "rsfuse_low": list(card.inputs[0].low),
        "rsfuse_high": list(card.inputs[0].high),
        "rsfuse_inputs": [info.name for info in card.inputs],
        **deepness_keys(card, tile),
    }
    for key, value in entries.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    onnx.save(model, path)


def deepness_keys(card: BundleCard, tile: int) -> dict[str, Any]:
    """What Deepness needs to run a detector; empty where it cannot: two images, or not 8-bit."""
    info = card.inputs[0]
    if len(card.inputs) > 1 or min(info.low) < 0 or max(info.high) > _BYTE:
        return {}
    keys: dict[str, Any] = {
        "model_type": "Detector",
        "det_type": "YOLO_Ultralytics_obb",
        "det_conf": 0.3,
        "det_iou_thresh": card.extra.get("nms", 0.1),
        "tiles_overlap": 20,
        # The first is documented, the second is read.
        "tiles_size": tile,
        "tile_size": tile,
        "standardization_mean": [low / _BYTE for low in info.low],
        "standardization_std": [
            (high - low) / _BYTE for low, high in zip(info.low, info.high, strict=True)
        ],
    }
    if info.gsd_m is not None:
        keys["resolution"] = 100 * info.gsd_m
    return keys


def read_calibration(paths: Iterable[Path], bands: Sequence[str | int] | None) -> list[Image]:
    """Images for int8: at most `CALIBRATION_IMAGES`, of files and folders."""
    from rsfuse.detection.data import find_images
    from rsfuse.geo.raster import open_raster

    files = [f for p in paths for f in (find_images(p).values() if p.is_dir() else [p])]
    step = max(1, len(files) // CALIBRATION_IMAGES)
    images = []
    for path in files[::step][:CALIBRATION_IMAGES]:
        with open_raster(path, bands=bands) as source:
            images.append(source.read().data)
    return images
