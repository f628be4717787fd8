"""Run files: flat TOML read into checked, frozen settings.

An unknown key is an error that names the nearest known one, so that a misspelt setting cannot be
silently ignored (docs/decisions/0003).
"""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic

from rsfuse.errors import ConfigError

C = TypeVar("C", bound="Config")


class Config(pydantic.BaseModel):
    """Base of all settings: unknown keys are refused and values never change."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class TrainSettings(Config):
    """How to train; what to train and on which data is said by the task's own settings.

    Attributes:
        seed: Seed of the weights and of every training sample.
        steps: Optimiser steps of the whole run.
        batch: Samples per step, over all devices together.
        learning_rate: Largest rate of AdamW.
        weight_decay: Decay of weights that have at least two axes.
        warmup: Steps over which the rate rises from 0.
        schedule: "cosine" lets the rate fall to 1 % at the last step; "constant" keeps it.
        clip: Largest norm of the gradient; 0 leaves it as it is.
        ema: Decay per step of the moving average of the weights that is validated and kept; 0 for
            the weights themselves.
        validate_every: Steps between validations; also between checkpoints.
        patience: Stop after this many validations without a gain; 0 never stops early.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        device: "auto", "cpu" or "cuda".
        devices: Processes on this machine, one per GPU.
        nodes: Machines.
        threads: Threads of tensor maths on the CPU; 0 leaves the default.
        workers: Processes that prepare samples; 0 prepares them in the training process.
    """

    seed: int = pydantic.Field(0, ge=0)
    steps: int = pydantic.Field(1000, ge=1)
    batch: int = pydantic.Field(8, ge=1)
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    weight_decay: float = pydantic.Field(0.05, ge=0)
    warmup: int = pydantic.Field(100, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    clip: float = pydantic.Field(1.0, ge=0)
    ema: float = pydantic.Field(0.999, ge=0, lt=1)
    validate_every: int = pydantic.Field(200, ge=1)
    patience: int = pydantic.Field(0, ge=0)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = pydantic.Field(1, ge=1)
    nodes: int = pydantic.Field(1, ge=1)
    threads: int = pydantic.Field(0, ge=0)
    workers: int = pydantic.Field(0, ge=0)

    @pydantic.model_validator(mode="after")
    def _batch_fits(self) -> "TrainSettings":
        if self.batch % (self.devices * self.nodes):
            raise ValueError(
                f"batch {self.batch} cannot be shared evenly by {self.devices * self.nodes} devices"
            )
        return self


def read_config(path: str | Path, kind: type[C], overrides: Mapping[str, Any] | None = None) -> C:
    """Read a TOML file into settings.

    Args:
        path: A TOML file; its keys are the fields of `kind`.
        kind: The settings to make.
        overrides: Values that win over the file, for example from the command line.

    Raises:
        ConfigError: No file, not TOML, an unknown key (the error names the nearest one) or an
            impossible value.
    """
    return make_config(kind, {**read_toml(path), **(overrides or {})}, str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ConfigError: No file, or not TOML.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", "a TOML file is needed", "check the path"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}",
            "it holds lines such as: steps = 1000",
            "correct that line",
        ) from error


def make_config(kind: type[C], values: Mapping[str, Any], source: str) -> C:
    """Settings from a mapping; `source` names it in errors.

    Raises:
        ConfigError: An unknown key, a missing one, or an impossible value.
    """
    try:
        return kind.model_validate(dict(values))
    except pydantic.ValidationError as error:
        raise _config_error(error, kind, source) from error


def _config_error(error: pydantic.ValidationError, kind: type[Config], source: str) -> ConfigError:
    """The first fault of a validation in three beats."""
    fault = error.errors()[0]
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = sorted(_fields_at(kind, fault["loc"][:-1]))
        near = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
        return ConfigError(
            f"{source} holds the unknown key {place!r}",
            f"known keys are {', '.join(known)}",
            f"did you mean {near[0]!r}?" if near else "remove it",
        )
    if fault["type"] == "missing":
        return ConfigError(
            f"{source} lacks the key {place!r}",
            f"{kind.__name__} needs it",
            f"add a line {place} = ...",
        )
    text = fault["msg"].removeprefix("Value error, ")
    found = f"{place} = {fault['input']!r}" if place else "a combination"
    return ConfigError(
        f"{source} holds {found}, which is impossible",
        text,
        f"change {place}" if place else "change one of them",
    )


def _fields_at(kind: type[Config], place: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the settings found by walking down `place`."""
    here: Any = kind
    for step in place:
        annotation = getattr(here, "model_fields", {}).get(str(step))
        here = getattr(annotation, "annotation", None)
    return list(getattr(here, "model_fields", kind.model_fields))
