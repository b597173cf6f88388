"""Stochastic differential equations that diffuse data.

    dy = f(t, y) dt + g(t, y) dw                             t from 0 (data) to T (prior)

An SDE of one's own needs ``f`` and ``g`` only. With a score ``s = grad log p_t`` it has equations
from prior to data (`scoresde.ReverseSDE`) with the same marginals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution
from typing_extensions import Self

from scoresde.bases import Basis, Identity
from scoresde.checks import expect, floating, instance, numbers, readable, real
from scoresde.equation import (
    Equation,
    align,
)
from scoresde.noise import Noise
from scoresde.sdes.clock import Clock
from scoresde.sdes.sde_coefficients import Kernel, PlainCoefficients, Score, SDECoefficients

Append = Callable[[Tensor, Noise], Tensor]
"""``(state, noise) -> state`` with the components of another stage."""


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


_ROUNDING = 2e-6
"""By how much a last time may be late that has been computed in float32."""


class SDE(Equation):
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

    linear = False
    """Whether there is a closed-form kernel: estimators are then asked for the denoised mean."""

    def __init__(
        self,
        event_shape: Sequence[int] | None = None,
        *,
        T: float = 1.0,
        eps: float = 1e-3,
        prior: Distribution | None = None,
        basis: Basis | None = None,
    ) -> None:
        expect(
            (event_shape is None) != (basis is None),
            "event_shape, basis",
            "one of the two",
            (event_shape, basis),
        )
        real("eps", eps)
        real("T", T)
        expect(0 <= eps < T, "eps, T", "0 <= eps < T", (eps, T))
        super().__init__(Identity(event_shape) if basis is None else basis, T, eps)  # type: ignore[arg-type]
        if prior is not None:
            instance("prior", prior, Distribution)
        self.prior = prior

    def at(self, t: Tensor, like: Tensor | None = None) -> SDECoefficients:
        """Coefficients at several times.

        Args:
            t: Times: see `scoresde.equation.Coefficients`.
            like: A state ``(*batch, m)``; one of all components in the times' dtype if None.
        """
        like = t.new_empty(self.basis.dim) if like is None else like
        return PlainCoefficients(self, t, like, self.layout(like.shape[-1]))

    def read(self, t: Tensor | float, z: Tensor) -> SDECoefficients:
        """`at` of one time, or of one per sample or component: ``(1, *)``, checked by `time`."""
        return self.at(self.time(t, z).unsqueeze(0), z)

    def kernel(self, t: Tensor, dim: int | None = None) -> Kernel:
        """The state's distribution at ``t`` given the one at 0, where it is Gaussian and known.

        Args:
            t: Times, ``(*, 1 | blocks | n)``.
            dim: Length of the prefix of the state, all of it if None.

        Raises:
            NotImplementedError: If it is not: an estimator must then define ``score``.
        """
        return self.at(t, None if dim is None else t.new_empty(dim)).kernel

    def time(self, t: Tensor | float, z: Tensor) -> Tensor:
        """Times aligned with a state (`align`), checked to be in range.

        Those on a device are not checked, as that would synchronise with it.

        Raises:
            TypeError: If a state is no floating-point tensor, or a time no number.
            ValueError: If a time is not in ``[0, T]``, or a tensor's shape does not fit.
        """
        floating("z", z)
        n, length = self.dim, z.shape[-1] if z.ndim else 0
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

    @property
    def observed(self) -> Tensor:
        """Which components are observed, ``(n,)``: none here."""
        device = next((b.device for b in self.buffers()), "cpu")
        return torch.zeros(self.basis.dim, dtype=torch.bool, device=device)

    def with_clock(self, clock: Clock) -> Self:
        """A view of the equation on another clock.

        Raises:
            TypeError: If it has none.
            ValueError: If the clock does not fit it.
        """
        raise TypeError(f"sde: expected one of components with clocks, got {type(self).__name__}")

    def score(
        self, estimator: Score, z: Tensor, t: Tensor | float, condition: Any = None
    ) -> Tensor:
        """``grad_z log p_t(z | condition)`` of states, by an estimator of this SDE."""
        return estimator.score(z, t, condition)

    def events(self, z: Tensor) -> Tensor:
        """The events of states ``(*batch, n)`` at time ``eps``."""
        return self.basis.inverse(z)

    def likelihood_flow(self, flow: Any) -> Any:
        """The flow for log-densities, from a `scoresde.ProbabilityFlow`: here the same."""
        return flow

    # What is the state when.

    def stages(self) -> list[Stage]:
        """The prefix of components that is the state, from ``T`` down: here always all of them."""
        return [Stage(self.T, self.eps, self.basis.dim)]

    def append(self, z: Tensor, stage: Stage, noise: Noise) -> Tensor:
        """The state at the start of a stage, on the way from prior to data.

        Args:
            z: The state so far, ``(*batch, m)``; ``m`` is 0 at ``T``.
            stage: The stage, whose new components are drawn, independent of the others.
            noise: Where random numbers come from.

        Returns:
            ``(*batch, stage.dim)``.

        Raises:
            ValueError: If the SDE has no prior.
        """
        return self.appender(z, stage)(z, noise)

    def appender(self, like: Tensor, stage: Stage) -> Append:
        """`append` for states like one given, with all prepared that does not depend on states."""
        first, last = like.shape[-1], stage.dim
        distribution = self.distribution(stage.start, first, last)

        def append(z: Tensor, noise: Noise) -> Tensor:
            fresh = noise.draw(distribution, z.new_empty(*z.shape[:-1], last - first))
            return torch.cat([z, fresh], -1)

        return append

    def marginalise(self, z: Tensor, stage: Stage, dim: int) -> tuple[Tensor, Tensor]:
        """Removes what `append` adds, and returns its density.

        Returns:
            The first ``dim`` components ``(*batch, dim)``, and the log-density ``(*batch,)`` of
            the others at ``stage.start``.

        Raises:
            ValueError: If the SDE has no prior.
        """
        log_prob = self.distribution(stage.start, dim, stage.dim).log_prob(z[..., dim:]).to(z)
        return z[..., :dim], log_prob if log_prob.ndim < z.ndim else log_prob.sum(-1)

    def distribution(self, t: float, first: int, last: int) -> Distribution:
        """The distribution at ``t`` of the components that are appended there: at ``T``, the prior.

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


def gaussian(mean: Tensor, sigma: Tensor) -> Append:
    """Appends ``mean + sigma xi``, of ``(*batch or none, k)`` and ``(k,)``."""

    def append(z: Tensor, noise: Noise) -> Tensor:
        fresh = noise(z.new_empty(*z.shape[:-1], sigma.shape[-1]))
        return torch.cat([z, torch.addcmul(mean, sigma, fresh)], -1)

    return append
