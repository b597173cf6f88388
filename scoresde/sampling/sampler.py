"""Samplers whose walk is prepared once: on a GPU it is captured, and replayed with new noise."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import expect, instance
from scoresde.estimator import ScoreEstimator
from scoresde.internals.captured import Captured
from scoresde.internals.modes import evaluation_mode
from scoresde.internals.snapshot import Snapshot, parts_of
from scoresde.noise import Generators, Noise
from scoresde.precision import KeepsFloat64
from scoresde.sampling.batches import sample_shape_of, samples_like
from scoresde.sampling.descent import Descent, Settings, checked_samples
from scoresde.sampling.tape import NoiseTape, ReplayedNoise, Tape

_CAPTURING = "reduce-overhead", "max-autotune"
"""Modes of `torch.compile` that capture CUDA graphs themselves."""

_EXPECTED = "compiled: expected, where sample() takes any, a walk"
"""How what cannot be captured is refused: by what can be done instead."""


class Sampler:
    """Draws what `scoresde.Solver.sample` draws, from a walk that is prepared once.

    All of the walk is prepared when this is made: the steps of every stage, what enters between
    two of them, correctors, and the way back to events. On a CUDA device it is one CUDA graph: a
    call draws the noise in the order in which the walk asks for it, and replays the graph. On other
    devices the prepared moves are made one by one, or through `torch.compile`. From a generator in
    the same state come the samples of `scoresde.Solver.sample`, to the last bit unless
    `torch.compile` fuses operations.

    Weights that are changed in place, by an optimiser or ``load_state_dict``, are followed. Before
    every call the tensors that steps are made of (schedules, speeds, scales, moments of the data)
    and the places of the weights are compared with before, and the walk is prepared anew if they
    have changed. Attributes that are no tensors are not compared.

    Made by `scoresde.Solver.compiled`, whose arguments it takes.

    Attributes:
        solver: Whose walk it is.
        estimator: Knows the score.
        sample_shape: Of every draw.

    Raises:
        RuntimeError: On a CUDA device, if something on the way looks at values that are there, or
            copies from host memory: that cannot be captured, and `scoresde.Solver.sample` does it.
        TypeError: If ``compile`` is neither true or false, nor arguments of `torch.compile`.
        ValueError: If the solver does not know its steps before it sees states, or ``compile`` asks
            for CUDA graphs of its own.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from solvers import DDIM
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> sampler = DDIM(8, eta=1.0).compiled(model, (5,))
        >>> x = sampler(torch.Generator().manual_seed(0))
        >>> same = sampler.solver.sample(model, (5,), generator=torch.Generator().manual_seed(0))
        >>> torch.equal(x, same)
        True
    """

    def __init__(
        self,
        solver: Settings,
        estimator: ScoreEstimator,
        sample_shape: Sequence[int] = (),
        *,
        condition: Any = None,
        dtype: torch.dtype | None = None,
        compile: bool | Mapping[str, Any] = False,
    ) -> None:
        wanted = "one that knows its steps beforehand, as every scoresde.FixedStep does"
        expect(solver.planned, "solver", wanted, repr(solver))
        self.solver, self.estimator = solver, estimator
        self.sample_shape = sample_shape_of(estimator, sample_shape)
        self._condition, self._dtype, self._compile = condition, dtype, _options(compile)
        self._lock = threading.Lock()  # of the memory in which a graph finds its noise
        with torch.no_grad(), evaluation_mode(estimator):
            self._prepare()

    def __repr__(self) -> str:
        return f"Sampler({self.solver!r}, {tuple(self.sample_shape)})"

    def __call__(self, generator: Generators = None) -> Tensor:
        """Events, ``(*sample_shape, *event_shape)``; see `scoresde.Solver.sample`.

        Args:
            generator: One generator, or one per sample.

        Raises:
            TypeError: If it is none.
            ValueError: If the samples are not finite: the solver has diverged.
        """
        noise = Noise.of(generator)
        with self._lock, torch.no_grad(), evaluation_mode(self.estimator):
            if not self._snapshot.holds():
                self._prepare()
            x = self._draw(noise)
        return checked_samples(x, self.solver)

    def _prepare(self) -> None:
        """Walks once, with noise of no consequence, and keeps what it has found."""
        like = samples_like(self.estimator, self._dtype)
        start = like.new_empty(*self.sample_shape, 0)
        tape = Tape()
        noise = NoiseTape(Noise(torch.Generator().manual_seed(0)))
        Descent(self.solver, self.estimator, self._condition, start).events(noise, tape)
        self._snapshot = self._look(tape.read | self._constants())

        def replay(numbers: Sequence[Tensor]) -> Tensor:
            return tape.replay(start, ReplayedNoise(numbers))

        if self._compile is not None:
            replay = torch.compile(replay, **self._compile)
        if start.is_cuda:
            inputs = noise.draw_all(noise.noise)
            graph = Captured(replay, inputs, expected=_EXPECTED)
            self._draw = lambda source: graph(noise.draw_all(source))
        elif self._compile is not None:
            self._draw = lambda source: replay(noise.draw_all(source))
        else:
            self._draw = lambda source: tape.replay(start, source)

    _draw: Callable[[Noise], Tensor]

    def _constants(self) -> set[int]:
        """Ids of constants, which are read on the CPU from copies that `Tape` does not see."""
        modules = (m for m in self.estimator.modules() if isinstance(m, KeepsFloat64))
        own = ((*m.parameters(recurse=False), *m.buffers(recurse=False)) for m in modules)
        return {id(v) for tensors in own for v in tensors}

    def _look(self, read: set[int]) -> Snapshot:
        """A snapshot of all tensors' places, and of the values that steps are made of."""
        modules = [*self.estimator.modules()]
        registries = ((m._parameters, m._buffers, m._modules) for m in modules)
        known, containers = parts_of(self._condition)
        tensors = *self.estimator.parameters(), *self.estimator.buffers(), *known
        containers += itertools.chain.from_iterable(registries)
        return Snapshot(tensors, containers, lambda v: id(v) in read, placed=True)


def _options(compile: bool | Mapping[str, Any]) -> dict[str, Any] | None:
    """Options of `torch.compile`, None if it is not used.

    One graph cannot be captured within another: what would capture its own is refused, whatever
    the device, so that what works on one does on others.
    """
    if compile is False or compile is True:
        return {} if compile else None
    instance("compile", compile, Mapping)
    options = dict(compile)
    mode, backend, inner = (options.get(name) for name in ("mode", "backend", "options"))
    chosen = isinstance(inner, Mapping) and inner.get("triton.cudagraphs", False)
    captures = mode in _CAPTURING or backend == "cudagraphs" or chosen
    wanted = "what leaves CUDA graphs to this sampler, as mode 'max-autotune-no-cudagraphs' does"
    expect(not captures, "compile", wanted, options)
    return options
