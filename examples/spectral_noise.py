"""Noise of another colour: a unit of noise for every frequency, and one schedule for all.

    z_t,i | z_0,i ~ N(alpha(t) z_0,i, w_i^2 sigma(t)^2)

- EqualSNR (Falck et al. 2025, arXiv 2505.11278): ``w_i`` is the data's standard deviation, so that
  all frequencies drown at once, ``alpha^2 w_i^2 / (w_i^2 sigma^2)`` being the same for all of them.
- SAGD, spectrally anisotropic Gaussian diffusion (Scimeca et al. 2025, arXiv 2510.09660): ``w`` is
  a power law of the frequency, or lets a band pass and little else.

The papers' frequencies are of a Fourier transform, these of a cosine transform, which is real. How
weights are normalised is chosen here: white noise has as much power.
"""

from __future__ import annotations

from report import digits, moments, report
from torch import Tensor

from estimators import Gaussian
from scoresde import DCT, VP, Basis, DiagonalSDE
from solvers import ExponentialMultistep


def equal_snr(basis: Basis, data: Tensor) -> DiagonalSDE:
    """As much noise in every block of a basis as there is signal, by the data ``(N, *event)``."""
    mean, std = basis.moments(data)
    return DiagonalSDE(VP(), basis, scale=std, mean=mean)


def power_law(basis: DCT, exponent: float, floor: float = 0.1) -> DiagonalSDE:
    """``w = max(f / f_max, floor)^exponent``: above 0 fine detail has most of the noise."""
    weights = (basis.frequencies / basis.frequencies[-1]).clamp(min=floor) ** exponent
    return DiagonalSDE(VP(), basis, scale=_normalised(weights))


def band_pass(basis: DCT, low: float, high: float, floor: float = 0.05) -> DiagonalSDE:
    """``w = 1`` for ``low <= f / f_max <= high``, and ``floor`` elsewhere."""
    part = basis.frequencies / basis.frequencies[-1]
    weights = ((low <= part) & (part <= high)).double().clamp(min=floor)
    return DiagonalSDE(VP(), basis, scale=_normalised(weights))


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.square().mean().sqrt()


def main() -> None:
    """Samples the digits' Gaussian from noise of three colours."""
    images = digits()
    mean, covariance = moments(images)
    basis = DCT(images.shape[1:])
    each = DCT(images.shape[1:], bands=len(basis.frequencies.unique()))
    for title, sde in {
        "EqualSNR": equal_snr(each, images),
        "SAGD, a power law": power_law(basis, exponent=-0.5),
        "SAGD, a band": band_pass(basis, 0.0, 0.6, floor=0.3),
    }.items():
        model = Gaussian(sde, mean.reshape(images.shape[1:]), covariance)
        report(title, model, ExponentialMultistep(48), (mean, covariance), 2048)


if __name__ == "__main__":
    main()
