"""Training samples from whole images: a turned, scaled and mirrored window, boxes with it.

The window is cut from the image by one similarity, so an object that reaches over the edge of the
window keeps its box; how much of it is in sight decides whether it is learned, ignored or absent.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from rsfuse.ops.geometry2d import for_opencv
from rsfuse.ops.polygons import polygon_intersections

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]

# An object is learned if at least this share of it is in the window, and ignored if any is.
LEARNED_SHARE = 0.7
IGNORED_SHARE = 0.1

# A window that shrinks the image by more than this is averaged first.
_AVERAGED_BELOW = 0.75


@dataclass(frozen=True)
class Jitter:
    """How windows vary.

    Attributes:
        scale: Smallest and largest enlargement.
        rotation: Chance of a free rotation; else a multiple of a quarter turn.
        mirror: Chance of a mirrored window.
        gain: Standard deviation of the logarithm of a factor on the values.
        offset: Standard deviation of an offset, as a share of the range.
        focus: Chance that the window is placed on an object.
    """

    scale: tuple[float, float] = (0.6, 1.6)
    rotation: float = 0.5
    mirror: float = 0.5
    gain: float = 0.2
    offset: float = 0.08
    focus: float = 0.85


def window_matrix(
    size: int, centre: tuple[float, float], scale: float, angle: float, mirrored: bool
) -> Floats:
    """(2, 3) from window to image pixels (corner convention) of a window of `size` pixels.

    Args:
        size: Side of the window.
        centre: Where its middle lies in the image.
        scale: Window pixels per image pixel.
        angle: How the window is turned in the image, clockwise on the screen.
        mirrored: Whether it is mirrored, left to right.
    """
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    flip = -1.0 if mirrored else 1.0
    linear = np.array([[flip * cos, -sin], [flip * sin, cos]])
    offset = np.asarray(centre) - linear @ np.array([size / 2, size / 2])
    return np.column_stack([linear, offset])


def random_window(
    rng: np.random.Generator,
    size: int,
    shape: tuple[int, int],
    centres: Floats,
    jitter: Jitter,
) -> Floats:
    """(2, 3) of a window drawn around an object, or anywhere."""
    low, high = (math.log(value) for value in jitter.scale)
    scale = math.exp(rng.uniform(low, high))
    if rng.random() < jitter.rotation:
        angle = rng.uniform(0, 2 * math.pi)
    else:
        angle = int(rng.integers(4)) * math.pi / 2
    mirrored = bool(rng.random() < jitter.mirror)
    h, w = shape
    if len(centres) and rng.random() < jitter.focus:
        spread = 0.35 * size / scale
        x, y = centres[int(rng.integers(len(centres)))] + rng.uniform(-spread, spread, 2)
    else:
        x, y = rng.uniform(0, w), rng.uniform(0, h)
    # The window shows as much of the image as it can.
    half = size / 2 / scale
    x = w / 2 if 2 * half >= w else float(np.clip(x, half, w - half))
    y = h / 2 if 2 * half >= h else float(np.clip(y, half, h - half))
    return window_matrix(size, (x, y), scale, angle, mirrored)


def cut(image: Image, matrix: Floats, size: int) -> npt.NDArray[np.float32]:
    """The window (C, size, size) of an image (C, h, w), zero outside of it.

    A window that shrinks the image is averaged first, so that small objects do not alias.
    """
    scale = 1.0 / math.sqrt(abs(np.linalg.det(matrix[:, :2])))
    # A window that shrinks the image by this much is averaged with a Gaussian of this width.
    sigma = 0.5 * math.sqrt(scale**-2 - 1) if scale < _AVERAGED_BELOW else 0.0
    rows, columns = _seen(matrix, size, image.shape[1:], 2 + math.ceil(4 * sigma))
    layers = np.ascontiguousarray(image[:, rows, columns].transpose(1, 2, 0))
    if not layers.size:
        return np.zeros((len(image), size, size), np.float32)
    centred = for_opencv(np.vstack([matrix, [0.0, 0.0, 1.0]]))[:2]
    centred[:, 2] -= (columns.start, rows.start)
    if sigma:
        layers = cv2.GaussianBlur(layers, (0, 0), sigma)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(layers, centred, (size, size), flags=flags)
    found = found[..., None] if found.ndim == 2 else found
    return np.ascontiguousarray(found.transpose(2, 0, 1), dtype=np.float32)


def _seen(matrix: Floats, size: int, shape: tuple[int, ...], margin: int) -> tuple[slice, slice]:
    """Rows and columns of the image that a window touches: large images are not copied whole."""
    frame = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float64)
    corners = frame @ matrix[:, :2].T + matrix[:, 2]
    low = np.floor(corners.min(axis=0)).astype(int) - margin
    high = np.ceil(corners.max(axis=0)).astype(int) + margin
    (x0, y0), (x1, y1) = low.clip(0, shape[::-1]), high.clip(0, shape[::-1])
    return slice(int(y0), int(y1)), slice(int(x0), int(x1))


def moved(corners: Floats, matrix: Floats) -> Floats:
    """Corners (N, 4, 2) of the image in pixels of the window."""
    inverse = np.linalg.inv(matrix[:, :2])
    return (corners - matrix[:, 2]) @ inverse.T


def turned(headings: Floats, matrix: Floats) -> Floats:
    """Directions (N,) of the image, in radians clockwise from +x, as seen in the window."""
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    steps = steps @ np.linalg.inv(matrix[:, :2]).T
    return np.asarray(np.arctan2(steps[..., 1], steps[..., 0]))


def visible_share(corners: Floats, size: int) -> Floats:
    """(N,): how much of each quadrilateral lies in a window of `size` pixels."""
    if not len(corners):
        return np.zeros(0)
    frame = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float64)
    inside, area = polygon_intersections(corners, np.broadcast_to(frame, corners.shape))
    return inside / np.maximum(area, 1e-12)


def other_light(
    image: npt.NDArray[np.float32], rng: np.random.Generator, jitter: Jitter
) -> npt.NDArray[np.float32]:
    """The image (scaled to about 0..1) with another gain and offset for all bands."""
    gain = math.exp(jitter.gain * rng.standard_normal())
    offset = jitter.offset * rng.standard_normal()
    return (image * np.float32(gain) + np.float32(offset)).astype(np.float32)


def darkened(image: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """The image (scaled to about 0..1) by night: a hundredth to a tenth of the light, and noise."""
    light = math.exp(rng.uniform(math.log(0.01), math.log(0.1)))
    noise = rng.uniform(0.01, 0.03) * rng.standard_normal(image.shape)
    return np.asarray(image * light + noise, np.float32)
