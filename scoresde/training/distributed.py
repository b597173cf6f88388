"""Computations on several processes and machines.

Processes are an ``accelerate.Accelerator``, or anything with the methods of `Processes`. Every one
holds the whole model and calls the same functions; results do not depend on their number.

    from accelerate import Accelerator

    processes = Accelerator()
    model.to(processes.device)
    Training(steps=100_000).fit(model, data, processes=processes)
    generators = [torch.Generator().manual_seed(i) for i in range(1000)]
    x = sample(solver, model, generators, processes)

Run it by ``accelerate launch --num_processes 8 script.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scoresde.checks import expect
from scoresde.estimator import ScoreEstimator
from scoresde.noise import Generators, NoiseShard
from scoresde.selection import samples
from scoresde.solver import Solver


class Processes(Protocol):
    """The processes of a computation, as ``accelerate.Accelerator`` has them."""

    @property
    def num_processes(self) -> int:
        """Number of processes."""

    @property
    def process_index(self) -> int:
        """Index of this process."""

    @property
    def is_main_process(self) -> bool:
        """Whether it is the one that writes files."""

    @property
    def device(self) -> torch.device:
        """Device of this process."""

    @property
    def mixed_precision(self) -> str:
        """``"no"``; the precision is a setting of `scoresde.training.Training`."""

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """Sum or mean over all processes."""

    def gather(self, tensor: Tensor) -> Tensor:
        """Tensors of all processes, of the same shape, along the first axis."""

    def wait_for_everyone(self) -> None:
        """Returns when all processes have called it."""


@attrs.frozen
class SingleProcess:
    """One process."""

    num_processes: int = 1
    process_index: int = 0
    is_main_process: bool = True
    device: torch.device = attrs.field(factory=lambda: torch.device("cpu"))
    mixed_precision: str = "no"

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        """The tensor itself."""
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def wait_for_everyone(self) -> None:
        """Returns."""


SINGLE_PROCESS = SingleProcess()


def shard(generator: Generators, processes: Processes, part: int = 0, parts: int = 1) -> Generators:
    """The noise of this process's events of a batch, or of a part of them.

    Args:
        generator: Of the whole batch.
        processes: Which share the batch: process ``i`` of ``n`` has the events ``i, i + n, ...``.
        part: Which part of those, likewise.
        parts: How many there are.
    """
    count = processes.num_processes * parts
    if count == 1:
        return generator
    return NoiseShard(generator, processes.process_index + processes.num_processes * part, count)


class SharedLoss(nn.Module):
    """An estimator's loss as a module, whose gradients are averages over all processes.

    They are exchanged while others are still computed (``DistributedDataParallel``).

    Args:
        estimator: Whose loss.
        processes: That each have some of the events, at least one.

    Raises:
        ValueError: If there are several processes, and ``torch.distributed`` does not know them.
    """

    def __init__(self, estimator: ScoreEstimator, processes: Processes) -> None:
        super().__init__()
        self.estimator = estimator
        self._parallel: list[DistributedDataParallel] = []  # no part, as it has this one
        if processes.num_processes > 1:
            known = dist.is_available() and dist.is_initialized()
            count = dist.get_world_size() if known else 0
            expected = f"{processes.num_processes} processes of torch.distributed"
            expect(count == processes.num_processes, "processes", expected, count)
            self._parallel.append(_parallel(self))

    def forward(self, x: Tensor, condition: Tensor | None, generator: Generators) -> Tensor:
        """See `scoresde.ScoreEstimator.loss`."""
        return self.estimator.loss(x, condition, generator)

    def averaged(self, x: Tensor, condition: Tensor | None, generator: Generators) -> Tensor:
        """The loss, with a gradient that is averaged."""
        module = self._parallel[0] if self._parallel else self
        loss: Tensor = module(x, condition, generator)
        return loss

    def alone(self, whether: bool) -> AbstractContextManager[None]:
        """If ``whether``, gradients stay in this process inside, and are averaged with the next."""
        return self._parallel[0].no_sync() if self._parallel and whether else nullcontext()


def _parallel(module: nn.Module) -> DistributedDataParallel:
    # constants are the same everywhere, and statistics of batches are each process's own
    buffers = [name for name, _ in module.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, buffers)
    # weights that a loss has no use for keep no gradient; torch says once that it looks for them
    return DistributedDataParallel(module, find_unused_parameters=True)


def average_over(processes: Processes, tensors: Sequence[Tensor]) -> None:
    """Replaces tensors by their means over all processes, in one exchange."""
    if processes.num_processes == 1:
        return
    flat = processes.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def sample(
    solver: Solver,
    estimator: ScoreEstimator,
    generators: Sequence[torch.Generator],
    processes: Processes = SINGLE_PROCESS,
    *,
    condition: Any = None,
    **options: Any,
) -> Tensor:
    """Samples, each with a generator of its own, computed by several processes.

    Args:
        solver: Samples.
        estimator: Knows the score; the same on every process.
        generators: One per sample.
        processes: Each computes as many samples as the others, up to one.
        condition: As of `Solver.sample`, of all samples.
        options: Further arguments of `Solver.sample`.

    Returns:
        ``(len(generators), *event_shape)`` on every process: what ``solver.sample`` returns, up to
        rounding, as matrix products may depend on the size of a batch.

    Raises:
        ValueError: If there are no generators, or the samples are not finite.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.training.distributed import sample
        >>> from solvers import DDIM
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> generators = [torch.Generator().manual_seed(i) for i in range(3)]
        >>> sample(DDIM(4), model, generators).shape
        torch.Size([3, 2])
    """
    count = len(generators)
    expect(count > 0, "generators", "one per sample", "none")
    per_process = -(-count // processes.num_processes)
    first = per_process * processes.process_index
    own_generators = list(generators[first : first + per_process])
    # the last processes compute samples that nobody asked for: gathering wants equal shapes
    own_generators += [torch.Generator() for _ in range(per_process - len(own_generators))]
    rows = torch.arange(first, first + per_process, device="cpu").clamp(max=count - 1)
    x = solver.sample(
        estimator.select(rows, (count,)),
        (per_process,),
        condition=samples(condition, rows, (count,)),
        generator=own_generators,
        **options,
    )
    return processes.gather(x)[:count]
