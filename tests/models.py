"""Estimators and SDEs with known answers."""

import torch
from torch import nn

from estimators import Denoising
from scoresde import SDE, DirectScoreEstimator, Schedule, plugins
from scoresde.equation import align
from scoresde.objectives import parametrization as forms


class ScoreOnly(DirectScoreEstimator):
    """An estimator that is told what the score is."""

    def __init__(self, sde, score):
        super().__init__(sde)
        self._score = score

    def score(self, z, t, condition=None):
        return self._score(z, t)


class Oracle(nn.Module):
    """The network that predicts exactly what a `Denoising` wants, from an exact estimator."""

    def __init__(self, exact):
        super().__init__()
        self.exact = exact

    def forward(self, x, level, condition=None):
        return self.answer(x)


class ExactDenoising(Denoising):
    """A `Denoising` whose network is an `Oracle`: it hears the state and time asked for."""

    def __init__(self, exact, **kwargs):
        super().__init__(exact.sde, Oracle(exact), **kwargs)

    def denoise(self, z, t, condition=None):
        alpha, sigma = self.sde.kernel(align(t, z), z.shape[-1])
        std, mean = (self.sde.blocks.expand(v) for v in (self.data_std, self.data_mean))
        form = self.parametrization(alpha, sigma, std)
        best = forms.predict(form, z - alpha * mean, self.network.exact.denoise(z, t) - mean)
        best = torch.where(form.out == 0, 0.0, best)  # clean: whatever is predicted, times 0
        self.network.answer = lambda x: self.sde.basis.inverse(best).reshape(x.shape)
        return super().denoise(z, t, condition)


class OrnsteinUhlenbeck(SDE):
    """``dy = -y dt + sqrt(2) dw``, known by its drift and diffusion only."""

    def f(self, t, y):
        return -y

    def g(self, t, y):
        return torch.full_like(y, 2**0.5)


class GeometricBrownianMotion(SDE):
    """``dy = mu y dt + s y dw``: log-normal data stay log-normal."""

    mu, s, mean, std = 0.3, 0.6, 0.2, 0.5

    def f(self, t, y):
        return self.mu * y

    def g(self, t, y):
        return self.s * y

    def log_moments(self, t):
        """Mean and variance of ``log y_t``."""
        return self.mean + (self.mu - self.s**2 / 2) * t, self.std**2 + self.s**2 * t

    def true_score(self, y, t):
        m, v = self.log_moments(t)
        return -(1 + (y.log() - m) / v) / y

    def log_density(self, y, t):
        m, v = self.log_moments(t)
        return (-y.log() - (y.log() - m) ** 2 / (2 * v) - torch.log(2 * torch.pi * v) / 2).sum(-1)


class SquareRoot(SDE):
    """``dy = k (m - y) dt + s sqrt(y) dw`` (Cox, Ingersoll and Ross), in its Gamma equilibrium."""

    k, m, s = 1.0, 2.0, 0.8

    def f(self, t, y):
        return self.k * (self.m - y)

    def g(self, t, y):
        return self.s * y.clamp(min=0).sqrt()

    @property
    def shape(self):
        return 2 * self.k * self.m / self.s**2

    @property
    def rate(self):
        return 2 * self.k / self.s**2

    def true_score(self, y, t):
        return (self.shape - 1) / y - self.rate

    def log_density(self, y, t):
        return ((self.shape - 1) * y.log() - self.rate * y).sum(-1)


class Warped(Schedule):
    """Another schedule read on a bent time axis, its rates left to automatic differentiation."""

    def __init__(self, schedule, bend):
        super().__init__(T=schedule.T, eps=schedule.eps)
        self.inner, self.bend = schedule, bend

    def time(self, t):
        """Goes from 0 to ``T`` as ``t`` does."""
        u = t / self.T
        return self.T * (u + self.bend * u * (1 - u))

    def log_alpha(self, t):
        return self.inner.log_alpha(self.time(t))

    def sigma(self, t):
        return self.inner.sigma(self.time(t))


def built_in(group):
    """What this project registers under an entry point."""
    names = [n for n, p in plugins.available(group).items() if p.distribution == "scoresde"]
    return {name: plugins.get(group, name) for name in names}


SOLVERS = built_in("solvers")
ADAPTIVE = {n for n, s in SOLVERS.items() if getattr(s, "laws", {}).get("adaptive")}
