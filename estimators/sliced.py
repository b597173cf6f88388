"""Score matching by the score's own divergence."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from estimators.kernel_free import KernelFree
from scoresde.bases import Basis
from scoresde.internals.derivatives import vjp
from scoresde.likelihood import Hutchinson
from scoresde.noise import Noise
from scoresde.precision import Numbers
from scoresde.sampling.grid import Grid
from scoresde.sdes.sde import SDE


class SlicedScoreMatching(KernelFree):
    """Score matching with random projections of its derivative (Song et al. 2019).

    By integration by parts, the squared error needs no true score (Hyvärinen 2005):

        E a^2 |s - grad log p_t|^2 = E |a s|^2 + 2 E div(a^2 s) + constant,

    where ``div`` is the mean of ``v^T J v`` over random signs ``v``. There is no bias of a step;
    the network is differentiated twice, and has to be smooth.

    Takes the arguments of `estimators.kernel_free.KernelFree`.

    Args:
        probes: Number of vectors ``v`` for each event.

    Raises:
        ValueError: If ``probes`` is not a whole number of at least 1; and see there.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP, SlicedScoreMatching
        >>> from scoresde import GeometricBrownian
        >>> network = ResidualMLP((2,), width=16, depth=1)
        >>> model = SlicedScoreMatching(GeometricBrownian((2,)), network, data_mean=1.0)
        >>> model.loss(torch.rand(8, 2) + 0.5).backward()
    """

    references = "hyvarinen2005 song2019"
    laws: ClassVar = {"updates": 80}

    def __init__(
        self,
        sde: SDE,
        network: nn.Module,
        *,
        times: str | Grid = "root_time",
        data_mean: Numbers = 0.0,
        data_std: Numbers = 1.0,
        network_basis: Basis | None = None,
        steps: int = 16,
        probes: int = 1,
    ) -> None:
        super().__init__(
            sde,
            network,
            times=times,
            data_mean=data_mean,
            data_std=data_std,
            network_basis=network_basis,
            steps=steps,
        )
        self.trace = Hutchinson(probes)

    def objective(self, z: Tensor, t: Tensor, condition: Any, noise: Noise) -> Tensor:
        """See `estimators.kernel_free.KernelFree.objective`."""
        z = self.simulate(z, t, noise)

        def gain(z: Tensor) -> Tensor:
            return self.noise_std(z, t).square() * self.score(z, t, condition)

        value, pull_back = vjp(gain, z, self.parameters())
        divergence: Tensor = self.trace(pull_back, z, self.trace.draw(z, noise)).mean(-2)
        deviation = self.noise_std(z, t)
        error: Tensor = value / deviation.masked_fill(deviation == 0, torch.inf)
        return error.square() + 2 * divergence
