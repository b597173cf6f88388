"""The batches of a run: which events they have, and how they are moved to the device."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from scoresde import data as ours
from scoresde.data.pairs import Pairs
from scoresde.data.placement import PlacedEvents, pairs_to_device
from scoresde.internals.messages import describe_error
from scoresde.training.distributed import Processes
from scoresde.training.seeds import derive, seeded_globals
from scoresde.training.settings import TrainingSettings

_MOST_WORKERS = 8
"""So many decode faster than most disks read."""


@attrs.frozen(eq=False)
class BatchOrder:
    """A process's events of every batch, as a function of seed and step.

    Args:
        count: Of all events.
        batch_size: Events of a batch, of all processes together.
        seed: Of the run.
        index: Which process.
        processes: How many there are.
    """

    count: int
    batch_size: int
    seed: int
    index: int = 0
    processes: int = 1

    def whole(self, step: int) -> Tensor:
        """Rows of all processes, ``(batch_size,)``, drawn with replacement."""
        generator = torch.Generator("cpu").manual_seed(derive(self.seed, "rows", step))
        return torch.randint(self.count, (self.batch_size,), generator=generator, device="cpu")

    def own(self, step: int) -> Tensor:
        """Rows of this process, ``(batch_size / processes,)``."""
        return self.whole(step)[self.index :: self.processes]


class TrainingBatches:
    """This process's events of every batch, with their conditions, as stored, on the device.

    Those that fit stay there. Others are read ahead by worker processes, if there are any, in the
    same order and with the same random numbers.

    Args:
        data: All events.
        training: Batch size, steps and workers.
        seed: Of the run.
        processes: Which share the batches.
        device: On which batches are.

    Attributes:
        placed: The events, on the device or to be moved there.
        order: Which events.
    """

    def __init__(
        self,
        data: ours.Dataset,
        training: TrainingSettings,
        seed: int,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.placed = PlacedEvents.of("data", data, device)
        count, index = processes.num_processes, processes.process_index
        self.order = BatchOrder(len(data), training.batch_size, seed, index, count)
        self._steps = training.steps
        self._workers = _workers(training.workers, data, device)
        self._ahead: Iterator[Pairs | Exception] | None = None
        self._next = 0

    def __enter__(self) -> TrainingBatches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ahead = None  # ends the processes that read

    def pairs(self, step: int) -> Pairs:
        """The events of a batch as they are stored, ``(batch_size / processes, *shape)``."""
        if self.placed.values is not None:
            return self.placed.stored(self.order.own(step))
        if self._ahead is None or step != self._next:
            self._ahead = self._ahead_from(step)
        pairs, self._next = next(self._ahead), step + 1
        if isinstance(pairs, Exception):
            raise pairs
        return pairs_to_device(pairs, self.placed.device)

    def _ahead_from(self, step: int) -> Iterator[Pairs | Exception]:
        """The batches from a step on."""
        reader, context = _Reader(self.placed.data, self.order), None
        if self._workers and sys.platform == "linux":
            context = "fork"
        elif self._workers:
            _expect_picklable(reader)
        with torch.device("cpu"):  # a loader draws a number there
            return iter(
                DataLoader(
                    reader,
                    batch_size=None,
                    sampler=range(step, max(self._steps, step + 1)),
                    num_workers=self._workers,
                    pin_memory=self.placed.device.type == "cuda",
                    worker_init_fn=_in_worker if self._workers else None,
                    generator=torch.Generator("cpu"),
                    multiprocessing_context=context,
                )
            )


@attrs.frozen(eq=False)
class _Reader(Dataset[Any]):
    """Batches by their step, for processes that read them ahead."""

    data: ours.Dataset
    order: BatchOrder

    def __getitem__(self, step: int) -> Pairs | Exception:
        order = self.order
        try:
            # reading may draw
            with seeded_globals(derive(order.seed, f"reading of process {order.index}", step)):
                return self.data.stored(order.own(step))
        except Exception as error:
            if get_worker_info() is None:
                raise
            return _portable(error)  # said in the words that it has here


def _portable(error: Exception) -> Exception:
    """An error that another process can be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(describe_error(error, kind=True))
    return error


def _in_worker(_: int) -> None:
    """Workers are ended by their parent process, which handles the signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _workers(asked: int | None, data: ours.Dataset, device: torch.device) -> int:
    """Number of processes that read ahead: none where a CPU trains, which has no time for it."""
    if asked is not None:
        return asked
    if not data.lazy or device.type == "cpu" or sys.platform != "linux":
        return 0
    share = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(0, min(_MOST_WORKERS, share - 1))


def _expect_picklable(reader: _Reader) -> None:
    try:
        pickle.dumps(reader)
    except Exception as error:
        expected = "workers: expected 0, as this system's processes cannot be sent such data"
        raise ValueError(f"{expected} ({describe_error(error)})") from error
