"""One small training loop for any estimator with a loss."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from scoresde import checkpoint
from scoresde.checks import expect
from scoresde.data import Dataset, dequantize
from scoresde.estimator import ScoreEstimator


@attrs.frozen
class History:
    """What a training run has seen.

    Attributes:
        steps: Steps after which the held-out loss was measured.
        losses: Mean training loss since the measurement before.
        held_out: Held-out loss of the averaged weights.
        best: The step whose averaged weights were kept.
        seconds: Wall-clock time.
    """

    steps: list[int]
    losses: list[float]
    held_out: list[float]
    best: int
    seconds: float


@attrs.frozen(kw_only=True)
class Training:
    """Settings of the loop: Adam with decoupled weight decay, warm-up, cosine decay, averaging.

    Args:
        steps: Number of updates.
        batch_size: Events per update.
        lr: Largest learning rate.
        warmup: Share of the steps over which the rate rises.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradient.
        ema: Decay of the exponential moving average of the weights, per update; smaller among
            the first updates, so that the average forgets the untrained weights.
        measurements: How often the held-out loss is measured.
    """

    steps: int = 2000
    batch_size: int = 128
    lr: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.998
    measurements: int = 10

    def __attrs_post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "clip", "measurements"):
            expect(getattr(self, name) > 0, name, "a positive number", getattr(self, name))
        expect(0 <= self.ema < 1, "ema", "a number in [0, 1)", self.ema)
        expect(0 <= self.warmup < 1, "warmup", "a number in [0, 1)", self.warmup)

    def rate(self, step: int) -> float:
        """Share of `lr` at a step."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def averaged(self, average: Tensor, value: Tensor, count: Tensor | int) -> Tensor:
        """A weight's moving average, ``count`` updates after the first."""
        decay = min(self.ema, (1 + int(count)) / (10 + int(count)))
        return average.lerp(value, 1 - decay)

    def fit(
        self,
        estimator: ScoreEstimator,
        data: Dataset,
        held_out: Dataset | None = None,
        *,
        seed: int = 0,
        progress: bool = True,
        on_step: Callable[[int], None] | None = None,
        folder: str | os.PathLike[str] | None = None,
        save_every: int = 500,
    ) -> History:
        """Trains in place: the estimator ends with the best averaged weights, in eval mode.

        Args:
            estimator: Has a ``loss``.
            data: Integer data are dequantised anew for every batch.
            held_out: Measured with the same noise every time; the averaged weights of its lowest
                loss are kept. The last ones if None.
            seed: Of batches, times and noise (dropout follows torch's global generator).
            progress: Whether to show a progress bar.
            on_step: Called before every update with the number of updates done, for instance
                `scoresde.Shrinking`.
            folder: Where the run is written while it goes on, as `scoresde.checkpoint` does. A
                run that is found there is taken up where it was, and ends as if it had never
                stopped, bit for bit, at whatever moment it was killed.
            save_every: After how many updates it is written.

        Raises:
            CheckpointError: If what is in ``folder`` is damaged, or another model's.
            FloatingPointError: If the loss is not finite; the message names the step.
            ValueError: If the run in ``folder`` has other settings.
        """
        start = time.perf_counter()
        expect(save_every >= 1, "save_every", "at least 1", save_every)
        run = _Run.new(self, estimator, seed)
        if folder is not None and Path(folder, "config.json").exists():
            run.restore(folder)
        before, every = run.seconds, max(1, self.steps // self.measurements)
        estimator.train()
        bar = tqdm(
            range(run.step + 1, self.steps + 1),
            desc="training",
            disable=not progress,
            initial=run.step,
            total=self.steps,
        )
        for step in bar:
            if on_step is not None:
                on_step(step - 1)
            rows = torch.randint(len(data.values), (self.batch_size,), generator=run.generator)
            loss = estimator.loss(events(data, run.generator, rows), generator=run.generator)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step}")
            run.update(loss)
            run.recent += value
            if step % every == 0 or step == self.steps:
                run.measure(held_out)
                found = {"held_out": run.measured[-1]} if run.measured else {}
                bar.set_postfix({"loss": run.losses[-1], **found})
            run.seconds = before + time.perf_counter() - start
            if folder is not None and (step % save_every == 0 or step == self.steps):
                run.save(folder)
        estimator.load_state_dict(run.kept or run.average.module.state_dict())
        estimator.eval()
        return History(run.steps, run.losses, run.measured, run.best or self.steps, run.seconds)


@attrs.define(eq=False)
class _Run:
    """A training run between two updates: all that the rest of it depends on."""

    training: Training
    estimator: ScoreEstimator
    seed: int
    generator: torch.Generator
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    steps: list[int] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    measured: list[float] = attrs.field(factory=list)
    best: int = 0
    recent: float = 0.0
    seconds: float = 0.0
    kept: dict[str, Tensor] = attrs.field(factory=dict)

    @classmethod
    def new(cls, training: Training, estimator: ScoreEstimator, seed: int) -> _Run:
        optimizer = torch.optim.AdamW(
            estimator.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        average = AveragedModel(estimator, avg_fn=training.averaged)
        generator = torch.Generator().manual_seed(seed)
        return cls(training, estimator, seed, generator, average, optimizer)

    def update(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.lr * self.training.rate(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.estimator.parameters(), self.training.clip)
        self.optimizer.step()
        self.average.update_parameters(self.estimator)
        self.step += 1

    def measure(self, held_out: Dataset | None) -> None:
        self.losses.append(self.recent / (self.step - (self.steps[-1] if self.steps else 0)))
        self.steps.append(self.step)
        self.recent = 0.0
        if held_out is not None:
            self.measured.append(_measure(self.estimator, self.average, held_out, self.seed))
            if self.measured[-1] == min(self.measured):
                self.best = self.step
                state = self.average.module.state_dict()
                self.kept = {name: value.clone() for name, value in state.items()}

    def save(self, folder: str | os.PathLike[str]) -> None:
        state = self.optimizer.state_dict()["state"]
        tensors = {
            **{f"model.{k}": v for k, v in self.estimator.state_dict().items()},
            **{f"average.{k}": v for k, v in self.average.state_dict().items()},
            **{f"kept.{k}": v for k, v in self.kept.items()},
            **{f"optimizer.{i}.{k}": v for i, own in state.items() for k, v in own.items()},
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        written = {name: getattr(self, name) for name in _WRITTEN}
        checkpoint.save(folder, tensors, {**written, "settings": self._settings()})

    def restore(self, folder: str | os.PathLike[str]) -> None:
        tensors, content = checkpoint.load(folder)
        found = content.pop("settings", None)
        expect(found == self._settings(), "folder", f"a run with {self._settings()}", found)

        def part(prefix: str) -> dict[str, Tensor]:
            start = f"{prefix}."
            return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}

        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer").items():
            index, key = name.split(".")
            optimizer.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        try:
            self.estimator.load_state_dict(part("model"))
            self.average.load_state_dict(part("average"))
            self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
            self.generator.set_state(tensors["generator"])
            torch.set_rng_state(tensors["random"])
            if "random_cuda" in tensors and torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors["random_cuda"])
            for name in _WRITTEN:
                setattr(self, name, content[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise checkpoint.CheckpointError(
                f"{folder}: not a run of this model: {error}"
            ) from error
        self.kept = part("kept")

    def _settings(self) -> dict[str, Any]:
        return {**attrs.asdict(self.training), "seed": self.seed}


_WRITTEN = ("step", "steps", "losses", "measured", "best", "recent", "seconds")


def events(
    data: Dataset, generator: torch.Generator | None = None, rows: Tensor | None = None
) -> Tensor:
    """Events of a data set as floating-point numbers; integers are dequantised.

    Args:
        data: The data set.
        generator: Of the dequantisation.
        rows: Which events; all if None.
    """
    values = data.values if rows is None else data.values[rows]
    return values if data.levels is None else dequantize(values, data.levels, generator)


def _measure(estimator: ScoreEstimator, average: AveragedModel, data: Dataset, seed: int) -> float:
    """Held-out loss of the averaged weights, with the same times and noise at every call."""
    own = {k: v.clone() for k, v in estimator.state_dict().items()}
    estimator.load_state_dict(average.module.state_dict())
    estimator.eval()
    generator = torch.Generator().manual_seed(seed)
    # few events are repeated with other noise, many are not all needed
    rows = torch.arange(4096) % len(data.values)
    with torch.no_grad():
        loss = float(estimator.loss(events(data, generator, rows), generator=generator))
    estimator.load_state_dict(own)
    estimator.train()
    return loss
