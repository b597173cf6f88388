"""The state of a training run: all that the rest of it depends on, saved and restored."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.data import Dataset
from scoresde.data.events import events
from scoresde.estimator import ScoreEstimator
from scoresde.internals.limits import chunk_size
from scoresde.noise import Generators
from scoresde.training import checkpoint
from scoresde.training.distributed import Processes, average_over, shard
from scoresde.training.history import History, OnMeasure
from scoresde.training.rng_state import RNGState
from scoresde.training.run_identity import RunIdentity
from scoresde.training.settings import PRECISIONS, TrainingSettings
from scoresde.wrappers import match_names

_WRITTEN = ("step", "steps", "losses", "measured", "best", "recent", "seconds")

_HELD_OUT = 4096
"""Events, times and noises of which a held-out loss is the mean: its error is a 64th of the
deviation of one of them, so that the lowest of ten losses is hardly one by chance."""

_TRIED = 512
"""Events whose loss is computed one by one to name the first that is not finite: some seconds, when
all of a large data set would take longer than its training."""


@attrs.define(eq=False)
class TrainingState:
    """Weights, their average, optimiser and random numbers of a run, and its steps.

    `scoresde.training.Training.fit` drives it.

    Attributes:
        rng_state: Of what draws from torch's global generators, dropout above all.
        average: Moving averages of the weights, by name.
        between_updates: Whether none is half done, and the estimator has its own weights.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.data import Dataset
        >>> from scoresde.training.distributed import SINGLE_PROCESS
        >>> from scoresde.training.settings import TrainingSettings
        >>> from scoresde.training.state import TrainingState
        >>> model = Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1))
        >>> training = TrainingSettings(steps=2)
        >>> run = TrainingState.new(training, model, seed=0, processes=SINGLE_PROCESS)
        >>> run.update(Dataset("mine", torch.randn(10, 2)))
        False
        >>> run.step, run.finished
        (1, False)
    """

    training: TrainingSettings
    estimator: ScoreEstimator
    seed: int
    processes: Processes
    generator: torch.Generator
    rng_state: RNGState
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    dtype: torch.dtype
    average: dict[str, Tensor]
    step: int = 0
    steps: list[int] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    measured: list[float] = attrs.field(factory=list)
    best: int = 0
    recent: float = 0.0
    seconds: float = 0.0
    best_weights: dict[str, Tensor] = attrs.field(factory=dict)
    between_updates: bool = True

    @classmethod
    def new(
        cls,
        training: TrainingSettings,
        estimator: ScoreEstimator,
        seed: int,
        processes: Processes,
    ) -> TrainingState:
        """A run before its first update."""
        weights = list(estimator.parameters())
        expect(len(weights) > 0, "estimator", "weights to train", type(estimator).__name__)
        device, floating = weights[0].device, [p.dtype for p in weights if p.is_floating_point()]
        return cls(
            training,
            estimator,
            seed,
            processes,
            torch.Generator("cpu").manual_seed(seed),
            RNGState(seed, processes.process_index, device),
            torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.weight_decay),
            torch.amp.GradScaler(device.type, enabled=training.precision == "float16"),
            device,
            # formulas around networks of less precision stay in single precision
            torch.promote_types(floating[0], torch.float32),
            {name: p.detach().clone() for name, p in estimator.named_parameters()},
        )

    def check(self) -> None:
        """Raises ``ValueError`` unless the processes can go on together."""
        size, count = self.training.batch_size, self.processes.num_processes
        expect(size % count == 0, "batch_size", f"a multiple of {count} processes", size)
        mixed_precision = self.processes.mixed_precision
        expect(
            mixed_precision == "no",
            "processes",
            "mixed_precision 'no', as Training has its own",
            mixed_precision,
        )
        weights = sum(float(p.detach().double().sum()) for p in self.estimator.parameters())
        sums = self._gathered(torch.tensor([weights, self.step], dtype=torch.float64, device="cpu"))
        expect(
            torch.allclose(sums, sums[0].expand_as(sums), rtol=1e-6, equal_nan=True),
            "processes",
            "the same weights on all, and a folder that all of them see",
            f"sums of weights and steps {sums.tolist()}",
        )

    def check_same_arguments(self, identity: RunIdentity) -> None:
        """Raises ``ValueError`` unless the processes have been called with the same arguments."""
        digests = identity.digests()
        gathered = self._gathered(
            torch.tensor(list(digests.values()), dtype=torch.int64, device="cpu")
        )
        unlike = [
            n for n, same in zip(digests, (gathered == gathered[0]).all(0), strict=True) if not same
        ]
        expect(
            not unlike,
            "processes",
            f"the same {', '.join(unlike)} on all",
            ", ".join(str(identity.entries.get(name, "others")) for name in unlike),
        )

    @property
    def stopped(self) -> bool:
        """Whether patience has ended."""
        patience = self.training.patience
        return patience is not None and sum(s > self.best for s in self.steps) >= patience

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.stopped or self.step >= self.training.steps

    @property
    def measurement_due(self) -> bool:
        """Whether the held-out loss is to be measured now, and has not been."""
        every = max(1, self.training.steps // self.training.measurements)
        now = self.step > 0 and (self.step % every == 0 or self.step >= self.training.steps)
        return now and self.step not in self.steps[-1:]

    @property
    def history(self) -> History:
        """What has been measured so far."""
        best = self.best or self.step
        return History(
            [*self.steps], [*self.losses], [*self.measured], best, self.seconds, self.stopped
        )

    def loss(self, data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of this process's shard of some events."""
        return self._loss(data, *shard(rows, generator, self.processes))

    def _loss(self, data: Dataset, rows: Tensor, generator: Generators) -> Tensor:
        x = events(data, generator, rows).to(self.device, self.dtype)
        kind = PRECISIONS[self.training.precision]
        with torch.autocast(self.device.type, kind, enabled=kind is not None):
            return self.estimator.loss(x, generator=generator)

    def update(self, data: Dataset, stop_requested: bool = False) -> bool:
        """One update, and whether any process has been asked to end."""
        self.between_updates = False
        with self.rng_state.installed():
            for group in self.optimizer.param_groups:
                group["lr"] = self.training.lr * self.training.lr_factor(self.step)
            self.optimizer.zero_grad()
            size = (self.training.batch_size,)
            rows = torch.randint(len(data), size, generator=self.generator, device="cpu")
            loss = self.loss(data, rows, self.generator)
            self.scaler.scale(loss).backward()
        loss = loss.detach()
        stop = torch.full_like(loss, float(stop_requested))
        gradients = [p.grad for p in self.estimator.parameters() if p.grad is not None]
        average_over(self.processes, [*gradients, loss, stop])
        self._expect_finite(f"the loss is {float(loss)} at step {self.step + 1}", loss, data, rows)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.estimator.parameters(), self.training.clip)
        if not (self.scaler.is_enabled() or math.isfinite(norm)):  # that one leaves the step out
            raise FloatingPointError(f"the gradient's norm is {norm} at step {self.step + 1}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, weight in self.estimator.named_parameters():
            now, before = weight.detach(), self.average[name]
            before.copy_(self.training.ema_update(before, now, self.step) if self.step else now)
        self.step += 1
        self.recent += float(loss)
        self.between_updates = True
        return stop_requested if self.processes.num_processes == 1 else bool(stop > 0)

    def measure(
        self, data: Dataset, held_out: Dataset | None, on_measure: OnMeasure | None
    ) -> None:
        """The held-out loss of the averaged weights, which are kept if it is the lowest."""
        with self._averaged():
            # without events to measure: whether the weights that are kept say anything
            held_out_loss = self.held_out_loss(
                data if held_out is None else held_out, held_out is not None
            )
            self.losses.append(self.recent / (self.step - (self.steps[-1] if self.steps else 0)))
            self.steps.append(self.step)
            self.recent = 0.0
            if held_out is not None:
                self.measured.append(held_out_loss)
                if held_out_loss < min(self.measured[:-1], default=math.inf):
                    self.best, state = self.step, self.estimator.state_dict()
                    self.best_weights = {name: value.clone() for name, value in state.items()}
            if on_measure is not None:
                on_measure(self.step, self.estimator, self.history)

    @torch.no_grad()
    def held_out_loss(self, data: Dataset, all_events: bool = True) -> float:
        """The loss with the same events, times and noise at every call.

        Args:
            data: The held-out events, or those of the training if there are none.
            all_events: Whether to go through them, or through one batch, which says no more than
                whether the loss is finite.
        """
        generator, batch = torch.Generator("cpu").manual_seed(self.seed), self.training.batch_size
        # few events are repeated with other noise, many are not all needed
        count = batch * max(1, _HELD_OUT // batch) if all_events else batch
        rows = torch.arange(count, device="cpu") % len(data)
        size = chunk_size(data.values.shape[1:])
        parts = rows.split(batch * max(1, size // batch))
        with RNGState(self.seed, device=self.device).installed():
            losses = [self.loss(data, part, generator) * len(part) for part in parts]
        mean = torch.stack(losses).sum() / len(rows)
        average_over(self.processes, [mean])
        of = "the held-out loss" if all_events else "the loss of the averaged weights"
        self._expect_finite(f"{of} is {float(mean)} after step {self.step}", mean, data, rows)
        return float(mean)

    @torch.no_grad()
    def _expect_finite(self, message: str, loss: Tensor, data: Dataset, rows: Tensor) -> None:
        """Raises ``FloatingPointError`` that names the first event whose own loss is not finite."""
        if math.isfinite(loss):
            return
        self.estimator.eval()
        for row in rows.unique(sorted=True)[:_TRIED]:
            generator = torch.Generator("cpu").manual_seed(self.seed)
            if not math.isfinite(self._loss(data, row.unsqueeze(0), generator)):
                message = f"{message}, as that of event {int(row)} of {data.name} is by itself"
                if bool(data.read(row.unsqueeze(0)).isnan().any()):
                    message += (
                        ", of which values are missing: only estimators with observe= take such"
                    )
                break
        raise FloatingPointError(message)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Gives the estimator its averaged weights, and its own back at the end."""
        trained = {name: value.clone() for name, value in self.estimator.state_dict().items()}
        self.between_updates = False
        self._load_average()
        self.estimator.eval()
        try:
            yield
        finally:
            self.estimator.load_state_dict(trained)
            self.estimator.train()
            self.between_updates = True

    @torch.no_grad()
    def _load_average(self) -> None:
        for name, weight in self.estimator.named_parameters():
            weight.copy_(self.average[name])

    def _gathered(self, value: Tensor) -> Tensor:
        """A tensor of every process, ``(processes, ...)``, on the CPU."""
        return self.processes.gather(value.unsqueeze(0).to(self.processes.device)).cpu()

    def load_best(self) -> None:
        """Gives the estimator the weights with the lowest held-out loss, or else the average."""
        if self.best_weights:
            self.estimator.load_state_dict(self.best_weights)
        else:
            self._load_average()
        self.estimator.eval()

    def save(self, write: checkpoint.Write, identity: RunIdentity) -> None:
        """Writes it, by the first of the processes.

        Raises:
            FloatingPointError: If a weight is not finite; nothing is written then.
        """
        for name, weight in (*self.estimator.named_parameters(), *self.average.items()):
            if not bool(weight.isfinite().all()):
                raise FloatingPointError(f"{name} is not finite after step {self.step}")
        state = self.optimizer.state_dict()["state"]
        tensors = {
            **{f"model.{k}": v for k, v in self.estimator.state_dict().items()},
            **{f"average.{k}": v for k, v in self.average.items()},
            **{f"kept.{k}": v for k, v in self.best_weights.items()},
            **{f"optimizer.{i}.{k}": v for i, slots in state.items() for k, v in slots.items()},
            "generator": self.generator.get_state(),
            **{f"stream.{k}": self._gathered(v) for k, v in self.rng_state.states.items()},
        }
        identity.note_changes(self.estimator)
        written = {name: getattr(self, name) for name in _WRITTEN}
        written |= {"about": attrs.asdict(identity, value_serializer=_listed)}
        written |= {"scaler": self.scaler.state_dict(), "over": self.finished}
        if self.processes.is_main_process:
            write(tensors, written)
        self.processes.wait_for_everyone()  # none reads before it is written

    def restore(self, folder: str | os.PathLike[str], identity: RunIdentity) -> None:
        """Goes on from what `save` has written, if that is of the same run.

        Raises:
            CheckpointError: If it is damaged, or no run.
            RunMismatch: If it is of something else; the message names what.
        """
        tensors, content = checkpoint.load(folder)
        match content.get("about"):
            case {"entries": dict(entries), "moved": list(moved), "settings": settings}:
                written = RunIdentity(entries, set(moved), settings)
            case _:
                expected = "expected a run that says what it is of, got none, or an older one"
                raise checkpoint.CheckpointError(f"{folder}: {expected}")
        written.check_same(identity, folder)
        identity.moved |= written.moved
        # as long as it is not extended: what was built then stays so
        try:
            self._load(tensors, content)
        except (KeyError, RuntimeError, ValueError) as error:
            raise checkpoint.CheckpointError(
                f"{folder}: not a run of this model: {error}"
            ) from error

    def _load(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            start = f"{prefix}."
            return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}

        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer").items():
            index, key = name.split(".")
            optimizer.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.estimator.load_state_dict(part("model"))
        for name, value in match_names(part("average"), self.average).items():
            self.average[name].copy_(value)
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.scaler.load_state_dict(content["scaler"])
        for kind, states in part("stream").items():
            if kind in self.rng_state.states:
                # more processes than wrote it share what there is
                saved_state = states[self.processes.process_index % len(states)]
                self.rng_state.states[kind] = saved_state.clone()  # a view crashes torch
        for name in _WRITTEN:
            setattr(self, name, content[name])
        self.best_weights = part("kept")


def _listed(_: object, __: object, value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
