"""The training loop: settings, and updates of any estimator with a loss."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from scoresde.checks import expect, whole
from scoresde.data.events import as_dataset
from scoresde.data.placement import PlacedEvents
from scoresde.estimator import ScoreEstimator
from scoresde.internals.wrappers import unwrapped
from scoresde.training import checkpoint, post_hoc
from scoresde.training.batches import TrainingBatches
from scoresde.training.distributed import SINGLE_PROCESS, Processes
from scoresde.training.history import History, OnMeasure
from scoresde.training.interrupts import Interrupts
from scoresde.training.run_identity import RunIdentity
from scoresde.training.settings import TrainingSettings
from scoresde.training.state import TrainingState

_LOOK_EVERY = 32
"""Updates between synchronisations with the device, which check that they were finite: so many that
its queue is hardly ever empty, and so few that Ctrl-C does not take long."""

_SEEDS = -(2**63), 2**64 - 1
"""What torch takes for one."""


@attrs.frozen(kw_only=True)
class Training(TrainingSettings):
    """The training loop, and its settings.

    Takes the arguments of `scoresde.training.settings.TrainingSettings`.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.training import Training
        >>> sde = DiagonalSDE(VP(), Identity((2,)))
        >>> model = Denoising(sde, ResidualMLP((2,), width=8, depth=1))
        >>> history = Training(steps=4, ema=0.9).fit(model, torch.randn(100, 2), progress=False)
        >>> history.stopped
        False
    """

    def fit(
        self,
        estimator: ScoreEstimator,
        data: Any,
        held_out: Any = None,
        *,
        seed: int = 0,
        progress: bool = True,
        on_step: Callable[[int], None] | None = None,
        on_measure: OnMeasure | None = None,
        folder: str | os.PathLike[str] | None = None,
        save_every: int = 500,
        processes: Processes = SINGLE_PROCESS,
        settings: Mapping[str, Any] | None = None,
    ) -> History:
        """Trains in place: the estimator ends with the best averaged weights, in eval mode.

        Args:
            estimator: Has a ``loss``. Wrappers that compile it, or compute it on several devices,
                are removed.
            data: A `scoresde.data.Dataset`, a tensor, an array, a torch ``Dataset`` or its
                ``DataLoader``; see `scoresde.data.events.as_dataset`. Integer data are dequantised
                for every batch; stored ones are read as they are needed, others are moved to the
                estimator's device, if they fit (`scoresde.data.placement`).
            held_out: Measured with the same noise every time; the averaged weights of its lowest
                loss are kept. The last ones if None.
            seed: Of batches, times, noise and dropout, each a function of it and of the step; the
                numbers differ between kinds of devices. Torch's global generators are restored.
            progress: Whether to show a progress bar.
            on_step: Called before every update with the number of updates done; so is a method
                ``before_update`` of any part of the estimator, for instance of a
                `scoresde.conditioning.AnnealedClock`.
            on_measure: Called at every measurement, for instance `scoresde.app.plots.Pictures`.
            folder: Where the run is written meanwhile, as by `scoresde.training.checkpoint`. A run
                that is found there is resumed, and ends as if it had never stopped, bit for bit, at
                whatever moment it was killed. It has to be the same run: same data, by content,
                settings, seed and estimator; differences are refused by name. More ``steps`` extend
                it, finished or not: rates and measurements are then those of the larger number. A
                finished one is not repeated: its weights and history are returned.
            save_every: Number of updates between writes. On Ctrl-C, or anything else that raises
                ``KeyboardInterrupt`` or ``SystemExit``, it is written after the current update.
            processes: Which share the work, each on its part of every batch, for instance an
                ``accelerate.Accelerator``; see `scoresde.training.distributed`. The result is that
                of one process, up to the order of summation and to dropout, which differs between
                processes. All call this with the same arguments; the first one writes.
            settings: The configuration that estimator and data were built from, whose keys are
                named where the run in ``folder`` is another one.

        Raises:
            CheckpointError: If what is in ``folder`` is damaged, or no run.
            FloatingPointError: If a loss, a gradient or a weight is not finite; the message names
                the step, and the event whose loss it is. What was written before stays, and the
                estimator has the weights before that step.
            FolderLocked: If another process or thread trains in ``folder``.
            TypeError: If data or the estimator are of a kind that is not taken.
            ValueError: If a number is out of its range, the run in ``folder`` is another one,
                patience has no data to measure, data are on another device than the estimator
                (those on the CPU are brought to it), or processes do not share a batch evenly or
                differ in their arguments.
        """
        self._check_arguments(held_out, seed, save_every, folder)
        estimator = _unwrapped_estimator(estimator)
        train = as_dataset("data", data)
        measured = None if held_out is None else as_dataset("held_out", held_out)
        run, identity = TrainingState.new(self, estimator, seed, processes), None
        batches = TrainingBatches(train, self, seed, processes, run.device)
        placed = None if measured is None else PlacedEvents.of("held_out", measured, run.device)
        if folder is not None or processes.num_processes > 1:
            entries = {**self.of_the_result, "training.seed": int(seed)}
            identity = RunIdentity.of(entries, estimator, train, measured, on_step, settings)
            run.check_same_arguments(identity)
        with _writing(folder, processes) as write:
            save = None
            if folder is not None and identity is not None:
                save = partial(run.save, write, identity)
                if Path(folder, "config.json").exists():
                    run.restore(folder, identity)
                elif processes.is_main_process:
                    post_hoc.forget(Path(folder))
            run.check()
            loop = _Loop(run, batches, placed, on_step, on_measure, folder, save, save_every)
            loop.run_updates(progress and processes.is_main_process)
        run.load_best()
        return run.history

    def _check_arguments(self, held_out: Any, seed: int, save_every: int, folder: Any) -> None:
        whole("seed", seed, *_SEEDS)
        whole("save_every", save_every, 1)
        ready = self.patience is None or held_out is not None
        expect(ready, "held_out", "events, whose loss patience waits for", None)
        kept = not self.snapshots or folder is not None
        expect(kept, "folder", f"one in which snapshots={self.snapshots} are kept", None)


def _unwrapped_estimator(estimator: Any) -> ScoreEstimator:
    """An estimator without what wraps it."""
    module = unwrapped(estimator) if isinstance(estimator, nn.Module) else estimator
    if not isinstance(module, ScoreEstimator):
        raise TypeError(f"estimator: expected a ScoreEstimator, got a {type(module).__name__}")
    return module


@attrs.define(eq=False)
class _Loop:
    """Update, measure and save, until a run is over or a process is asked to end."""

    run: TrainingState
    batches: TrainingBatches
    held_out: PlacedEvents | None
    on_step: Callable[[int], None] | None
    on_measure: OnMeasure | None
    folder: str | os.PathLike[str] | None
    save: Callable[[], None] | None
    save_every: int
    unsaved: bool = False
    since: float = attrs.field(factory=time.perf_counter)

    def run_updates(self, progress: bool) -> None:
        run = self.run
        if run.finished and progress:
            tqdm.write(f"{self.folder}: this run is over, at step {run.step}", file=sys.stderr)
        several = run.processes.num_processes > 1
        heard = (getattr(part, "before_update", None) for part in run.estimator.modules())
        listeners = [*filter(None, heard), *filter(None, [self.on_step])]
        bar = tqdm(
            desc="training", disable=not progress, initial=run.step, total=run.training.steps
        )
        run.estimator.train()
        with bar, Interrupts(hold=several) as interrupts, self.batches:
            try:
                while self.measure_and_save(bar):
                    with interrupts.deferred():
                        for listener in listeners:
                            listener(run.step)
                        run.update(self.batches, interrupts.pending)
                        self.unsaved = True
                    self.count_time()
                    bar.update()
                if run.asked_to_end:
                    interrupts.deliver()
                    raise KeyboardInterrupt
            except (KeyboardInterrupt, SystemExit):
                if run.between_updates and not several:  # those agree on when to end
                    self.write()
                raise

    def measure_and_save(self, bar: tqdm[Any]) -> bool:
        """Does what is due between two updates; returns whether there is another one."""
        run = self.run
        saving = run.step > 0 and run.step % self.save_every == 0
        if run.measurement_due or saving or run.step % _LOOK_EVERY == 0:
            run.expect_finite(self.batches)
        if run.measurement_due:
            run.measure(self.batches.placed, self.held_out, self.on_measure)
            held_out = {"held_out": run.measured[-1]} if run.measured else {}
            bar.set_postfix({"loss": run.losses[-1], **held_out}, refresh=False)
            self.unsaved = True
            self.count_time()
        if run.snapshot_due and self.folder is not None:  # before the run says that it was here
            run.expect_finite(self.batches)
            post_hoc.keep(Path(self.folder), run)
        if run.finished or run.asked_to_end or saving:
            self.write()
        return not (run.finished or run.asked_to_end)

    def count_time(self) -> None:
        now = time.perf_counter()
        self.run.seconds, self.since = self.run.seconds + now - self.since, now

    def write(self) -> None:
        if self.save is not None and self.unsaved:
            self.run.expect_finite(self.batches)
            self.save()
        self.unsaved = False


@contextmanager
def _writing(
    folder: str | os.PathLike[str] | None, processes: Processes
) -> Iterator[checkpoint.Write]:
    """The function by which the first process writes; an error on all if it cannot."""
    with ExitStack() as stack:
        write: checkpoint.Write = _nowhere
        error = None
        if folder is not None and processes.is_main_process:
            try:
                write = stack.enter_context(checkpoint.writer(folder))
            except OSError as refusal:
                error = refusal
        bad = processes.gather(torch.tensor([error is not None], device=processes.device))
        if error is not None:
            raise error
        expect(not bool(bad.any()), "folder", "one that the first process can write to", folder)
        yield write


def _nowhere(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes nothing."""
