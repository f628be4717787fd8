"""A local page for rasters and results: tiles and boxes on demand, nothing leaves the machine.

Like the reports, it knows run folders and files, never a task.
"""

from rsfuse.view.layers import Scene, collect
from rsfuse.view.server import ViewServer

__all__ = ["Scene", "ViewServer", "collect"]
