"""Pairs with constructed truth: real images moved by a known motion.

Real cross-modal pairs are registered to a few pixels at best, and many to the identity, which
rewards doing nothing. So the protocols move the query by a stored motion. All resampling here is
by a Kaiser-windowed sinc, a different kernel from any that the matchers use, so that truth and
estimator cannot share an interpolation error.

Positions are in the corner convention; `resample` is the one place that knows about centres.
"""

from __future__ import annotations

import zlib
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rsfuse.matching.metrics import FloatArray, transform_points

ImageArray = npt.NDArray[np.float32]

HALF_WIDTH = 6  # taps on each side of the windowed sinc
KAISER_BETA = 8.0  # side lobes near -80 dB: below the quantisation of 8-bit images

WINDOW_SHARE = 0.65  # side of the query window over the shorter side of the image
MAX_UPRIGHT_SHIFT = 0.1  # of the shorter side
SUB_MAX_SHIFT_PX = 3
SUB_FIELD_AMPLITUDE_PX = 0.75
SUB_FIELD_WAVELENGTH_PX = 256.0
SUB_BORDER_PX = 16  # more than the largest motion plus the kernel


def pair_generator(seed: int, pair_id: str, purpose: str) -> np.random.Generator:
    """A generator that depends on the pair's name alone, so a subset sees the same motions."""
    return np.random.default_rng([seed, zlib.crc32(f"{pair_id}|{purpose}".encode())])


# --- resampling --------------------------------------------------------------------------------


def _sinc_weights(offsets: FloatArray) -> FloatArray:
    window = np.i0(KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (offsets / HALF_WIDTH) ** 2)))
    return np.sinc(offsets) * window / np.i0(KAISER_BETA)


# Kernel values at 1/4096 px, interpolated linearly: error below 1e-6 of the kernel.
_TABLE_STEP = 4096
_TABLE = _sinc_weights(np.arange(-HALF_WIDTH, HALF_WIDTH + 2 / _TABLE_STEP, 1 / _TABLE_STEP))


def _tabled_weights(offsets: FloatArray) -> FloatArray:
    position = (np.clip(offsets, -HALF_WIDTH, HALF_WIDTH) + HALF_WIDTH) * _TABLE_STEP
    low = position.astype(np.intp)
    return np.asarray(_TABLE[low] + (position - low) * (_TABLE[low + 1] - _TABLE[low]))


def resample(image: ImageArray, xy: FloatArray) -> ImageArray:
    """The image's values at positions `xy` by a Kaiser-windowed sinc of 12 x 12 taps.

    Args:
        image: (C, H, W); its edge pixels are repeated outwards for the kernel.
        xy: (h, w, 2) positions in the image, corner convention.

    Returns:
        (C, h, w) float32, held to the range of each channel (a sinc overshoots at bright points),
        NaN outside the image and where the kernel touches a NaN.
    """
    channels, height, width = image.shape
    x, y = xy[..., 0] - 0.5, xy[..., 1] - 0.5
    inside = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    x0 = np.floor(np.where(inside, x, 0.0)).astype(np.intp)
    y0 = np.floor(np.where(inside, y, 0.0)).astype(np.intp)
    taps = range(1 - HALF_WIDTH, HALF_WIDTH + 1)
    wx = np.stack([_tabled_weights(x - x0 - k) for k in taps]) * inside
    wy = np.stack([_tabled_weights(y - y0 - k) for k in taps]) * inside
    wx /= np.where(inside, wx.sum(axis=0), 1.0)
    wy /= np.where(inside, wy.sum(axis=0), 1.0)
    columns = [np.clip(x0 + k, 0, width - 1) for k in taps]
    out = np.zeros((channels, *x.shape))
    for number, k in enumerate(taps):
        rows = np.clip(y0 + k, 0, height - 1)
        line = np.zeros_like(out)
        for column, weight in zip(columns, wx, strict=True):
            line += weight * image[:, rows, column]
        out += wy[number] * line
    lowest = np.nanmin(image, axis=(1, 2))[:, None, None]
    highest = np.nanmax(image, axis=(1, 2))[:, None, None]
    held = np.clip(out, lowest, highest)
    return np.where(inside, held, np.nan).astype(np.float32)


def pixel_centres(shape: tuple[int, int]) -> FloatArray:
    """Positions of all pixel centres of an (h, w) image, (h, w, 2)."""
    x, y = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    return np.stack([x, y], axis=-1)


# --- rigid motions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Motion:
    """A turned window cut out of an image; replaces the image and moves the truth along.

    Attributes:
        angle_deg: How far the content turns, counted from +x towards +y (clockwise on the screen).
        scale: Enlargement of the content.
        centre_x: Position in the image that becomes the centre of the window.
        centre_y: The same in y.
        height: Height of the window.
        width: Width of the window.
    """

    angle_deg: float
    scale: float
    centre_x: float
    centre_y: float
    height: int
    width: int

    @property
    def matrix(self) -> FloatArray:
        """(3, 3): pixels of the image -> pixels of the window."""
        a = np.deg2rad(self.angle_deg)
        linear = self.scale * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        matrix = np.eye(3)
        matrix[:2, :2] = linear
        matrix[:2, 2] = [self.width / 2, self.height / 2] - linear @ [self.centre_x, self.centre_y]
        return matrix

    def apply(self, image: ImageArray) -> ImageArray:
        """The window's pixels, (C, height, width); 0 outside the image, as in chips on file."""
        centres = pixel_centres((self.height, self.width))
        inverse = np.asarray(np.linalg.inv(self.matrix), dtype=np.float64)
        source = transform_points(inverse, centres.reshape(-1, 2))
        moved = resample(image, source.reshape(self.height, self.width, 2))
        outside = ~((source >= 0) & (source <= [image.shape[2], image.shape[1]])).all(axis=1)
        moved[:, outside.reshape(self.height, self.width)] = 0.0
        return moved

    def record(self) -> dict[str, Any]:
        """The motion's numbers for a result file."""
        return asdict(self)


def turned_window(
    shape: tuple[int, int], rng: np.random.Generator, *, max_angle_deg: float = 180.0
) -> Motion:
    """A square window of `WINDOW_SHARE` of the shorter side, at a random angle and place.

    The window lies wholly inside the image, so the moved query has no empty corners that would
    give the angle away, and its centre is anywhere that the angle allows.
    """
    h, w = shape
    side = int(WINDOW_SHARE * min(h, w))
    angle_deg = float(rng.uniform(-max_angle_deg, max_angle_deg))
    a = np.deg2rad(angle_deg)
    reach = side / 2 * (abs(np.cos(a)) + abs(np.sin(a)))
    x = float(rng.uniform(reach, w - reach))
    y = float(rng.uniform(reach, h - reach))
    return Motion(angle_deg, 1.0, x, y, side, side)


def upright_motion(
    truth: FloatArray,
    shape0: tuple[int, int],
    shape1: tuple[int, int],
    rng: np.random.Generator,
) -> Motion:
    """The motion that takes rotation and scale out of a pair and leaves a random shift.

    The window is as large as the reference; its centre lies where the reference's centre is in
    the query, plus up to `MAX_UPRIGHT_SHIFT` of the shorter side each way.
    """
    h, w = shape0
    linear = truth[:2, :2] / truth[2, 2]
    scale = float(np.sqrt(abs(np.linalg.det(linear))))
    angle_deg = float(
        np.rad2deg(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
    )
    most = MAX_UPRIGHT_SHIFT * min(h, w)
    shifted_centre = np.array([[w / 2, h / 2]]) + rng.uniform(-most, most, (1, 2))
    x, y = transform_points(truth, shifted_centre)[0]
    return Motion(-angle_deg, 1 / scale, float(x), float(y), h, w)


# --- sub-pixel motions -------------------------------------------------------------------------


@dataclass(frozen=True)
class SubpixelMotion:
    """A shift plus a smooth field: content at `y + g(y)` of the image comes to `y`.

    `g(y) = -shift + sum of plane waves`. The image keeps its size less a border on each side.

    Attributes:
        shift_px: How far content moves, (x, y).
        waves: (K, 6) amplitude x, amplitude y, wave number x, wave number y, phase x, phase y.
        border_px: Pixels cut off on every side.
    """

    shift_px: tuple[float, float]
    waves: tuple[tuple[float, ...], ...]
    border_px: int = SUB_BORDER_PX

    def source(self, xy: FloatArray) -> FloatArray:
        """Where the content at window positions `xy` (N, 2) comes from in the image."""
        at = xy + self.border_px
        moved = at - np.asarray(self.shift_px)
        for ax, ay, kx, ky, px, py in self.waves:
            angle = at @ np.array([kx, ky])
            moved = moved + np.column_stack([ax * np.sin(angle + px), ay * np.sin(angle + py)])
        return np.asarray(moved)

    def target(self, xy: FloatArray) -> FloatArray:
        """Where content at image positions `xy` (N, 2) goes to in the window: `source` inverted.

        The fixed point contracts by at most 0.02 a step, so eight steps are exact to rounding.
        """
        guess = xy + np.asarray(self.shift_px) - self.border_px
        for _ in range(8):
            guess = guess + (xy - self.source(guess))
        return np.asarray(guess)

    def apply(self, image: ImageArray) -> ImageArray:
        """The moved image, smaller by the border on every side."""
        h, w = image.shape[1] - 2 * self.border_px, image.shape[2] - 2 * self.border_px
        source = self.source(pixel_centres((h, w)).reshape(-1, 2))
        return resample(image, source.reshape(h, w, 2))

    def record(self) -> dict[str, Any]:
        """The motion's numbers for a result file."""
        return asdict(self)


def subpixel_motion(
    number: int, count: int, rng: np.random.Generator, *, is_smooth: bool
) -> SubpixelMotion:
    """Motion `number` of `count`: whole steps at random, fractions spread evenly over a pixel."""
    whole = rng.integers(-SUB_MAX_SHIFT_PX, SUB_MAX_SHIFT_PX, 2)
    fraction = (np.array([number, (number * 3 + 1) % count]) + rng.uniform(0, 1, 2)) / count
    waves = []
    if is_smooth:
        for _ in range(3):
            direction = rng.uniform(0, 2 * np.pi)
            wave_number = 2 * np.pi / (SUB_FIELD_WAVELENGTH_PX * rng.uniform(1.0, 2.0))
            amplitude = SUB_FIELD_AMPLITUDE_PX / 3 * rng.uniform(0.5, 1.0, 2)
            waves.append(
                (
                    *amplitude.tolist(),
                    float(wave_number * np.cos(direction)),
                    float(wave_number * np.sin(direction)),
                    *rng.uniform(0, 2 * np.pi, 2).tolist(),
                )
            )
    x, y = (whole + fraction).tolist()
    return SubpixelMotion((x, y), tuple(waves))


# --- pairs that share nothing ------------------------------------------------------------------


class Box(NamedTuple):
    """A rectangle of pixels."""

    x: int
    y: int
    w: int
    h: int


def disjoint_windows(
    truth: FloatArray, shape0: tuple[int, int], shape1: tuple[int, int], *, steps: int = 24
) -> tuple[Box, Box]:
    """Windows of reference and query that show no common ground.

    The reference is cut to one of its four halves; the query to the largest rectangle whose every
    corner lies, by the truth, on the other side of the cut. Of the four the one with the largest
    query window is taken. There always is one: what lies on the wrong side of a cut for one half
    lies on the right side for the opposite half.
    """
    h0, w0 = shape0
    h1, w1 = shape1
    halves = [
        (Box(0, 0, w0 // 2, h0), (1.0, 0.0, w0 / 2)),
        (Box(w0 - w0 // 2, 0, w0 // 2, h0), (-1.0, 0.0, -w0 / 2)),
        (Box(0, 0, w0, h0 // 2), (0.0, 1.0, h0 / 2)),
        (Box(0, h0 - h0 // 2, w0, h0 // 2), (0.0, -1.0, -h0 / 2)),
    ]
    xs = np.linspace(0, w1, steps + 1).astype(int)
    ys = np.linspace(0, h1, steps + 1).astype(int)
    gx, gy = np.meshgrid(xs, ys)
    inverse = np.asarray(np.linalg.inv(truth), dtype=np.float64)
    back = transform_points(inverse, np.column_stack([gx.ravel(), gy.ravel()]))
    choices = [
        (window0, _largest_rectangle((back @ [nx, ny] >= limit).reshape(gx.shape), xs, ys))
        for window0, (nx, ny, limit) in halves
    ]
    return max(choices, key=lambda choice: choice[1].w * choice[1].h)


def _largest_rectangle(
    usable: npt.NDArray[np.bool_], xs: npt.NDArray[np.int_], ys: npt.NDArray[np.int_]
) -> Box:
    """Largest rectangle between lattice lines whose four corners are usable; empty without one.

    Four corners suffice: the usable side of a straight cut is convex.
    """
    best, window = 0, Box(0, 0, 0, 0)
    for top in range(len(ys)):
        for bottom in range(top + 1, len(ys)):
            both = np.flatnonzero(usable[top] & usable[bottom])
            if len(both) < 2:
                continue
            left, right = int(xs[both[0]]), int(xs[both[-1]])
            area = (right - left) * int(ys[bottom] - ys[top])
            if area > best:
                best = area
                window = Box(left, int(ys[top]), right - left, int(ys[bottom] - ys[top]))
    return window


def crop(image: ImageArray, window: Box) -> ImageArray:
    """The pixels of a box inside the image."""
    x, y, w, h = window
    return image[:, y : y + h, x : x + w]
