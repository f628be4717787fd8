"""What the matching network is given of an image: structure, grey values, keypoints."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from rsfuse.matching.fine import detect_keypoints
from rsfuse.matching.model import CELL
from rsfuse.matching.structure import (
    CONTRAST_RADIUS_PX,
    FloatImage,
    Mask,
    Structure,
    prepared,
    structure_channels,
)

KEYPOINT_SPACING = 10  # side of the grid cells with one keypoint each, pixels


class NetworkInput(NamedTuple):
    """What the matching network sees of an image.

    Attributes:
        image: (6, H, W): real and imaginary parts of both harmonics, grey value, strength of the
            structure; 0 in all where nothing is known.
        mass: (1, H / 8, W / 8) keypoints per block of `CELL` pixels.
        structure: The structure channels.
    """

    image: FloatImage
    mass: FloatImage
    structure: Structure


def network_channels(image: FloatImage, valid: Mask) -> NetworkInput:
    """Channels of the matching network.

    Args:
        image: (C, H, W).
        valid: (H, W).
    """
    structure = structure_channels(image, valid)
    height, width = structure.valid.shape
    parts = np.ascontiguousarray(structure.z).view(np.float32).reshape(2, height, width, 2)
    grey = np.mean([prepared(band, valid) for band in image], axis=0)
    grey = grey - cv2.GaussianBlur(grey, (0, 0), CONTRAST_RADIUS_PX)
    strength = np.abs(structure.z[0]) + 0.01
    planes = [parts[0, ..., 0], parts[0, ..., 1], parts[1, ..., 0], parts[1, ..., 1]]
    stacked = np.stack([*planes, 4.0 * grey, strength]).astype(np.float32)
    stacked[:, ~structure.valid] = 0
    points = detect_keypoints(structure, spacing=KEYPOINT_SPACING, margin=0)
    mass = np.zeros((1, -(-height // CELL), -(-width // CELL)), np.float32)
    block = (points / CELL).astype(int)
    np.add.at(mass[0], (block[:, 1], block[:, 0]), 1.0)
    return NetworkInput(stacked, mass, structure)
