"""One small training loop for any estimator with a loss."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import attrs
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

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

        Raises:
            FloatingPointError: If the loss is not finite; the message names the step.
        """
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)
        average = AveragedModel(estimator, avg_fn=self.averaged)
        optimizer = torch.optim.AdamW(
            estimator.parameters(), lr=self.lr, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        steps: list[int] = []
        losses: list[float] = []
        measured: list[float] = []
        kept, best, recent = average.module.state_dict(), self.steps, 0.0
        every = max(1, self.steps // self.measurements)
        estimator.train()
        bar = tqdm(range(1, self.steps + 1), desc="training", disable=not progress)
        for step in bar:
            if on_step is not None:
                on_step(step - 1)
            rows = torch.randint(len(data.values), (self.batch_size,), generator=generator)
            loss = estimator.loss(events(data, generator, rows), generator=generator)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {step}")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(estimator.parameters(), self.clip)
            optimizer.step()
            schedule.step()
            average.update_parameters(estimator)
            recent += value
            if step % every == 0 or step == self.steps:
                count = step - (steps[-1] if steps else 0)
                steps.append(step)
                losses.append(recent / count)
                recent = 0.0
                if held_out is not None:
                    measured.append(_measure(estimator, average, held_out, seed))
                    if measured[-1] == min(measured):
                        best = step
                        kept = {k: v.clone() for k, v in average.module.state_dict().items()}
                    bar.set_postfix(loss=f"{losses[-1]:.4f}", held_out=f"{measured[-1]:.4f}")
                else:
                    bar.set_postfix(loss=f"{losses[-1]:.4f}")
        estimator.load_state_dict(kept)
        estimator.eval()
        return History(steps, losses, measured, best, time.perf_counter() - start)


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
