"""Whether an image looks, in its numbers, like those that a model learned from.

Bundles hold the range of each band over the training areas: what becomes 0 and 1. An image in other
units (reflectance for counts, 8 bits for 16) lands far outside of it or in a sliver of it, and a
network answers all the same, with high confidence. This is seen beforehand, from a reduced copy.
"""

import numpy as np

from rsfuse.engine.bundle import InputInfo
from rsfuse.geo.picture import preview_shape
from rsfuse.geo.raster import RasterSource

SIDE = 512  # of the reduced copy, pixels
# The numbers between the 2nd and the 98th percentile span 1 on the training areas. A scene may be
# more uniform than these, but not that much; and its median lies among them.
LEAST_SPAN, MOST_SPAN = 0.2, 5.0
FARTHEST_MEDIAN = 0.25


def strange_bands(source: RasterSource, info: InputInfo) -> tuple[str, ...]:
    """What is unlike the training in each band that is, as sentences; empty for a familiar image.

    Args:
        source: The image, with the bands that the model takes.
        info: What the model learned from; bands without a range are not judged.
    """
    if not info.low:
        return ()
    raster = source.read(shape=preview_shape(source.shape, SIDE))
    said = []
    columns = zip(info.bands, raster.data, info.low, info.high, strict=True)
    for name, band, low, high in columns:
        known = (band[raster.valid] - low) / (high - low)
        if not known.size:
            continue
        bottom, middle, top = np.quantile(known, (0.02, 0.5, 0.98))
        if not LEAST_SPAN <= top - bottom <= MOST_SPAN or not _is_near(middle):
            first, last = (low + share * (high - low) for share in (bottom, top))
            said.append(
                f"{name} runs from {first:.4g} to {last:.4g}, in training from {low:.4g} to "
                f"{high:.4g}"
            )
    return tuple(said)


def _is_near(middle: float) -> bool:
    return bool(-FARTHEST_MEDIAN <= middle <= 1 + FARTHEST_MEDIAN)
