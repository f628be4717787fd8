"""Sheets of pictures that show during a training what the network says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from rsfuse.runs import atomic_path

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

SIDE_PX = 480  # of the longer side of a picture
GAP_PX = 8

WHITE: Colour = (255, 255, 255)
GREEN: Colour = (60, 210, 90)
RED: Colour = (240, 70, 60)


class Canvas:
    """A picture of an image to draw on; places are pixels of the image, corner convention."""

    def __init__(self, image: npt.NDArray[Any]) -> None:
        """Take an image (C, h, w) of any numbers: three bands as colours, else the mean as grey."""
        shown = (
            image[:3] if len(image) >= 3 else image.mean(axis=0, keepdims=True).repeat(3, axis=0)
        )
        known = np.nan_to_num(shown.astype(np.float32))
        low, high = np.quantile(known[:, ::4, ::4], (0.01, 0.99))
        light = (np.clip((known - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
        self.factor = SIDE_PX / max(light.shape[1:])
        size = (round(light.shape[2] * self.factor), round(light.shape[1] * self.factor))
        resized = cv2.resize(np.moveaxis(light, 0, -1), size, interpolation=cv2.INTER_AREA)
        self.picture: Picture = np.ascontiguousarray(resized, np.uint8)

    def polygon(self, corners: npt.NDArray[Any], colour: Colour, *, closed: bool = True) -> None:
        """Outline (N, 2); a path where it is not closed."""
        points = np.round(np.asarray(corners) * self.factor * 16 - 8).astype(np.int32)
        cv2.polylines(self.picture, [points], closed, colour, 1, cv2.LINE_AA, 4)


def rgb_of(colour: str) -> Colour:
    """The parts of "#rrggbb"."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def write_sheet(pictures: Sequence[Picture], path: Path, *, columns: int = 3) -> None:
    """Write pictures side by side, row by row, as one PNG file."""
    columns = max(1, min(columns, len(pictures)))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    width = columns * (SIDE_PX + GAP_PX) + GAP_PX
    strips = [np.full((GAP_PX, width, 3), 255, np.uint8)]
    for row in rows:
        strip = np.full((max(p.shape[0] for p in row) + GAP_PX, width, 3), 255, np.uint8)
        for k, picture in enumerate(row):
            x = GAP_PX + k * (SIDE_PX + GAP_PX)
            strip[: picture.shape[0], x : x + picture.shape[1]] = picture
        strips.append(strip)
    sheet = np.concatenate(strips)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
