"""Where a second image of a scene lies, which should lie about where its file says."""

from typing import Any, NamedTuple

import numpy as np

from rsfuse.errors import ConfigError
from rsfuse.geo.raster import RasterSource, open_raster
from rsfuse.matching.overlay import LATTICES, correlate, polished, views
from rsfuse.matching.pipeline import PairReader
from rsfuse.matching.predict import match
from rsfuse.matching.reader import compose, pair_reader
from rsfuse.matching.results import MatchResult
from rsfuse.matching.trust import OK_CONFIDENCE, Status, presence
from rsfuse.ops.geometry2d import Transform

NEAR_PX = 64.0
EVEN_ODDS = 0.5  # below, a georeference is not believed
# What the files say stays unless another place stands out by so much more, in standard deviations.
CLEARLY_BETTER = 0.4


class Alignment(NamedTuple):
    """Where a second image lies.

    Attributes:
        status: `ok`, `weak`, or `refused`: nothing shows that both are of the same ground.
        confidence: Probability that it lies there.
        transform: Pixels of the scene -> pixels of the second image; None when refused.
        corrected: Whether that is another place than the files say.
        standing_out: What speaks for it, see `overlay.Correlation`.
    """

    status: Status
    confidence: float
    transform: Transform | None
    corrected: bool
    standing_out: float


def align(
    scene: Any, second: Any, *, max_shift_px: float = NEAR_PX, threads: int | None = None
) -> Alignment:
    """Find where a second image lies on a scene, in the dark and under noise too.

    What the georeferences say (for two images of one size without any: the same pixel) is tested by
    the correlation of the whole images, and stands where no other place is clearly better. Other
    places near it come from `match`, on a lattice of half or a quarter of the resolution where full
    resolution does not convince.

    Args:
        scene: What `open_raster` takes.
        second: The same.
        max_shift_px: Largest shift against what the files say, pixels of the scene.
        threads: For the search; all cores by default.

    Raises:
        RasterError, BandError, GridError: An input is unusable.
        ConfigError: The largest shift is not positive.
    """
    if not max_shift_px > 0:
        raise ConfigError(
            f"the largest shift is {max_shift_px} pixels",
            "A second image may lie off by some pixels.",
            f"Leave it out; it is {NEAR_PX:.0f} then.",
        )
    first, other = (s if isinstance(s, RasterSource) else open_raster(s) for s in (scene, second))
    stated = first.is_georeferenced and other.is_georeferenced
    near: dict[str, Any] = {}
    if stated:
        near = {"max_shift_px": max_shift_px, "upright": True}
    elif first.shape == other.shape:
        near = {"max_shift_px": max_shift_px, "prior": np.eye(3)}
    pair, linear, _ = pair_reader(first, other, max_shift_px=near.get("max_shift_px"))
    if pair is None:
        return Alignment("refused", 0.0, None, False, 0.0)
    by_file = correlate(views(pair, pair.base)).standing_out if near else 0.0
    confidence = presence(by_file) if near else 0.0
    found = _found(first, other, near, threads)
    if found.transform is not None and found.status != "refused":
        transform, stands = _polished(pair, found.transform)
        if confidence < EVEN_ODDS or stands > by_file + CLEARLY_BETTER:
            return Alignment(found.status, found.confidence, transform, True, stands)
    if confidence < EVEN_ODDS:
        return Alignment("refused", confidence, None, False, by_file)
    as_stated = compose(Transform("shift", np.eye(3)), pair, linear)
    status: Status = "ok" if confidence >= OK_CONFIDENCE else "weak"
    return Alignment(status, confidence, as_stated, False, by_file)


def _found(
    first: RasterSource, other: RasterSource, near: dict[str, Any], threads: int | None
) -> MatchResult:
    """The most confident match over the lattices, the finer one where it convinces."""
    best: MatchResult | None = None
    for finest in LATTICES:
        found = match(first, other, finest=finest, threads=threads, **near)
        if best is None or found.confidence > best.confidence:
            best = found
        if best.confidence >= OK_CONFIDENCE:
            break
    assert best is not None
    return best


def _polished(pair: PairReader, transform: Transform) -> tuple[Transform, float]:
    """A transform and how far it stands out; moved a little where that makes it stand out more."""
    seen = views(pair, transform.apply)
    stands = correlate(seen).standing_out
    if transform.field is not None:
        return transform, stands
    matrix = transform.base @ polished(seen, pair.shape0)
    model = "similarity" if transform.model == "shift" else transform.model
    moved = Transform(model, matrix / matrix[2, 2])
    better = correlate(views(pair, moved.apply)).standing_out
    return (moved, better) if better > stands else (transform, stands)
