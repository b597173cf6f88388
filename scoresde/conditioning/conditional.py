"""Conditional diffusion: observed components are pinned.

Every conditional method is one setting of a joint diffusion over all components (Batzolis et
al. 2022, section 4): the observed ones diffuse like the others (CDiffE), more slowly (CMDE) or
not at all (CDE), and on the way back their denoised mean is what was observed. Nothing else
changes, so every solver runs: with ``eta = 1`` the exponential ones then draw observed
components from the bridge between prior and observation, with ``eta = 0`` they keep one noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import attrs
import torch
from torch import Tensor
from torch.distributions import Normal
from typing_extensions import Self

from scoresde.bases import Basis, Joint
from scoresde.checks import expect
from scoresde.conditioning.observation import ConditionedBasis, Observation, observing
from scoresde.conditioning.speeds import SlowedClock
from scoresde.estimator import Denoiser, ScoreEstimator
from scoresde.noise import Noise
from scoresde.precision import cast_like, expect_near
from scoresde.reverse import ReverseSDE
from scoresde.sdes.clock import Clock
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.diagonal_coefficients import DiagonalCoefficients
from scoresde.sdes.sde import Append, Stage, gaussian
from scoresde.sdes.sde_coefficients import SDECoefficients


class ConditionalSDE(DiagonalSDE):
    """A diffusion given some components of its data.

    It starts with observed components ``alpha_T y + sigma_T xi`` and others from the prior.

    Args:
        sde: The joint diffusion, which may be conditioned already. Of a `scoresde.PhaseSDE` the
            data alone diffuse here, at its schedule: velocities have no part in what is known.
        observation: What is known.
        clean: Whether observed components are kept from diffusing, whatever their speed.
        rest: See `ConditionedBasis`.

    Raises:
        ValueError: If the SDE has a prior of its own, or drops components that are observed and do
            not diffuse.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Joint
        >>> from scoresde.conditioning import ConditionalSDE, Observation
        >>> joint = Joint(y=(1,), x=(2,))
        >>> seen = Observation.of_parts(joint, {"y": torch.ones(1)})
        >>> sde = ConditionalSDE(DiagonalSDE(VP(), joint), seen, clean=True)
        >>> sde.kernel(torch.tensor([[0.5]])).sigma[0] == 0
        tensor([ True, False, False])
    """

    def __init__(
        self,
        sde: DiagonalSDE,
        observation: Observation,
        clean: bool = False,
        rest: Basis | None = None,
    ) -> None:
        clock = sde.clock.per_component(sde.blocks) if clean else sde.clock
        basis = ConditionedBasis(sde.basis, observation, rest)
        observed = basis.observation.mask
        super().__init__(
            sde.schedule,
            basis,
            SlowedClock(clock, (~observed).double()) if clean else clock,
            sde.scale,
            sde.drop,
            mean=sde.mean,
            std=sde.std,
        )
        expect(sde.prior is None, "prior", "none: observed components need the kernel", sde.prior)
        sigma = self.kernel(self.scale.new_full((1,), self.T)).sigma.expand(self.blocks.dim)
        late = self.blocks.expand(torch.tensor(self.drop, device=sigma.device)) < self.T
        blind = int((late & observed & (sigma == 0)).sum())
        wanted = "that the state has from T on: what is clean says nothing before it enters"
        expect(blind == 0, "observed", f"components {wanted}", f"{blind} dropped before")

    basis: ConditionedBasis

    def with_clock(self, clock: Clock) -> Self:
        """None: which components are clean is known to the estimator, see there."""
        raise TypeError(
            "sde: expected a joint one, got one that is conditioned: see the estimator's with_clock"
        )

    @property
    def observation(self) -> Observation:
        """All observed components, those of the given SDE included."""
        return self.basis.observation

    @property
    def observed(self) -> Tensor:
        """The observation's mask."""
        return self.observation.mask

    def _observed_on_cpu(self) -> Tensor:
        return self.observation.mask.cpu()

    def observe(self, z: Tensor, t: Tensor, xi: Tensor) -> Tensor:
        """A state with its observed components replaced by ``alpha y + sigma xi``."""
        return torch.where(
            self.observation.mask[: z.shape[-1]],
            self.diffuse(self.observation.values[..., : z.shape[-1]].to(z), t, xi),
            z,
        )

    def appender(self, like: Tensor, stage: Stage) -> Append:
        """See the class."""
        first, last = like.shape[-1], stage.dim
        known = self._at_entry(stage.start, first, last)
        alpha, sigma, mean, std = cast_like(torch.stack(known), like)
        mean = self.observation.pin(mean, first)
        std = torch.where(self.observation.mask[first:last], sigma, std)
        return gaussian(alpha * mean, std)

    def marginalise(self, z: Tensor, stage: Stage, dim: int) -> tuple[Tensor, Tensor]:
        """As `scoresde.SDE.marginalise`, of the components that are not observed.

        Raises:
            ValueError: If observed components diffuse: then there is no density.
        """
        mean, sigma = (cast_like(v, z) for v in self.moments(stage.start, dim, stage.dim))
        unobserved = self.unobserved()[dim : stage.dim]
        sigma = sigma.masked_fill(~unobserved, 1.0)
        each = Normal(mean, sigma, validate_args=False).log_prob(z[..., dim:])
        return z[..., :dim], each.masked_fill(~unobserved, 0.0).sum(-1)


class ConditionalEstimator(ScoreEstimator):
    """``p(rest | observed)`` from an estimator of both: observed components are pinned.

    The joint estimator sees observed components diffused as by its SDE, and its denoised means of
    them are replaced by their values. Made by `scoresde.condition`.

    Args:
        joint: Estimates the denoised mean of all components.
        observation: What is known.
        clean: Whether observed components are kept clean, at time 0, while others diffuse: for
            estimators trained so (vector time), and exact ones.
        rest: See `ConditionedBasis`.

    Raises:
        TypeError: If the SDE of ``joint`` is not a `scoresde.DiagonalSDE`.
        ValueError: If it has a prior of its own, or drops components that are observed and do not
            diffuse; if nothing is left to estimate, or a component is observed twice.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Joint, condition, log_prob
        >>> covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
        >>> model = Gaussian(DiagonalSDE(VP(), Joint(y=(1,), x=(1,))), torch.zeros(2), covariance)
        >>> posterior = condition(model, clean=True, y=torch.ones(1))  # N(0.8, 0.36)
        >>> log_prob(posterior, torch.tensor([[0.8]])).value.round(decimals=2)
        tensor([-0.4100])
    """

    references = "batzolis2022"

    def __init__(
        self,
        joint: ScoreEstimator,
        observation: Observation,
        clean: bool = False,
        rest: Basis | None = None,
    ) -> None:
        sde = joint.sde
        if not isinstance(sde, DiagonalSDE):
            raise TypeError(f"joint: expected the estimator of a DiagonalSDE, got {type(sde)}")
        super().__init__(ConditionalSDE(sde, observation, clean, rest))
        self.joint, self.clean = joint, clean

    sde: ConditionalSDE

    @property
    def observation(self) -> Observation:
        """All observed components, those of the joint estimator included."""
        return self.sde.observation

    def with_clock(self, clock: Clock) -> Self:
        """The same conditional of the joint estimator on another clock."""
        mask = self.observation.mask & ~self.joint.sde.observed
        own = Observation(mask, self.observation.values)
        return type(self)(self.joint.with_clock(clock), own, self.clean, self.sde.basis.rest)

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """See the class."""
        if self.clean:
            (t,) = self._pinned_times(self.sde.time(t, z).unsqueeze(0), z)
        return self.observation.pin(self.joint.denoise(z, t, condition))

    def denoisers(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """The denoisers of the joint estimator, at its own times if components are clean."""
        if self.clean:
            # clean for both SDEs, and all others as noisy: nothing is read again
            at = cast(DiagonalCoefficients, at).renamed(self._pinned_times(at.t, at.like))

        def pinned(joint: Denoiser, z: Tensor) -> Tensor:
            return self.observation.pin(joint(z))

        return map(partial(partial, pinned), self.joint.denoisers(at, condition))

    def _pinned_times(self, t: Tensor, z: Tensor) -> Tensor:
        """Times ``(k, *, 1 | blocks | n)``, at 0 for what is known: ``(k, *batch or 1s, n)``.

        Of all components, also where the state is a prefix of them: so kernels want it. Where times
        are, not where states are.
        """
        running = cast(SlowedClock, self.sde.clock).factors(t)
        times = self.sde.basis.blocks.expand(t) * running
        return times.reshape(len(t), *[1] * (z.ndim + 1 - times.ndim), *times.shape[1:])


def condition(
    estimator: ScoreEstimator, *, clean: bool = False, **observed: Tensor
) -> ConditionalEstimator:
    """``p(rest | observed)``: the estimator of what is not observed, given what is.

    Args:
        estimator: Of all parts.
        clean: Whether observed components are kept clean while others diffuse, whatever
            their speed: for estimators trained with vector time, and exact ones.
        observed: Parts of the SDE's `scoresde.Joint` basis, ``(*batch, *part_shape)``.

    Returns:
        An estimator whose events are the other parts; its samples, with ``batch`` as last
        batch axes, are from the conditional distribution.

    Raises:
        TypeError: If the SDE is not a `scoresde.DiagonalSDE` with a `scoresde.Joint` basis.
        ValueError: If a name is unknown, a shape is wrong, or a part is on a device where the
            estimator is not.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Joint, condition
        >>> covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
        >>> model = Gaussian(DiagonalSDE(VP(), Joint(y=(1,), x=(1,))), torch.zeros(2), covariance)
        >>> condition(model, clean=True, y=torch.ones(1)).sde.basis.event_shape
        torch.Size([1])
    """
    for name, value in observed.items():
        expect_near(name, value, estimator)
    observation, rest = observing(estimator.sde.basis, observed)
    return ConditionalEstimator(estimator, observation, clean, rest)


def split_events(
    estimator: ScoreEstimator, given: Sequence[str], x: Tensor
) -> tuple[ScoreEstimator, Tensor]:
    """``p(rest | given)`` of events with parts, and the rest of them; as they are if none is given.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Joint
        >>> from scoresde.conditioning import split_events
        >>> sde = DiagonalSDE(VP(), Joint(y=(1,), x=(2,)), speeds=[0.0, 1.0])
        >>> model = Gaussian(sde, torch.zeros(3), torch.eye(3))
        >>> split_events(model, ["y"], torch.arange(6.0).reshape(2, 3))[1]
        tensor([[1., 2.],
                [4., 5.]])
    """
    joint = estimator.sde.basis
    if not given or not isinstance(joint, Joint):
        return estimator, x
    parts = joint.split(x)
    posterior = condition(estimator, clean=False, **{name: parts.pop(name) for name in given})
    rest = joint.without(given)
    return posterior, rest.join(**parts) if isinstance(rest, Joint) else next(iter(parts.values()))


@attrs.frozen
class ResampleObserved:
    """A corrector that draws observed components again after every step.

    ``y_t = alpha y + sigma xi`` with a fresh ``xi``, instead of one path of the bridge, as in
    Batzolis et al. 2022, section 4.3. For conditioned estimators.

    Example:
        >>> from scoresde.conditioning import ResampleObserved
        >>> from solvers import DDIM
        >>> DDIM(50, eta=1.0, corrector=ResampleObserved()).corrector
        ResampleObserved()
    """

    references = "batzolis2022"

    def __call__(self, reverse: ReverseSDE, z: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """The state ``z`` at a time ``t`` of the SDE itself.

        Raises:
            TypeError: If nothing is observed.
        """
        sde = reverse.sde
        if not isinstance(sde, ConditionalSDE):
            raise TypeError(f"corrector: expected a conditioned SDE to redraw, got {type(sde)}")
        return sde.observe(z, t.to(z.device), noise(z))
