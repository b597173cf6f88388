"""Errors of an estimator's denoised means, by noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scoresde.checks import expect, instance, whole
from scoresde.estimator import ScoreEstimator
from scoresde.internals.modes import evaluation_mode
from scoresde.noise import Generators, Noise
from scoresde.precision import expect_near
from scoresde.sampling import grid as grids
from scoresde.sdes.diagonal import DiagonalSDE

_MOST = 1e3
"""What is missed at most, in units of a band: an infinite error, with which one can reckon."""

_KNOWN = 1.05
"""Up to which errors are those of the best: what a few hundred events know to is some per cent."""

_Floats = npt.NDArray[np.float64]


@attrs.frozen(eq=False)
class DenoisingErrors:
    """Mean squared errors of denoised means, block by block.

    Attributes:
        noise_levels: Of every block, in the coefficients' own units; increasing.
        errors: ``E (D - z_0)^2`` of a coefficient at these levels.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> from scoresde.planning import DenoisingErrors
        >>> model = Gaussian(DiagonalSDE(EDM(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> measured = DenoisingErrors.of(model, torch.randn(4000, 2), count=3)
        >>> variance = measured.noise_levels["all"].mul(2).exp()  # of the noise
        >>> torch.allclose(measured.errors["all"], variance / (1 + variance), rtol=0.1)
        True
    """

    noise_levels: Mapping[str, Tensor]
    errors: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        estimator: ScoreEstimator,
        x: Tensor,
        count: int = 24,
        generator: Generators = None,
        condition: Any = None,
    ) -> DenoisingErrors:
        """Measured on held-out data: a few hundred events will do.

        Args:
            estimator: Of a `scoresde.DiagonalSDE`.
            x: Events, ``(N, *event_shape)``.
            count: Noise levels at which it is asked.
            generator: Of the noise.
            condition: Of the events, if the estimator takes any.

        Raises:
            TypeError: If its SDE is another.
            ValueError: If there are no events, or they do not fit.
        """
        sde = estimator.sde
        instance("estimator.sde", sde, DiagonalSDE)
        assert isinstance(sde, DiagonalSDE)
        whole("count", count, 2)
        expect_near("x", x, estimator)
        expect(len(x) > 0, "x", "at least one event", tuple(x.shape))
        noise, z, stages = Noise.of(generator), sde.basis(x), sde.stages()
        times = grids.log_snr(sde, max(count, len(stages)))
        pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in sde.blocks.sizes}
        with evaluation_mode(estimator), torch.no_grad():
            for t in ((times[1:] + times[:-1]) / 2).flip(0):
                dim = next(stage.dim for stage in stages if float(t) >= stage.end)
                clean = z[:, :dim]
                diffused = sde.diffuse(clean, float(t), noise(clean))
                mean = estimator.denoise(diffused, float(t), condition)
                errors = (mean - clean).double().square().mean(0).cpu()
                noise_levels = sde.blocks.expand(sde.at(t.reshape(1, 1)).log_snr[0] / -2)
                noise_levels = noise_levels.expand(sde.basis.dim).cpu()
                for name, block in sde.blocks.slices.items():
                    if block.stop <= dim:
                        pairs[name].append(
                            (float(noise_levels[block].mean()), float(errors[block].mean()))
                        )
        tables = {name: torch.tensor(sorted(v), dtype=torch.float64) for name, v in pairs.items()}
        return cls(*({name: v[:, i] for name, v in tables.items()} for i in (0, 1)))

    def excess(self, name: str, unit: float, variances: Tensor) -> tuple[_Floats, _Floats]:
        """Errors beyond those of the best linear denoiser of a block.

        Args:
            name: Of the block.
            unit: For its coefficients and noise levels.
            variances: Of its principal components.

        Returns:
            Increasing noise levels, and the root of the mean square missed at each.

        Raises:
            ValueError: If the block has not been measured.
        """
        expect(
            name in self.noise_levels,
            "learned",
            f"errors of block {name!r}",
            list(self.noise_levels),
        )
        noise_levels, noise = (
            self.noise_levels[name].double(),
            (2 * self.noise_levels[name].double()).exp(),
        )
        linear = torch.stack([(variances * v / (variances + v)).mean() for v in noise])
        excess = self.errors[name].double() - _KNOWN * linear
        excess = (excess / unit**2).clamp(0, _MOST**2).sqrt()
        return (noise_levels - math.log(unit)).numpy(), excess.numpy()
