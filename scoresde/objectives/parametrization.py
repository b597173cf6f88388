"""One denoiser, many ways to ask for it.

Whatever a network predicts, the denoised mean ``D = E[z_0 | z_t]`` is an affine function of it,

    D = c_skip z_t + c_out F,

so a parametrisation is a pair ``(c_skip, c_out)``, and converting is solving one line. In terms
of ``D``: noise ``eps = (z - alpha D)/sigma``, score ``s = (alpha D - z)/sigma^2``, velocity
``v = alpha eps - sigma D``.

Where there is no noise, at time 0 and in components that stay there, ``alpha`` is 1 and the
quotients would be 0/0. There every estimator, in every form, says the mean given that the state is
known,

    D = E[z_0 | z_0] = z,    eps = E[eps] = 0,    v = 0,

as noise is independent of data, and by convention ``s = 0``: nothing asks for it, and the score of
data need not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import look_up


class Affine(NamedTuple):
    """``D = skip z_t + out F``.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import Affine, denoise
        >>> form = Affine(skip=torch.tensor(0.5), out=torch.tensor(2.0))
        >>> denoise(form, z=torch.tensor(4.0), prediction=torch.tensor(1.0))
        tensor(4.)
    """

    skip: Tensor
    out: Tensor


Parametrization = Callable[[Tensor, Tensor, Tensor], Affine]
"""``(alpha, sigma, data_std) -> (c_skip, c_out)``, all along the component axis."""


def denoised(alpha: Tensor, sigma: Tensor, data_std: Tensor) -> Affine:
    """``F = D``: the clean state itself ("x0-prediction").

    Args:
        alpha: ``(*, 1 | n)``, as of all parametrisations.
        sigma: ``(*, 1 | n)``.
        data_std: ``(*, 1 | n)``, in the data's units.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import denoised
        >>> denoised(*torch.tensor([0.8, 0.6, 1.0]))
        Affine(skip=tensor(0.), out=tensor(1.))
    """
    return Affine(torch.zeros_like(sigma), torch.ones_like(sigma))


def noise(alpha: Tensor, sigma: Tensor, data_std: Tensor) -> Affine:
    """``F = eps``: ``D = (z - sigma eps)/alpha`` (Ho et al. 2020, DDPM).

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import noise
        >>> noise(*torch.tensor([0.8, 0.6, 1.0]))
        Affine(skip=tensor(1.2500), out=tensor(-0.7500))
    """
    return Affine(1 / alpha, -sigma / alpha)


def score(alpha: Tensor, sigma: Tensor, data_std: Tensor) -> Affine:
    """``F = s``: ``D = (z + sigma^2 s)/alpha`` (Tweedie; Efron 2011).

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import score
        >>> score(*torch.tensor([0.8, 0.6, 1.0]))
        Affine(skip=tensor(1.2500), out=tensor(0.4500))
    """
    return Affine(1 / alpha, sigma**2 / alpha)


def velocity(alpha: Tensor, sigma: Tensor, data_std: Tensor) -> Affine:
    """``F = alpha eps - sigma D``: ``D = (alpha z - sigma v)/(alpha^2 + sigma^2)``.

    Source:
        Salimans and Ho 2022 (arXiv 2202.00512), section 4, there with ``alpha^2 + sigma^2 = 1``.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import velocity
        >>> velocity(*torch.tensor([0.8, 0.6, 1.0]))
        Affine(skip=tensor(0.8000), out=tensor(-0.6000))
    """
    power = alpha**2 + sigma**2
    return Affine(alpha / power, -sigma / power)


def preconditioned(alpha: Tensor, sigma: Tensor, data_std: Tensor) -> Affine:
    """Unit variance in and out (Karras et al. 2022, eq. 7, here for any schedule).

    ``c_skip = alpha sd^2 / V``, ``c_out = sigma sd / sqrt(V)``, ``V = alpha^2 sd^2 + sigma^2``.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import preconditioned
        >>> preconditioned(*torch.tensor([0.8, 0.6, 1.0]))
        Affine(skip=tensor(0.8000), out=tensor(0.6000))
    """
    signal = alpha * data_std
    scale = torch.hypot(signal, sigma)
    share = data_std / scale
    return Affine(signal / scale * share, sigma * share)


def shrinkage(alpha: Tensor, sigma: Tensor, variance: Tensor) -> Tensor:
    """``alpha v / (alpha^2 v + sigma^2)``: of independent Gaussians the denoised mean's slope.

    ``E[z_0 | z_t] = m + shrinkage (z_t - alpha m)`` for data ``N(m, v)``.

    Args:
        alpha: ``(*, 1 | n)``.
        sigma: ``(*, 1 | n)``.
        variance: Of the data, ``(*, 1 | n)``.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import shrinkage
        >>> shrinkage(*torch.tensor([0.8, 0.6, 1.0]))
        tensor(0.8000)
    """
    return alpha * variance / (alpha**2 * variance + sigma**2)


def remaining_variance(alpha: Tensor, sigma: Tensor, variance: Tensor) -> Tensor:
    """``v sigma^2 / (alpha^2 v + sigma^2)``: what `shrinkage` leaves, ``Var[z_0 | z_t]``.

    Takes the arguments of `shrinkage`.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import remaining_variance
        >>> remaining_variance(*torch.tensor([0.8, 0.6, 1.0]))
        tensor(0.3600)
    """
    return variance * sigma**2 / (alpha**2 * variance + sigma**2)


PARAMETRIZATIONS: dict[str, Parametrization] = {
    f.__name__: f for f in (denoised, noise, score, velocity, preconditioned)
}
"""The parametrisations above, by name."""


def parametrization(name: str | Parametrization) -> Parametrization:
    """A parametrisation by name; a function of one's own passes through.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> from scoresde.objectives.parametrization import parametrization
        >>> parametrization("velocity").__name__
        'velocity'
    """
    return look_up("parametrization", name, PARAMETRIZATIONS)


FAINT = 1e-30
"""A signal that float32 need not tell from none: its inverse is still a number."""


def affine(
    form: Parametrization, alpha: Tensor, sigma: Tensor, data_std: Tensor | float = 1.0
) -> Affine:
    """A parametrisation's coefficients; where ``sigma`` is 0, those of the state itself.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import affine, denoised
        >>> affine(denoised, torch.tensor([1.0, 0.8]), torch.tensor([0.0, 0.6]))
        Affine(skip=tensor([1., 0.]), out=tensor([0., 1.]))
    """
    clean = sigma == 0
    std = data_std.to(sigma) if isinstance(data_std, Tensor) else sigma.new_full((), data_std)
    return where_clean(form(alpha.clamp(min=FAINT), sigma.masked_fill(clean, 1.0), std), clean)


def where_clean(form: Affine, clean: Tensor) -> Affine:
    """Coefficients with those of the state itself, ``(1, 0)``, where there is no noise.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import Affine, where_clean
        >>> form = Affine(skip=torch.zeros(2), out=torch.ones(2))
        >>> where_clean(form, torch.tensor([True, False]))
        Affine(skip=tensor([1., 0.]), out=tensor([0., 1.]))
    """
    return Affine(form.skip.masked_fill(clean, 1.0), form.out.masked_fill(clean, 0.0))


def denoise(form: Affine, z: Tensor, prediction: Tensor) -> Tensor:
    """``D = skip z + out F`` from a prediction, which may be infinite or NaN where ``out`` is 0.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import denoise, noise
        >>> form = noise(*torch.tensor([0.8, 0.6, 1.0]))
        >>> denoise(form, z=torch.tensor(1.0), prediction=torch.tensor(1.0))  # (1 - 0.6)/0.8
        tensor(0.5000)
    """
    return form.skip * z + torch.where(form.out == 0, 0.0, form.out * prediction)


def predict(form: Affine, z: Tensor, mean: Tensor) -> Tensor:
    """``F = (D - skip z) / out``, the prediction of a denoised mean; 0 where there is no noise.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import noise, predict
        >>> form = noise(*torch.tensor([0.8, 0.6, 1.0]))
        >>> predict(form, z=torch.tensor(1.0), mean=torch.tensor(0.5)).round(decimals=3)
        tensor(1.)
    """
    clean = form.out == 0
    return torch.where(clean, 0.0, (mean - form.skip * z) / form.out.masked_fill(clean, 1.0))


def noiseless(sigma: Tensor, z: Tensor, mean: Tensor) -> Tensor:
    """The denoised mean, replaced by the state where ``sigma`` is 0.

    Example:
        >>> import torch
        >>> from scoresde.objectives.parametrization import noiseless
        >>> noiseless(torch.tensor([0.0, 0.6]), torch.ones(2), torch.tensor([torch.nan, 0.5]))
        tensor([1.0000, 0.5000])
    """
    return torch.where(sigma == 0, z, mean)
