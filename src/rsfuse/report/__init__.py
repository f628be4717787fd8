"""Pages from run folders: one self-contained HTML file each, without a network request.

The run folder is the contract: nothing here imports a task, so a page can be made from a run of
another version, and a page that fails leaves the results as they are.
"""

from rsfuse.report.build import build_report
from rsfuse.report.parts import Tile
from rsfuse.report.story import Chapter, Check, build_story

__all__ = ["Chapter", "Check", "Tile", "build_report", "build_story"]
