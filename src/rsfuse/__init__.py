"""rsfuse: multimodal remote sensing. Match images across sensors, detect objects, classify land.

Where things are:

    rsfuse.match(reference, query)     find the transform between two images  -> MatchResult
    rsfuse.align(scene, second)        the same near a georeference, in noise -> Alignment
    rsfuse.detect(scene, model)        find oriented objects in a scene       -> Detections
    rsfuse.classify(ms, pan, model, p) map land cover                         -> ClassMap
    rsfuse.open_raster(path)           the one door to raster files           -> RasterSource
    rsfuse.errors                      what can go wrong, in three beats
    rsfuse.runs                        the run folder: what a command leaves behind
    rsfuse.geo                         files, grids, tiles, warps, writers
    rsfuse.simulate                    scenes with exactly known truth
    rsfuse.matching                    the matching pipeline
    rsfuse.detection                   boxes, scores, the detector
    rsfuse.classification              DAS2F, its training, maps
    rsfuse.engine                      the training loop and model bundles
    rsfuse.report                      HTML pages from run folders

Importing this package is cheap. The public names below are resolved at first use, so that
`import rsfuse` loads neither torch nor rasterio nor OpenCV.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsfuse.classification.results import ClassMap
    from rsfuse.classification.run import classify
    from rsfuse.detection.results import Detections
    from rsfuse.detection.run import detect
    from rsfuse.errors import RsfuseError
    from rsfuse.geo.raster import Raster, open_raster
    from rsfuse.matching.align import Alignment, align
    from rsfuse.matching.predict import match
    from rsfuse.matching.results import MatchResult
    from rsfuse.runs import RunRecord

__version__ = "0.1.0"

__all__ = [
    "Alignment",
    "ClassMap",
    "Detections",
    "MatchResult",
    "Raster",
    "RsfuseError",
    "RunRecord",
    "__version__",
    "align",
    "classify",
    "detect",
    "match",
    "open_raster",
]

# Public name -> the module that defines it.
_HOME = {
    "Alignment": "rsfuse.matching.align",
    "ClassMap": "rsfuse.classification.results",
    "Detections": "rsfuse.detection.results",
    "MatchResult": "rsfuse.matching.results",
    "Raster": "rsfuse.geo.raster",
    "RsfuseError": "rsfuse.errors",
    "RunRecord": "rsfuse.runs",
    "align": "rsfuse.matching.align",
    "classify": "rsfuse.classification.run",
    "detect": "rsfuse.detection.run",
    "match": "rsfuse.matching.predict",
    "open_raster": "rsfuse.geo.raster",
}


def __getattr__(name: str) -> Any:
    """Resolve a public name at first use."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'rsfuse' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, also those not yet resolved."""
    return sorted(set(globals()) | set(__all__))
