"""Drift that knows the data's variances (arXiv 2606.03360), over principal components.

Directions in which the data hardly vary contract fast, those in which they vary most slowly, under
noise that is the same in all of them (Taheri 2026, of which the abstract was at hand). Built here:

    dz_i = -a_i beta z_i / 2 dt + (v_max beta)^(1/2) dw_i,    a_i = (v_max / v_i)^power

with ``v_i`` the variances. This is a variance-preserving schedule of rate ``a_i beta`` and noise in
units of ``(v_max / a_i)^(1/2)``, in which every component comes to rest. With ``power=0`` drift
is as everywhere, with ``power=1`` noise comes to rest in the shape of the data: Gaussian ones have
the same distribution at every time, and only what is not Gaussian about data is diffused away.
"""

from __future__ import annotations

from collections.abc import Mapping

from report import digits, moments, report
from torch import Tensor

from estimators import Gaussian
from scoresde import PCA, VP, DiagonalSDE
from solvers import ExponentialMultistep


def variance_aware_drift(
    data: Tensor,
    power: float = 1.0,
    floor: float = 1e-2,
    beta_max: float = 20.0,
    blocks: Mapping[str, int] | None = None,
) -> DiagonalSDE:
    """The setting.

    Args:
        data: ``(N, *event_shape)``, to fit the components.
        power: How much drift depends on variances.
        floor: Least variance that is told apart, in units of the largest: ``a`` is bounded.
        beta_max: Rate of noise at the end.
        blocks: Components that an estimator measures together; all if None.
    """
    basis = PCA.fit(data, blocks)
    largest = basis.variances.max()
    rates = (largest / basis.variances.clamp(min=floor * largest)) ** power
    schedule = VP(0.1 * rates, beta_max * rates)
    mean = basis(data.double()).mean(0)
    return DiagonalSDE(schedule, basis, scale=(largest / rates).sqrt(), mean=mean)


def main() -> None:
    """Samples the digits' Gaussian."""
    images = digits()
    mean, covariance = moments(images)
    sde = variance_aware_drift(images)
    model = Gaussian(sde, mean.reshape(images.shape[1:]), covariance)
    report("variance-aware drift", model, ExponentialMultistep(48), (mean, covariance), 4096)


if __name__ == "__main__":
    main()
