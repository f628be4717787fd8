"""Settings of a land-cover training."""

from glob import glob
from glob import has_magic as glob_has_magic
from typing import Any, Literal

import pydantic

from rsfuse.engine.config import TrainSettings


class ClassifyTrainConfig(TrainSettings):
    """A training of `rsfuse classify`: the settings of the loop, and those of the task.

    Attributes:
        name: Name of the bundle.
        ms: Multispectral rasters, one per scene; a pattern such as scenes/*/ms.tif stands for all
            that it finds, sorted.
        pan: Panchromatic rasters, in the same order; "simulated" makes one from MS.
        labels: Label rasters or polygon files, in the same order.
        test_labels: Labels of scenes that are kept for the test only: entries of `labels`.
        class_column: Column of polygons that holds the class.
        classes: Names of the classes to learn, in this order; all that occur when empty.
        split: How training, validation and test are told apart.
        block: Side of the blocks of a `blocks` split, in MS pixels.
        buffer: MS pixels left out between the parts.
        test_share: Share of the labels that is kept for the test.
        validation_share: Share of the rest that is kept for validation.
        model: Name of the network.
        arguments: Its keyword arguments, beside those that follow from the data.
        resolution: Whether the map has MS or PAN pixels.
        simulated_ratio: Ratio where PAN is "simulated": MS is reduced by it, PAN keeps the pixels.
        tile: Side of training tiles in MS pixels.
        class_weights: "balanced" draws every class equally often; "none" as often as it occurs.
        label_smoothing: Share of the target that is spread over all classes.
        brightness: Standard deviation of the gain and offset that tiles are changed by, as a share
            of the range of a band: what light and air do between scenes.
        repeats: Trainings with seeds that follow each other; their scores are told as mean and
            spread, and the best one by validation becomes the bundle.
        licence: Licence of the data, for the model card.
    """

    name: str = "das2f"
    ms: tuple[str, ...]
    pan: tuple[str, ...]
    labels: tuple[str, ...]
    test_labels: tuple[str, ...] = ()
    class_column: str = "class"
    classes: tuple[str, ...] = ()
    split: Literal["blocks", "polygons", "rasters", "random-pixel"] = "blocks"
    block: int = pydantic.Field(32, ge=1)
    buffer: int = pydantic.Field(8, ge=0)
    test_share: float = pydantic.Field(0.3, ge=0, lt=1)
    validation_share: float = pydantic.Field(0.2, ge=0, lt=1)
    model: str = "das2f"
    arguments: dict[str, Any] = pydantic.Field(default_factory=dict)
    resolution: Literal["ms", "pan"] = "ms"
    simulated_ratio: int = pydantic.Field(4, ge=1)
    tile: int = pydantic.Field(32, ge=4)
    class_weights: Literal["balanced", "none"] = "balanced"
    label_smoothing: float = pydantic.Field(0.05, ge=0, lt=1)
    brightness: float = pydantic.Field(0.03, ge=0)
    repeats: int = pydantic.Field(1, ge=1)
    licence: str = "not stated"

    @pydantic.field_validator("ms", "pan", "labels", "test_labels", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        """One path or several; patterns such as scenes/*/ms.tif stand for what they find."""
        found: list[Any] = []
        for item in (value,) if isinstance(value, str) else value:
            matches = sorted(glob(item)) if isinstance(item, str) and glob_has_magic(item) else []
            found += matches or [item]
        return tuple(found)

    @pydantic.model_validator(mode="after")
    def _same_number(self) -> "ClassifyTrainConfig":
        if not len(self.ms) == len(self.pan) == len(self.labels):
            raise ValueError(
                f"{len(self.ms)} ms, {len(self.pan)} pan and {len(self.labels)} labels: "
                "one of each is needed per scene"
            )
        return self
