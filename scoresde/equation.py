"""What solvers integrate: an equation, and everything that follows from times alone.

    dy = f(t, y) dt + g(t, y) dw

in torchsde's contract. Solvers see it as *semilinear*: over a step from ``t`` to ``s``

    y_s = decay y_t + gain <F> + noise,    <F> = int_0^h F e^(-k (h - u)) du / norm

where an equation that knows its linear part in closed form says so (`Propagator`), and one that
does not leaves ``decay = 1``, ``gain = h = s - t``, ``k = 0`` and ``F = f``. What depends on times
alone is read for many of them at once, before any step is taken (`Coefficients`).
"""

from __future__ import annotations

import math
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
from scoresde.selection import Selectable

Forcing = Callable[[Tensor], Tensor]
"""``F(t, .)`` at one time, with states ``(*batch, m)`` in and out."""


class Propagator(NamedTuple):
    """Coefficients of steps, each ``(*, 1 | blocks | m)``; ``noise_std`` is None for an ODE.

    ``h`` is the length of the step in the variable in which the forcing is smooth, and
    ``damping = k h`` says how much its end counts more than its start in the mean ``<F>``: as
    ``e^(damping v)``, with ``v`` from 0 to 1 along the step, unless the equation says by ``first``,
    ``second`` and ``third`` what the means of ``v``, ``v^2`` and ``v^3`` are.

    Example:
        >>> import torch
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> at = DiagonalSDE(EDM(), Identity((2,))).at(torch.tensor([[3.0], [5.0]]))
        >>> step = at[:1].propagator(at[1:])
        >>> step.decay, step.noise_std.round(decimals=4)
        (tensor([[1.]]), tensor([[4.]]))
    """

    decay: Tensor
    gain: Tensor
    h: Tensor
    damping: Tensor
    noise_std: Tensor | None
    first: Tensor | None = None
    second: Tensor | None = None
    third: Tensor | None = None

    @property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Means of ``v`` and ``v^2`` over a step: what forcings that grow so contribute."""
        if self.first is None or self.second is None:
            return exponential_moments(self.damping)
        return self.first, self.second

    @property
    def cubic(self) -> Tensor:
        """Mean of ``v^3``, for those few who want it."""
        if self.third is not None:
            return self.third
        near, y, x = _near_and_far(self.damping)
        far = _weight_at_end(y) - 3 * self.moments[1] / y
        mean, variance, skewness = _cumulant(x, 1), _cumulant(x, 2), _cumulant(x, 3)
        return torch.where(near, skewness + 3 * mean * variance + mean**3, far)

    def expand(self, blocks: Blocks) -> Propagator:
        """One entry per component, of a state in these blocks, wherever they differ."""
        return Propagator(*(None if v is None else blocks.expand(v) for v in self))  # type: ignore[arg-type]


_NEAR = 0.5
"""An exponent below which closed forms of moments cancel, and series of cumulants are taken. There
closed forms in float32 are right to 1e-6 (1e-5 of the third moment), series to all digits."""

_LARGE = 80.0
"""An exponent of which float32 has the exponential."""

_SERIES = (
    1 / 12,
    -1 / 720,
    1 / 30240,
    -1 / 1209600,
    1 / 47900160,
    -691 / 1307674368000,
    1 / 74724249600,
)
"""``b_k = B_2k/(2k)!`` with Bernoulli's numbers: of ``d/dx log((e^x - 1)/x) = 1/2 + sum_k b_k
x^(2k-1)``, whose derivatives are the cumulants. What others would add at `_NEAR` is below 1e-14."""


def exponential_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means of ``v`` and ``v^2`` over ``[0, 1]`` under a density that grows as ``e^(x v)``.

    With ``x`` the damping, they say what a forcing that grows with time, or with its square,
    contributes to a step: the phi functions of Hochbruck and Ostermann 2010, *Exponential
    Integrators*, normalised.

    Example:
        >>> import torch
        >>> from scoresde.equation import exponential_moments
        >>> exponential_moments(torch.zeros(1))  # means of v and v^2 under the uniform density
        (tensor([0.5000]), tensor([0.3333]))
    """
    near, y, x = _near_and_far(x)
    whole = _weight_at_end(y)
    first = whole - 1 / y
    second = whole - 2 * first / y
    mean = _cumulant(x, 1)
    return torch.where(near, mean, first), torch.where(near, _cumulant(x, 2) + mean**2, second)


def _near_and_far(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where exponents are small; others, and small ones, with a number in the place of the rest.

    Gradients want numbers in both.
    """
    near = x.abs() < _NEAR
    return near, torch.where(near, 1.0, x), torch.where(near, x, 0.0)


def _weight_at_end(y: Tensor) -> Tensor:
    """Of the density at 1: partial integration makes every moment of it and the one before."""
    return -1 / torch.expm1((-y).clamp(max=_LARGE))


def _cumulant(x: Tensor, order: int) -> Tensor:
    """The mean, the variance or the third cumulant of the density, by its series (Horner)."""
    powers = [p for p in range(1, 2 * len(_SERIES), 2) if p >= order - 1]
    terms = zip(reversed(powers), reversed(_SERIES), strict=False)  # of the third, one is constant
    square, value = x * x, torch.zeros_like(x)
    for power, term in terms:
        value = value * square + term * math.perm(power, order - 1)
    value = value * x ** (powers[0] - order + 1)
    return value + 1 / 2 if order == 1 else value


class Field(NamedTuple):
    """An equation at one time: functions of states ``(*batch, m)``, in their shape.

    Attributes:
        forcing: The part of the drift that `Propagator` leaves to the solver.
        increment: Of a state and standard normal numbers: what multiplies ``noise_std``.
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
    """What an equation says of several times, whatever the state: read once, for all of them.

    Coefficients along the component axis are ``(k, *, 1 | blocks | m)``, for the ``m`` components
    of a state and their blocks.

    Args:
        t: The times, ``(k, 1)``, or ``(k, *batch, 1 | blocks | n)`` for samples or components
            with times of their own, in as many digits as there are.
        like: A state ``(*batch, m)``: what multiplies states gets its dtype and device.
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
        """Those of some of the times, counted along the first axis."""

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
        """The equation at every one of the times."""

    @property
    def times(self) -> list[Tensor]:
        """The times one by one, as states have them; a number where it is that of all samples."""
        return [
            t.reshape(()) if t.numel() == 1 else t for t in cast_like(self.t, self.like).unbind()
        ]

    def cast(self, value: Tensor) -> Tensor:
        """A coefficient ``(*, 1 | blocks | m)`` as what multiplies states: ``(*, 1 | m)``."""
        return self.blocks.expand(cast_like(value, self.like))

    def together(self, *values: Tensor) -> list[Tensor]:
        """Several coefficients at once, see `cast`: whatever they are, the device gets one copy."""
        if all(v.device == self.like.device for v in values):
            return [self.cast(v) for v in values]
        parts = cast_like(torch.cat([v.reshape(-1) for v in values]), self.like)
        split = parts.split([v.numel() for v in values])
        return [self.blocks.expand(p.view(v.shape)) for p, v in zip(split, values, strict=True)]

    def each(self, *values: Tensor) -> list[Sequence[Tensor]]:
        """Coefficients ``(k, *, 1 | blocks | m)`` time by time, as what multiplies states."""
        return [value.unbind() for value in self.together(*values)]


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

    ``torchsde.sdeint(equation, y, ts)`` and ``torchdiffeq.odeint(equation, y, ts)`` run on it as
    it is. An `SDE`, the `ReverseSDE` of one, its `ProbabilityFlow`, and the flow that carries a
    density along are equations.

    Args:
        basis: Coordinates of the state.
        T: The last time of the SDE behind it.
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
        """Whether there may be noise; False for what is an ODE."""
        return True

    @property
    def copies(self) -> int:
        """How many numbers a state has for every component of data."""
        return 1

    @property
    def dim(self) -> int:
        """Number of components of a state."""
        return self.copies * self.basis.dim

    @property
    def span(self) -> tuple[float, float]:
        """The first and the last time, in this equation's clock, at which it is asked."""
        return 0.0, self.T

    @abstractmethod
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift at a time and a state ``(*batch, n)``, in the shape of the state."""

    @abstractmethod
    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion at a time and a state ``(*batch, n)``, in the shape of the state."""

    @abstractmethod
    def at(self, t: Tensor, like: Tensor) -> Coefficients:
        """Everything that depends on times alone, for all of them at once.

        Args:
            t: Times in this equation's clock, ``(k, 1)`` or as `Coefficients` says.
            like: A state ``(*batch, m)``; ``m`` below ``n`` is a prefix of the components.
        """

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """`f`, so that ``torchdiffeq.odeint(equation, y, ts)`` runs, with times kept in `span`.

        Adaptive methods look past the ends of time and throw away what they find there, if it is
        finite: beyond its ends the equation goes on as it is at them.
        """
        return self.f(t.clamp(*self.span), y)

    def field(self, t: Tensor, y: Tensor) -> Field:
        """The equation at one time, or at one per sample, for states like one given."""
        return next(self.at(align(t, y).unsqueeze(0), y).fields())

    def layout(self, dim: int) -> Blocks:
        """The blocks of a state with so many components."""
        return self.basis.blocks.prefix(dim)

    def breakpoints(self) -> list[float]:
        """Times, in this equation's clock, at which its rates jump; increasing."""
        return []


def expect_ode(equation: Equation, solver: str) -> None:
    """Raises ``ValueError`` if an equation has noise.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, ProbabilityFlow
        >>> from scoresde.equation import expect_ode
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> expect_ode(ProbabilityFlow(model), "this solver")
    """
    expect(not equation.stochastic, "eta", f"0: {solver} takes ODEs", "an SDE with noise")


class AugmentedEquation(Equation):
    """An equation whose state carries integrals along, for `scoresde.Solver.transport`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, ExactTrace, Identity, Noise, ProbabilityFlow
        >>> from scoresde.equation import AugmentedEquation
        >>> from scoresde.likelihood import DensityFlow
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((1,))), torch.zeros(1), torch.eye(1))
        >>> probes = ExactTrace().draw(torch.zeros(1, 1), Noise())
        >>> flow: AugmentedEquation = DensityFlow(ProbabilityFlow(model), ExactTrace(), probes)
        >>> flow.split(flow.start(torch.ones(1, 1)))
        (tensor([[1.]]), tensor([[0.]]))
    """

    @abstractmethod
    def start(self, z: Tensor) -> Tensor:
        """The state at a ``z``, with nothing integrated yet."""

    @abstractmethod
    def split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and what has been integrated."""
