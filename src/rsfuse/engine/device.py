"""Where tensors live."""

import torch

from rsfuse.errors import InputError


def choose_device(name: str = "auto") -> torch.device:
    """The device of `--device`: auto takes a GPU where there is one.

    Raises:
        InputError: Unknown, or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"--device {name} is unknown", "it takes auto, cpu, cuda or cuda:N", "try --device auto"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"--device {name}: PyTorch sees no GPU",
            "a CUDA build of PyTorch and a driver are needed",
            "use --device cpu, or see rsfuse doctor",
        )
    return device
