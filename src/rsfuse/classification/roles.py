"""The door for foreign weights: arrays by role names that never change.

A role says what a weight does, not where a program keeps it: `stage.2.cross.pan.scan.A_log` is the
logarithm of the decay rates that the PAN side of the exchange of stage 2 computes. Renaming modules
here must not rename roles; a test holds the list.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rsfuse.errors import InputError

# Counters that frameworks keep beside BatchNorm; they take no part in any result of evaluation.
_NO_ROLE = "num_batches_tracked"

# Roles that older programs keep flat, directions first: (K D, N) and (K D,).
_FLAT = (".scan.A_log", ".scan.D")


def role_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Role -> shape of every weight and BatchNorm statistic, in a fixed order."""
    return {role: tuple(tensor.shape) for role, tensor in _tensors(model).items()}


def export_roles(model: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """Role -> a copy of the array."""
    return {role: t.detach().cpu().numpy().copy() for role, t in _tensors(model).items()}


def load_roles(model: nn.Module, arrays: Mapping[str, npt.ArrayLike | torch.Tensor]) -> None:
    """Copy arrays or tensors into a model by role; all of them or none.

    `A_log` and `D` of a scan may be flat with the direction first: (256, 24) for (4, 64, 24).

    Raises:
        InputError: A role is missing, unknown or of another shape, or holds a number that is not
            finite; the error names it and nothing is copied.
    """
    ours = _tensors(model)
    unknown = sorted(set(arrays) - set(ours))
    missing = sorted(set(ours) - set(arrays))
    if unknown or missing:
        raise InputError(
            f"{len(missing)} roles are missing and {len(unknown)} are unknown",
            f"the first is {(missing or unknown)[0]}",
            "role_shapes(model) lists what is needed",
        )
    ready = {}
    for role, tensor in ours.items():
        array = _numbers(role, arrays[role])
        if role.endswith(_FLAT) and array.size == tensor.numel() and array.ndim < tensor.ndim:
            array = array.reshape(tuple(tensor.shape))
        if array.shape != tuple(tensor.shape):
            raise InputError(
                f"role {role} has shape {array.shape}",
                f"{tuple(tensor.shape)} is needed",
                "check the order of its axes in role_shapes(model)",
            )
        # What does not fit the model's own precision is infinite there.
        ready[role] = torch.as_tensor(array).to(tensor.dtype)
        if not torch.isfinite(ready[role]).all():
            raise InputError(
                f"role {role} holds a number that is not finite",
                "weights are finite",
                "check the file they come from",
            )
    with torch.no_grad():
        for role, tensor in ours.items():
            tensor.copy_(ready[role])


def _numbers(role: str, given: npt.ArrayLike | torch.Tensor) -> npt.NDArray[np.float64]:
    """A given array in float64, which holds every float32 and float16 exactly."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().double().numpy()
    try:
        return np.array(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"role {role} holds no array of numbers: {error}",
            "weights are arrays of real numbers",
            "check the file they come from",
        ) from error


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Role -> the parameter or buffer itself; module names and roles agree at present."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    order = model.state_dict()
    return {name: named[name] for name in order if not name.endswith(_NO_ROLE)}
