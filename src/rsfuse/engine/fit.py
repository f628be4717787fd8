"""The training loop: Lightning behind one function.

Samples are found by number (see `Learner`), an epoch is the stretch between two validations, and a
checkpoint is written at its end. A run that is killed and resumed sees the same samples in the same
order and ends with the same weights as one that was not.
"""

import csv
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rsfuse.engine.config import TrainSettings
from rsfuse.engine.learner import Learner
from rsfuse.engine.processes import is_first_process, mean_over_processes
from rsfuse.errors import InputError, RsfuseError
from rsfuse.runs import atomic_path

CHECKPOINT = Path("checkpoints") / "last.ckpt"
BEST = "best.safetensors"
METRICS = "metrics.csv"

# The share of the largest learning rate at the end of a cosine schedule.
FINAL_RATE = 0.01

Progress = Callable[[int, int, Mapping[str, float]], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """How a training ended.

    Attributes:
        best: The best value of the learner's monitor.
        best_step: The step after which it was reached.
        steps: Steps that were run in all, earlier parts of a resumed run included.
        seconds: Wall-clock seconds of this part.
        history: One mapping per validation: step, scores, mean training loss since the last one.
    """

    best: float
    best_step: int
    steps: int
    seconds: float
    history: tuple[Mapping[str, float], ...]


def fit(
    learner: Learner,
    settings: TrainSettings,
    folder: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Train `learner.model`, which holds the best weights afterwards.

    Args:
        learner: The task.
        settings: How to train.
        folder: Takes metrics.csv, tensorboard/, pictures/, checkpoints/last.ckpt and
            best.safetensors.
        resume: Go on from checkpoints/last.ckpt where there is one.
        progress: Called after each step with the step, the number of steps and running values.

    Returns:
        The best value and the history. Only the first of several processes returns; the others
        end here, with exit code 0.

    Raises:
        InputError: A GPU was asked for and there is none, or the checkpoint is of another run.
        RsfuseError: The loss is not finite.
    """
    folder = Path(folder)
    first = is_first_process(settings)
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device cuda was asked for and PyTorch sees no GPU",
            "a CUDA build of PyTorch and a driver are needed",
            "use --device cpu, or see rsfuse doctor",
        )
    if settings.threads:
        torch.set_num_threads(settings.threads)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)
    started = time.monotonic()
    module = _Module(learner, settings, folder, progress)
    checkpoint = folder / CHECKPOINT
    with _quiet():
        trainer = _trainer(settings, folder)
        trainer.fit(module, ckpt_path=checkpoint if resume and checkpoint.is_file() else None)
    if not first:
        raise SystemExit(0)
    if module.best_step:
        learner.model.load_state_dict(load_file(folder / BEST))
    learner.model.eval()
    return FitResult(
        module.best,
        module.best_step,
        int(trainer.global_step),
        time.monotonic() - started,
        tuple(module.history),
    )


def _trainer(settings: TrainSettings, folder: Path) -> lightning.Trainer:
    several = settings.devices * settings.nodes > 1
    return lightning.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "gpu"}[settings.device],
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="ddp_find_unused_parameters_true" if several else "auto",
        precision=settings.precision,
        max_steps=settings.steps,
        max_epochs=-1,
        gradient_clip_val=settings.clip or None,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        logger=_loggers(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=max(1, min(50, settings.validate_every)),
        use_distributed_sampler=False,
        sync_batchnorm=settings.device != "cpu" and torch.cuda.is_available() and several,
    )


def _loggers(folder: Path) -> list[Logger]:
    """TensorBoard where it is installed; metrics.csv is written by the module itself."""
    try:
        return [TensorBoardLogger(folder, name="tensorboard", version="")]
    except ModuleNotFoundError:
        return []


class _Samples(Dataset[Any]):
    """The training samples of one epoch on one device."""

    def __init__(self, learner: Learner, numbers: list[int]) -> None:
        self._learner = learner
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, position: int) -> Any:
        return self._learner.sample(self._numbers[position])


class _Module(lightning.LightningModule):
    """The learner as Lightning wants it, with the moving average of its weights."""

    def __init__(
        self, learner: Learner, settings: TrainSettings, folder: Path, progress: Progress | None
    ) -> None:
        super().__init__()
        self.model = learner.model
        self.learner = learner
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.average: dict[str, Tensor] = {}
        self.best = -math.inf if learner.higher_is_better else math.inf
        self.best_step = 0
        self.waited = 0
        self.history: list[dict[str, float]] = []
        self._recent: list[Tensor] = []

    # -- data ------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader[Any]:
        """The samples between this validation and the next."""
        settings = self.settings
        first = self.global_step
        steps = min(settings.validate_every, settings.steps - first)
        share = settings.batch // self.trainer.world_size
        numbers = [
            step * settings.batch + self.global_rank * share + i
            for step in range(first, first + max(steps, 1))
            for i in range(share)
        ]
        return DataLoader(
            _Samples(self.learner, numbers),
            batch_size=share,
            collate_fn=self.learner.collate,
            num_workers=settings.workers,
        )

    # -- one step --------------------------------------------------------------------------------

    def training_step(self, batch: Any, _: int) -> Tensor:
        """The loss of one batch."""
        parts = self.learner.loss(self.model, batch, int(self.global_step))
        loss = parts["loss"]
        if not bool(torch.isfinite(loss)):
            raise RsfuseError(
                f"the loss is {float(loss.detach())} at step {self.global_step}",
                "the training diverged, or a sample holds values that are not numbers",
                "lower learning_rate, or check the data with `rsfuse validate`",
            )
        self._recent.append(loss.detach())
        self.log_dict({f"train/{name}": part.detach() for name, part in parts.items()})
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with decay on the weights proper, and a warmup before the schedule."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (decayed if self.learner.decays(name, parameter) else free).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=self.settings.learning_rate
        )
        rate = partial(learning_rate_share, settings=self.settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_batch_end(self, *_: Any) -> None:
        """Move the average towards the weights and report."""
        self._follow()
        if self.progress is not None and self.trainer.is_global_zero:
            running = {"loss": float(self._recent[-1])}
            self.progress(int(self.global_step), self.settings.steps, running)

    # -- validation ------------------------------------------------------------------------------

    def on_train_epoch_end(self) -> None:
        """Validate the averaged weights and keep them if they are the best so far."""
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict({**kept, **self.average})
        self.model.eval()
        scores: dict[str, float] = {}
        if self.trainer.is_global_zero:
            with torch.no_grad():
                scores = dict(self.learner.validate(self.model, self.device))
                self.learner.pictures(self.model, self.folder / "pictures", int(self.global_step))
        # Every process judges by the numbers of the first, so that all stop together.
        self._judge(self.trainer.strategy.broadcast(scores))
        self.model.load_state_dict(kept)
        self.model.train()
        self._save()
        if self._is_exhausted():
            self.trainer.should_stop = True

    def _judge(self, scores: Mapping[str, float]) -> None:
        first = self.trainer.is_global_zero
        value = float(scores[self.learner.monitor])
        better = value > self.best if self.learner.higher_is_better else value < self.best
        if better or not self.best_step:
            self.best, self.best_step, self.waited = value, int(self.global_step), 0
            if first:
                self._keep_best()
        else:
            self.waited += 1
        loss = mean_over_processes(torch.stack(self._recent).mean())
        self._recent.clear()
        row = {"step": float(self.global_step), "train_loss": float(loss), **scores}
        self.history.append({key: float(value) for key, value in row.items()})
        if not first:
            return
        write_history(self.folder / METRICS, self.history)
        for logger in self.loggers:
            named = {f"validation/{key}": float(v) for key, v in scores.items()}
            logger.log_metrics(named, int(self.global_step))
        log.info("step %d: %s", self.global_step, {k: round(float(v), 4) for k, v in row.items()})

    def _keep_best(self) -> None:
        state = {k: v.detach().cpu().contiguous() for k, v in self.model.state_dict().items()}
        with atomic_path(self.folder / BEST) as temporary:
            save_file(state, temporary)

    def _is_exhausted(self) -> bool:
        return 0 < self.settings.patience <= self.waited

    def _follow(self) -> None:
        """The moving average, warmed up so that the first steps do not weigh for ever."""
        decay = self.settings.ema
        if not decay:
            return
        step = float(self.global_step)
        decay = min(decay, (1.0 + step) / (10.0 + step))
        state = self.model.state_dict()
        if not self.average:
            self.average = {name: value.detach().clone() for name, value in state.items()}
            return
        for name, value in state.items():
            if value.is_floating_point():
                self.average[name].lerp_(value.detach(), 1.0 - decay)
            else:
                self.average[name].copy_(value)

    # -- checkpoints -----------------------------------------------------------------------------

    def _save(self) -> None:
        """Write last.ckpt; every process takes part, the first one renames."""
        path = self.folder / CHECKPOINT
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        self.trainer.save_checkpoint(temporary)
        if self.trainer.is_global_zero:
            temporary.replace(path)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the average and the history beside the weights."""
        checkpoint["rsfuse"] = {
            "average": self.average,
            "best": self.best,
            "best_step": self.best_step,
            "waited": self.waited,
            "history": self.history,
            "settings": self.settings.model_dump(),
        }
        # An epoch ends here: Lightning, which counts the epoch as open until its hooks are done,
        # would otherwise begin the resumed run with one more step of it.
        place = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        place["current"] = dict.fromkeys(place["current"], 0)
        place["is_last_batch"] = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take them up again."""
        kept = checkpoint["rsfuse"]
        for name in ("seed", "batch", "steps", "validate_every"):
            ours, theirs = getattr(self.settings, name), kept["settings"][name]
            if ours != theirs:
                raise InputError(
                    f"the checkpoint was made with {name} = {theirs}, now it is {ours}",
                    "a resumed training must repeat the settings that it began with",
                    f"set {name} = {theirs}, or start anew in another folder",
                )
        self.average = kept["average"]
        self.best, self.best_step = kept["best"], kept["best_step"]
        self.waited, self.history = kept["waited"], kept["history"]


def learning_rate_share(step: int, settings: TrainSettings) -> float:
    """The learning rate at a step as a share of the largest one."""
    if step < settings.warmup:
        return (step + 1) / (settings.warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return FINAL_RATE + (1.0 - FINAL_RATE) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice about its own options from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            warnings.filterwarnings("ignore", module=r"lightning\b")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Write one line per validation as CSV, atomically."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(history)
