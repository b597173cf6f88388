"""Linear dynamics of a few numbers for every component: position, velocity, acceleration.

    dy = A y ds + Q^(1/2) dw,    y_0 = (x_0, N(0, start^2)),    y_s | x_0 ~ N(a x_0, S),

where ``s`` is the time of the dynamics. Only ``x`` is data; the others start as noise and are
marginalised. With a root ``S = L L^T`` a state is ``y = a x_0 + L xi``, and all that it says of
``x_0`` is one number for every component,

    u = a^T S^-1 y / |rho|^2 = x_0 + xi / |rho|,      rho = L^-1 a,

a diffusion whose signal-to-noise ratio is ``|rho|^2``, which is what a network sees. (Of a linear
Gaussian observation ``a^T S^-1 y`` is a sufficient statistic.)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from scoresde.blocks import Blocks
from scoresde.checks import expect, finite, instance, positive, real
from scoresde.precision import Float64Constants, precision

_TERMS = 22
"""Of series whose argument is at most 1/2: the first that is left out is below float64's digits."""

_LOWEST = -40.0
"""A log-SNR at which data are forgotten."""

_NEWTON = 2
"""Steps from a table to all digits."""

_STIFFEST = 1e3
"""The most friction, beyond which velocities are forgotten long before anything happens."""

_LOOSEST = 1e-2
"""The least, below which a critically damped mass is so small that it turns as fast."""

_LOUDEST = 1e6
"""The most variance that velocities start with, in that in which they end."""

_SLOWEST = 2.0**17
"""How much longer data may be known than the fastest dynamics take: tables have so many knots."""

_FIRST = 1e-20
"""Of ``s``: nothing has been diffused, and the distribution still has a density."""


class PhaseKernel(NamedTuple):
    """The kernel ``y_s = a x_0 + L xi``; ``(*, k)`` and ``(*, k, k)``.

    Attributes:
        mean: ``a``.
        root: ``L``, lower triangular.
        rho: ``L^-1 a``: its squared length is the signal-to-noise ratio.
        drift: ``L^-1 A L``.
        g2: ``L^-1 Q L^-T``.
    """

    mean: Tensor
    root: Tensor
    rho: Tensor
    drift: Tensor
    g2: Tensor

    @property
    def log_snr(self) -> Tensor:
        """``log |rho|^2``, ``(*,)``."""
        return self.rho.square().sum(-1).log()

    @property
    def decay(self) -> Tensor:
        """``-d log |rho|^2 / ds = rho^T L^-1 Q L^-T rho / |rho|^2``, ``(*,)``."""
        pulled: Tensor = (self.g2 @ self.rho.unsqueeze(-1)).squeeze(-1)
        decay: Tensor = (self.rho * pulled).sum(-1) / self.rho.square().sum(-1)
        return decay

    @property
    def readout(self) -> Tensor:
        """``S^-1 a / |rho|^2``, whose product with a state is ``u``: ``(*, k)``."""
        pulled = torch.linalg.solve_triangular(self.root.mT, self.rho.unsqueeze(-1), upper=True)
        readout: Tensor = pulled.squeeze(-1) / self.rho.square().sum(-1, keepdim=True)
        return readout

    @property
    def rotation_rate(self) -> Tensor:
        """Rotation of the probability flow in the coordinates ``L^-1 y``: antisymmetric."""
        upper = (self.drift + self.g2 / 2).triu(1)
        return upper - upper.mT


class Dynamics(Float64Constants):
    """``A``, ``Q`` and the distribution at the start; see the module.

    Kernels are the series of ``exp(A s)`` at a short ``s``, doubled repeatedly. That needs no
    eigenvalues, which may be double, and no difference of nearly equal numbers, in which the little
    noise of ``x`` at first would be lost.

    Args:
        drift: ``A``, ``(k, k)``.
        g2: The diagonal of ``Q``, ``(k,)``.
        start: Standard deviations at the start, ``(k,)``; the first, of data, is 0.

    Raises:
        ValueError: If shapes do not fit, numbers are not finite, variances are negative, data do
            not start clean, states grow, noise does not reach all directions, or data are
            forgotten far more slowly than the fastest number changes.

    Example:
        >>> import torch
        >>> from scoresde import Dynamics
        >>> pair = Dynamics.cld()
        >>> pair.kernel(torch.tensor(50.0)).root.diagonal()  # stationary: variances 1 and M
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """

    drift: Tensor
    g2: Tensor
    start: Tensor
    powers: Tensor
    spreads: Tensor
    knots: Tensor
    log_snrs: Tensor

    def __init__(self, drift: Tensor, g2: Tensor, start: Tensor) -> None:
        super().__init__()
        for name, value in (("drift", drift), ("g2", g2), ("start", start)):
            instance(name, value, Tensor)
            finite(name, value)
            self.constant(name, value.to(torch.float64))
        k = len(self.g2)
        shapes = [tuple(v.shape) for v in (self.drift, self.g2, self.start)]
        expect(shapes == [(k, k), (k,), (k,)], "drift, g2, start", "(k, k), (k,), (k,)", shapes)
        expect(bool((self.g2 >= 0).all()), "g2", "variances of at least 0", g2)
        clean = bool((self.start >= 0).all()) and float(self.start[0]) == 0
        expect(clean, "start", "deviations of at least 0, the first, of data, 0", start)
        power, covariance = torch.eye(k, dtype=torch.float64), self.g2.cpu().diag()
        powers, spreads, matrix = [power], [covariance], self.drift.cpu()
        for n in range(1, _TERMS):
            powers.append(matrix @ powers[-1] / n)
            spreads.append((matrix @ spreads[-1] + spreads[-1] @ matrix.mT) / (n + 1))
        self.constant("powers", torch.stack(powers))
        self.constant("spreads", torch.stack(spreads))
        growth = float(torch.linalg.eigvals(matrix).real.max())
        expect(growth < 0, "drift", "one that decays: eigenvalues below 0", f"one of {growth:.3g}")
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        self._norm, self._longest = norm, 1 / norm
        _, covariance = self.transition(torch.full((), 1 / norm, dtype=torch.float64, device="cpu"))
        reached = torch.linalg.eigvalsh(covariance)
        wanted = "noise that gets to every direction"
        expect(bool(reached[0] > 0), "g2", wanted, f"{g2} with drift {drift}")
        self._tabulate()

    @classmethod
    def cld(cls, friction: float = 1.0, gamma: float = 0.04) -> Self:
        """Critically damped Langevin dynamics: noise enters the velocity alone.

        ``A = [[0, 1/M], [-1, -G/M]]``, ``Q = diag(0, 2 G)``, ``M = G^2/4``: stationary
        ``diag(1, M)``, and a double eigenvalue ``-2/G``.

        Source:
            Dockhorn et al. 2022 (arXiv 2112.07068).

        Args:
            friction: ``G``.
            gamma: The velocity starts with variance ``gamma M``.

        Raises:
            ValueError: If friction is not from a hundredth to a thousand, or ``gamma`` is negative
                or above a million.

        Example:
            >>> from scoresde import Dynamics
            >>> Dynamics.cld().drift
            tensor([[ 0.,  4.],
                    [-1., -4.]], dtype=torch.float64)
        """
        real("friction", friction, _LOOSEST, _STIFFEST)
        mass = friction**2 / 4
        drift = [[0, 1 / mass], [-1, -friction / mass]]
        return cls._of(drift, [0, 2 * friction], [mass], gamma)

    @classmethod
    def psld(cls, friction: float = 4.01, leak: float = 0.01, gamma: float = 0.04) -> Self:
        """Phase-space Langevin diffusion: a little noise enters the position, too.

        ``A = [[-l, 1/M], [-1, -n]]/2``, ``Q = diag(l, M n)``, ``(l - n)^2 = 4/M``: stationary
        ``diag(1, M)``. With friction close to ``leak`` the mass is large, the velocity has no
        effect, and the position alone is variance preserving.

        Source:
            Pandey and Mandt 2023 (arXiv 2303.01748).

        Args:
            friction: ``n``, of the velocity.
            leak: ``l``, of the position.
            gamma: The velocity starts with variance ``gamma M``.

        Raises:
            ValueError: If a number is negative, the two frictions are one, above a thousand or both
                so small that data are hardly forgotten, or ``gamma`` is above a million.

        Example:
            >>> from scoresde import Dynamics
            >>> Dynamics.psld().g2  # M = 1/4
            tensor([0.0100, 1.0025], dtype=torch.float64)
        """
        real("friction", friction, 0, _STIFFEST)
        positive("friction", friction)
        real("leak", leak, 0, _STIFFEST)
        apart = (leak - friction) ** 2
        expect(apart > 0, "leak", f"other than the friction, {friction}", leak)
        mass = 4 / apart
        drift = [[-leak / 2, 1 / (2 * mass)], [-1 / 2, -friction / 2]]
        return cls._of(drift, [leak, mass * friction], [mass], gamma)

    @classmethod
    def hold(cls, gamma: float = 0.04) -> Self:
        """Third-order Langevin dynamics, critically damped: noise enters the acceleration alone.

        ``A = [[0, 1, 0], [-1, 0, 8^(1/2)], [0, -8^(1/2), -27^(1/2)]]`` with a triple eigenvalue
        ``-3^(1/2)``, ``Q = diag(0, 0, 2 27^(1/2))``: stationary with variances 1.

        Source:
            Sterling and Bugallo 2025 (arXiv 2506.21741).

        Args:
            gamma: Velocity and acceleration start with this variance.

        Raises:
            ValueError: If it is negative, or above a million.

        Example:
            >>> from scoresde import Dynamics
            >>> Dynamics.hold().g2[2].square().round(decimals=4)  # 4 * 27
            tensor(108., dtype=torch.float64)
        """
        coupling, friction = math.sqrt(8), math.sqrt(27)
        drift = [[0.0, 1, 0], [-1, 0, coupling], [0, -coupling, -friction]]
        return cls._of(drift, [0, 0, 2 * friction], [1.0, 1.0], gamma)

    @classmethod
    def _of(
        cls, drift: list[list[float]], g2: list[float], masses: list[float], gamma: float
    ) -> Self:
        real("gamma", gamma, 0, _LOUDEST)
        start = [0.0, *(math.sqrt(gamma * mass) for mass in masses)]
        with torch.device("cpu"):
            return cls(*(torch.tensor(v, dtype=torch.float64) for v in (drift, g2, start)))

    @property
    def copies(self) -> int:
        """Number of entries for every component, ``k``."""
        return len(self.g2)

    @property
    def width(self) -> int:
        """1: no axis of these numbers is a component axis."""
        return 1

    def per_component(self, blocks: Blocks, device: torch.device | None = None) -> Self:
        """Itself: all components have the same."""
        return self

    def transition(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """``exp(A s)`` and ``int_0^s exp(A r) Q exp(A r)^T dr``, each ``(*, k, k)``.

        Args:
            s: ``(*,)``, clamped to the ``s`` at which data are forgotten.
        """
        s = s.clamp(max=self._longest)
        powers, spreads = self.constants(s, "powers", "spreads")
        doublings = max(1, 1 + math.ceil(math.log2(self._norm * self._longest)))
        short = (s / 2**doublings).unsqueeze(-1)
        terms = short ** torch.arange(_TERMS, device=s.device)
        flow = (terms @ powers.flatten(1)).unflatten(-1, powers.shape[1:])
        covariance = ((short * terms) @ spreads.flatten(1)).unflatten(-1, spreads.shape[1:])
        for _ in range(doublings):
            covariance = covariance + flow @ covariance @ flow.mT
            flow = flow @ flow
        return flow, covariance

    def kernel(self, s: Tensor) -> PhaseKernel:
        """The distribution of a state given data, in full precision.

        Args:
            s: ``(*,)``.
        """
        s = s.to(precision(s.device)).clamp(min=_FIRST)
        drift, g2, start = self.constants(s, "drift", "g2", "start")
        flow, covariance = self.transition(s)
        # what entered at the start and what has entered since, side by side: their squares would
        # hide how little x has of its own
        parts = torch.cat([flow * start, torch.linalg.cholesky_ex(covariance)[0]], -1)
        upper = torch.linalg.qr(parts.mT).R
        root = upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        mean = flow[..., 0]
        diffusion = g2.sqrt().diag().expand_as(root)
        columns = torch.cat([mean.unsqueeze(-1), drift @ root, diffusion], -1)
        solved = torch.linalg.solve_triangular(root, columns, upper=False)
        k = self.copies
        rho, drift, diffusion = solved[..., 0], solved[..., 1 : k + 1], solved[..., k + 1 :]
        return PhaseKernel(mean, root, rho, drift, diffusion @ diffusion.mT)

    def diffused(self, log_snr: Tensor) -> Tensor:
        """The ``s`` at which the log-SNR of data is as given, ``(*,)``, to full precision.

        Newton's method from a table; derivatives are those of an inverse.

        Args:
            log_snr: Infinite where data are clean.
        """
        log_snr = log_snr.to(precision(log_snr.device))
        knots, log_snrs = self.constants(log_snr, "knots", "log_snrs")
        with torch.no_grad():
            wanted = log_snr.clamp(log_snrs[-1], log_snrs[0])
            after = torch.searchsorted(-log_snrs, -wanted.contiguous()).clamp(1, len(log_snrs) - 1)
            part = (log_snrs[after - 1] - wanted) / (log_snrs[after - 1] - log_snrs[after])
            coordinate = torch.lerp(knots[after - 1], knots[after], part)
            for _ in range(_NEWTON):
                s, speed = self.of_coordinate(coordinate)
                kernel = self.kernel(s)
                coordinate = coordinate + (kernel.log_snr - wanted) / (kernel.decay * speed)
            s, _ = self.of_coordinate(coordinate)
            slope, value = self.kernel(s).decay, log_snr.clone()
        # nothing is added but the derivative
        return s - (log_snr - value).nan_to_num(0.0) / slope

    def _tabulate(self) -> None:
        """Log-SNRs at many knots, down to where data are forgotten."""
        with torch.no_grad():
            one = torch.ones((), dtype=torch.float64, device="cpu")
            while not float(self.kernel(self._longest * one).log_snr) <= _LOWEST:
                got = f"one of which something is left after {self._longest:.3g}"
                wanted = f"one that forgets data within {_SLOWEST:g} of its shortest times"
                expect(self._norm * self._longest < _SLOWEST, "drift", wanted, got)
                self._longest *= 2
            first, last = self.coordinate(torch.stack([_FIRST * one, self._longest * one])).tolist()
            count = 2 * math.ceil(last - first)
            knots = torch.linspace(first, last, count, dtype=torch.float64, device="cpu")
            self.constant("knots", knots)
            self.constant("log_snrs", self.kernel(self.of_coordinate(knots)[0]).log_snr)

    def coordinate(self, s: Tensor) -> Tensor:
        """A coordinate in which kernels change slowly: ``log s`` first, then ``s``."""
        x = self._norm * s.clamp(min=_FIRST)
        return x + (-torch.expm1(-x)).log()

    def of_coordinate(self, coordinate: Tensor) -> tuple[Tensor, Tensor]:
        """The ``s`` of a `coordinate`, and its derivative."""
        return nn.functional.softplus(coordinate) / self._norm, coordinate.sigmoid() / self._norm
