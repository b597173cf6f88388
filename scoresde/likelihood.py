"""Exact log-densities, by the probability flow.

    d log p_t(z_t)/dt = -div v(z_t, t)     along     dz_t/dt = v(z_t, t)

so ``log p(x) = log p_T(z_T) + int_eps^T div v dt`` (Chen et al. 2018; Song et al. 2021, eq. 39);
an orthonormal basis changes nothing. The integral is carried along as more components of the
state, so that any solver takes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from scoresde.checks import expect, finite, instance, validator, whole
from scoresde.derivatives import PullBack, batched, vjp
from scoresde.estimator import ScoreEstimator, expect_estimator
from scoresde.flows import ProbabilityFlow
from scoresde.grid import within
from scoresde.modes import asked
from scoresde.noise import Generators, Noise
from scoresde.precise import full_precision, replaced
from scoresde.quadrature import Quadrature
from scoresde.sde import SDE, Forcing, Propagator


class Trace(ABC):
    """How the diagonal of a Jacobian is found, whose sum is a divergence.

    There may be several independent estimates of it; entries need be right on average and in
    sum only.

    Example:
        >>> import torch
        >>> from scoresde import ExactTrace, Hutchinson, Noise
        >>> def pull_back(v): return v @ torch.tensor([[1.0, 2.0], [2.0, 3.0]])
        >>> z, noise = torch.zeros(1, 2), Noise(torch.Generator().manual_seed(0))
        >>> for trace in (ExactTrace(), Hutchinson(samples=1000)):
        ...     diagonals = trace(pull_back, z, trace.probes(z, noise))
        ...     print(trace.estimates, diagonals.sum(-1).mean().round().item())
        1 4.0
        1000 4.0
    """

    @property
    @abstractmethod
    def estimates(self) -> int:
        """Number of independent estimates."""

    @abstractmethod
    def probes(self, z: Tensor, noise: Noise) -> Tensor:
        """Vectors to multiply the Jacobian with, the same throughout a trajectory."""

    def taken(self, probes: Tensor, rows: Tensor) -> Tensor:
        """The probes of some samples: their places in the flattened batch."""
        return probes.reshape(len(probes), -1, probes.shape[-1])[:, rows]

    @abstractmethod
    def __call__(self, pull_back: PullBack, z: Tensor, probes: Tensor) -> Tensor:
        """The diagonal at ``z``: ``(*batch, estimates, n)``."""

    def standard_error(self, integrals: Tensor) -> Tensor:
        """Of the mean of independent estimates ``(*batch, estimates)``; NaN if there is one."""
        if self.estimates == 1 or not integrals.numel():
            return torch.full_like(integrals[..., 0], torch.nan)
        error: Tensor = integrals.std(-1) / self.estimates**0.5
        return error


@attrs.frozen
class ExactTrace(Trace):
    """All ``n`` diagonal entries, by as many batched vector-Jacobian products.

    Args:
        chunk: How many at a time; bounds the memory. All at once if None.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, ExactTrace, Identity, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> log_prob(model, torch.zeros(1, 2), trace=ExactTrace(chunk=1)).standard_error
        tensor([0.])
    """

    chunk: int | None = None

    @property
    def estimates(self) -> int:
        """One."""
        return 1

    def probes(self, z: Tensor, noise: Noise) -> Tensor:
        """The unit vectors."""
        return torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    def taken(self, probes: Tensor, rows: Tensor) -> Tensor:
        """All samples have the same."""
        return probes

    def __call__(self, pull_back: PullBack, z: Tensor, probes: Tensor) -> Tensor:
        """``e_i^T J e_i``."""

        def entry(unit: Tensor) -> Tensor:
            return (pull_back(unit.expand_as(z)) * unit).sum(-1)

        return batched(entry, probes, self.chunk).movedim(0, -1).unsqueeze(-2)

    def standard_error(self, integrals: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(integrals[..., 0])


@attrs.frozen
class Hutchinson(Trace):
    """``E v^T J v`` with random signs ``v`` (Hutchinson 1990): unbiased, exact if diagonal.

    Args:
        samples: Number of probes; with two or more their spread gives a standard error.

    Raises:
        ValueError: If ``samples`` is not a whole number of at least 1.

    Example:
        >>> import torch
        >>> from scoresde import Hutchinson, Noise
        >>> trace, z = Hutchinson(samples=2), torch.zeros(1, 3)
        >>> probes = trace.probes(z, Noise())
        >>> trace(lambda v: v * torch.tensor([1.0, 2.0, 3.0]), z, probes).sum(-1)
        tensor([[6., 6.]])
    """

    sources = "hutchinson1990"

    samples: int = attrs.field(default=8, validator=validator(whole, 1))

    @property
    def estimates(self) -> int:
        """One per probe."""
        return self.samples

    def probes(self, z: Tensor, noise: Noise) -> Tensor:
        """Random signs, ``(samples, *batch, n)``."""
        drawn = torch.stack([noise(z) for _ in range(self.samples)])
        return torch.where(drawn > 0, 1.0, -1.0).to(z)

    def __call__(self, pull_back: PullBack, z: Tensor, probes: Tensor) -> Tensor:
        """``v_i (J^T v)_i`` for every probe."""

        def product(probe: Tensor) -> Tensor:
            return pull_back(probe) * probe

        return batched(product, probes).movedim(0, -2)


@attrs.frozen
class HutchPlusPlus(Trace):
    """Hutchinson's estimate of what a low-rank approximation leaves over: unbiased, less noisy.

    With ``A`` the Jacobian's transpose, random signs ``S`` give a first guess ``a`` of the mean of
    its diagonal and an orthonormal basis ``Q`` of the range of ``(A - a) S``; then, with
    ``P = Q Q^T`` and random signs ``g`` of their own,

        diag A = a + diag[(A - a) P] + E g * [(A - a)(1 - P) g].

    Exact if ``A`` is a multiple of the identity; a clear gain where a few directions make up most
    of the rest (Meyer et al. 2021; of the diagonal, Baston and Nakatsukasa 2022). Costs
    ``2 rank + samples`` products.

    Args:
        samples: Number of estimates ``g``; with two or more their spread gives a standard error.
        rank: Number of directions, at most that of components.

    Raises:
        ValueError: If ``samples`` or ``rank`` is not a whole number of at least 1; on use, if there
            are more directions than components.

    Example:
        >>> import torch
        >>> from scoresde import HutchPlusPlus, Noise
        >>> trace, z = HutchPlusPlus(samples=2, rank=1), torch.zeros(1, 3)
        >>> trace(lambda v: 2 * v, z, trace.probes(z, Noise())).sum(-1)
        tensor([[6., 6.]])
    """

    sources = "meyer2021 baston2022"

    samples: int = attrs.field(default=4, validator=validator(whole, 1))
    rank: int = attrs.field(default=4, validator=validator(whole, 1))

    @property
    def estimates(self) -> int:
        """One per ``g``."""
        return self.samples

    def probes(self, z: Tensor, noise: Noise) -> Tensor:
        """Random signs, ``(rank + samples, *batch, n)``."""
        expect(self.rank <= z.shape[-1], "rank", f"at most {z.shape[-1]}", self.rank)
        return Hutchinson(self.rank + self.samples).probes(z, noise)

    def __call__(self, pull_back: PullBack, z: Tensor, probes: Tensor) -> Tensor:
        """See the class."""
        products = batched(pull_back, probes)
        s, a_s = probes[: self.rank], products[: self.rank]
        # any guess and any basis are right on average
        guess = (s * a_s).mean(0).mean(-1, keepdim=True).detach()
        q = torch.linalg.qr((a_s - guess * s).detach().movedim(0, -1)).Q.movedim(-1, 0)
        a_q = batched(pull_back, q)
        known = guess + ((a_q - guess * q) * q).sum(0)
        g, a_g = probes[self.rank :], products[self.rank :]
        along = torch.einsum("k...n,m...n->km...", q, g).unsqueeze(-1)
        rest = g - (along * q.unsqueeze(1)).sum(0)
        pulled = a_g - (along * a_q.unsqueeze(1)).sum(0)
        diagonals: Tensor = known + g * (pulled - guess * rest)
        return diagonals.movedim(0, -2)


class DensityFlow(SDE):
    """A probability flow that carries the integrals of its divergence, by component.

    The state is ``(z, l)``, ``(*batch, n + estimates n)``, with ``dl_i/dt = dv_i/dz_i``. A
    solver that knows of steps in log-SNR integrates each ``l_i`` over its own component's,
    where it is smooth, whatever the schedule.

    Args:
        flow: The flow.
        trace: How divergences are found.
        probes: The trace's probes.
        frugal: Whether gradients evaluate the score a second time rather than remember the first.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> from scoresde.likelihood import DensityFlow, ExactTrace
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> flow = model.sde.probability_flow(model)
        >>> probes = ExactTrace().probes(torch.zeros(1, 2), Noise())
        >>> density = DensityFlow(flow, ExactTrace(), probes)
        >>> y = torch.tensor([[1.0, 1.0, 0.0, 0.0]])  # a state, and two integrals
        >>> velocity = density.f(torch.tensor(0.5), y)
        >>> torch.allclose(velocity[:, :2], velocity[:, 2:])  # linear in z, and z is 1
        True
    """

    def __init__(
        self, flow: ProbabilityFlow, trace: Trace, probes: Tensor, frugal: bool = False
    ) -> None:
        super().__init__((flow.basis.dim * (1 + trace.estimates),), T=flow.T, eps=flow.eps)
        self.flow, self.trace, self.probes = flow, trace, probes
        self.frugal, self._count = frugal, [0]  # shared with what is taken of it
        self.error = probes.new_tensor(torch.nan)
        """What a method says of its own error in the integrals, ``(*batch,)``."""

    @property
    def evaluated(self) -> int:
        """At how many states the score has been evaluated."""
        return self._count[0]

    def taken(self, rows: Tensor, batch: Sequence[int]) -> DensityFlow:
        """With the flow's samples, and their probes."""
        flow, probes = self.flow.taken(rows, batch), self.trace.taken(self.probes, rows)
        return replaced(self, flow=flow, probes=probes)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """``(v, dv_i/dz_i)``."""
        velocity, _, diagonal = self._evaluate(t, y)
        return self._join(velocity, diagonal)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(y)

    def forcing(self, t: Tensor, y: Tensor) -> Tensor:
        """The flow's forcing, and ``dl_i/dh_i``."""
        _, forcing, diagonal = self._evaluate(t, y)
        pace = self.flow.sde.marginal_pace(t, forcing).unsqueeze(-2)
        # where nothing moves the quotient is 0, and so are its derivatives
        return self._join(forcing, diagonal / pace.masked_fill(pace == 0, torch.inf))

    def look(self, force: Forcing, z: Tensor) -> tuple[Tensor, Tensor]:
        """One evaluation: the forcing ``F``, and ``dF_i/dz_i``, ``(*batch, estimates, n)``."""
        self._count[0] += z.shape[:-1].numel()

        def both(z: Tensor) -> tuple[Tensor, Tensor]:
            forcing, pull_back = vjp(force, z, self._known())
            return forcing, self.trace(pull_back, z, self.probes)

        if not (self.frugal and torch.is_grad_enabled()):
            return both(z)

        def again(z: Tensor) -> tuple[Tensor, Tensor]:
            with asked(self.flow.estimator):  # gradients may come when nobody asks any more
                return both(z)

        forcing, diagonal = _Again.apply(again, z, *self._known())  # type: ignore[no-untyped-call]
        return forcing, diagonal

    def breakpoints(self) -> list[float]:
        """The flow's."""
        return self.flow.breakpoints()

    def propagator(self, t: Tensor, s: Tensor, like: Tensor) -> Propagator:
        """The flow's; an integral's only part is its forcing, over the same ``h``."""
        z, copies = self._state(like), self.trace.estimates
        decay, gain, h, damping = (
            v.expand(*v.shape[:-1], z.shape[-1]) for v in self.flow.propagator(t, s, z)[:4]
        )

        def join(state: Tensor, integral: Tensor) -> Tensor:
            return torch.cat([state, *[integral] * copies], -1)

        return Propagator(
            join(decay, torch.ones_like(h)),
            join(gain, h),
            join(h, h),
            join(damping, torch.zeros_like(h)),
            None,
        )

    def start(self, z: Tensor) -> Tensor:
        """The state at a ``z``, with nothing integrated yet."""
        return torch.cat([z, z.new_zeros(*z.shape[:-1], self.trace.estimates * z.shape[-1])], -1)

    def split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and the integrals of the divergence, ``(*batch, estimates)``."""
        z = self._state(y)
        integrals = y[..., z.shape[-1] :].unflatten(-1, (self.trace.estimates, z.shape[-1]))
        return z, integrals.sum(-1)

    def _known(self) -> Iterator[Tensor]:
        """What the score depends on besides the state, if gradients are wanted."""
        model = self.flow.estimator
        given = (*model.parameters(), *model.buffers(), *tree_leaves(self.flow.condition))
        yield from (v for v in given if isinstance(v, Tensor) and v.requires_grad)

    def _state(self, y: Tensor) -> Tensor:
        return y[..., : y.shape[-1] // (1 + self.trace.estimates)]

    @staticmethod
    def _join(z: Tensor, diagonal: Tensor) -> Tensor:
        return torch.cat([z, diagonal.flatten(-2)], -1)

    def _evaluate(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity, forcing, and the diagonal of the velocity's Jacobian."""
        z = self._state(y)
        forcing, diagonal = self.look(partial(self.flow.forcing, t), z)
        drift, ones = self.flow.sde.marginal_drift, torch.ones_like(z)
        # affine: v = a z + c F
        slope = drift(t, ones, 0 * ones, 0.0).unsqueeze(-2)
        response = drift(t, 0 * ones, ones, 0.0).unsqueeze(-2)
        return drift(t, z, forcing, 0.0), forcing, slope + response * diagonal


class _Again(torch.autograd.Function):
    """A function of a state, and of tensors that it knows, evaluated anew for its gradient.

    What `torch.utils.checkpoint` does, which does not go with `torch.func`.
    """

    @staticmethod
    def forward(ctx: Any, function: Any, z: Tensor, *known: Tensor) -> Any:
        ctx.function, ctx.known = function, known
        ctx.save_for_backward(z)
        return function(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        with torch.enable_grad():
            z = ctx.saved_tensors[0].detach().requires_grad_()
            values = ctx.function(z)
            # steps share what was prepared for all of them
            found = torch.autograd.grad(
                values, [z, *ctx.known], slopes, allow_unused=True, retain_graph=True
            )
        return None, *found


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

    def transport(
        self, density: DensityFlow, z: Tensor, ts: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """See `scoresde.Solver.transport`."""


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
    frugal: bool = False,
) -> LogProb:
    """Log-density of events under a diffusion model, by its probability flow.

    The density is that of data diffused for the first instant ``eps``, as everywhere in the
    field. Differentiable in ``x`` and in the estimator's parameters. Within `torch.autocast` it is
    what it is without: traces of Jacobians are lost in half precision.

    Args:
        estimator: Knows the score and its SDE.
        x: Events, ``(*batch, *event_shape)``.
        method: How it is integrated: `Quadrature` if None, or a `scoresde.Solver`, on its own
            grid; its ``eta`` plays no part.
        trace: `ExactTrace` if None, or `Hutchinson`.
        condition: Passed on to the estimator.
        generator: Seeds the trace's probes: one generator, or one per event.
        checked: Whether what goes in and comes out is checked for being finite.
        frugal: Whether gradients through the walk, first ones only, evaluate the score a second
            time rather than remember what it computed: memory for one evaluation, not for all.

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
    with asked(estimator):
        x, condition = _usable(x), _usable(condition)
        z = estimator.states(x)
        if checked:
            finite("x", x)
        flow = estimator.sde.probability_flow(estimator, condition)
        value, integrals, missed, evaluations = _ascend(
            flow, z, method, trace, Noise.of(generator), frugal
        )
    value = value + integrals.mean(-1)
    if checked:
        finite("log_prob", value, f"from {method!r}")
    error = trace.standard_error(integrals)
    return LogProb(value, error, missed, evaluations, f"probability flow, {trace!r}, {method!r}")


def _usable(value: Any) -> Any:
    """Tensors made in inference mode cannot be differentiated; copies of them can."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _ascend(
    flow: ProbabilityFlow, z: Tensor, method: Method, trace: Trace, noise: Noise, frugal: bool
) -> tuple[Tensor, Tensor, Tensor, float]:
    """What enters on the way down, integrals of the divergence, their errors, evaluations."""
    sde, times, evaluations = flow.sde, method.times(flow.sde), 0.0
    value, integrals = z.new_zeros(z.shape[:-1]), z.new_zeros(*z.shape[:-1], trace.estimates)
    if not value.numel():  # what solvers and priors of others need not know
        return value, integrals, value, evaluations
    missed = value
    upward = sde.stages()[::-1]
    for stage, dim in zip(upward, [*(later.dim for later in upward[1:]), 0], strict=True):
        density = DensityFlow(flow, trace, trace.probes(z, noise), frugal)
        z, gained = method.transport(density, z, within(times, stage).flip(0), noise)
        z, entered = sde.leave(z, stage, dim)
        value, integrals, missed = value + entered, integrals + gained, missed + density.error
        evaluations += density.evaluated / value.numel()
    return value, integrals, missed, evaluations
