"""Archives: one command over thousands of scenes, on the cores of a machine or on a cluster."""

from rsfuse.batch.jobs import Batch, Item, read_jobs, read_stac
from rsfuse.batch.schedule import Outcome, run_batch

__all__ = ["Batch", "Item", "Outcome", "read_jobs", "read_stac", "run_batch"]
