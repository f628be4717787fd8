"""How a peer talks to `match_peers.py`: one task a line on stdin, one answer in a JSON file.

A task is `{"images": "pair.npz", "answer": "answer.json"}`; the archive holds `image0` (reference)
and `image1` (query), (C, H, W) float32. The answer holds `matrix` (3 x 3, reference pixels ->
query pixels, (0, 0) is the outer corner of the first pixel) or null, `points0`, `points1` and
`seconds` (of the matching alone). The line "answered" on stdout follows each answer.

This file needs NumPy only, because it is imported inside every peer's environment.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np


def serve(match):
    """Answer tasks until stdin ends.

    `match` takes two (C, H, W) arrays and returns a mapping with `matrix`, `points0`, `points1`
    and, where the peer has them, `status`, `confidence`, `probabilities`.
    """
    # Libraries print; what they print goes to stderr, and stdout stays for the protocol.
    acknowledge = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        task = json.loads(line)
        with np.load(task["images"]) as images:
            image0, image1 = images["image0"], images["image1"]
        start = time.perf_counter()
        try:
            answer = match(image0, image1)
        except Exception as error:
            answer = {"exception": f"{type(error).__name__}: {error}"}
        answer["seconds"] = time.perf_counter() - start
        Path(task["answer"]).write_text(json.dumps(answer, default=np.ndarray.tolist))
        acknowledge.write("answered\n")
        acknowledge.flush()


def to_gray(image):
    """(H, W) float32: the mean of the bands, 0 where a pixel is not usable."""
    return np.nan_to_num(image.mean(axis=0)).astype(np.float32)


def to_byte(image):
    """(H, W) uint8: 8-bit images as they are, others stretched between their 1 and 99 %."""
    gray = to_gray(image)
    if gray.min() < 0 or gray.max() > 255:
        low, high = np.percentile(gray, (1, 99))
        gray = (gray - low) * (255 / max(high - low, 1e-6))
    return np.clip(np.round(gray), 0, 255).astype(np.uint8)


def centre_offset(image0, image1):
    """(x, y): query pixel minus reference pixel when the centres coincide."""
    (h0, w0), (h1, w1) = image0.shape[-2:], image1.shape[-2:]
    return np.array([(w1 - w0) / 2, (h1 - h0) / 2])


def fit_affine(points0, points1):
    """Least-squares 3 x 3 affine from points, or None."""
    if len(points0) < 3:
        return None
    design = np.column_stack([points0, np.ones(len(points0))])
    solution, _, rank, _ = np.linalg.lstsq(design, points1, rcond=None)
    return np.vstack([solution.T, [0, 0, 1]]) if rank == 3 else None
