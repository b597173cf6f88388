"""Scalar noise schedules: how much signal and how much noise there is at a time.

A schedule says that a component which is clean at time 0 is, at time ``t``,

    z_t | z_0 ~ N(alpha(t) z_0, sigma(t)^2),      dz = f z dt + g dw,
    f = (log alpha)',      g^2 = -sigma^2 lambda',      lambda = log(alpha^2 / sigma^2).

Parameters are numbers, or vectors along the component axis (`scoresde.blocks`): per block or
per component. Times carry the component axis last, ``(*, 1 | blocks | n)``, and broadcast
against the parameters. Everything has the dtype of ``t`` and is accurate in it from ``eps``
to ``T``: differences of nearly equal numbers are written with expm1, log1p and sigmoid.

A new schedule needs `Schedule.log_alpha` and `Schedule.sigma`; its rates follow by automatic
differentiation unless it knows them in closed form.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from scoresde.checks import expect, real, whole
from scoresde.precise import Numbers, Precise


class Schedule(Precise, ABC):
    """Signal and noise as functions of time.

    Args:
        T: Last time: there the data are (all but) gone.
        eps: First time that training, sampling and likelihood use: the score of data without
            a density diverges at 0.

    Raises:
        ValueError: If not ``0 < eps < T``.

    Example:
        >>> import torch
        >>> from scoresde import Schedule
        >>> class Decay(Schedule):
        ...     def log_alpha(self, t): return -t
        ...     def sigma(self, t): return torch.sqrt(-torch.expm1(-2 * t))
        >>> f, g2 = Decay().rates(torch.tensor([0.5]))
        >>> f, g2.round(decimals=4)
        (tensor([-1.]), tensor([2.]))
    """

    def __init__(self, T: float = 1.0, eps: float = 1e-3) -> None:
        super().__init__()
        real("eps", eps)
        real("T", T)
        expect(0 < eps < T < math.inf, "eps, T", "0 < eps < T", (eps, T))
        self.T, self.eps = float(T), float(eps)

    @abstractmethod
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the signal's factor, ``log alpha(t)``."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise, ``sigma(t)``."""

    def alpha(self, t: Tensor) -> Tensor:
        """The signal's factor, ``alpha(t)``."""
        return self.log_alpha(t).exp()

    def log_snr(self, t: Tensor) -> Tensor:
        """``lambda(t) = log(alpha^2 / sigma^2)``, infinite where ``sigma`` is 0."""
        return 2 * (self.log_alpha(t) - self.sigma(t).log())

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Drift rate ``f(t) = (log alpha)'`` and ``g(t)^2 = -sigma^2 lambda'``."""

        def logs(t: Tensor) -> tuple[Tensor, Tensor]:
            return self.log_alpha(t), self.log_snr(t)

        t = t.clamp(min=1e-6 * self.eps)  # at 0 the slope of the log-SNR is infinite
        derivatives: tuple[Tensor, Tensor] = torch.func.jvp(logs, (t,), (torch.ones_like(t),))[1]
        f, log_snr_rate = derivatives
        return f, -(self.sigma(t) ** 2) * log_snr_rate

    def forward(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha(t), sigma(t))``."""
        return self.alpha(t), self.sigma(t)


class VP(Schedule):
    """Variance preserving, linear beta (Song et al. 2021, eq. 11; DDPM in continuous time).

    ``log alpha = -t^2 (beta_max - beta_min)/4 - t beta_min/2``, ``sigma^2 = 1 - alpha^2``,
    ``f = -beta/2``, ``g^2 = beta``.

    Args:
        beta_min: Noise rate at time 0, per unit of time.
        beta_max: Noise rate at time 1.
        eps: First time used.

    Raises:
        ValueError: If a rate is not positive, or not ``0 < eps < 1``.

    Example:
        >>> import torch
        >>> from scoresde import VP
        >>> alpha, sigma = VP()(torch.tensor([0.5]))
        >>> round(float(alpha**2 + sigma**2), 6)
        1.0
    """

    sources = "song2021 ho2020"

    beta_min: Tensor
    beta_max: Tensor

    def __init__(
        self, beta_min: Numbers = 0.1, beta_max: Numbers = 20.0, eps: float = 1e-3
    ) -> None:
        super().__init__(eps=eps)
        self.constant("beta_min", beta_min, positive=True)
        self.constant("beta_max", beta_max, positive=True)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        low, high = self.at(t, "beta_min", "beta_max")
        return torch.lerp(low, high, t / 2) * (t / -2)

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def _beta(self, t: Tensor) -> Tensor:
        low, high = self.at(t, "beta_min", "beta_max")
        return low + t * (high - low)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        beta = self._beta(t)
        return -beta / 2, beta


class SubVP(VP):
    """Sub-variance preserving (Song et al. 2021, eq. 12): less noise than `VP` at every time.

    ``alpha`` as `VP`, ``sigma = 1 - alpha^2``, ``f = -beta/2``, ``g^2 = beta (1 - alpha^4)``.

    Args:
        beta_min: As for `VP`.
        beta_max: As for `VP`.
        eps: First time used.

    Raises:
        ValueError: As for `VP`.

    Example:
        >>> import torch
        >>> from scoresde import VP, SubVP
        >>> t = torch.tensor([0.1, 0.5, 0.9])
        >>> torch.allclose(SubVP().sigma(t), VP().sigma(t) ** 2)
        True
    """

    sources = "song2021"

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return -torch.expm1(2 * self.log_alpha(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        beta = self._beta(t)
        return -beta / 2, -beta * torch.expm1(4 * self.log_alpha(t))


class VE(Schedule):
    """Variance exploding (Song et al. 2021, eq. 9), with the variance that its SDE really has.

    ``alpha = 1``, ``sigma^2 = sigma_min^2 ((sigma_max/sigma_min)^(2t) - 1)``, ``f = 0``,
    ``g^2 = 2 log(sigma_max/sigma_min) sigma_min^2 (sigma_max/sigma_min)^(2t)``. Codes that do
    not subtract ``sigma_min^2`` overstate the noise, 3.4-fold at t = .01.

    Args:
        sigma_min: Noise scale at time 0, in the data's units.
        sigma_max: Noise scale at time 1.
        eps: First time used.

    Raises:
        ValueError: If not ``0 < sigma_min < sigma_max``, or not ``0 < eps < 1``.

    Example:
        >>> import torch
        >>> from scoresde import VE
        >>> alpha, sigma = VE(sigma_min=0.01, sigma_max=50.0)(torch.tensor([0.0, 1.0]))
        >>> sigma.round()
        tensor([ 0., 50.])
    """

    sources = "song2021"

    sigma_min: Tensor
    sigma_max: Tensor

    def __init__(
        self, sigma_min: Numbers = 0.01, sigma_max: Numbers = 50.0, eps: float = 1e-3
    ) -> None:
        super().__init__(eps=eps)
        self.constant("sigma_min", sigma_min, positive=True)
        self.constant("sigma_max", sigma_max, positive=True)
        expect(
            bool((self.sigma_max > self.sigma_min).all()),
            "sigma_max",
            f"more than sigma_min = {sigma_min}",
            sigma_max,
        )

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        low, high = self.at(t, "sigma_min", "sigma_max")
        return low * torch.expm1(2 * t * (high / low).log()).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        low, high = self.at(t, "sigma_min", "sigma_max")
        growth = 2 * (high / low).log()
        return torch.zeros_like(t), growth * low**2 * (growth * t).exp()


class Cosine(Schedule):
    """Cosine (Nichol and Dhariwal 2021), on a time axis that ends at ``log_snr_min``.

    ``alpha = cos(theta t)``, ``sigma = sin(theta t)``, ``f = -theta tan(theta t)``,
    ``g^2 = -2 f``, with ``theta`` just below ``pi/2``: instead of clipping the rates, which
    would contradict the kernel, time stops where the log-SNR is ``log_snr_min``.

    Args:
        log_snr_min: Log-SNR at time 1, negative.
        eps: First time used.

    Raises:
        ValueError: If ``log_snr_min`` is not below 0, or not ``0 < eps < 1``.

    Example:
        >>> import torch
        >>> from scoresde import Cosine
        >>> Cosine(log_snr_min=-12.0).log_snr(torch.tensor([1.0])).round(decimals=2)
        tensor([-12.])
    """

    sources = "nichol2021"

    log_snr_min: Tensor

    def __init__(self, log_snr_min: Numbers = -15.0, eps: float = 1e-3) -> None:
        super().__init__(eps=eps)
        self.constant("log_snr_min", log_snr_min)
        expect(bool((self.log_snr_min < 0).all()), "log_snr_min", "below 0", log_snr_min)

    def _angles(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # alpha is the sine of what is left to pi/2, which 1 - t gives without cancellation
        rest = torch.atan((self.log_snr_min / 2).exp()).to(t)
        theta = math.pi / 2 - rest
        return theta, theta * t, rest + theta * (1 - t)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        return self._angles(t)[2].sin().log()

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return self._angles(t)[1].sin()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        theta, angle, rest = self._angles(t)
        f = -theta * angle.sin() / rest.sin()
        return f, -2 * f


class LogLinear(Schedule):
    """Log-SNR linear in time, the schedule of Non-Uniform Diffusion Models (2022, section 4).

    ``lambda = log_snr_max + (log_snr_min - log_snr_max)(t - eps)/(1 - eps)``,
    ``alpha^2 = sigmoid(lambda)``, ``sigma^2 = sigmoid(-lambda)``, ``g^2 = -lambda' sigma^2``,
    ``f = -g^2/2``. Below ``eps``, where nothing is trained or sampled, the variance goes to 0
    linearly, so that data are clean at time 0 as under every other schedule.

    Args:
        log_snr_max: Log-SNR at ``eps``.
        log_snr_min: Log-SNR at time 1.
        eps: First time used.

    Raises:
        ValueError: If not ``log_snr_min < log_snr_max``, or not ``0 < eps < 1``.

    Example:
        >>> import torch
        >>> from scoresde import LogLinear
        >>> LogLinear(log_snr_max=8.0, log_snr_min=-6.0).log_snr(torch.tensor([1e-3, 1.0]))
        tensor([ 8., -6.])
    """

    sources = "batzolis2022"

    log_snr_max: Tensor
    log_snr_min: Tensor

    def __init__(
        self, log_snr_max: Numbers = 10.0, log_snr_min: Numbers = -10.0, eps: float = 1e-3
    ) -> None:
        super().__init__(eps=eps)
        self.constant("log_snr_max", log_snr_max)
        self.constant("log_snr_min", log_snr_min)
        expect(
            bool((self.log_snr_min < self.log_snr_max).all()),
            "log_snr_min",
            f"below log_snr_max = {log_snr_max}",
            log_snr_min,
        )

    def _linear(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Lambda at ``t`` or ``eps``, whichever is later; its slope; the variance below."""
        high, low = self.at(t, "log_snr_max", "log_snr_min")
        slope = (low - high) / (1 - self.eps)
        return high + slope * (t - self.eps).clamp(min=0), slope, torch.sigmoid(-high) / self.eps

    def _variance(self, t: Tensor) -> Tensor:
        log_snr, _, growth = self._linear(t)
        return torch.where(t < self.eps, growth * t, torch.sigmoid(-log_snr))

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        log_snr, _, growth = self._linear(t)
        early = torch.log1p(-growth * t.clamp(max=self.eps))
        late = log_snr.clamp(max=0) - torch.log1p((-log_snr.abs()).exp())  # log sigmoid
        return torch.where(t < self.eps, early, late) / 2

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return self._variance(t).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        """See the class."""
        return torch.where(t < self.eps, super().log_snr(t), self._linear(t)[0])

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        variance, (_, slope, growth) = self._variance(t), self._linear(t)
        g2 = torch.where(t < self.eps, growth / (1 - variance), -slope * variance)
        return -g2 / 2, g2


_EXTREME = 30.0
"""The logarithm of slopes beyond which a unit is a step, or a straight line, to all digits."""


class Learned(LogLinear):
    """Log-SNR along a learned path (Kingma et al. 2021; per component, Sahoo et al. 2023).

    With ``u`` the time from ``eps`` to 1, as a number from 0 to 1,

        lambda = log_snr_max + (log_snr_min - log_snr_max) gamma(u),
        gamma(u) = w_0 u + sum_k w_k (s_k(u) - s_k(0)) / (s_k(1) - s_k(0)),

    a monotone network of one hidden layer: ``s_k(u)`` the logistic function of ``a_k (u - b_k)``
    with ``a_k > 0``, and ``w`` a softmax, so that ``gamma(0) = 0`` and ``gamma(1) = 1``. Train it
    by `scoresde.bound`. Where all components share it, the bound depends on the ends only, which
    are learned if given as an ``nn.Parameter``.

    Args:
        components: 1 for a shared path, or as many as there are blocks or components.
        hidden: Number of hidden units.
        log_snr_max: Log-SNR at ``eps``.
        log_snr_min: Log-SNR at time 1.
        eps: First time used.

    Raises:
        ValueError: As for `LogLinear`, or if a count is not a positive whole number.

    Example:
        >>> import torch
        >>> from scoresde import Learned
        >>> schedule = Learned(components=3)
        >>> schedule.log_snr(torch.tensor([[1e-3], [1.0]])).shape
        torch.Size([2, 3])
    """

    sources = "kingma2021 sahoo2023"

    def __init__(
        self,
        components: int = 1,
        hidden: int = 8,
        log_snr_max: Numbers = 10.0,
        log_snr_min: Numbers = -10.0,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(log_snr_max, log_snr_min, eps)
        for name, value in (("components", components), ("hidden", hidden)):
            whole(name, value, 1)
        self.centre = nn.Parameter(torch.linspace(0, 1, hidden).unsqueeze(-1))
        self.log_slope = nn.Parameter(torch.full((hidden, 1), math.log(2 * hidden)))
        self.weight = nn.Parameter(torch.zeros(hidden + 1, components))
        with torch.no_grad():
            self.weight[0] = math.log(hidden) + 1  # near the straight line

    def _linear(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        high, low, centre, slope, weight = self.at(
            t, "log_snr_max", "log_snr_min", "centre", "log_slope", "weight"
        )
        u = ((t - self.eps) / (1 - self.eps)).clamp(min=0).unsqueeze(-2)
        a = slope.clamp(-_EXTREME, _EXTREME).exp()

        # s(v) - s(0) = s(x) s(a b) (1 - e^(-a v)), a product: near 0 a difference has no digits,
        # nor slopes. By logarithms: of a step far outside quotients are 0/0
        x, last, full = a * (u - centre), logsigmoid(a * (1 - centre)), -torch.expm1(-a)
        risen = (logsigmoid(x) - last).exp() * -torch.expm1(-a * u) / full
        falling = logsigmoid(x) + logsigmoid(-x) - last - logsigmoid(a * centre)
        units = torch.cat([u, risen], -2)
        rates = torch.cat([torch.ones_like(u), a * falling.exp() / full], -2)
        share = weight.softmax(0)
        gamma, rate = (share * units).sum(-2), (share * rates).sum(-2)
        fall = low - high
        return high + fall * gamma, fall * rate / (1 - self.eps), torch.sigmoid(-high) / self.eps


class EDM(Schedule):
    """Time is the noise level (Karras et al. 2022): ``alpha = 1``, ``sigma = t``, ``g^2 = 2t``.

    Args:
        sigma_min: First time used, in the data's units.
        sigma_max: Last time.

    Raises:
        ValueError: If not ``0 < sigma_min < sigma_max``.

    Example:
        >>> import torch
        >>> from scoresde import EDM
        >>> EDM()(torch.tensor([3.0]))
        (tensor([1.]), tensor([3.]))
    """

    sources = "karras2022"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            real(name, value)
        both = sigma_min, sigma_max
        expect(0 < sigma_min < sigma_max, "sigma_min, sigma_max", "0 < sigma_min < sigma_max", both)
        super().__init__(T=sigma_max, eps=sigma_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        return torch.zeros_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        return torch.zeros_like(t), 2 * t


class RectifiedFlow(Schedule):
    """Straight lines from data to noise (Liu et al. 2022; Lipman et al. 2022).

    ``alpha = 1 - t``, ``sigma = t``, ``f = -1/(1 - t)``, ``g^2 = 2t/(1 - t)``. The rates are
    infinite at time 1, so time ends a little earlier.

    Args:
        T: Last time, below 1.
        eps: First time used.

    Raises:
        ValueError: If not ``0 < eps < T < 1``.

    Example:
        >>> import torch
        >>> from scoresde import RectifiedFlow
        >>> RectifiedFlow()(torch.tensor([0.25]))
        (tensor([0.7500]), tensor([0.2500]))
    """

    sources = "liu2022 lipman2022"

    def __init__(self, T: float = 0.999, eps: float = 1e-3) -> None:
        real("T", T)
        expect(T < 1, "T", "a last time below 1, where the rates are infinite", T)
        super().__init__(T=T, eps=eps)

    def log_alpha(self, t: Tensor) -> Tensor:
        """See the class."""
        return torch.log1p(-t)

    def sigma(self, t: Tensor) -> Tensor:
        """See the class."""
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        f = -1 / (1 - t)
        return f, -2 * t * f
