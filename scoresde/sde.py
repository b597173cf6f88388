"""Stochastic differential equations, forward and backward in time.

    dy = f(t, y) dt + g(t, y) dw                             t from 0 (data) to T (prior)

and, with a score ``s = grad log p_t``, the equations that run back from prior to data,

    dz = [f - (1 + eta^2)/2 (g^2 s + div g^2)] dt + eta g dwbar,

which share the marginals ``p_t`` for every ``eta``: 1 is the reverse SDE (Anderson 1982), 0 the
probability-flow ODE (Song et al. 2021, eq. 13). All of them are `SDE` objects, and whatever
integrates one integrates all: ``torchsde.sdeint`` and ``torchdiffeq.odeint`` as they are, and the
solvers of this project, which see an SDE as *semilinear*: over a step from ``t`` to ``s``

    y_s = decay y_t + gain <F> + noise kick,    <F> = int_0^h F e^(-k (h - u)) du / norm

where an SDE that knows its linear part in closed form says so (`Propagator`), and one that does
not leaves ``decay = 1``, ``gain = h = s - t``, ``k = 0`` and ``F = f``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from scoresde.bases import Basis, Identity
from scoresde.checks import expect, floating, instance, numbers, readable, real
from scoresde.derivatives import PullBack, vjp
from scoresde.noise import Noise
from scoresde.selection import select

if TYPE_CHECKING:
    from scoresde.estimator import ScoreEstimator
    from scoresde.reverse import ProbabilityFlow, ReverseSDE


class Kernel(NamedTuple):
    """``z_t | z_0 ~ N(alpha z_0, sigma^2)``; both ``(*, 1 | n)``.

    Example:
        >>> import torch
        >>> from scoresde import DiagonalSDE, Identity, RectifiedFlow
        >>> DiagonalSDE(RectifiedFlow(), Identity((2,))).kernel(torch.tensor([0.25]))
        Kernel(alpha=tensor([0.7500]), sigma=tensor([0.2500]))
    """

    alpha: Tensor
    sigma: Tensor


class Stage(NamedTuple):
    """From time ``start`` down to ``end`` the first ``dim`` components are the state.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Haar
        >>> DiagonalSDE(VP(), Haar((1, 4, 4), levels=1), drop=[1.0, 0.5]).stages()
        [Stage(start=1.0, end=0.5, dim=4), Stage(start=0.5, end=0.001, dim=16)]
    """

    start: float
    end: float
    dim: int


class Propagator(NamedTuple):
    """Coefficients of steps, each ``(*, 1 | n)``; ``noise`` is None for an ODE.

    ``h`` is the length of the step in the variable in which the forcing is smooth, and
    ``damping = k h`` says how much its end counts more than its start in the mean ``<F>``.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> sde, t, s = DiagonalSDE(EDM(), Identity((2,))), torch.tensor([3.0]), torch.tensor([5.0])
        >>> step = sde.propagator(t, s, like=torch.zeros(1, 2))
        >>> step.decay, step.noise.round(decimals=4)
        (tensor([1.]), tensor([4.]))
    """

    decay: Tensor
    gain: Tensor
    h: Tensor
    damping: Tensor
    noise: Tensor | None


_ROUNDING = 2e-6
"""By how much a last time may be late that has been computed in float32."""

Forcing = Callable[[Tensor], Tensor]
"""``F(t, .)`` at one time, with states ``(*batch, n)`` in and out."""


def align(t: Tensor | float, z: Tensor) -> Tensor:
    """Times with a component axis, ready to broadcast against a state.

    Args:
        t: One time, one per sample ``(*batch,)``, or one per component
            ``(*batch, 1 | blocks | n)``: told apart by the number of axes.
        z: State, ``(*batch, n)``.

    Returns:
        ``(*batch or 1s, 1 | blocks | n)``, in float32 at least: numbers in the dtype of the state.

    Raises:
        ValueError: If the axes of ``t`` match neither, or its batch is not that of ``z``.

    Example:
        >>> import torch
        >>> from scoresde import align
        >>> align(0.5, torch.zeros(3, 2)).shape, align(torch.rand(3), torch.zeros(3, 2)).shape
        (torch.Size([1]), torch.Size([3, 1]))
    """
    own = t.dtype if isinstance(t, Tensor) and t.is_floating_point() else z.dtype
    own = torch.promote_types(own, torch.float32)  # numbers have as many digits as the state
    t = t if isinstance(t, (float, int)) else numbers("t", t)
    t = torch.as_tensor(t, dtype=own, device=z.device)
    given = tuple(t.shape)
    if t.ndim == 0:
        return t.reshape(1)
    if t.ndim == z.ndim - 1:
        t = t.unsqueeze(-1)
    batch = z.shape[:-1]
    fits = t.ndim == z.ndim and all(a in (1, b) for a, b in zip(t.shape[:-1], batch, strict=True))
    expect(
        fits,
        "t",
        f"a number, shape {tuple(batch)} (one time per sample) or {(*batch, 'k')} (per component)",
        given,
    )
    return t


class SDE(nn.Module, ABC):
    """``dy = f(t, y) dt + g(t, y) dw`` with diagonal noise, in torchsde's contract.

    A subclass needs `f` and `g` only. ``g`` acts elementwise, and its ``i``-th entry may depend
    on the ``i``-th component of the state (torchsde's ``"diagonal"``).

    Args:
        event_shape: Shape of one event; or give ``basis``.
        T: Time at which the prior holds.
        eps: First time that sampling and likelihood use.
        prior: Distribution of the state ``(n,)`` at ``T``, needed to sample and to evaluate
            likelihoods.
        basis: Coordinates of the state; the event itself, flattened, if not given.

    Raises:
        ValueError: If not ``0 <= eps < T``, or not one of ``event_shape`` and ``basis`` is given.

    Example:
        >>> import torch
        >>> from scoresde import SDE
        >>> class OrnsteinUhlenbeck(SDE):
        ...     def f(self, t, y): return -y
        ...     def g(self, t, y): return torch.full_like(y, 2**0.5)
        >>> OrnsteinUhlenbeck((3,)).f(torch.tensor(0.0), torch.ones(1, 3))
        tensor([[-1., -1., -1.]])
    """

    references = "anderson1982 song2021"

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(
        self,
        event_shape: Sequence[int] | None = None,
        *,
        T: float = 1.0,
        eps: float = 1e-3,
        prior: Distribution | None = None,
        basis: Basis | None = None,
    ) -> None:
        super().__init__()
        expect(
            (event_shape is None) != (basis is None),
            "event_shape, basis",
            "one of the two",
            (event_shape, basis),
        )
        real("eps", eps)
        real("T", T)
        expect(0 <= eps < T, "eps, T", "0 <= eps < T", (eps, T))
        self.basis = Identity(event_shape) if basis is None else basis  # type: ignore[arg-type]
        self.T, self.eps = T, eps
        if prior is not None:
            instance("prior", prior, Distribution)
        self.prior = prior

    @abstractmethod
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift at a time and a state ``(*batch, n)``, in the shape of the state."""

    @abstractmethod
    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion at a time and a state ``(*batch, n)``, in the shape of the state."""

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last time, in this equation's clock, at which it is asked: 0 to T."""
        return 0.0, self.T

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """`f`, so that ``torchdiffeq.odeint(sde, y, ts)`` runs, with times kept in `span`.

        Adaptive methods look past the ends of time and throw away what they find there, if it is
        finite: beyond its ends the equation goes on as it is at them.
        """
        return self.f(t.clamp(*self.span), y)

    def kernel(self, t: Tensor, dim: int | None = None) -> Kernel:
        """The law of the state at ``t`` given the one at 0, where it is Gaussian and known.

        Raises:
            NotImplementedError: If it is not: an estimator must then define ``score``.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no closed-form kernel: its score can be asked for, but "
            "no denoised mean, noise or velocity"
        )

    def time(self, t: Tensor | float, z: Tensor) -> Tensor:
        """Times aligned with a state (`align`), checked to be in range.

        Those on a device are not, as looking at them would wait for it.

        Raises:
            TypeError: If a state is no floating-point tensor, or a time no number.
            ValueError: If a time is not in ``[0, T]``, or a tensor's shape does not fit.
        """
        floating("z", z)
        n, length = self.basis.dim, z.shape[-1] if z.ndim else 0
        if not 0 < length <= n:  # asked at every step of a solver
            expect(False, "z", f"states (*batch, {n}), or the first of that many", tuple(z.shape))
        if isinstance(t, (float, int)):
            expect(0 <= t <= self.T, "t", f"a time from 0 to {self.T}", t)
        elif readable(t := numbers("t", t)) and t.numel():
            # NaN is the least, and the largest, of whatever it is among
            ends = [t.item()] if t.numel() == 1 else [v.item() for v in t.aminmax()]
            if not (ends[0] >= 0 and ends[-1] <= self.T * (1 + _ROUNDING)):
                expect(False, "t", f"times from 0 to {self.T}", " to ".join(map(str, ends)))
        return align(t, z)

    # What a solver sees.

    def propagator(self, t: Tensor, s: Tensor, like: Tensor) -> Propagator:
        """Coefficients of steps from ``t`` to ``s``.

        Args:
            t: Starts, ``(*, 1)``, in as many digits as there are.
            s: Ends, later.
            like: A state: the coefficients get its dtype and device.
        """
        h = (s - t).to(like)
        return Propagator(torch.ones_like(h), h, h, torch.zeros_like(h), h.sqrt())

    def forcing(self, t: Tensor, y: Tensor) -> Tensor:
        """The part ``F(t, y)`` that `Propagator` leaves to the solver: here the whole drift."""
        return self.f(t, y)

    def forcings(self, ts: Tensor, like: Tensor) -> Iterator[Forcing]:
        """`forcing` at each of the times ``(k,)``, for states like one given.

        What depends on times alone can be computed for all of them at once.
        """
        return (partial(self.forcing, t) for t in ts)

    def kick(self, t: Tensor, y: Tensor, xi: Tensor) -> Tensor:
        """What multiplies `Propagator.noise`, given standard normal numbers ``xi``."""
        return self.g(t, y) * xi

    def breakpoints(self) -> list[float]:
        """Times, in the SDE's own clock, at which its rates jump; increasing."""
        return []

    def select(self, rows: Tensor, batch: Sequence[int]) -> SDE:
        """The same equation of some samples only, for solvers that go on without the others.

        Args:
            rows: Their places in the flattened batch, ``(k,)``; a sample may come twice.
            batch: The batch so far.

        Returns:
            An equation of states ``(k, n)``; itself, if no part of it knows of single samples.
        """
        return select(self, rows, batch)

    @property
    def observed(self) -> Tensor:
        """Which components are known, whatever the state: ``(n,)``, none here."""
        device = next((b.device for b in self.buffers()), "cpu")
        return torch.zeros(self.basis.dim, dtype=torch.bool, device=device)

    # What runs back in time.

    def levels(self, t: Tensor) -> Tensor:
        """An increasing measure of noise, by which grids space their steps: here time itself.

        Args:
            t: Times, ``(*, 1)``.

        Returns:
            ``(*, 1 | blocks | n)``.
        """
        return t

    def level(self, t: Tensor) -> Tensor:
        """The `levels` that are finite, averaged over the blocks: ``(*,)``."""
        levels = self.levels(t)
        return self.basis.blocks.average(torch.where(levels.isinf(), torch.nan, levels))

    def stages(self) -> list[Stage]:
        """Which components are the state when, from ``T`` down: here all of them throughout."""
        return [Stage(self.T, self.eps, self.basis.dim)]

    def enter(self, z: Tensor, stage: Stage, noise: Noise) -> Tensor:
        """The state at the start of a stage, on the way from prior to data.

        Args:
            z: The state so far, ``(*batch, m)``; ``m`` is 0 at ``T``.
            stage: The stage: the components it has more are drawn, independent of the others.
            noise: Where random numbers come from.

        Returns:
            ``(*batch, stage.dim)``.

        Raises:
            ValueError: If the SDE has no prior.
        """
        like = z.new_empty(*z.shape[:-1], stage.dim - z.shape[-1])
        return torch.cat([z, noise.draw(self.law(stage.start, z.shape[-1], stage.dim), like)], -1)

    def leave(self, z: Tensor, stage: Stage, dim: int) -> tuple[Tensor, Tensor]:
        """What `enter` adds, taken off again, and its density.

        Returns:
            The first ``dim`` components ``(*batch, dim)``, and the log-density ``(*batch,)`` of
            the others at ``stage.start``.

        Raises:
            ValueError: If the SDE has no prior.
        """
        log_prob = self.law(stage.start, dim, stage.dim).log_prob(z[..., dim:]).to(z)
        return z[..., :dim], log_prob if log_prob.ndim < z.ndim else log_prob.sum(-1)

    def law(self, t: float, first: int, last: int) -> Distribution:
        """The law at ``t`` of the components that enter there: at ``T``, the prior.

        Raises:
            ValueError: If the SDE has no prior.
        """
        expect(
            self.prior is not None,
            "prior",
            f"the distribution of the state at T = {self.T} for {type(self).__name__}",
            None,
        )
        assert self.prior is not None
        return self.prior

    def reverse(
        self, estimator: ScoreEstimator, eta: float = 1.0, condition: Any = None
    ) -> ReverseSDE:
        """The equation from prior to data; see `scoresde.ReverseSDE`."""
        from scoresde.reverse import ReverseSDE

        return ReverseSDE(self, estimator, eta, condition)

    def probability_flow(self, estimator: ScoreEstimator, condition: Any = None) -> ProbabilityFlow:
        """The ODE with the same marginals, from data to prior; see `scoresde.ProbabilityFlow`."""
        from scoresde.reverse import ProbabilityFlow

        return ProbabilityFlow(self, estimator, condition)

    def marginal_drift(self, t: Tensor, z: Tensor, forcing: Tensor, eta: float) -> Tensor:
        """``f - (1 + eta^2)/2 (g^2 s + div g^2)``, from its `marginal_forcing`."""
        return forcing

    def marginal_score(self, t: Tensor, z: Tensor, forcing: Tensor) -> Tensor:
        """The score behind a `marginal_forcing` with ``eta = 0``: ``(2 (f - F) - div g^2)/g^2``.

        0 where nothing diffuses.
        """
        g2, pull_back = self._spread(t, z)
        pull = 2 * (self.f(t, z) - forcing) - pull_back(torch.ones_like(z))
        score: Tensor = pull / g2.masked_fill(g2 == 0, torch.inf)
        return score

    def marginal_propagator(self, t: Tensor, s: Tensor, like: Tensor, eta: float) -> Propagator:
        """`propagator` of `marginal_drift`, over times that may run either way."""
        h = (s - t).to(like)
        noise = eta * h.abs().sqrt() if eta else None
        return Propagator(torch.ones_like(h), h, h, torch.zeros_like(h), noise)

    def marginal_pace(self, t: Tensor, z: Tensor) -> Tensor:
        """How fast the ``h`` of `marginal_propagator` goes by in time, ``(*, 1 | n)``."""
        return torch.ones_like(align(t, z))

    def marginal_forcing(
        self, t: Tensor, z: Tensor, estimator: ScoreEstimator, eta: float, condition: Any
    ) -> Tensor:
        """`forcing` of `marginal_drift`: all of it, where no linear part is known."""
        g2, pull_back = self._spread(t, z)
        score = estimator.score(z, t, condition)
        pull: Tensor = g2 * score + pull_back(torch.ones_like(z))
        return self.f(t, z) - (1 + eta**2) / 2 * pull

    def _spread(self, t: Tensor, z: Tensor) -> tuple[Tensor, PullBack]:
        """``g^2``, and what pulls back through it: of ones, its divergence."""
        return vjp(lambda y: self.g(t, y) ** 2, z, self.parameters())

    def marginal_forcings(
        self, ts: Tensor, like: Tensor, estimator: ScoreEstimator, eta: float, condition: Any
    ) -> Iterator[Forcing]:
        """`marginal_forcing` at each of several times; see `forcings`."""

        def at(t: Tensor) -> Forcing:
            return lambda z: self.marginal_forcing(t, z, estimator, eta, condition)

        return map(at, ts)

    def marginal_kick(self, t: Tensor, z: Tensor, xi: Tensor) -> Tensor:
        """`kick` of `marginal_drift`."""
        return self.g(t, z) * xi
