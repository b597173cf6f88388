"""Subspace diffusion (Jing et al. 2022, arXiv 2205.01490) as blocks of principal components.

Every block is measured in units of its own root mean square and diffuses at a speed of its own:
the minor components are noise long before the major ones, and from then on they are not carried.
Going back, the model starts in the small subspace; what lies outside enters later, as noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from report import digits, moments, report
from torch import Tensor

from estimators import Gaussian
from scoresde import PCA, DiagonalSDE, LogLinear
from solvers import ExponentialMultistep


def subspace_diffusion(
    data: Tensor, sizes: Mapping[str, int], ends: Sequence[float]
) -> DiagonalSDE:
    """The setting: blocks of principal components that end one after the other.

    Args:
        data: ``(N, *event_shape)``, to fit the components.
        sizes: Name and size of each block, the major components first.
        ends: Time at which each block ends, the first one at 1.
    """
    basis = PCA.fit(data, sizes)
    power = basis.blocks.mean(basis(data.double()).square().mean(0))
    speeds = [1 / end for end in ends]
    return DiagonalSDE(LogLinear(), basis, speeds, scale=power.sqrt(), drop=ends)


def main() -> None:
    """Samples the digits' Gaussian, three quarters of the way in 32 dimensions or fewer."""
    images = digits()
    mean, covariance = moments(images)
    sizes = {"first": 8, "second": 24, "rest": 32}
    sde = subspace_diffusion(images, sizes, ends=[1.0, 0.5, 0.25])
    model = Gaussian(sde, mean.reshape(images.shape[1:]), covariance)
    report("subspace diffusion", model, ExponentialMultistep(64), (mean, covariance), 4096)


if __name__ == "__main__":
    main()
