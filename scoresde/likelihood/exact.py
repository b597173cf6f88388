"""Exact log-densities, by the probability flow.

    d log p_t(z_t)/dt = -div v(z_t, t)     along     dz_t/dt = v(z_t, t)

so ``log p(x) = log p_T(z_T) + int_eps^T div v dt`` (Chen et al. 2018; Song et al. 2021, eq. 39);
an orthonormal basis changes nothing. The integral is carried along as more components of the
state, so that any solver takes it.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from scoresde.checks import finite, instance, readable
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.internals.free_memory import device_chunk_size
from scoresde.internals.modes import evaluation_mode
from scoresde.likelihood.density import DensityFlow
from scoresde.likelihood.finite import all_finite, error_limit, warn_of_errors
from scoresde.likelihood.quadrature import Quadrature
from scoresde.likelihood.traces import ExactTrace, Trace
from scoresde.noise import Generators, Noise
from scoresde.precision import full_precision
from scoresde.reverse import ProbabilityFlow
from scoresde.sampling.grid import fractions, restrict
from scoresde.sdes.sde import SDE


@runtime_checkable
class Method(Protocol):
    """What integrates a probability flow with its density: a `scoresde.Solver` or `Quadrature`.

    Attributes:
        tells_errors: Whether it estimates its own error, as ``error`` of the `DensityFlow`.

    Example:
        >>> from scoresde import Quadrature
        >>> from scoresde.likelihood import Method
        >>> from solvers import DDIM
        >>> methods: list[Method] = [DDIM(60), Quadrature(30)]
    """

    @property
    def tells_errors(self) -> bool: ...  # noqa: D102

    def times(self, sde: SDE) -> Tensor:
        """See `scoresde.Solver.times`."""

    def transport(self, density: Any, z: Tensor, ts: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """See `scoresde.Solver.transport`."""

    def buffer_size(self, times: int, estimates: int) -> int:
        """See `scoresde.Solver.buffer_size`."""


@attrs.frozen(eq=False)
class LogProb:
    """A log-density and what is known about it.

    Attributes:
        value: ``(*batch,)``, in nats.
        standard_error: Of ``value`` by the trace's randomness, ``(*batch,)``: 0 for an exact
            trace, NaN for a single probe. The method's error is not part of it.
        error: Estimate of the method's error in ``value``, ``(*batch,)``, in nats: that of
            `Quadrature` itself; for solvers, the distance to a `Quadrature` of half as many steps.
        evaluations: How often the score was evaluated, per event on average, errors included.
        estimate: Which estimate it is.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> density = log_prob(model, torch.zeros(3, 2))
        >>> density.value.shape, density.standard_error
        (torch.Size([3]), tensor([0., 0., 0.]))
    """

    value: Tensor
    standard_error: Tensor
    error: Tensor
    evaluations: float
    estimate: str


@full_precision
def log_prob(
    estimator: ScoreEstimator,
    x: Tensor,
    method: Method | None = None,
    *,
    trace: Trace | None = None,
    condition: Any = None,
    generator: Generators = None,
    checked: bool = True,
    checkpointing: bool = False,
    errors: bool = True,
) -> LogProb:
    """Log-density of events under a diffusion model, by its probability flow.

    The density is that of data diffused up to ``eps``. Differentiable in ``x`` and in the
    estimator's parameters. Within `torch.autocast` it is computed in full precision, as traces of
    Jacobians are lost in half.

    Events are taken a chunk at a time: as many as half of the device's free memory holds, or half
    of ``SCORESDE_MEMORY`` bytes (1 GiB) on the CPU, and of these as many products of a trace.
    Probes are drawn for all events first, so that chunks change values by rounding only, or, with
    solvers that choose one step for all events, within their tolerance. Gradients store
    what all events need, whatever the chunks: use `torch.no_grad` where none are wanted.

    Args:
        estimator: Knows the score and its SDE.
        x: Events, ``(*batch, *event_shape)``.
        method: How it is integrated: `Quadrature` if None, or a `scoresde.Solver` on its own grid,
            whose ``eta`` is ignored.
        trace: `ExactTrace` if None, or `Hutchinson`.
        condition: Passed on to the estimator.
        generator: Seeds the trace's probes: one generator, or one per event.
        checked: Whether what goes in and comes out is checked for being finite.
        checkpointing: Whether gradients through the walk, first ones only, evaluate the score
            again instead of storing it: memory for one evaluation, not for all.
        errors: Whether to estimate errors of methods that do not do so themselves, by a
            `Quadrature` of half as many steps, without gradients; NaN if not.

    Warns:
        UserWarning: If values that are checked may be off by more than half a nat, times the root
            of the number of components.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or another argument of another type.
        ValueError: If ``x`` has the wrong shape or is not finite, the SDE has no prior, or the
            result is not finite.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> log_prob(model, torch.tensor([[0.0], [1.0]])).value.round(decimals=2)
        tensor([-0.9200, -1.4200])
    """
    expect_estimator(estimator)
    trace = ExactTrace() if trace is None else trace
    method = Quadrature() if method is None else method
    instance("trace", trace, Trace)
    instance("method", method, Method)
    with evaluation_mode(estimator):
        x, condition = _usable(x), _usable(condition)
        z = estimator.states(x)
        if checked and readable(x):  # else looked at with what comes out, as that waits
            finite("x", x)
        flow = estimator.sde.likelihood_flow(ProbabilityFlow(estimator, condition))
        noise = Noise.of(generator)
        start, offset = flow.start(z, noise)
        ascent = _Ascent(flow, start, offset, trace, noise)
        times = method.times(flow.sde)
        density = ascent.by(method, times, checkpointing)
        if errors and x.numel() and not method.tells_errors:
            density = ascent.compared(density, times)
    limit = error_limit(z.shape[-1])
    if checked and not all_finite(
        {"x": x, "log_prob": density.value}, f"from {method!r}", ~(density.error > limit)
    ):
        warn_of_errors(density.error, limit, method)
    deviation = trace.standard_error(density.integrals)
    estimate = f"{flow.estimate}, {trace!r}, {method!r}"
    return LogProb(density.value, deviation, density.error, density.evaluations, estimate)


def _usable(value: Any) -> Any:
    """Tensors made in inference mode cannot be differentiated; copies of them can."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


class _LogDensity(NamedTuple):
    """Log-densities by a method, integrals of the divergence, errors, evaluations per event."""

    value: Tensor
    integrals: Tensor
    error: Tensor
    evaluations: float


@attrs.frozen(eq=False)
class _Ascent:
    """Everything but the method: whatever is drawn is the same for all of them.

    Attributes:
        flow: What is walked up.
        z: Where.
        offset: What the log-density there lacks of that of data.
        trace: How divergences are found.
        noise: Where its probes come from.
        probes: Those of every stage, as far as they have been asked for.
    """

    flow: ProbabilityFlow
    z: Tensor
    offset: Tensor
    trace: Trace
    noise: Noise
    probes: list[Tensor] = attrs.field(factory=list)

    def by(self, method: Method, times: Tensor, checkpointing: bool = False) -> _LogDensity:
        """What a method finds, on a grid."""
        sde, z, value, evaluations = self.flow.sde, self.z, self.offset, 0.0
        integrals = z.new_zeros(*z.shape[:-1], self.trace.estimates)
        if not value.numel():  # what solvers and priors of others need not know
            return _LogDensity(value, integrals, value, evaluations)
        missed, upward = torch.zeros_like(value), sde.stages()[::-1]
        kept = [*(later.dim for later in upward[1:]), 0]
        for i, (stage, dim) in enumerate(zip(upward, kept, strict=True)):
            if i == len(self.probes):
                self.probes.append(self.trace.draw(z, self.noise))
            density = DensityFlow(self.flow, self.trace, self.probes[i], checkpointing)
            ts = restrict(times, stage).flip(0)
            z, gained = _transported(method, density, z, ts, self.noise)
            z, marginal = self.flow.marginalise(z, stage, dim)
            value, integrals = value + marginal, integrals + gained
            missed, evaluations = missed + density.error, evaluations + density.evaluated
        value = value + integrals.mean(-1)
        return _LogDensity(value, integrals, missed, evaluations / value.numel())

    @torch.no_grad()
    def compared(self, density: _LogDensity, times: Tensor) -> _LogDensity:
        """With errors: the distance to a `Quadrature`, and its own; infinite where that is lost.

        What corrects for missing the flow knows where few steps miss it, however many more might.
        """
        known = self.by(Quadrature(tolerance=None), coarsened(self.flow.sde, times))
        error = ((density.value - known.value).abs() + known.error).nan_to_num(torch.inf)
        return density._replace(error=error, evaluations=density.evaluations + known.evaluations)


def _transported(
    method: Method, density: DensityFlow, z: Tensor, ts: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """`Method.transport`, of as many events at a time as there is memory for."""
    batch, flat = z.shape[:-1], z.reshape(-1, z.shape[-1])
    buffered = method.buffer_size(len(ts), density.trace.estimates)
    size = device_chunk_size(len(flat), flat[:1], buffered)
    if size is None:
        return method.transport(density, z, ts, noise)
    transported = []
    for rows in torch.arange(len(flat), device=z.device).split(size):
        part = density.select(rows, batch)
        ends = method.transport(part, flat[rows], ts, noise)
        transported.append((*ends, part.error.expand(len(rows))))
    z, gained, error = map(torch.cat, zip(*transported, strict=True))
    density.error = error.reshape(batch)
    return z.reshape(*batch, -1), gained.reshape(*batch, -1)


def coarsened(sde: SDE, times: Tensor) -> Tensor:
    """Every second time of a grid, and those where the state or its rates jump.

    A single step between two of these is halved in noise level.
    """
    discontinuities = [
        *sde.breakpoints(),
        *(stage.start for stage in sde.stages()),
        *times[[0, -1]].tolist(),
    ]
    apart = (times.unsqueeze(-1) - times.new_tensor(discontinuities)).abs().amin(-1)
    steps = [*itertools.pairwise((apart < _SAME).nonzero().flatten().tolist())]
    alone = torch.tensor([a for a, b in steps if b - a == 1], dtype=torch.long, device="cpu")
    halves = fractions(sde, times[alone], times[alone + 1], (0.5,)) if len(alone) else []
    seconds = [times[a:b:2] for a, b in steps]
    return torch.cat([*seconds, *halves, times[-1:]]).sort(descending=True).values


_SAME = 1e-12
"""As far as times of a grid may miss those of jumps: what float64 rounds, many times over."""
