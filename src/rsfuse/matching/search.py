"""Global search: where, how turned and how large the query lies on the reference.

Every pair of a rotation and a scale is tried on a small version of the images; one Fourier
correlation of the structure channels then answers for all shifts at once. The statistic of a
hypothesis is the height of its peak in standard deviations of its own correlation surface.

Both spectra are flattened halfway to those of a phase correlation (Kuglin and Hines 1975): a few
long straight edges, which fit everywhere along themselves and on every other straight edge, else
outvote the many small things that fit in one place only.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy import fft

from rsfuse.matching.structure import ComplexImage, FloatImage, Mask, Structure, structure_channels
from rsfuse.ops.geometry2d import for_opencv

FloatArray = npt.NDArray[np.float64]
_Placed = tuple[float, float, float, FloatArray]

# Long side of the larger image during the search, and degrees between the rotations that are tried;
# the second look is for what the first leaves open, and takes six times as long.
FIRST_LOOK = (160, 6.0)
SECOND_LOOK = (288, 3.0)
SCALE_STEP = 1.15
PEAKS_PER_HYPOTHESIS = 2
FLATTENING = 0.5  # power of a spectrum's magnitude that is divided out; 1 is phase correlation
LEAST_MAGNITUDE = 0.1  # of the mean, below which nothing is lifted further
# Side of the canvas over the longest side on it: a turned square fits in, and so does a shift by
# half of the longer image before what leaves on one side comes back on the other.
CANVAS = 1.5


class Candidate(NamedTuple):
    """A placement of the query.

    Attributes:
        score: Peak height in standard deviations of the correlation surface.
        matrix: (3, 3) reference pixels -> query pixels, corner convention, full resolution.
        rotation_deg: Of the query against the reference, clockwise on the screen.
        scale: Query pixels per reference pixel.
    """

    score: float
    matrix: FloatArray
    rotation_deg: float
    scale: float


class View(NamedTuple):
    """An image during the search: small, with the factor that leads back.

    Attributes:
        image: (C, h, w) reduced.
        valid: (h, w).
        factor: Full-resolution pixels per reduced pixel, (x, y).
    """

    image: FloatImage
    valid: Mask
    factor: tuple[float, float]


def search(
    reference: View,
    query: View,
    *,
    rotations_deg: FloatArray,
    scales: FloatArray,
    keep: int = 8,
    threads: int = 1,
    max_shift: float | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
) -> list[Candidate]:
    """The best placements of the query on the reference, best first.

    Args:
        reference: Reduced reference.
        query: Reduced query, at about the same factor.
        rotations_deg: Rotations to try.
        scales: Query pixels per reference pixel to try, in reduced pixels.
        keep: How many distinct placements to return.
        threads: Threads that share the hypotheses.
        max_shift: Largest shift of the reference's centre, reduced pixels; None for no limit.
        origin: Where the query's corner lies by its georeference, reduced pixels.
    """
    side = max(*reference.valid.shape, *(int(s) for s in query.valid.shape))
    h0, w0 = reference.valid.shape
    size = fft.next_fast_len(int(CANVAS * side))

    def one_scale(scale: float) -> list[_Placed]:
        # The query at the size it would have on the reference's grid; where that is larger than
        # both images are, the grid is made coarser instead.
        grid = min(1.0, scale * side / max(query.valid.shape))
        own, shrink0 = _structure(reference, grid)
        other, shrink1 = _structure(query, grid / scale)
        return [
            (score, rotation, scale, np.linalg.inv(shrink1) @ matrix @ shrink0)
            for score, rotation, matrix in _correlate(own, other, rotations_deg, size)
        ]

    with ThreadPoolExecutor(threads) as pool:
        results = [r for part in pool.map(one_scale, scales) for r in part]
    results.sort(key=lambda r: -r[0])
    lift0 = np.diag([1 / reference.factor[0], 1 / reference.factor[1], 1.0])
    lift1 = np.diag([query.factor[0], query.factor[1], 1.0])
    corners = np.array([[0, 0], [w0, 0], [w0, h0], [0, h0]], float)
    kept: list[Candidate] = []
    places: list[FloatArray] = []
    middle = np.array([[w0 / 2, h0 / 2]])
    for score, rotation, scale, matrix in results:
        if max_shift is not None:
            moved = _apply(matrix, middle) + np.array(origin) - middle
            if float(np.hypot(*moved[0])) > max_shift:
                continue
        place = _apply(matrix, corners)
        if any(np.abs(place - p).mean() < 0.08 * side for p in places):
            continue
        places.append(place)
        kept.append(Candidate(score, lift1 @ matrix @ lift0, rotation, scale))
        if len(kept) == keep:
            break
    return kept


def _structure(view: View, factor: float) -> tuple[Structure, FloatArray]:
    """Channels of a view resized by a factor, and the matrix from its pixels to theirs."""
    h, w = view.valid.shape
    if factor == 1.0:
        return structure_channels(view.image, view.valid), np.eye(3)
    size = (max(8, round(w * factor)), max(8, round(h * factor)))
    mode = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    image = np.stack([cv2.resize(band, size, interpolation=mode) for band in view.image])
    valid = cv2.resize(view.valid.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return structure_channels(image, valid.astype(bool)), np.diag([size[0] / w, size[1] / h, 1.0])


def _correlate(
    own: Structure, other: Structure, rotations_deg: FloatArray, size: int
) -> list[tuple[float, float, FloatArray]]:
    """(score, rotation, matrix from `own` to `other`) of the peaks of every rotation.

    Args:
        own: Channels that lie still.
        other: Channels that are turned.
        rotations_deg: Rotations of `other` to undo.
        size: Side of the canvas on which both are laid.
    """
    h0, w0 = own.valid.shape
    canvas = np.zeros((2, size, size), np.complex64)
    canvas[:, :h0, :w0] = own.z
    spectrum = np.conj(flattened(fft.fft2(canvas), FLATTENING))
    parts = np.moveaxis(other.z, 0, -1)
    planes = np.ascontiguousarray(parts).view(np.float32)  # (h, w, 4)
    found = []
    for rotation in (float(angle) for angle in rotations_deg):
        # turn maps pixels of `other` to canvas pixels (corner convention).
        turn = _turn((other.valid.shape[1], other.valid.shape[0]), rotation, size)
        turned = cv2.warpAffine(planes, for_opencv(turn)[:2], (size, size), flags=cv2.INTER_LINEAR)
        z = np.moveaxis(turned.view(np.complex64), -1, 0).copy()
        phase = np.exp(-1j * np.deg2rad(rotation))
        z[0] *= np.complex64(phase**2)
        z[1] *= np.complex64(phase**4)
        surface = fft.ifft2((flattened(fft.fft2(z), FLATTENING) * spectrum).sum(axis=0)).real
        deviation = float(surface.std()) + 1e-12
        for peak, (py, px) in _peaks(surface, PEAKS_PER_HYPOTHESIS):
            # Canvas pixel = own pixel + (px, py), up to a period: the one that puts the centre of
            # `own` on the canvas.
            shift = np.array([px, py], float)
            shift[shift + np.array([w0, h0]) / 2 > size] -= size
            to_canvas = np.eye(3)
            to_canvas[:2, 2] = shift
            found.append((peak / deviation, rotation, np.linalg.inv(turn) @ to_canvas))
    return found


def flattened(spectrum: ComplexImage, power: float) -> ComplexImage:
    """Spectra (K, h, w) whose common magnitude is divided out to a power."""
    magnitude = np.sqrt((spectrum.real**2 + spectrum.imag**2).sum(axis=0))
    least = LEAST_MAGNITUDE * float(magnitude.mean()) + 1e-30
    return np.asarray(spectrum * np.maximum(magnitude, least) ** -power, np.complex64)


def _turn(size: tuple[int, int], rotation_deg: float, canvas: int) -> FloatArray:
    """Turn about the image centre, moved to the canvas centre; the sense undoes `rotation_deg`."""
    angle = np.deg2rad(-rotation_deg)
    c, s = np.cos(angle), np.sin(angle)
    matrix = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    centre = np.array([size[0] / 2, size[1] / 2])
    matrix[:2, 2] = canvas / 2 - matrix[:2, :2] @ centre
    return matrix


def _apply(matrix: FloatArray, xy: FloatArray) -> FloatArray:
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def _peaks(surface: FloatArray, number: int) -> list[tuple[float, tuple[int, int]]]:
    work = surface.copy()
    found = []
    size = work.shape[0]
    for _ in range(number):
        flat = int(work.argmax())
        y, x = divmod(flat, size)
        found.append((float(work[y, x]), (y, x)))
        rows = np.arange(y - 4, y + 5) % size
        cols = np.arange(x - 4, x + 5) % size
        work[np.ix_(rows, cols)] = -1
    return found
