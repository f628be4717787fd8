"""The processes of one distributed training: who writes, and what they know together.

Every process runs the whole command. On one machine Lightning starts the others itself; `torchrun`
and SLURM start all of them. Only the first one writes files and answers the user.
"""

import os

import torch
from torch import Tensor

from rsfuse.engine.config import TrainSettings
from rsfuse.errors import InputError


def is_first_process(settings: TrainSettings) -> bool:
    """Whether this process is the one that writes.

    Its rank is RANK (torchrun), SLURM_PROCID (srun), or NODE_RANK and LOCAL_RANK (Lightning).

    Raises:
        InputError: torchrun started another number of processes than the settings speak of.
    """
    wanted = settings.devices * settings.nodes
    started = int(os.environ.get("WORLD_SIZE", wanted))
    if started != wanted:
        raise InputError(
            f"{started} processes were started, the settings speak of {settings.devices} devices "
            f"on {settings.nodes} nodes",
            "the two must be the same number",
            f"set --devices and --nodes so that they multiply to {started}",
        )
    if wanted == 1:
        return True
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name]) == 0
    return all(int(os.environ.get(name, 0)) == 0 for name in ("NODE_RANK", "LOCAL_RANK"))


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a value over all processes, without gradient; the value itself where one trains.

    A loss that is a mean over a varying number of things is divided by the mean of that number
    over the processes, not by its own: then the mean gradient of the processes is the gradient of
    the whole batch.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value.detach()
    total = value.detach().clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
