"""The detector of a bundle, by PyTorch or by ONNX Runtime."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from rsfuse.detection.predict import ImageDetector
from rsfuse.engine.bundle import ONNX_FILE, Bundle, load_bundle
from rsfuse.errors import InputError

Runtime = Literal["auto", "torch", "onnx"]


def load_detector(
    bundle: Bundle | str | Path,
    *,
    score: float = 0.3,
    nms: float | None = None,
    device: str = "auto",
    runtime: Runtime = "auto",
    threads: int = 0,
) -> ImageDetector:
    """The detector of a bundle.

    Args:
        bundle: A bundle, or a path or name of one.
        score: Lowest score.
        nms: Largest overlap of two boxes of a class; that of the model when None.
        device: Where PyTorch computes: "auto", "cpu", "cuda" or "cuda:N".
        runtime: "onnx" by the bundle's ONNX file, "torch", or "auto": the first where there is one
            and ONNX Runtime is installed, on a CPU. PyTorch is not needed then.
        threads: Of ONNX Runtime; 0 leaves the choice to it.

    Raises:
        InputError: "onnx" was asked for and the bundle has no ONNX file.
    """
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, "detect")
    has = bundle.has(ONNX_FILE)
    if runtime == "onnx" and not has:
        raise InputError(
            f"{bundle.card.name} holds no {ONNX_FILE}",
            "ONNX Runtime needs one",
            "make it: rsfuse export BUNDLE -o NEW, or use --runtime torch",
        )
    usable = has and find_spec("onnxruntime") is not None
    if runtime == "onnx" or (runtime == "auto" and usable and not _takes_gpu(device)):
        from rsfuse.detection.onnx import OnnxDetector

        return OnnxDetector(bundle, score=score, nms=nms, threads=threads)
    if find_spec("torch") is None:
        raise InputError(
            f"PyTorch is not installed, and {bundle.card.name} holds no {ONNX_FILE}",
            "a model runs by either",
            "install torch, or make the file elsewhere: rsfuse export BUNDLE -o NEW",
        )
    from rsfuse.detection.network import NetworkDetector
    from rsfuse.engine.device import choose_device

    return NetworkDetector.load(bundle, score=score, nms=nms, device=choose_device(device))


def _takes_gpu(device: str) -> bool:
    """Whether PyTorch would compute on a GPU; without PyTorch it would not."""
    if device == "cpu" or find_spec("torch") is None:
        return False
    from rsfuse.engine.device import choose_device

    return choose_device(device).type != "cpu"
