"""Settings of the training of a detector."""

from typing import Literal

import pydantic

from rsfuse.detection.augment import Jitter
from rsfuse.detection.pair import PATCH
from rsfuse.engine.config import TrainSettings
from rsfuse.nn.cstf import Fusion


class DetectTrainConfig(TrainSettings):
    """A training of `rsfuse detect`: the settings of the loop, and those of the task.

    Attributes:
        name: Name of the bundle.
        data: Folder of the data set.
        format: Its format; "auto" looks.
        train_split: Part that is learned from.
        validation_split: Part that chooses the best weights.
        classes: Names in the order of the labels; those of the data set when empty.
        ignored: Classes whose objects are neither right nor wrong.
        bands: Bands of the images that are used, by number from 1; all when empty.
        backbone: "tiny", "r18", "r34" or "r50".
        weights: File with published weights of a ResNet; none when empty.
        start: Bundle of the same architecture to start from; none when empty.
        width: Channels of pyramid and head.
        finest: Finest stride, 8 or 4.
        window: Side of training windows in pixels.
        scale_low: Smallest enlargement of a window.
        scale_high: Largest.
        rotation: Chance of a free rotation.
        mosaic: Chance of a window put together from four of half its side; none in the last steps.
        low: Value that becomes 0, per band or for all.
        high: Value that becomes 1.
        balance: Power of the inverse frequency by which images with rare classes are drawn.
        nms: Overlap of two boxes of a class from which the worse goes; small where objects never
            overlap (ships), larger where they stand close (people). Part of the model.
        validation_images: At most so many images are validated on; 0 takes all.
        heading: Learn where the front of an object is, where the labels say it.
        partner: The second image of each scene, for example "thermal"; none when empty.
        partner_low: Value of the second image that becomes 0.
        partner_high: Value of it that becomes 1.
        freeze_single: Freeze what `start` knows of one image: what is learned is what the second
            image adds, and without one the detector is that which it started from.
        night: Chance that the first image is dark and noisy.
        fusion: How the second image enters, see `Detector`.
        temporal: See `Detector`.
        keypoint_bias: See `Detector`.
        memory_mb: Megabytes of decoded images in memory; the others lie in the run folder.
        gsd_m: Ground sampling distance of the images; 0 where it varies or is unknown.
        licence: Licence of the data, for the model card.
    """

    name: str = "detector"
    data: str
    format: str = "auto"
    train_split: str = "train"
    validation_split: str = "val"
    classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    bands: tuple[int, ...] = ()
    backbone: Literal["tiny", "r18", "r34", "r50"] = "tiny"
    weights: str = ""
    start: str = ""
    width: int = pydantic.Field(64, ge=8)
    finest: Literal[4, 8] = 8
    window: int = pydantic.Field(320, ge=64)
    scale_low: float = pydantic.Field(0.6, gt=0)
    scale_high: float = pydantic.Field(1.6, gt=0)
    rotation: float = pydantic.Field(0.5, ge=0, le=1)
    mosaic: float = pydantic.Field(0.0, ge=0, le=1)
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (255.0,)
    balance: float = pydantic.Field(0.5, ge=0, le=1)
    nms: float = pydantic.Field(0.1, ge=0, le=1)
    validation_images: int = pydantic.Field(0, ge=0)
    heading: bool = False
    partner: str = ""
    partner_low: tuple[float, ...] = (0.0,)
    partner_high: tuple[float, ...] = (255.0,)
    freeze_single: bool = False
    night: float = pydantic.Field(0.0, ge=0, le=1)
    fusion: Fusion = "ca||sca"
    temporal: bool = True
    keypoint_bias: bool = True
    memory_mb: int = pydantic.Field(8192, ge=0)
    gsd_m: float = pydantic.Field(0.0, ge=0)
    licence: str = "not stated"

    @pydantic.model_validator(mode="after")
    def _quarters_fit(self) -> "DetectTrainConfig":
        if self.mosaic and self.window % 2:
            raise ValueError(f"a mosaic of quarters needs an even window, not {self.window}")
        if self.partner and (self.mosaic or self.window % PATCH):
            raise ValueError(f"pairs need mosaic = 0 and a window of whole {PATCH} pixels")
        if self.freeze_single and not (self.partner and self.start):
            raise ValueError("freeze_single needs a partner, and start: a bundle to freeze")
        return self

    @property
    def jitter(self) -> Jitter:
        """How training windows vary."""
        return Jitter(scale=(self.scale_low, self.scale_high), rotation=self.rotation)
