"""scikit-image's phase correlation: `shift` alone, or `polar`: rotation and scale first.

`polar` is the recipe of scikit-image's own gallery: log-polar spectra give rotation and scale, the
two rotations half a turn apart are tried, and the better one's shift is taken.
"""

import sys

import numpy as np
from scipy.fft import fft2, fftshift
from serve import serve, to_gray
from skimage.filters import difference_of_gaussians, window
from skimage.registration import phase_cross_correlation
from skimage.transform import AffineTransform, warp, warp_polar

UPSAMPLE = 20


def padded(image, side):
    """The image, its mean taken off, in the middle of a square."""
    h, w = image.shape
    out = np.zeros((side, side))
    top, left = (side - h) // 2, (side - w) // 2
    out[top : top + h, left : left + w] = image - image.mean()
    return out


def offset_in(image, side):
    """(x, y) of the image's first pixel inside `padded`."""
    h, w = image.shape
    return np.array([(side - w) // 2, (side - h) // 2])


def translation(x, y):
    """A 3 x 3 shift."""
    matrix = np.eye(3)
    matrix[:2, 2] = [x, y]
    return matrix


def shift_matrix(square0, square1):
    """Square of the reference -> square of the query."""
    shift, _, _ = phase_cross_correlation(square0, square1, upsample_factor=UPSAMPLE)
    return translation(-shift[1], -shift[0])


def match_shift(image0, image1):
    """Shift alone."""
    gray0, gray1 = to_gray(image0), to_gray(image1)
    side = max(*gray0.shape, *gray1.shape)
    found = shift_matrix(padded(gray0, side), padded(gray1, side))
    x0, x1 = offset_in(gray0, side), offset_in(gray1, side)
    return {"matrix": translation(*-x1) @ found @ translation(*x0)}


def spectrum(square):
    """Magnitude of the spectrum of the middle band."""
    band = difference_of_gaussians(square, 2, 10) * window("hann", square.shape)
    return np.abs(fftshift(fft2(band)))


def similarity(angle_rad, scale, side):
    """Turns and enlarges about the middle of the square, in scikit-image's centre convention."""
    middle = (side - 1) / 2
    about = AffineTransform(scale=scale, rotation=angle_rad).params
    return translation(middle, middle) @ about @ translation(-middle, -middle)


def match_polar(image0, image1):
    """Rotation and scale from log-polar spectra, then shift."""
    gray0, gray1 = to_gray(image0), to_gray(image1)
    side = max(*gray0.shape, *gray1.shape)
    square0, square1 = padded(gray0, side), padded(gray1, side)
    radius = side // 8
    polar = [
        warp_polar(spectrum(square), radius=radius, output_shape=(side, side), scaling="log")[
            : side // 2
        ]
        for square in (square0, square1)
    ]
    (rows, columns), _, _ = phase_cross_correlation(*polar, upsample_factor=10, normalization=None)
    angle = np.deg2rad(360.0 / side * rows)
    scale = float(np.exp(columns * np.log(radius) / side))
    # The spectrum of an enlarged image shrinks, and half a turn leaves it as it is.
    best, matrix = -np.inf, None
    for turn in (0.0, np.pi):
        turned = similarity(-angle + turn, scale, side)
        straight = warp(square1, turned, order=3)
        moved = shift_matrix(square0, straight)
        aligned = warp(straight, moved, order=1)
        score = np.corrcoef(square0.ravel(), aligned.ravel())[0, 1]
        if score > best:
            best, matrix = score, turned @ moved
    to_corner = translation(0.5, 0.5)
    x0, x1 = offset_in(gray0, side), offset_in(gray1, side)
    corner = to_corner @ matrix @ np.linalg.inv(to_corner)
    return {"matrix": translation(*-x1) @ corner @ translation(*x0)}


if __name__ == "__main__":
    serve({"shift": match_shift, "polar": match_polar}[sys.argv[1]])
