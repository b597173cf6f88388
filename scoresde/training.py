"""One small training loop for any estimator with a loss."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from scoresde import checkpoint
from scoresde.checks import choice, expect, positive, real, validator, whole
from scoresde.data import Dataset, dequantize
from scoresde.distributed import ALONE, Processes, average_over, share
from scoresde.estimator import ScoreEstimator
from scoresde.noise import Generators

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}

_LARGEST_BATCH = 2**20
"""Events per update, all in memory at once: more is a slip."""


@attrs.frozen
class History:
    """What a training run has seen.

    Attributes:
        steps: Steps after which the held-out loss was measured.
        losses: Mean training loss since the measurement before.
        held_out: Held-out loss of the averaged weights.
        best: The step whose averaged weights were kept.
        seconds: Wall-clock time.
        stopped: Whether it has ended early, for want of `Training.patience`.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.data import Dataset
        >>> from scoresde.training import Training
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> model = Denoising(sde, ResidualMLP((2,), width=8, depth=1))
        >>> data = Dataset("mine", torch.randn(100, 2))
        >>> history = Training(steps=4, measurements=2).fit(model, data, progress=False)
        >>> history.steps, len(history.losses)
        ([2, 4], 2)
    """

    steps: list[int]
    losses: list[float]
    held_out: list[float]
    best: int
    seconds: float
    stopped: bool = False


OnMeasure = Callable[[int, ScoreEstimator, History], None]
"""``(updates done, the estimator with its averaged weights, what has been measured)``."""


@attrs.frozen(kw_only=True)
class Training:
    """Settings of the loop: Adam with decoupled weight decay, warm-up, cosine decay, averaging.

    Source:
        Loshchilov and Hutter 2019 (arXiv 1711.05101) for AdamW, 2017 (1608.03983) for the decay;
        Polyak and Juditsky 1992 for averaging.

    Args:
        steps: Number of updates.
        batch_size: Events per update, of all processes together.
        lr: Largest learning rate.
        warmup: Share of the steps over which the rate rises.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradient.
        ema: Decay of the exponential moving average of the weights, per update; smaller among
            the first updates, so that the average forgets the untrained weights.
        measurements: How often the held-out loss is measured.
        precision: Of the networks' products: ``"float32"``, which is that of the weights,
            ``"bfloat16"`` or ``"float16"``. Weights, their average and all formulas around the
            network keep theirs; gradients in float16 are scaled so that small ones survive.
        patience: After how many measurements without a better held-out loss to stop; never if
            None.

    Raises:
        ValueError: If a number is out of its range, a count is not whole or more than 2**31 (a
            batch 2**20 events), or the precision unknown.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.data import Dataset
        >>> from scoresde.training import Training
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> model = Denoising(sde, ResidualMLP((2,), width=8, depth=1))
        >>> data = Dataset("mine", torch.randn(100, 2))
        >>> history = Training(steps=4, ema=0.9).fit(model, data, progress=False)
        >>> history.stopped
        False
    """

    sources = "loshchilov2019 polyak1992"

    steps: int = attrs.field(default=2000, validator=validator(whole, 1))
    batch_size: int = attrs.field(default=128, validator=validator(whole, 1, _LARGEST_BATCH))
    lr: float = attrs.field(default=1e-3, validator=[validator(real), validator(positive)])
    warmup: float = attrs.field(default=0.1, validator=validator(real, 0, 1))
    weight_decay: float = attrs.field(default=0.01, validator=validator(real, 0))
    clip: float = attrs.field(default=1.0, validator=[validator(real), validator(positive)])
    ema: float = attrs.field(default=0.998, validator=validator(real, 0, 1))
    measurements: int = attrs.field(default=10, validator=validator(whole, 1))
    precision: str = attrs.field(default="float32", validator=validator(choice, *PRECISIONS))
    patience: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(validator(whole, 1))
    )

    def __attrs_post_init__(self) -> None:
        for name in ("ema", "warmup"):
            expect(getattr(self, name) < 1, name, "a number below 1", getattr(self, name))

    def rate(self, step: int) -> float:
        """Share of ``lr`` at a step."""
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
        on_measure: OnMeasure | None = None,
        folder: str | os.PathLike[str] | None = None,
        save_every: int = 500,
        processes: Processes = ALONE,
    ) -> History:
        """Trains in place: the estimator ends with the best averaged weights, in eval mode.

        Args:
            estimator: Has a ``loss``.
            data: Integer data are dequantised anew for every batch; stored ones are read as they
                are needed.
            held_out: Measured with the same noise every time; the averaged weights of its lowest
                loss are kept. The last ones if None.
            seed: Of batches, times and noise (dropout follows torch's global generator).
            progress: Whether to show a progress bar.
            on_step: Called before every update with the number of updates done, for instance
                `scoresde.Shrinking`.
            on_measure: Called at every measurement, for instance `scoresde.plots.Pictures`. What
                it draws from torch's global generator does not change the run.
            folder: Where the run is written while it goes on, as `scoresde.checkpoint` does. A
                run that is found there is taken up where it was, and ends as if it had never
                stopped, bit for bit, at whatever moment it was killed.
            save_every: After how many updates it is written.
            processes: That share the work, each on its part of every batch, for instance an
                ``accelerate.Accelerator``; see `scoresde.distributed`. The result is that of one
                process, up to the order of summation, and up to dropout, of which every process
                has its own. All call this with the same arguments; the first one writes.

        Raises:
            CheckpointError: If what is in ``folder`` is damaged, or another model's.
            FloatingPointError: If the loss is not finite; the message names the step.
            ValueError: If the run in ``folder`` has other settings, patience has no data to
                measure, or processes do not share a batch evenly or differ in their weights.
        """
        start = time.perf_counter()
        whole("save_every", save_every, 1)
        ready = self.patience is None or held_out is not None
        expect(ready, "held_out", "events, whose loss patience waits for", None)
        run = _Run.new(self, estimator, seed, processes)
        if folder is not None and Path(folder, "config.json").exists():
            run.restore(folder)
        run.check()
        before, every = run.seconds, max(1, self.steps // self.measurements)
        estimator.train()
        hidden = not (progress and processes.is_main_process)
        with tqdm(desc="training", disable=hidden, initial=run.step, total=self.steps) as bar:
            while not run.over:
                if on_step is not None:
                    on_step(run.step)
                run.update(data)
                if run.step % every == 0 or run.step == self.steps:
                    run.measure(held_out, on_measure)
                    found = {"held_out": run.measured[-1]} if run.measured else {}
                    bar.set_postfix({"loss": run.losses[-1], **found}, refresh=False)
                bar.update()
                run.seconds = before + time.perf_counter() - start
                if folder is not None and (run.step % save_every == 0 or run.over):
                    run.save(folder)
        run.end()
        return run.history


@attrs.define(eq=False)
class _Run:
    """A training run between two updates: all that the rest of it depends on."""

    training: Training
    estimator: ScoreEstimator
    seed: int
    processes: Processes
    generator: torch.Generator
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    step: int = 0
    steps: list[int] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    measured: list[float] = attrs.field(factory=list)
    best: int = 0
    recent: float = 0.0
    seconds: float = 0.0
    kept: dict[str, Tensor] = attrs.field(factory=dict)

    @classmethod
    def new(
        cls, training: Training, estimator: ScoreEstimator, seed: int, processes: Processes
    ) -> _Run:
        optimizer = torch.optim.AdamW(
            estimator.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
        average = AveragedModel(estimator, avg_fn=training.averaged)
        generator = torch.Generator().manual_seed(seed)
        device = next(estimator.parameters()).device
        scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
        if processes.process_index > 0:  # dropout of its own
            torch.manual_seed(torch.initial_seed() + processes.process_index)
        return cls(
            training, estimator, seed, processes, generator, average, optimizer, scaler, device
        )

    def check(self) -> None:
        """Whether the processes can go on together."""
        size, several = self.training.batch_size, self.processes.num_processes
        expect(size % several == 0, "batch_size", f"a multiple of {several} processes", size)
        own = self.processes.mixed_precision
        expect(own == "no", "processes", "mixed_precision 'no', as Training has its own", own)
        weights = sum(float(p.detach().double().sum()) for p in self.estimator.parameters())
        found = self._gathered(torch.tensor([weights, self.step], dtype=torch.float64))
        expect(
            torch.allclose(found, found[0].expand_as(found), rtol=1e-6, equal_nan=True),
            "processes",
            "the same weights on all, and a folder that all of them see",
            f"sums of weights and steps {found.tolist()}",
        )

    @property
    def stopped(self) -> bool:
        patience = self.training.patience
        return patience is not None and sum(s > self.best for s in self.steps) >= patience

    @property
    def over(self) -> bool:
        return self.stopped or self.step >= self.training.steps

    @property
    def history(self) -> History:
        best = self.best or self.step
        return History(
            [*self.steps], [*self.losses], [*self.measured], best, self.seconds, self.stopped
        )

    def loss(self, data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Of this process's part of some events."""
        own, noise = share(rows, generator, self.processes)
        x = events(data, noise, own).to(self.device)
        kind = PRECISIONS[self.training.precision]
        with torch.autocast(self.device.type, kind, enabled=kind is not None):
            return self.estimator.loss(x, generator=noise)

    def update(self, data: Dataset) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.lr * self.training.rate(self.step)
        self.optimizer.zero_grad()
        rows = torch.randint(len(data), (self.training.batch_size,), generator=self.generator)
        loss = self.loss(data, rows, self.generator)
        self.scaler.scale(loss).backward()
        loss = loss.detach()
        gradients = [p.grad for p in self.estimator.parameters() if p.grad is not None]
        average_over(self.processes, [*gradients, loss])
        value = float(loss)
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {self.step + 1}")
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.estimator.parameters(), self.training.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.estimator)
        self.step += 1
        self.recent += value

    def measure(self, held_out: Dataset | None, on_measure: OnMeasure | None) -> None:
        self.losses.append(self.recent / (self.step - (self.steps[-1] if self.steps else 0)))
        self.steps.append(self.step)
        self.recent = 0.0
        with self._averaged():
            if held_out is not None:
                self.measured.append(self.held_out_loss(held_out))
                if self.measured[-1] < min(self.measured[:-1], default=math.inf):
                    self.best = self.step
                    state = self.estimator.state_dict()
                    self.kept = {name: value.clone() for name, value in state.items()}
            if on_measure is not None:
                with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                    on_measure(self.step, self.estimator, self.history)

    @torch.no_grad()
    def held_out_loss(self, data: Dataset) -> float:
        """With the same events, times and noise at every call."""
        generator, batch = torch.Generator().manual_seed(self.seed), self.training.batch_size
        # few events are repeated with other noise, many are not all needed
        rows = torch.arange(batch * max(1, 4096 // batch)) % len(data)
        parts = rows.split(batch * max(1, _some(data) // batch))
        losses = [self.loss(data, part, generator) * len(part) for part in parts]
        mean = torch.stack(losses).sum() / len(rows)
        average_over(self.processes, [mean])
        return float(mean)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The estimator with its averaged weights, inside."""
        own = {name: value.clone() for name, value in self.estimator.state_dict().items()}
        self.estimator.load_state_dict(self.average.module.state_dict())
        self.estimator.eval()
        try:
            yield
        finally:
            self.estimator.load_state_dict(own)
            self.estimator.train()

    def _gathered(self, own: Tensor) -> Tensor:
        """What every process has of its own, ``(processes, ...)``, on the CPU."""
        return self.processes.gather(own.unsqueeze(0).to(self.processes.device)).cpu()

    def save(self, folder: str | os.PathLike[str]) -> None:
        state = self.optimizer.state_dict()["state"]
        tensors = {
            **{f"model.{k}": v for k, v in self.estimator.state_dict().items()},
            **{f"average.{k}": v for k, v in self.average.state_dict().items()},
            **{f"kept.{k}": v for k, v in self.kept.items()},
            **{f"optimizer.{i}.{k}": v for i, own in state.items() for k, v in own.items()},
            "generator": self.generator.get_state(),
            "random": self._gathered(torch.get_rng_state()),
        }
        if self.device.type == "cuda":
            tensors["random_cuda"] = self._gathered(torch.cuda.get_rng_state(self.device))
        written = {name: getattr(self, name) for name in _WRITTEN}
        written |= {"settings": self._settings(), "scaler": self.scaler.state_dict()}
        if self.processes.is_main_process:
            checkpoint.save(folder, tensors, written)
        self.processes.wait_for_everyone()  # none reads before it is written

    def end(self) -> None:
        """Leaves the estimator with the weights to keep, and all processes alike."""
        self.estimator.load_state_dict(self.kept or self.average.module.state_dict())
        self.estimator.eval()
        torch.set_rng_state(self._gathered(torch.get_rng_state())[0].clone())

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
            self.scaler.load_state_dict(content["scaler"])
            # more processes than wrote it share what there is
            own = self.processes.process_index % len(tensors["random"])
            torch.set_rng_state(tensors["random"][own].clone())  # a view crashes torch
            if "random_cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["random_cuda"][own], self.device)
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


def events(data: Dataset, generator: Generators = None, rows: Tensor | None = None) -> Tensor:
    """Events of a data set as floating-point numbers; integers are dequantised.

    Args:
        data: The data set.
        generator: Of the dequantisation.
        rows: Which events; all if None.

    Example:
        >>> from scoresde.data import load
        >>> from scoresde.training import events
        >>> x = events(load("digits"))
        >>> x.shape, bool(x.abs().max() < 1)
        (torch.Size([1797, 1, 8, 8]), True)
    """
    values = data.read(slice(None) if rows is None else rows)
    return values if data.levels is None else dequantize(values, data.levels, generator)


@attrs.frozen(eq=False)
class Pieces:
    """All events of a data set in order, some at a time, the same at every pass.

    For what is measured of data that need not fit in memory: `estimators.measure`,
    `scoresde.PCA.fit`.

    Args:
        data: The data set.
        seed: Of the dequantisation.

    Example:
        >>> from scoresde import PCA
        >>> from scoresde.data import load
        >>> from scoresde.training import Pieces
        >>> PCA.fit(Pieces(load("digits"))).event_shape
        torch.Size([1, 8, 8])
    """

    data: Dataset
    seed: int = 0

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for rows in torch.arange(len(self.data)).split(_some(self.data)):
            yield events(self.data, generator, rows)


def _some(data: Dataset) -> int:
    """How many events fit into memory for sure: 4096, or fewer large ones."""
    return max(1, min(4096, 2**22 // math.prod(data.values.shape[1:])))
