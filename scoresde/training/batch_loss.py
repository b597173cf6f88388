"""The loss of a run's batches, from stored events to gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor, nn

from scoresde.data.augmentation import cropped, flipped
from scoresde.data.dataset import Dataset
from scoresde.data.events import as_numbers
from scoresde.data.pairs import Pairs
from scoresde.data.placement import PlacedEvents
from scoresde.estimator import ScoreEstimator
from scoresde.noise import Generators
from scoresde.training import captured_gradient
from scoresde.training.batches import TrainingBatches
from scoresde.training.captured_gradient import CapturedGradient, expect_capturable
from scoresde.training.distributed import Processes, SharedLoss, shard
from scoresde.training.execution import Execution
from scoresde.training.seeds import derive, device_generator, seeded_globals
from scoresde.training.settings import TrainingSettings

_TRIED = 512
"""Events whose loss is computed one by one to name the first that is not finite: some seconds, when
all of a large data set would take longer than its training."""


@attrs.define(eq=False)
class BatchLoss:
    """The loss of an estimator for stored events, with noise that follows a seed.

    Attributes:
        generator: For dequantisation, times and noise, on the device.
        dtype: Of events as numbers.
    """

    training: TrainingSettings
    estimator: ScoreEstimator
    seed: int
    processes: Processes
    execution: Execution
    generator: torch.Generator
    weights: list[nn.Parameter]
    dtype: torch.dtype
    _shared: SharedLoss | None = None
    _captured: CapturedGradient | None = None

    @classmethod
    def new(
        cls,
        training: TrainingSettings,
        estimator: ScoreEstimator,
        seed: int,
        processes: Processes,
    ) -> BatchLoss:
        """The loss of an estimator that is to be trained with these settings."""
        if training.capture:
            expect_capturable(estimator, processes.num_processes)
        weights = [*estimator.parameters()]
        floating = [p.dtype for p in weights if p.is_floating_point()]
        return cls(
            training,
            estimator,
            seed,
            processes,
            Execution(training, estimator),
            device_generator(weights[0].device),
            weights,
            # formulas around networks of less precision stay in single precision
            torch.promote_types(floating[0], torch.float32),
        )

    def of(self, pairs: Pairs, bins: int | None, noise: Generators, shared: bool = False) -> Tensor:
        """The loss of this process's events.

        Args:
            pairs: Stored events, on the device, and their conditions.
            bins: Of integers.
            noise: For these events.
            shared: Whether gradients are averaged over all processes.
        """
        values, condition = pairs
        x = as_numbers(values, bins, noise).to(self.dtype)
        if condition is not None and condition.is_floating_point():
            condition = condition.to(self.dtype)
        with self.execution.autocast():
            loss: Tensor = (self._module.averaged if shared else self._module)(x, condition, noise)
        return loss

    @property
    def _module(self) -> SharedLoss:
        if self._shared is None:  # once the processes are known to have the same weights
            self._shared = SharedLoss(self.estimator, self.processes)
        return self._shared

    def gradients(
        self, batches: TrainingBatches, step: int, scaled: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Leaves the gradient of a step's batch at the weights; returns this process's loss.

        Args:
            batches: Whose events.
            step: Which batch.
            scaled: From the loss to what is differentiated.
        """
        for weight in self.weights:
            weight.grad = None
        pairs, data = batches.pairs(step), batches.placed.data
        parts, total = self.training.accumulation, None
        dropout = derive(self.seed, f"dropout of process {self.processes.process_index}", step)
        with seeded_globals(dropout, pairs.values.device), self.execution.running(updates=True):
            for part in range(parts):
                # every part draws the numbers of all, and keeps its own
                self.generator.manual_seed(derive(self.seed, "noise", step))
                noise = shard(self.generator, self.processes, part, parts)
                own = pairs if parts == 1 else pairs.map(lambda v: v[part::parts])  # noqa: B023
                with self._module.alone(part + 1 < parts):
                    loss = self._backward(own, data, noise, scaled)
                total = loss if total is None else total + loss
        assert total is not None
        return total

    def _backward(
        self,
        pairs: Pairs,
        data: Dataset,
        noise: Generators,
        scaled: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Adds the gradient of some events to that at the weights."""

        def add(pairs: Pairs) -> Tensor:
            own = cropped(pairs, data.crop, noise)
            own = flipped(own, data.shapes, noise) if data.flip else own
            loss = self.of(own, data.bins, noise, shared=True)
            loss = loss if self.training.accumulation == 1 else loss / self.training.accumulation
            scaled(loss).backward()
            return loss.detach()

        if not (self.training.capture and captured_gradient.captures(pairs.values.device)):
            return add(pairs)
        if self._captured is None or not self._captured.holds():
            self._captured = CapturedGradient(add, pairs, self.estimator, self.generator)
        return self._captured(pairs)

    def held_out(self, data: PlacedEvents, rows: Tensor, size: int) -> Tensor:
        """The mean over this process's part of ``rows``, with the same noise at every call."""
        index, count = self.processes.process_index, self.processes.num_processes
        seed, losses = derive(self.seed, "held out"), []
        noise = shard(self.generator.manual_seed(seed), self.processes)
        with seeded_globals(seed, data.device), self.execution.running(updates=False):
            for part in rows.split(size):
                loss = self.of(data.pairs(part[index::count]), data.data.bins, noise)
                losses.append(loss * len(part))
        return torch.stack(losses).sum() / len(rows)

    @torch.no_grad()
    def expect_finite(self, message: str, loss: Tensor, data: PlacedEvents, rows: Tensor) -> None:
        """Raises ``FloatingPointError`` that names the first event whose own loss is not finite."""
        if math.isfinite(loss):
            return
        self.estimator.eval()
        seed = derive(self.seed, "one by one")
        for row in rows.unique(sorted=True)[:_TRIED]:
            pairs, noise = data.pairs(row.unsqueeze(0)), self.generator.manual_seed(seed)
            if not math.isfinite(self.of(pairs, data.data.bins, noise)):
                message = f"{message}, as that of event {int(row)} of {data.data.name} is by itself"
                if bool(pairs.values.isnan().any()):
                    wanted = "only estimators with vector time (observe=, times=) take such"
                    message += f", of which values are missing: {wanted}"
                break
        raise FloatingPointError(message)
