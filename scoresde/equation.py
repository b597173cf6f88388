"""Equations as solvers see them, and their coefficients at many times at once.

    dy = f(t, y) dt + g(t, y) dw

in torchsde's contract, and *semilinear*: over a step from ``t`` to ``s``

    y_s = decay y_t + gain <F> + noise,    <F> = int_0^h F e^(-k (h - u)) du / norm

where the linear part is known in closed form (`Propagator`); elsewhere ``decay = 1``,
``gain = h = s - t``, ``k = 0`` and ``F = f``. What depends on times alone is evaluated for many of
them at once, before any step is taken (`Coefficients`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.bases import Basis
from scoresde.blocks import Blocks
from scoresde.checks import expect, numbers
from scoresde.precision import cast_like, to_device
from scoresde.propagator import Propagator
from scoresde.selection import Selectable

Forcing = Callable[[Tensor], Tensor]
"""``F(t, .)`` at one time, with states ``(*batch, m)`` in and out."""


class Field(NamedTuple):
    """An equation at one time, as functions of states ``(*batch, m)``, in their shape.

    Attributes:
        forcing: The part of the drift that `Propagator` leaves to the solver.
        increment: From a state and standard normal numbers to the factor of ``noise_std``.
        drift: See `Equation.f`.
        diffusion: See `Equation.g`.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> at = DiagonalSDE(EDM(), Identity((2,))).at(torch.tensor([[2.0]]), torch.zeros(1, 2))
        >>> field = next(at.fields())
        >>> field.drift(torch.ones(1, 2)), field.diffusion(torch.ones(1, 2))  # 0 and sqrt(2 t)
        (tensor([[0., 0.]]), tensor([[2., 2.]]))
    """

    forcing: Forcing
    increment: Callable[[Tensor, Tensor], Tensor]
    drift: Forcing
    diffusion: Forcing


class Coefficients(ABC):
    """Coefficients of an equation at several times, for any state.

    Coefficients along the component axis are ``(k, *, 1 | blocks | m)``, for the ``m`` components
    of a state and their blocks.

    Args:
        t: The times, ``(k, 1)``, or ``(k, *batch, 1 | blocks | n)`` for samples or components
            with times of their own, in float64 where the device has it.
        like: A state ``(*batch, m)``: factors of states get its dtype and device.
        blocks: The layout of such a state.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> at = DiagonalSDE(EDM(), Identity((2,))).at(torch.tensor([[1.0], [2.0]]))
        >>> at[1:].t, len(list(at.fields()))
        (tensor([[2.]]), 2)
    """

    def __init__(self, t: Tensor, like: Tensor, blocks: Blocks) -> None:
        self.t, self.like, self.blocks = t, like, blocks

    @abstractmethod
    def __getitem__(self, index: Any) -> Self:
        """The coefficients at some of the times, by an index of the first axis."""

    @property
    @abstractmethod
    def noise_level(self) -> Tensor:
        """A measure of noise that increases with time, by which grids space steps: ``(k, *)``."""

    @abstractmethod
    def propagator(self, end: Self) -> Propagator:
        """Coefficients of steps from these times to others, later in the equation's clock.

        In the dtype of the times, and ``(k, *, 1 | blocks | m)``; see `cast`.
        """

    @abstractmethod
    def fields(self) -> Iterator[Field]:
        """The equation at each of the times."""

    @property
    def times(self) -> list[Tensor]:
        """The times one by one, aligned with states; a number where all samples share it."""
        return [
            t.reshape(()) if t.numel() == 1 else t for t in cast_like(self.t, self.like).unbind()
        ]

    def cast(self, value: Tensor) -> Tensor:
        """A coefficient ``(*, 1 | blocks | m)`` as a factor of states: ``(*, 1 | m)``."""
        return self.blocks.expand(cast_like(value, self.like))

    def together(self, *values: Tensor) -> list[Tensor]:
        """Several coefficients, see `cast`, in one copy to the device."""
        if all(v.device == self.like.device for v in values):
            return [self.cast(v) for v in values]
        parts = cast_like(torch.cat([v.reshape(-1) for v in values]), self.like)
        split = parts.split([v.numel() for v in values])
        return [self.blocks.expand(p.view(v.shape)) for p, v in zip(split, values, strict=True)]

    def each(self, *values: Tensor) -> list[Sequence[Tensor]]:
        """Coefficients ``(k, *, 1 | blocks | m)`` time by time, as factors of states."""
        return [value.unbind() for value in self.together(*values)]


def align(t: Tensor | float, z: Tensor) -> Tensor:
    """Times with a component axis, which broadcast against a state.

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
        >>> from scoresde.equation import align
        >>> align(0.5, torch.zeros(3, 2)).shape, align(torch.rand(3), torch.zeros(3, 2)).shape
        (torch.Size([1]), torch.Size([3, 1]))
    """
    dtype = t.dtype if isinstance(t, Tensor) and t.is_floating_point() else z.dtype
    dtype = torch.promote_types(dtype, torch.float32)  # numbers have as many digits as the state
    t = t if isinstance(t, (float, int)) else numbers("t", t)
    if isinstance(t, Tensor):
        t = to_device(t.to(dtype), z.device)
    else:
        t = torch.full((), t, dtype=dtype, device=z.device)  # no copy, for which one would wait
    shape = tuple(t.shape)
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
        shape,
    )
    return t


class Equation(Selectable, ABC):
    """``dy = f(t, y) dt + g(t, y) dw`` with diagonal noise, as solvers see it.

    ``torchsde.sdeint(equation, y, ts)`` and ``torchdiffeq.odeint(equation, y, ts)`` take it. An
    `SDE`, its `ReverseSDE`, its `ProbabilityFlow`, and the flow that carries a density along are
    equations.

    Args:
        basis: Coordinates of the state.
        T: The last time of its SDE.
        eps: The first time that sampling and likelihood use.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity, ProbabilityFlow
        >>> from scoresde.equation import Equation
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> equations: list[Equation] = [model.sde, ProbabilityFlow(model)]
        >>> [equation.stochastic for equation in equations]
        [True, False]
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, basis: Basis, T: float, eps: float) -> None:
        super().__init__()
        self.basis, self.T, self.eps = basis, T, eps

    @property
    def stochastic(self) -> bool:
        """Whether there may be noise; False for an ODE."""
        return True

    @property
    def copies(self) -> int:
        """Number of entries of a state for every component of data."""
        return 1

    @property
    def dim(self) -> int:
        """Number of components of a state."""
        return self.copies * self.basis.dim

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last time, in this equation's clock."""
        return 0.0, self.T

    @abstractmethod
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift at a time and a state ``(*batch, n)``, in the shape of the state."""

    @abstractmethod
    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion at a time and a state ``(*batch, n)``, in the shape of the state."""

    @abstractmethod
    def at(self, t: Tensor, like: Tensor) -> Coefficients:
        """Coefficients at several times.

        Args:
            t: Times in this equation's clock, ``(k, 1)`` or as `Coefficients` says.
            like: A state ``(*batch, m)``; ``m`` below ``n`` is a prefix of the components.
        """

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """`f`, so that ``torchdiffeq.odeint(equation, y, ts)`` runs, with times clamped to `span`.

        Adaptive methods evaluate beyond the ends, and discard the values if they are finite.
        """
        return self.f(t.clamp(*self.span), y)

    def field(self, t: Tensor, y: Tensor) -> Field:
        """The equation at one time, or at one per sample, for states like ``y``."""
        return next(self.at(align(t, y).unsqueeze(0), y).fields())

    def layout(self, dim: int) -> Blocks:
        """The blocks of a state with so many components."""
        return self.basis.blocks.prefix(dim)

    def breakpoints(self) -> list[float]:
        """Times, in this equation's clock, at which its rates jump; increasing."""
        return []


def expect_ode(equation: Equation, solver: str) -> None:
    """Raises ``ValueError`` if an equation has noise."""
    expect(not equation.stochastic, "eta", f"0: {solver} takes ODEs", "an SDE with noise")


class AugmentedEquation(Equation):
    """An equation whose state has integrals beside it, for `scoresde.Solver.transport`."""

    @abstractmethod
    def start(self, z: Tensor) -> Tensor:
        """The state at a ``z``, with integrals of 0."""

    @abstractmethod
    def split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and the integrals."""
