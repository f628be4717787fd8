"""The detector by ONNX Runtime, the fast way on a CPU; nothing here needs PyTorch."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from rsfuse.detection.predict import Boxes, ImageDetector, select
from rsfuse.engine.bundle import ONNX_FILE, Bundle
from rsfuse.errors import InputError

Image = npt.NDArray[np.float32]

# Inputs of a file: image, and of a detector of two the second (zeros without), and 1 or 0 for it.
INPUTS = ["image", "partner", "present"]


class OnnxDetector(ImageDetector):
    """A detector of a bundle by its ONNX file; the same boxes as by PyTorch, to rounding."""

    def __init__(
        self, bundle: Bundle, *, score: float, nms: float | None = None, threads: int = 0
    ) -> None:
        need("onnxruntime")
        import onnxruntime

        super().__init__(bundle.card, score=score, nms=nms)
        self.tile = int(bundle.card.extra["onnx"]["tile"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            bundle.file(ONNX_FILE), options, providers=["CPUExecutionProvider"]
        )

    def look(self, image: Image, partner: Image | None = None) -> Boxes:
        """Boxes of a scaled image; larger ones than the input are looked at in parts."""
        found = []
        h, w = image.shape[1:]
        for y in range(0, h, self.tile):
            for x in range(0, w, self.tile):
                place = np.s_[:, y : y + self.tile, x : x + self.tile]
                part = image[place]
                given = {"image": fitted(part, self.tile)[None]}
                if self.partner is not None:
                    given |= self._second(None if partner is None else partner[place])
                rows = self._session.run(None, given)[0][0].T
                rows = rows[(rows[:, 0] < part.shape[2]) & (rows[:, 1] < part.shape[1])]
                boxes = np.concatenate([rows[:, :4], rows[:, -1:]], axis=1)
                found.append((boxes + np.array([x, y, 0, 0, 0], boxes.dtype), rows[:, 4:-1]))
        boxes, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return select(boxes, scores, self.score, self.nms)

    def _second(self, partner: Image | None) -> dict[str, npt.NDArray[np.float32]]:
        """The inputs of the second image of a detector of two."""
        assert self.partner is not None
        empty = np.zeros((len(self.partner.bands), 0, 0), np.float32)
        image = fitted(empty if partner is None else partner, self.tile)
        return {"partner": image[None], "present": np.full(1, partner is not None, np.float32)}


def fitted(image: Image, tile: int) -> Image:
    """An image (C, h, w) on a square of `tile` pixels: zeros to the right and below."""
    part = image[:, :tile, :tile]
    grow = ((0, 0), (0, tile - part.shape[1]), (0, tile - part.shape[2]))
    return np.ascontiguousarray(np.pad(part, grow), np.float32)


def need(*names: str) -> None:
    """Raise an InputError where one of the packages is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(
                f"the package {name} is not installed",
                "ONNX is an extra of rsfuse",
                'install it: pip install "rsfuse[onnx]"',
            )
