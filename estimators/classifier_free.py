"""Guidance by the condition that an estimator was trained with, without a classifier."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.checks import expect, instance, real
from scoresde.estimator import Denoiser, PlannedEstimator, ScoreEstimator, expect_estimator
from scoresde.noise import Generators, Noise
from scoresde.precision import device_of
from scoresde.sdes.sde_coefficients import SDECoefficients


class ClassifierFree(PlannedEstimator):
    """``D_w = D_0 + w (D_c - D_0)`` (Ho and Salimans 2022).

    ``D_c`` is the estimator's denoised mean for a condition, ``D_0`` that for none, and ``w`` the
    guidance: 0 is unconditional, 1 conditional, both to the last bit and by one evaluation of the
    network; larger values make samples fit the condition better, and vary less. In training the
    condition is replaced by ``none`` at random; samples without a condition are unconditional.

    Under much noise guidance reduces diversity, and under little it has hardly an effect: within an
    ``interval`` of noise levels it is better at both (Kynkaanniemi et al. 2024), and steps outside
    cost one evaluation.

    Args:
        estimator: Of data with a condition.
        null_condition: Stands for none, in the form of one condition: another label than the data
            have, or a vector or map that they do not; a tensor, a number or a list.
        guidance: ``w``.
        dropout: Probability of being trained without the condition.
        interval: Least and largest ``sigma / alpha``, in the schedule's units, between which there
            is guidance; elsewhere the answer is ``D_c``. Everywhere if None.

    Raises:
        TypeError: If the estimator or ``null_condition`` is of another type.
        ValueError: If a number is out of its range.

    Example:
        >>> import torch
        >>> from estimators import ClassifierFree
        >>> from scoresde import VP, DiagonalSDE, Identity, ScoreEstimator
        >>> class AsTold(ScoreEstimator):
        ...     def denoise(self, z, t, condition=None): return condition.expand_as(z)
        >>> model = AsTold(DiagonalSDE(VP(), Identity((1,))))
        >>> guided = ClassifierFree(model, null_condition=[0.0], guidance=3.0)
        >>> guided.denoise(torch.zeros(1, 1), 0.5, condition=torch.ones(1, 1))
        tensor([[3.]])
    """

    references = "ho2022 kynkaanniemi2024"
    supplied: ClassVar = {"null_condition": "null_condition"}
    laws: ClassVar = {"condition": lambda self, batch: torch.zeros(*batch, dtype=torch.int64)}

    null_condition: Tensor

    def __init__(
        self,
        estimator: ScoreEstimator,
        null_condition: Tensor | float | Sequence[float],
        *,
        guidance: float = 1.0,
        dropout: float = 0.1,
        interval: Sequence[float] | None = None,
    ) -> None:
        expect_estimator(estimator)
        super().__init__(estimator.sde)
        real("guidance", guidance, 0)
        real("dropout", dropout, 0, 1)
        self.estimator, self.guidance, self.dropout = estimator, guidance, dropout
        self.interval = None if interval is None else _interval(interval)
        null = _numbers(null_condition).to(device_of(estimator), copy=True)
        self.register_buffer("null_condition", null)

    def prepare(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """See `scoresde.estimator.PlannedEstimator`."""
        if condition is None:
            return self.estimator.denoisers(at, self._null(at.like))
        if self.guidance == 1:
            return self.estimator.denoisers(at, condition)
        unconditional = self.estimator.denoisers(at, self._null(at.like, condition))
        if self.guidance == 0 and self.interval is None:
            return unconditional
        conditional = self.estimator.denoisers(at, condition)
        return map(self._guided, conditional, unconditional, self._within(at))

    def _guided(
        self, conditional: Denoiser, unconditional: Denoiser, guided_here: Tensor | bool
    ) -> Denoiser:
        if guided_here is False:
            return conditional
        if guided_here is True and self.guidance == 0:
            return unconditional

        def denoise(z: Tensor) -> Tensor:
            told, untold = conditional(z), unconditional(z)
            guided = untold + self.guidance * (told - untold)
            return guided if guided_here is True else torch.where(guided_here, guided, told)

        return denoise

    def _within(self, at: SDECoefficients) -> Sequence[Tensor | bool]:
        """Whether there is guidance at each of the times, or at those of each sample."""
        if self.interval is None:
            return [True] * len(at.t)
        low, high = (math.log(value) if value else -math.inf for value in self.interval)
        guided_here = (low <= at.noise_level) & (at.noise_level <= high)
        if guided_here.ndim == 1 and guided_here.device.type == "cpu":
            return [bool(value) for value in guided_here]
        return [value.to(at.like.device).unsqueeze(-1) for value in guided_here]

    def _null(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """No condition for every sample."""
        if condition is None:
            return self.null_condition.expand(z.shape[:-1].numel(), *self.null_condition.shape)
        instance("condition", condition, Tensor)
        return self.null_condition.to(condition).expand_as(condition)

    def loss(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """The loss of the estimator, where some events have lost their condition.

        Raises:
            ValueError: If there is no condition to learn.
        """
        expect(condition is not None, "condition", "one for every event, to guide by", None)
        noise, null = Noise.of(generator), self._null(x, condition)
        if self.dropout:
            lost = noise.uniform(x.flatten(1)[:, :1]) < self.dropout
            condition = torch.where(lost.reshape(-1, *[1] * (null.ndim - 1)), null, condition)
        return self.estimator.loss(x, condition, noise)


def _numbers(value: Any) -> Tensor:
    try:
        return torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        wanted = "a tensor, a number or a list"
        raise TypeError(f"null_condition: expected {wanted}, got {value!r}") from error


def _interval(values: Sequence[float]) -> tuple[float, float]:
    wanted = "two numbers, least and largest sigma/alpha"
    good = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 2
    expect(good, "interval", wanted, repr(values))
    low, high = values
    real("interval", low, 0)
    if high != math.inf:
        real("interval", high, 0)
    expect(low < high, "interval", wanted, repr(values))
    return float(low), float(high)
