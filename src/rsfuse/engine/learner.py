"""What a task gives to the training engine: plain methods, no engine in sight."""

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Learner(abc.ABC):
    """A model, its training samples, its loss and its validation.

    A training sample is found by its number alone, so that a run which was killed goes on with the
    sample that it would have seen, and several devices share the numbers between them.

    Attributes:
        model: The network that is trained.
        monitor: The key of `validate`'s result by which the best weights are chosen.
        higher_is_better: Whether a larger value of it is better.
    """

    model: nn.Module
    monitor: str = "loss"
    higher_is_better: bool = False

    @abc.abstractmethod
    def sample(self, index: int) -> Any:
        """Training sample number `index`; depends on nothing but the settings and `index`."""

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Any, step: int) -> Mapping[str, Tensor]:
        """The parts of the loss of a batch; "loss" is what is minimised.

        Where several processes share a batch, each gets its part of it; see `mean_over_processes`.
        """

    @abc.abstractmethod
    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Scores on the validation data.

        Called in evaluation mode, without gradients, by the first of several processes alone.
        """

    def collate(self, samples: list[Any]) -> Any:
        """A batch from samples; by default tensors are stacked, in tuples and mappings too."""
        return torch.utils.data.default_collate(samples)

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether weight decay applies to a parameter; by default to those of two or more axes.

        A parameter with the attribute `no_weight_decay = True` is left out.
        """
        return parameter.ndim >= 2 and not getattr(parameter, "no_weight_decay", False)

    def pictures(self, model: nn.Module, folder: Path, step: int) -> None:  # noqa: B027
        """Write sample pictures into `folder` after a validation; by default none."""
