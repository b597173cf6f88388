"""The state of a training run, saved and restored."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from scoresde.checks import expect
from scoresde.data.placement import PlacedEvents
from scoresde.estimator import ScoreEstimator
from scoresde.internals.limits import chunk_size
from scoresde.precision import precision
from scoresde.training import checkpoint
from scoresde.training.adam import adam, load_adam
from scoresde.training.average import GAMMAS, WeightAverage, power_decay
from scoresde.training.batch_loss import BatchLoss
from scoresde.training.batches import TrainingBatches
from scoresde.training.distributed import Processes, average_over
from scoresde.training.history import History, OnMeasure
from scoresde.training.run_identity import RunIdentity
from scoresde.training.settings import TrainingSettings
from scoresde.training.tally import Tally

_WRITTEN = ("step", "steps", "losses", "measured", "norms", "best", "seconds")


@attrs.define(eq=False)
class TrainingState:
    """Weights, their average, optimiser and random numbers of a run, and its steps.

    `scoresde.training.Training.fit` drives it.

    Attributes:
        tally: Sums over updates, on the device.
        average: Moving averages of the weights.
        profiles: Averages with power profiles, if there are to be snapshots.
        updating: Whether an update is half done.
        asked_to_end: Whether any of the processes had been at the last exchange.
    """

    training: TrainingSettings
    estimator: ScoreEstimator
    seed: int
    processes: Processes
    loss: BatchLoss
    optimizer: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    tally: Tally
    device: torch.device
    weights: list[nn.Parameter]
    average: WeightAverage
    profiles: list[WeightAverage]
    step: int = 0
    steps: list[int] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    measured: list[float] = attrs.field(factory=list)
    norms: list[float] = attrs.field(factory=list)
    best: int = 0
    seconds: float = 0.0
    best_weights: dict[str, Tensor] = attrs.field(factory=dict)
    updating: bool = False
    asked_to_end: bool = False

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
        learned = any(weight.requires_grad for weight in weights)
        expect(learned, "estimator", "weights to train", type(estimator).__name__)
        loss, device = BatchLoss.new(training, estimator, seed, processes), weights[0].device
        scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "float16")
        tally = Tally(device)
        optimizer = adam(weights, training, None if scaler.is_enabled() else tally)
        average = WeightAverage(estimator)
        profiles = [WeightAverage(estimator) for _ in GAMMAS if training.snapshots]
        parts = (loss, optimizer, scaler, tally, device, weights, average, profiles)
        return cls(training, estimator, seed, processes, *parts)

    def check(self) -> None:
        """Raises ``ValueError`` unless the processes can go on together."""
        size, count = self.training.batch_size, self.processes.num_processes
        parts = self.training.accumulation
        of = f"{count} processes" if parts == 1 else f"{parts} parts of {count} processes"
        expect(size % (count * parts) == 0, "batch_size", f"a multiple of {of}", size)
        mixed_precision = self.processes.mixed_precision
        expect(
            mixed_precision == "no",
            "processes",
            "mixed_precision 'no', as Training has its own",
            mixed_precision,
        )
        wide = precision(self.device)
        weights = sum(float(p.detach().abs().sum(dtype=wide)) for p in self.weights)
        sums = self._gathered(torch.tensor([weights, self.step], dtype=torch.float64, device="cpu"))
        expect(
            # sums of the same weights in another order differ by float32's rounding errors
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
    def between_updates(self) -> bool:
        """Whether no update is half done, and the estimator has its own weights."""
        return not (self.updating or self.average.placed)

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
    def snapshot_due(self) -> bool:
        """Whether one is to be written now."""
        every = max(1, self.training.steps // max(1, self.training.snapshots))
        now = self.step % every == 0 or self.step >= self.training.steps
        return bool(self.profiles) and self.step > 0 and now

    @property
    def history(self) -> History:
        """The measurements so far."""
        best = self.best or self.step
        rates = [self.training.lr * self.training.lr_factor(step - 1) for step in self.steps]
        losses = [*self.losses], [*self.measured]
        return History(
            [*self.steps], *losses, rates, [*self.norms], best, self.seconds, self.stopped
        )

    def update(self, batches: TrainingBatches, stop_requested: bool = False) -> None:
        """One update, whose failure is known after `expect_finite` only."""
        self.updating = True
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.lr * self.training.lr_factor(self.step)
        loss, stop = self.loss.gradients(batches, self.step, self._scaled), None
        if self.processes.num_processes > 1:
            stop = torch.full_like(loss, float(stop_requested))
            average_over(self.processes, [loss, stop])
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.weights, self.training.clip)
        # in half precision a step whose gradient overflows is left out
        self.tally.add(loss, norm, stop, scaled=self.scaler.is_enabled())
        self.step += 1
        if not self.optimizer.defaults["fused"]:  # that one leaves a step out by itself
            self.expect_finite(batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.training.ema_decay(self.step - 1))
        for gamma, profile in zip(GAMMAS, self.profiles, strict=False):
            profile.update(power_decay(gamma, self.step))
        self.updating = False

    def _scaled(self, loss: Tensor) -> Tensor:
        """The loss for gradients; NaN after a failure if they are scaled: steps are skipped."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled * (1 + self.tally.poison) if self.scaler.is_enabled() else scaled

    def expect_finite(self, batches: TrainingBatches) -> None:
        """Waits for the updates, and checks that they were finite.

        Raises:
            FloatingPointError: If a loss or a gradient was not finite; weights are those before
                that step, which is repeated to find the cause.
        """
        left_out, self.asked_to_end = self.tally.read()
        if not left_out:
            return
        step = self.step - left_out
        loss, at = self.loss.gradients(batches, step, self._scaled), f"at step {step + 1}"
        average_over(self.processes, [loss])
        message, rows = f"the loss is {float(loss)} {at}", batches.order.whole(step)
        self.loss.expect_finite(message, loss, batches.placed, rows)
        norm = nn.utils.clip_grad_norm_(self.weights, self.training.clip)
        raise FloatingPointError(f"the gradient's norm is {float(norm)} {at}")

    def measure(
        self, data: PlacedEvents, held_out: PlacedEvents | None, on_measure: OnMeasure | None
    ) -> None:
        """The held-out loss of the averaged weights, which are kept if it is the lowest."""
        with self.average.in_place():
            # without events to measure: whether the weights that are kept say anything
            held_out_loss = self.held_out_loss(
                data if held_out is None else held_out, held_out is not None
            )
            updates = self.step - (self.steps[-1] if self.steps else 0)
            self.losses.append(self.tally.loss / updates)
            self.norms.append(self.tally.mean_norm())
            self.steps.append(self.step)
            self.tally.clear()
            if held_out is not None:
                self.measured.append(held_out_loss)
                if held_out_loss < min(self.measured[:-1], default=math.inf):
                    self.best, state = self.step, self.estimator.state_dict()
                    self.best_weights = {name: value.clone() for name, value in state.items()}
            if on_measure is not None:
                on_measure(self.step, self.estimator, self.history)

    @torch.no_grad()
    def held_out_loss(self, data: PlacedEvents, all_events: bool = True) -> float:
        """The loss with the same events, times and noise at every call.

        Args:
            data: The held-out events, or those of the training if there are none.
            all_events: Whether to use all of them, or one batch, enough to tell whether the loss
                is finite.
        """
        batch = self.training.batch_size
        # few events are repeated with other noise, many are not all needed
        count = self.training.held_out_count if all_events else batch
        rows = torch.arange(count, device="cpu") % len(data.data)
        size = chunk_size(data.data.values.shape[1:])
        mean = self.loss.held_out(data, rows, batch * max(1, size // batch))
        average_over(self.processes, [mean])
        of = "the held-out loss" if all_events else "the loss of the averaged weights"
        message = f"{of} is {float(mean)} after step {self.step}"
        self.loss.expect_finite(message, mean, data, rows)
        return float(mean)

    def _gathered(self, value: Tensor) -> Tensor:
        """A tensor of every process, ``(processes, ...)``, on the CPU."""
        return self.processes.gather(value.unsqueeze(0).to(self.processes.device)).cpu()

    def load_best(self) -> None:
        """Gives the estimator the weights with the lowest held-out loss, or else the average."""
        if self.best_weights:
            self.estimator.load_state_dict(self.best_weights)
        else:
            self.average.load()
        self.estimator.eval()

    def save(self, write: checkpoint.Write, identity: RunIdentity) -> None:
        """Writes it, by the first of the processes.

        Raises:
            FloatingPointError: If a weight is not finite; nothing is written then.
        """
        for name, weight in (*self.estimator.named_parameters(), *self.average.values.items()):
            if not bool(weight.isfinite().all()):
                raise FloatingPointError(f"{name} is not finite after step {self.step}")
        state = self.optimizer.state_dict()["state"]
        tensors = {
            **{f"model.{k}": v for k, v in self.estimator.state_dict().items()},
            **{f"average.{k}": v for k, v in self.average.values.items()},
            **{f"kept.{k}": v for k, v in self.best_weights.items()},
            **{f"profile.{k}": v for k, v in self.profile_tensors().items()},
            **{f"optimizer.{i}.{k}": v for i, slots in state.items() for k, v in slots.items()},
            **self.tally.state(),
        }
        identity.note_changes(self.estimator)
        written = {name: getattr(self, name) for name in _WRITTEN}
        written |= {"about": attrs.asdict(identity, value_serializer=_listed)}
        written |= {"scaler": self.scaler.state_dict(), "over": self.finished}
        if self.processes.is_main_process:
            write(tensors, written)
        self.processes.wait_for_everyone()  # none reads before it is written

    def restore(self, folder: str | os.PathLike[str], identity: RunIdentity) -> None:
        """Restores what `save` has written, if that is of the same run.

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
        except (LookupError, RuntimeError, ValueError) as error:
            raise checkpoint.CheckpointError(
                f"{folder}: not a run of this model: {error}"
            ) from error

    def profile_tensors(self) -> dict[str, Tensor]:
        """The averages with power profiles, by their number and the name of the weight."""
        pairs = enumerate(self.profiles)
        return {f"{i}.{name}": v for i, profile in pairs for name, v in profile.values.items()}

    def _load(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            start = f"{prefix}."
            return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}

        self.estimator.load_state_dict(part("model"))
        self.average.restore(part("average"))
        for i, profile in enumerate(self.profiles):
            profile.restore(part(f"profile.{i}"))
        load_adam(self.optimizer, self.weights, part("optimizer"))
        self.tally.restore(tensors["loss"], tensors["norm"])
        self.scaler.load_state_dict(content["scaler"])
        for name in _WRITTEN:
            setattr(self, name, content[name])
        self.best_weights = part("kept")


def _listed(_: object, __: object, value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
