"""The training loop on a task small enough to know the answer."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rsfuse.engine.config import TrainSettings
from rsfuse.engine.fit import CHECKPOINT, FitResult, fit, learning_rate_share
from rsfuse.engine.learner import Learner
from rsfuse.errors import InputError, RsfuseError


class Line(Learner):
    """Learns y = 3 x - 1 from noisy samples."""

    monitor = "error"

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.Linear(1, 1)
        self.seed = seed
        self.seen: list[int] = []
        self.poison: int | None = None

    def sample(self, index: int) -> tuple[Tensor, Tensor]:
        self.seen.append(index)
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        x = torch.randn(1, generator=generator)
        y = 3 * x - 1 + 0.1 * torch.randn(1, generator=generator)
        return x, y if index != self.poison else torch.full((1,), torch.nan)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        x, y = batch
        loss = (model(x) - y).square().mean()
        return {"loss": loss}

    def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        x = torch.linspace(-1, 1, 5, device=device)[:, None]
        return {"error": float((model(x) - (3 * x - 1)).abs().max().detach())}


SETTINGS = TrainSettings(
    steps=60, batch=4, learning_rate=0.2, weight_decay=0, warmup=5, ema=0.9, validate_every=20,
    device="cpu",
)  # fmt: skip


def weights(learner: Line) -> list[float]:
    return [float(p.detach()) for p in learner.model.parameters()]


def test_it_learns_and_keeps_the_best(tmp_path: Path) -> None:
    learner = Line()
    result = fit(learner, SETTINGS, tmp_path)
    assert isinstance(result, FitResult)
    assert result.steps == 60
    assert [row["step"] for row in result.history] == [20, 40, 60]
    assert result.best == min(row["error"] for row in result.history)
    assert result.best < 0.3
    assert learner.validate(learner.model, torch.device("cpu"))["error"] == pytest.approx(
        result.best
    )
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,train_loss,error"
    assert len(lines) == 4


def test_each_sample_is_seen_once_in_order(tmp_path: Path) -> None:
    learner = Line()
    fit(learner, SETTINGS, tmp_path)
    assert learner.seen == list(range(240))


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = Line()
    fit(whole, SETTINGS, tmp_path / "whole")

    killed = Line()
    killed.poison = 130  # the loss of step 32 is not a number: the run dies between checkpoints
    with pytest.raises(RsfuseError, match="loss is nan"):
        fit(killed, SETTINGS, tmp_path / "killed")
    assert (tmp_path / "killed" / CHECKPOINT).is_file()

    resumed = Line(seed=0)
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()  # everything must come from the checkpoint
    result = fit(resumed, SETTINGS, tmp_path / "killed", resume=True)
    assert resumed.seen == list(range(80, 240))
    assert weights(resumed) == weights(whole)
    assert [row["step"] for row in result.history] == [20, 40, 60]


def test_a_resumed_run_must_repeat_its_settings(tmp_path: Path) -> None:
    short = SETTINGS.model_copy(update={"steps": 20})
    fit(Line(), short, tmp_path)
    with pytest.raises(InputError, match="steps = 20"):
        fit(Line(), SETTINGS, tmp_path, resume=True)


def test_patience_ends_a_run_that_no_longer_gains(tmp_path: Path) -> None:
    class Stuck(Line):
        def validate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
            return {"error": 1.0}

    settings = SETTINGS.model_copy(update={"steps": 1000, "patience": 2})
    result = fit(Stuck(), settings, tmp_path)
    assert result.steps == 60  # the first counts as best, two more without gain
    assert result.best_step == 20


def test_cuda_without_a_gpu_is_an_input_error(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="no GPU"):
        fit(Line(), SETTINGS.model_copy(update={"device": "cuda"}), tmp_path)


def test_the_learning_rate_rises_and_falls() -> None:
    settings = TrainSettings(steps=100, warmup=10)
    shares = [learning_rate_share(step, settings) for step in range(101)]
    assert shares[0] == pytest.approx(1 / 11)
    assert max(shares) == pytest.approx(1.0)
    assert shares[100] == pytest.approx(0.01)
    assert all(a <= b for a, b in pairwise(shares[:11]))
    assert all(a >= b for a, b in pairwise(shares[10:]))
