"""Exact log-densities, by the probability flow.

    d log p_t(z_t)/dt = -div v(z_t, t)     along     dz_t/dt = v(z_t, t)

so ``log p(x) = log p_T(z_T) + int_eps^T div v dt`` (Chen et al. 2018; Song et al. 2021, eq. 39);
an orthonormal basis changes nothing. The integral is carried along as more components of the
state, so that any solver takes it.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from scoresde.checks import finite, instance, readable
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.grid import restrict
from scoresde.internals.free_memory import at_a_time
from scoresde.likelihood.density import DensityFlow
from scoresde.likelihood.finite import all_finite
from scoresde.likelihood.quadrature import Quadrature
from scoresde.likelihood.traces import ExactTrace, Trace
from scoresde.modes import evaluation_mode
from scoresde.noise import Generators, Noise
from scoresde.precision import full_precision
from scoresde.reverse import ProbabilityFlow
from scoresde.sde import SDE


@runtime_checkable
class Method(Protocol):
    """What takes states up their flow: a `scoresde.Solver`, or `Quadrature`.

    Example:
        >>> from scoresde import Quadrature
        >>> from scoresde.likelihood import Method
        >>> from solvers import DDIM
        >>> methods: list[Method] = [DDIM(60), Quadrature(30)]
    """

    def times(self, sde: SDE) -> Tensor:
        """See `scoresde.Solver.times`."""

    def transport(self, density: Any, z: Tensor, ts: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """See `scoresde.Solver.transport`."""


@runtime_checkable
class Holding(Protocol):
    """A method that keeps much of every event until its end, and says so; others keep little.

    Example:
        >>> from scoresde import Quadrature
        >>> from scoresde.likelihood.exact import Holding
        >>> from solvers import DDIM
        >>> isinstance(Quadrature(), Holding), isinstance(DDIM(), Holding)
        (True, False)
    """

    def held(self, times: int, estimates: int) -> int:
        """Numbers in the precision of states, for each of their components.

        Args:
            times: Those of the grid.
            estimates: Of a divergence.
        """


@attrs.frozen(eq=False)
class LogProb:
    """A log-density and what is known about it.

    Attributes:
        value: ``(*batch,)``, in nats.
        standard_error: Of ``value`` by the trace's randomness, ``(*batch,)``: 0 for an exact
            trace, NaN for a single probe. The method's error is not part of it.
        error: Of ``value`` by the method, ``(*batch,)``, in nats, as it says of itself: see
            `Quadrature`; NaN for solvers, which say nothing.
        evaluations: How often the score was evaluated, per event on average.
        estimate: Which estimate it is.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Hutchinson, Identity, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> found = log_prob(model, torch.zeros(3, 2), trace=Hutchinson(samples=1))
        >>> found.value.shape, found.standard_error, found.evaluations
        (torch.Size([3]), tensor([nan, nan, nan]), 31.0)
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
) -> LogProb:
    """Log-density of events under a diffusion model, by its probability flow.

    The density is that of data diffused for the first instant ``eps``, as everywhere in the
    field. Differentiable in ``x`` and in the estimator's parameters. Within `torch.autocast` it is
    what it is without: traces of Jacobians are lost in half precision.

    As many events are taken up their flow at a time as half of a device's free memory holds, or
    half of ``SCORESDE_MEMORY`` bytes (1 GiB) on the CPU, and of these as many products of a trace,
    which waits for nothing on its way. Probes are drawn for all events before, whatever fits, so
    that a generator is asked for the same: values are those of all together up to rounding, or, of
    solvers that choose one step for all events, up to their tolerance. What gradients remember is
    of all events, however few at a time: use `torch.no_grad` where none are wanted.

    Args:
        estimator: Knows the score and its SDE.
        x: Events, ``(*batch, *event_shape)``.
        method: How it is integrated: `Quadrature` if None, or a `scoresde.Solver`, on its own
            grid; its ``eta`` plays no part.
        trace: `ExactTrace` if None, or `Hutchinson`.
        condition: Passed on to the estimator.
        generator: Seeds the trace's probes: one generator, or one per event.
        checked: Whether what goes in and comes out is checked for being finite.
        checkpointing: Whether gradients through the walk, first ones only, evaluate the score a
            second time rather than remember what it computed: memory for one evaluation, not for
            all.

    Raises:
        TypeError: If ``x`` is not a floating-point tensor, or another argument not what it is.
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
        flow = estimator.sde.carrier(ProbabilityFlow(estimator, condition))
        value, integrals, missed, evaluations = _ascend(
            flow, z, method, trace, Noise.of(generator), checkpointing
        )
    value = value + integrals.mean(-1)
    if checked:
        all_finite({"x": x, "log_prob": value}, f"from {method!r}")
    error = trace.standard_error(integrals)
    return LogProb(value, error, missed, evaluations, f"{flow.estimate}, {trace!r}, {method!r}")


def _usable(value: Any) -> Any:
    """Tensors made in inference mode cannot be differentiated; copies of them can."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _ascend(
    flow: ProbabilityFlow,
    z: Tensor,
    method: Method,
    trace: Trace,
    noise: Noise,
    checkpointing: bool,
) -> tuple[Tensor, Tensor, Tensor, float]:
    """What enters on the way down, integrals of the divergence, their errors, evaluations."""
    sde, times, evaluations = flow.sde, method.times(flow.sde), 0.0
    z, value = flow.start(z, noise)
    integrals = z.new_zeros(*z.shape[:-1], trace.estimates)
    if not value.numel():  # what solvers and priors of others need not know
        return value, integrals, value, evaluations
    missed = torch.zeros_like(value)
    upward = sde.stages()[::-1]
    for stage, dim in zip(upward, [*(later.dim for later in upward[1:]), 0], strict=True):
        density = DensityFlow(flow, trace, trace.probes(z, noise), checkpointing)
        z, gained = _transported(method, density, z, restrict(times, stage).flip(0), noise)
        z, entered = flow.marginalise(z, stage, dim)
        value, integrals, missed = value + entered, integrals + gained, missed + density.error
        evaluations += density.evaluated / value.numel()
    return value, integrals, missed, evaluations


def _transported(
    method: Method, density: DensityFlow, z: Tensor, ts: Tensor, noise: Noise
) -> tuple[Tensor, Tensor]:
    """`Method.transport`, of as many events at a time as there is memory for."""
    batch, flat = z.shape[:-1], z.reshape(-1, z.shape[-1])
    held = method.held(len(ts), density.trace.estimates) if isinstance(method, Holding) else 0
    size = at_a_time(len(flat), flat[:1], held)
    if size is None:
        return method.transport(density, z, ts, noise)
    found = []
    for rows in torch.arange(len(flat), device=z.device).split(size):
        part = density.select(rows, batch)
        ends = method.transport(part, flat[rows], ts, noise)
        found.append((*ends, part.error.expand(len(rows))))
    z, gained, error = map(torch.cat, zip(*found, strict=True))
    density.error = error.reshape(batch)
    return z.reshape(*batch, -1), gained.reshape(*batch, -1)
