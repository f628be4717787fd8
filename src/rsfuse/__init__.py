"""rsfuse: registration of remote-sensing images across sensors.

Where things are:

    rsfuse.match(reference, query)     find the transform between two images  -> MatchResult
    rsfuse.open_raster(path)           the one door to raster files           -> RasterSource
    rsfuse.errors                      what can go wrong, in three beats
    rsfuse.runs                        the run folder: what a command leaves behind
    rsfuse.geo                         files, grids, tiles, warps, writers
    rsfuse.simulate                    scenes with exactly known truth
    rsfuse.matching                    the matching pipeline
    rsfuse.report                      HTML pages from run folders

Importing this package is cheap. The public names below are resolved at first use, so that
`import rsfuse` loads neither torch nor rasterio nor OpenCV.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsfuse.errors import RsfuseError
    from rsfuse.geo.raster import Raster, open_raster
    from rsfuse.matching.predict import match
    from rsfuse.matching.results import MatchResult
    from rsfuse.runs import RunRecord

__version__ = "0.1.0"

__all__ = [
    "MatchResult",
    "Raster",
    "RsfuseError",
    "RunRecord",
    "__version__",
    "match",
    "open_raster",
]

# Public name -> the module that defines it.
_HOME = {
    "MatchResult": "rsfuse.matching.results",
    "Raster": "rsfuse.geo.raster",
    "RsfuseError": "rsfuse.errors",
    "RunRecord": "rsfuse.runs",
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
