"""Observations of events, ``y ~ p(y | A(x))``: an operator, its noise, and numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from estimators.observation_noise import noise_model, noise_of
from scoresde.checks import expect, finite, instance
from scoresde.internals.derivatives import vjp
from scoresde.internals.messages import describe_error, warn
from scoresde.precision import shallow_copy
from scoresde.selection import Selectable, per_sample, samples

Operator = Callable[[Tensor], Tensor]
"""Of events ``(batch, *event_shape)``, to what is seen but for noise, ``(batch, *shape)``; or an
object with such a method ``A``, as deepinv's physics have."""


class Measurement(Selectable):
    """An observation, the operator that made it, and the noise.

    Operators see events with one batch axis, as networks do; modules in the dtype of their own
    numbers, functions in that of the events, or of ``y`` if they take no other.

    Args:
        operator: See `Operator`.
        y: The observation, ``(*batch, *shape)``.
        noise: See `estimators.observation_noise.noise_of`; that of the operator if None.
        like: An event, ``event_shape``, on the device and in the dtype of those to come.

    Raises:
        TypeError: If an argument is of another kind, or numbers are complex.
        ValueError: If ``y`` is not finite or none of what noise gives, or the operator's output has
            another shape or no derivatives.

    Example:
        >>> import torch
        >>> from estimators.measurement import Measurement
        >>> seen = Measurement(torch.nn.Flatten(), torch.zeros(4), 0.1, torch.zeros(1, 2, 2))
        >>> seen(torch.ones(3, 5, 1, 2, 2)).shape, seen.batch_shape
        (torch.Size([3, 5, 4]), torch.Size([]))
    """

    y: Tensor
    dtype: torch.dtype | None

    def __init__(self, operator: Any, y: Tensor, noise: Any, like: Tensor) -> None:
        super().__init__()
        apply = _applied(operator)
        instance("operator", apply, Callable)  # type: ignore[arg-type]
        _expect_real("y", y)
        finite("y", y)
        self.operator, self.event_axes, self.dtype = operator, like.ndim, None
        seen = self._probe(like, y)
        shape = seen.shape
        axes = len(shape) - 1
        got = f"{tuple(shape[1:])} of {tuple(like.shape)}"
        expect(shape[:1] == (1,) and axes > 0, "operator", "one from events to (batch, ...)", got)
        trailing = y.shape[-axes:]
        wanted = f"one to what y has, (batch, {', '.join(map(str, trailing))})"
        expect(y.ndim >= axes and shape[1:] == trailing, "operator", wanted, got)
        self.shape, unit = trailing, 1.0
        if noise is None:
            noise, unit = noise_model(getattr(operator, "noise_model", None))
        self.noise = noise_of(noise, trailing)
        self.register_buffer("y", y.reshape(*y.shape[:-axes], trailing.numel()) / unit)
        self.noise.expect_possible(self.y, seen.flatten(1))

    @property
    def batch_shape(self) -> torch.Size:
        """The batch of ``y``."""
        return self.y.shape[:-1]

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """The observations of some samples."""
        return shallow_copy(self, y=samples(per_sample("y", self.y, batch), rows, batch))

    def forward(self, x: Tensor) -> Tensor:
        """``A(x)`` of events ``(*batch, *event_shape)``, flattened to ``(*batch, m)``."""
        batch = x.shape[: x.ndim - self.event_axes]
        seen = self._apply_to(x.reshape(batch.numel(), *x.shape[len(batch) :]))
        return seen.reshape(*batch, self.shape.numel())

    def _apply_to(self, x: Tensor) -> Tensor:
        kind = _dtype(self.operator, self.dtype or x.dtype)
        seen: Tensor = _applied(self.operator)(x.to(kind))
        _expect_real("operator(x)", seen)
        return seen.to(x.dtype)

    def _probe(self, like: Tensor, y: Tensor) -> Tensor:
        """What is seen of an event from 1 to -1: of 0, squares have no derivative."""

        def seen(x: Tensor) -> Tensor:
            value = self._apply_to(x)
            wanted = "one that can be differentiated"
            expect(value.requires_grad, "operator", wanted, "one without gradients")
            return value

        with torch.inference_mode(False):
            event = torch.linspace(1, -1, like.numel()).to(like).reshape(1, *like.shape)
        try:
            value, pull_back = vjp(seen, event, self.parameters())
        except RuntimeError:  # of numbers of another dtype, torch has no kind of its own
            self.dtype = y.dtype if y.is_floating_point() else None
            try:
                value, pull_back = vjp(seen, event, self.parameters())
            except RuntimeError as error:  # as of what NumPy is to do
                wanted = f"a function of events {tuple(like.shape)} that torch can differentiate"
                got = describe_error(error)
                raise ValueError(f"operator: expected {wanted}, got: {got}") from error
        if not pull_back(torch.linspace(1, 2, value.numel()).to(value).view_as(value)).any():
            warn(
                "operator: expected an output that changes with the event, got derivatives of 0, "
                "by which observations say nothing (a straight-through estimator of roundings?)"
            )
        shown: Tensor = value.detach()
        return shown

    def log_evidence(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """``log p(y)`` where ``A(x)`` is Gaussian, one number after the other.

        Assumed density filtering (Opper 1998): after each number, ``A(x)`` is approximated by a
        Gaussian with its new moments. Exact for Gaussian noise.

        Args:
            mean: ``(*batch, m)``.
            covariance: ``(*batch, m, m)``.

        Returns:
            ``(*batch,)``, differentiable in both.
        """
        y, total = self.y.to(mean), mean.new_zeros(())
        for i in range(y.shape[-1]):
            column = covariance[..., i]
            evidence = self.noise.evidence(y[..., i], i, mean, column[..., i])
            mean = mean + column * evidence.slope.unsqueeze(-1)
            moved = column.unsqueeze(-1) * column.unsqueeze(-2)
            covariance = covariance + moved * evidence.curvature[..., None, None]
            total = total + evidence.value
        return total


def _applied(operator: Any) -> Any:
    """Deepinv's physics add noise where they are called; ``A`` is what they do without."""
    method = getattr(operator, "A", None)
    return method if callable(method) else operator


def _dtype(operator: Any, default: torch.dtype) -> torch.dtype:
    """The dtype of a module's numbers, which need not be weights."""
    if not isinstance(operator, nn.Module):
        return default
    own = itertools.chain(operator.parameters(), operator.buffers())
    return next((v.dtype for v in own if v.is_floating_point()), default)


def _expect_real(name: str, value: Any) -> None:
    instance(name, value, Tensor)
    if value.is_complex():
        wanted = "real numbers (torch.view_as_real makes pairs of complex ones)"
        raise TypeError(f"{name}: expected {wanted}, got {value.dtype}")
