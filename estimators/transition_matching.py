"""Score matching by the last, small step of a simulated path."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from estimators.kernel_free import KernelFree, transition
from scoresde.bases import Basis
from scoresde.checks import choice, expect, real
from scoresde.noise import Noise
from scoresde.precision import Numbers
from scoresde.sampling.grid import Grid
from scoresde.sdes.sde import SDE


class TransitionMatching(KernelFree):
    """Regression of the score on that of a small step (Singhal et al. 2024).

    A path is simulated to ``t - d``, followed by a step whose density is known,
    ``z' = z + f d + g sqrt(d) xi``. The score of that density, ``-xi / (g sqrt(d))``, has the score
    at ``z'`` as its mean given ``z'``: a regression, as in denoising score matching, with a bias of
    ``O(d)`` by the step. With ``psi = a^2 s``,

        E a^2 |s + xi / (g sqrt(d))|^2 = E |a s|^2 + 2 E psi(z', t) xi / (g sqrt(d)) + constant.

    The target's variance grows as ``1/d``. That of the product does not, if ``psi`` at the start of
    the step, which is independent of ``xi``, is subtracted (Wang et al. 2020): two evaluations of
    the network, and no derivative in the state.

    Takes the arguments of `estimators.kernel_free.KernelFree`.

    Args:
        step: Length of the last step as a share of ``t``, which sets the bias.
        control_variate: Whether ``psi`` at the start is subtracted.

    Raises:
        ValueError: If ``step`` is not between 0 and 1; and see there.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP, TransitionMatching
        >>> from scoresde import CoxIngersollRoss
        >>> network = ResidualMLP((2,), width=16, depth=1)
        >>> model = TransitionMatching(CoxIngersollRoss((2,)), network, data_mean=1.0, data_std=0.3)
        >>> model.loss(torch.rand(8, 2) + 0.5).backward()
    """

    references = "singhal2024 wang2020"
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
        step: float = 0.01,
        control_variate: bool = True,
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
        real("step", step)
        expect(0 < step < 1, "step", "a share between 0 and 1", step)
        choice("control_variate", control_variate, False, True)
        self.step, self.control_variate = step, control_variate

    def objective(self, z: Tensor, t: Tensor, condition: Any, noise: Noise) -> Tensor:
        """See `estimators.kernel_free.KernelFree.objective`."""
        begin = (1 - self.step) * t
        with torch.no_grad():
            start = self.simulate(z, begin, noise)
            mean, deviation = transition(self.sde.at(torch.stack([begin, t]), start), start)
            xi, still = noise(start), deviation == 0
            end = torch.addcmul(mean, deviation, xi)
            pull = (2 * xi / torch.where(still, 1.0, deviation)).masked_fill(still, 0.0)
        score, gain = self.score(end, t, condition), self.noise_std(end, t).square()
        if not self.control_variate:
            return gain * score * (score + pull)
        before = self.noise_std(start, begin).square() * self.score(start, begin, condition)
        return gain * score.square() + (gain * score - before) * pull
