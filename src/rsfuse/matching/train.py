"""Training of the matcher: constructed pairs, the engine's loop, a bundle at the end."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import torch
from torch import Tensor, nn

from rsfuse.engine.bundle import Bundle, BundleCard, load_bundle, save_bundle
from rsfuse.engine.config import TrainSettings
from rsfuse.engine.fit import Progress, fit
from rsfuse.engine.learner import Learner
from rsfuse.engine.pictures import GREEN, RED, WHITE, Canvas, write_sheet
from rsfuse.engine.seeds import seeded
from rsfuse.matching.loss import Truth, match_loss
from rsfuse.matching.metrics import auroc
from rsfuse.matching.model import CELL, CstfMatcher, Positions, expected_position, patch_of
from rsfuse.matching.operators import HELD_OUT, OPERATORS
from rsfuse.matching.pairs import (
    MatchSample,
    Motions,
    Sources,
    Stack,
    draw_sample,
    load_groups,
)
from rsfuse.nn.cstf import Fusion
from rsfuse.runs import write_json

log = logging.getLogger(__name__)

# Numbers of validation samples begin here, far from those of training.
_VALIDATION = 10**9
ARCHITECTURE = "cstf"

# In the pictures of a training: the channel of grey values (`inputs.NetworkInput`), and a cross.
_GREY = 4
_CROSS = np.array([[-2.0, 0], [2, 0], [0, 0], [0, -2], [0, 2]])


class MatchTrainConfig(TrainSettings):
    """A training of `rsfuse match`: the settings of the loop, and those of the task.

    Attributes:
        name: Name of the bundle.
        pairs: See `Sources`.
        held_out: See `Sources`.
        images: See `Sources`.
        most: See `Sources`.
        simulated: See `Sources`.
        simulated_size: See `Sources`.
        start: Bundle of the same architecture to start from; none when empty.
        width: See `CstfMatcher`.
        depth: See `CstfMatcher`.
        features: See `CstfMatcher`.
        learned: See `CstfMatcher`.
        patch: See `CstfMatcher`.
        fusion: See `CstfMatcher`.
        temporal: See `CstfMatcher`.
        keypoint_bias: See `CstfMatcher`.
        head: See `CstfMatcher`.
        window: Side of training windows in pixels, a multiple of the patch.
        radius: Largest displacement that is asked for.
        anchors: Places per pair, half of them at keypoints.
        zoom_low: Smallest number of image pixels per window pixel.
        zoom_high: Largest.
        validation: Validation pairs.
        licence: Licences of the data, for the model card.
    """

    name: str = "cstf"
    pairs: tuple[str, ...] = ()
    held_out: int = pydantic.Field(2, ge=0)
    images: tuple[str, ...] = ()
    most: int = pydantic.Field(200, ge=1)
    simulated: int = pydantic.Field(8, ge=0)
    simulated_size: int = pydantic.Field(640, ge=200)
    start: str = ""
    width: int = pydantic.Field(64, ge=16, multiple_of=16)
    depth: int = pydantic.Field(2, ge=1)
    features: int = pydantic.Field(32, ge=8, multiple_of=8)
    learned: int = pydantic.Field(8, ge=1)
    patch: Literal[16, 32, 64] = 16
    fusion: Fusion = "ca||sca"
    temporal: bool = True
    keypoint_bias: bool = True
    head: Literal["fcn", "fc"] = "fcn"
    window: int = pydantic.Field(160, ge=64)
    radius: int = pydantic.Field(10, ge=3)
    anchors: int = pydantic.Field(48, ge=4, multiple_of=2)
    zoom_low: float = pydantic.Field(0.7, gt=0)
    zoom_high: float = pydantic.Field(3.2, gt=0)
    validation: int = pydantic.Field(64, ge=4)
    licence: str = "not stated"

    @pydantic.model_validator(mode="after")
    def _window_fits(self) -> "MatchTrainConfig":
        if self.window % self.patch:
            raise ValueError(f"window {self.window} is not a multiple of the patch {self.patch}")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `CstfMatcher`."""
        names = (
            "width", "depth", "features", "learned", "patch", "fusion", "temporal",
            "keypoint_bias", "head",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    @property
    def sources(self) -> Sources:
        """What is trained on."""
        return Sources(
            self.pairs, self.held_out, self.images, self.most, self.simulated, self.simulated_size
        )


CONFIG = MatchTrainConfig


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    bundle: Bundle
    scores: Mapping[str, float]

    def summary(self) -> dict[str, Any]:
        """For the command line."""
        return {"bundle": str(self.bundle.path), **self.scores}


class MatchLearner(Learner):
    """Constructed pairs, the loss of `loss`, and the share of anchors found to within 2 px."""

    monitor = "within_2px"
    higher_is_better = True

    def __init__(
        self, model: nn.Module, groups: list[list[Stack]], config: MatchTrainConfig
    ) -> None:
        self.model = model
        self.groups = groups
        self.config = config
        self.motions = Motions(
            shift_px=config.radius + 1.0, zoom=(config.zoom_low, config.zoom_high)
        )

    def sample(self, index: int) -> tuple[Any, ...]:
        """A `MatchSample` and the anchors (A, 2) to ask for."""
        rng = np.random.default_rng((self.config.seed, index))
        found = draw_sample(rng, self.groups, self.config.window, self.motions)
        return (*found, pick_anchors(rng, found, self.config.anchors))

    def loss(self, model: nn.Module, batch: Any, step: int) -> Mapping[str, Tensor]:
        """See `match_loss`."""
        said, truth = self._answer(model, batch)
        return match_loss(said, truth, self.config.radius)

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Anchors found, places and coarse patches; beside it the operators kept out."""
        scores = self.scores(model, device, dict(OPERATORS))
        unseen = self.scores(model, device, dict(HELD_OUT))
        return scores | {f"{name}, unseen operators": value for name, value in unseen.items()}

    def scores(
        self, model: nn.Module, device: torch.device, operators: dict[str, Any]
    ) -> dict[str, float]:
        """Share within 1 and 2 px, median error, AUROC of "no match", coarse patches right."""
        gaps, present, absent, patches = [], [], [], []
        for start in range(0, self.config.validation, self.config.batch):
            rows = []
            for number in range(start, min(start + self.config.batch, self.config.validation)):
                rng = np.random.default_rng((self.config.seed, _VALIDATION + number))
                found = draw_sample(rng, self.groups, self.config.window, self.motions, operators)
                rows.append((*found, pick_anchors(rng, found, self.config.anchors)))
            batch = [part.to(device) for part in self.collate(rows)]
            said, truth = self._answer(model, batch)
            place = expected_position(said.logits[..., :-1], self.config.radius)
            counted = truth.counted & said.maps.known
            inside = counted & truth.related & (truth.shift.abs().amax(-1) <= self.config.radius)
            gaps.append((place - truth.shift).norm(dim=-1)[inside].cpu())
            no_match = said.logits.softmax(dim=-1)[..., -1]
            present.append(no_match[inside].cpu())
            absent.append(no_match[counted & ~inside].cpu())
            patches.append(_patches_right(said, truth).cpu())
        gap, lost = torch.cat(gaps), torch.cat(absent)
        no_match = torch.cat([lost, *present])
        return {
            "within_1px": float((gap < 1).float().mean()),
            "within_2px": float((gap < 2).float().mean()),
            "median_px": float(gap.median()),
            "auroc": auroc(no_match.numpy(), np.arange(len(no_match)) < len(lost)),
            "patches": float(torch.cat(patches).float().mean()),
        }

    def pictures(self, model: nn.Module, folder: Path, step: int) -> None:
        """Validation pairs: anchors on the reference; on the query, from the truth to what is said.

        A path is green where its end lies within 2 px of the truth.
        """
        device = next(model.parameters()).device
        sheet = []
        for number in range(3):
            rng = np.random.default_rng((self.config.seed, _VALIDATION + number))
            found = draw_sample(rng, self.groups, self.config.window, self.motions, dict(OPERATORS))
            anchors = pick_anchors(rng, found, self.config.anchors)
            batch = [part.to(device) for part in self.collate([(*found, anchors)])]
            said, truth = self._answer(model, batch)
            place = expected_position(said.logits[..., :-1], self.config.radius)[0].cpu().numpy()
            shift = truth.shift[0].cpu().numpy()
            asked = (truth.counted & truth.related & said.maps.known)[0].cpu().numpy()
            first, second = (Canvas(x[_GREY : _GREY + 1]) for x in (found.image0, found.image1))
            for k in np.flatnonzero(asked):
                xy = anchors[k] * float(CELL)
                colour = GREEN if np.hypot(*(place[k] - shift[k])) < 2.0 else RED
                first.polygon(xy + _CROSS, colour, closed=False)
                second.polygon(xy + shift[k] + _CROSS, WHITE, closed=False)
                second.polygon(np.stack([xy + shift[k], xy + place[k]]), colour, closed=False)
            sheet += [first.picture, second.picture]
        write_sheet(sheet, folder / f"step_{step:06d}.png", columns=2)

    def _answer(self, model: nn.Module, batch: Any) -> tuple[Positions, Truth]:
        image0, image1, mass0, mass1, shift, related, anchors = batch
        said = model(image0, image1, mass0, mass1, anchors, radius=self.config.radius)
        patch = patch_of(image0.shape[-2:], self.config.patch)
        return said, truth_of(shift, related > 0, anchors, patch)


def truth_of(shift: Tensor, related: Tensor, anchors: Tensor, patch: int) -> Truth:
    """Truth at anchors and patches.

    Args:
        shift: (B, Y, X, 2) displacement at block corners.
        related: (B,).
        anchors: (B, A, 2).
        patch: Side of a patch.
    """
    b, rows, columns, _ = shift.shape
    batch = torch.arange(b, device=shift.device)[:, None]
    at = shift[batch, anchors[..., 1], anchors[..., 0]]
    step = patch // CELL
    centres = shift[:, step // 2 :: step, step // 2 :: step]
    grid = ((rows - 1) // step, (columns - 1) // step)
    size = torch.tensor([columns - 1, rows - 1], device=shift.device) * float(CELL)
    home = patch * (
        torch.stack(
            torch.meshgrid(
                torch.arange(grid[1], device=shift.device),
                torch.arange(grid[0], device=shift.device),
                indexing="xy",
            ),
            -1,
        )
        + 0.5
    )
    place = home + centres
    inside = ((place >= 0) & (place < size)).all(dim=-1).flatten(1)
    everywhere = torch.ones_like(at[..., 0], dtype=torch.bool)
    return Truth(
        at,
        everywhere & related[:, None],
        everywhere,
        centres.flatten(1, 2),
        inside & related[:, None],
        torch.ones_like(inside),
        grid,
        patch,
    )


def pick_anchors(rng: np.random.Generator, sample: MatchSample, number: int) -> np.ndarray:
    """(A, 2) block corners, half near keypoints of image 0 and half anywhere, off the border."""
    blocks = sample.mass0.shape[1]
    row, column = np.nonzero(sample.mass0[0][1:-1, 1:-1])
    points = np.stack([column, row], 1) + 1 + rng.integers(0, 2, (len(row), 2))
    anywhere = rng.integers(2, blocks - 1, (number, 2))
    near = rng.permutation(points)[: number // 2]
    return np.concatenate([near, anywhere[: number - len(near)]]).astype(np.int64)


def _patches_right(said: Positions, truth: Truth) -> Tensor:
    """(N,) whether the most probable patch is within one of the true one."""
    best = said.coarse[0][..., :-1].argmax(dim=-1)
    columns = truth.grid[1]
    index = torch.arange(best.shape[1], device=best.device)
    home = torch.stack([index % columns, index // columns], -1)
    place = home + truth.patches / truth.patch
    gap = (torch.stack([best % columns, best // columns], -1) - place).abs().amax(-1)
    return (gap <= 1)[truth.patches_related]


def train(
    config: MatchTrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Train a matcher and write `bundle/` and `scores.json` into `folder`.

    Raises:
        InputError: A source is missing or holds nothing usable.
    """
    groups = load_groups(config.sources)
    with seeded(config.seed):
        model = CstfMatcher(**config.arguments)
    if config.start:
        load_bundle(config.start, "match").load_into(model)
    learner = MatchLearner(model, groups, config)
    result = fit(learner, config, folder, resume=resume, progress=progress)
    model.cpu()
    with torch.no_grad():
        scores = dict(learner.validate(model, torch.device("cpu")))
    write_json(folder / "scores.json", scores)
    card = BundleCard(
        task="match",
        name=config.name,
        architecture=ARCHITECTURE,
        arguments=config.arguments,
        training={
            "data": [*(Path(p).name for p in config.pairs), *(_named(p) for p in config.images)]
            + ([f"{config.simulated} simulated scenes"] if config.simulated else []),
            "licence": config.licence,
            "held_out": config.held_out,
            "steps": result.steps,
            "best_step": result.best_step,
            "seed": config.seed,
            "seconds": round(result.seconds, 1),
            "settings": config.model_dump(mode="json", exclude={"pairs", "images", "start"}),
        },
        scores={f"constructed pairs, {name}": value for name, value in scores.items()},
    )
    bundle = save_bundle(
        folder / "bundle", card, model.state_dict(), readme=model_card(card, model)
    )
    return Outcome(bundle, scores)


def _named(pattern: str) -> str:
    """Data set and file names of a pattern, without the path before them."""
    return ", ".join("/".join(Path(part.strip()).parts[-2:]) for part in pattern.split(","))


def model_card(card: BundleCard, model: nn.Module) -> str:
    """The model card as Markdown."""
    training = card.training
    lines = [
        f"# {card.name}",
        "",
        "Tie points between images of different sensors, for `rsfuse match --method cstf`. A",
        "CSTF-style matcher after arXiv 2507.19118, not a reproduction of it.",
        "",
        f"{sum(p.numel() for p in model.parameters()):,} weights. Trained on windows with known",
        f"motions of {'; '.join(training['data'])} ({training['licence']}): {training['steps']}",
        f"steps, seed {training['seed']}, best at step {training['best_step']}. Of the registered",
        f"pairs every {training['held_out']}th was kept for measuring.",
        "",
        *[f"- {name}: {value:.4f}" for name, value in card.scores.items()],
        "",
        "These scores are of constructed motions of the training images; what it does on real",
        "pairs that it never saw is in docs/results.md.",
        "",
    ]
    return "\n".join(lines)
