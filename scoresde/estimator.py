"""What learns or knows a score.

One question is asked of an estimator: the denoised mean ``D(z_t, t) = E[z_0 | z_t, condition]``.
Score, noise and velocity are conversions of it. For an SDE without a closed-form kernel the
question is the score instead. An estimator of one's own overrides either.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scoresde import parametrization
from scoresde.checks import instance
from scoresde.conditioning.observation import Observation, observing
from scoresde.noise import Generators
from scoresde.parametrization import Affine
from scoresde.sde import SDE
from scoresde.selection import broadcast, select
from scoresde.wrappers import matched, unwrapped

if TYPE_CHECKING:
    from scoresde.conditioning import ConditionalEstimator

Denoiser = Callable[[Tensor], Tensor]
"""``z_t -> E[z_0 | z_t]`` at one time, with states ``(*batch, n)`` in and out."""


class ScoreEstimator(nn.Module, ABC):
    """The score of diffused data, asked as a denoised mean.

    Subclasses override `denoise` or `score`. States are coefficients ``(*batch, n)`` in the
    SDE's basis; times are as in `scoresde.sde.align`.

    Args:
        sde: How data are diffused.

    Raises:
        TypeError: If ``sde`` is none; on subclassing, if neither method is there.

    Example:
        >>> import torch
        >>> from scoresde import VP, DiagonalSDE, Identity, ScoreEstimator
        >>> class PointMassAtZero(ScoreEstimator):
        ...     def denoise(self, z, t, condition=None): return torch.zeros_like(z)
        >>> model = PointMassAtZero(DiagonalSDE(VP(), Identity((2,))))
        >>> model.noise(torch.ones(1, 2), 1.0).round(decimals=2)
        tensor([[1., 1.]])
    """

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        instance("sde", sde, SDE)
        self.sde = sde

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "denoise" in vars(cls) and "denoisers" not in vars(cls):
            # a parent's would go past the new method
            cls.denoisers = ScoreEstimator.denoisers  # type: ignore[method-assign]
        if cls.denoise is ScoreEstimator.denoise and cls.score is ScoreEstimator.score:
            raise TypeError(f"{cls.__name__}: expected a denoise or a score method, got neither")

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``E[z_0 | z_t, condition]``, by Tweedie's formula if only the score is known.

        Args:
            z: Diffused states, ``(*batch, n)``.
            t: Their times.
            condition: What the estimator is conditioned on, if anything.

        Returns:
            ``(*batch, n)``.
        """
        score = self.score(z, self._asked(z, t), condition)
        return parametrization.denoise(self._form("score", z, t), z, score)

    def denoisers(self, ts: Tensor, like: Tensor, condition: Any = None) -> Iterator[Denoiser]:
        """`denoise` at each of several times, for solvers that know theirs beforehand.

        Override it where what depends on times alone is worth computing for all of them at once.

        Args:
            ts: Times, ``(k,)``.
            like: A state like those to come: ``(*batch, n)``.
            condition: What the estimator is conditioned on.
        """
        return (partial(self.denoise, t=t, condition=condition) for t in ts)

    def select(self, rows: Tensor, batch: Sequence[int]) -> ScoreEstimator:
        """The same estimator of some samples only; see `scoresde.SDE.select`.

        Estimators that know something of every sample override it, and ``batch_shape``; the others
        ask the SDE and the estimators that they are made of.
        """
        return select(self, rows, batch)

    @property
    def batch_shape(self) -> torch.Size:
        """The batch of what is known of single samples, by parts: empty if there is no such thing.

        Samples have it as their last batch axes.
        """
        parts = [m for m in self.modules() if m is not self]
        known = [m.batch_shape for m in parts if isinstance(m, Observation | ScoreEstimator)]
        return broadcast("batch_shape", *known)

    def states(self, x: Tensor) -> Tensor:
        """Coefficients of events, of as many as there are samples of which something is known.

        Args:
            x: ``(*batch, *event_shape)``.

        Returns:
            ``(*batch, n)``, where ``batch`` is that of ``x`` and ``batch_shape``, broadcast.

        Raises:
            TypeError: If ``x`` is not a floating-point tensor.
            ValueError: If it has the wrong shape.
        """
        z: Tensor = self.sde.basis(x)
        return z.expand(*broadcast("x", z.shape[:-1], self.batch_shape), -1)

    def condition(self, *, held: bool = False, **observed: Tensor) -> ConditionalEstimator:
        """``p(rest | observed)``: the estimator of what is not observed, given what is.

        Args:
            held: Whether observed components are kept clean while others diffuse, whatever
                their speed: for estimators trained with vector time, and exact ones.
            observed: Parts of the SDE's `scoresde.Joint` basis, ``(*batch, *part_shape)``.

        Returns:
            An estimator whose events are the other parts; its samples, with ``batch`` as last
            batch axes, are from the conditional distribution.

        Raises:
            TypeError: If the SDE is not a `scoresde.DiagonalSDE` with a `scoresde.Joint` basis.
            ValueError: If a name is unknown, or a shape is wrong.
        """
        from scoresde.conditioning import ConditionalEstimator

        known, rest = observing(self.sde.basis, observed)
        return ConditionalEstimator(self, known, held, rest)

    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``grad_z log p_t(z | condition) = (alpha D - z)/sigma^2``.

        0 where there is no noise, as all of these: see `scoresde.parametrization`.
        """
        return self._predict("score", z, t, condition)

    def noise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``E[eps | z_t] = (z - alpha D)/sigma = -sigma s``; 0 where there is no noise."""
        return self._predict("noise", z, t, condition)

    def velocity(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """``alpha E[eps | z_t] - sigma D``; 0 where there is no noise."""
        return self._predict("velocity", z, t, condition)

    def loss(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """A scalar to minimise, from a batch of events ``(batch, *event_shape)``.

        Raises:
            NotImplementedError: If the estimator has nothing to learn.
        """
        raise NotImplementedError(f"{type(self).__name__} knows its score: nothing to train")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # weights of a network that is compiled or wrapped, into one that is not, and back
        own = {f"{prefix}{name}" for name in self.state_dict()}
        found = {name: state_dict.pop(name) for name in [*state_dict] if name.startswith(prefix)}
        state_dict.update(matched(found, own))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _predict(self, name: str, z: Tensor, t: Tensor | float, condition: Any) -> Tensor:
        mean = self.denoise(z, self._asked(z, t), condition)
        return parametrization.predict(self._form(name, z, t), z, mean)

    def _form(self, name: str, z: Tensor, t: Tensor | float) -> Affine:
        alpha, sigma = self.sde.kernel(self.sde.time(t, z), z.shape[-1])
        form = parametrization.affine(parametrization.parametrization(name), alpha, sigma)
        return Affine(form.skip.to(z), form.out.to(z))

    def _asked(self, z: Tensor, t: Tensor | float) -> Tensor | float:
        """The times, ``eps`` for states without any noise.

        Whatever is answered there is not used, but it has to be differentiable.
        """
        times = self.sde.time(t, z)
        still = (self.sde.kernel(times, z.shape[-1]).sigma == 0).all(-1)
        if not isinstance(t, Tensor):
            return self.sde.eps if t == 0 else t
        return torch.where(still.unsqueeze(-1) if t.ndim == z.ndim else still, self.sde.eps, t)


def expect_estimator(value: object) -> None:
    """Raises ``TypeError`` unless a value is a `ScoreEstimator`, whatever runs it.

    Example:
        >>> from scoresde.estimator import expect_estimator
        >>> expect_estimator((4,))
        Traceback (most recent call last):
            ...
        TypeError: estimator: expected a ScoreEstimator, got (4,)
    """
    module = unwrapped(value) if isinstance(value, nn.Module) else value
    instance("estimator", module, ScoreEstimator)
