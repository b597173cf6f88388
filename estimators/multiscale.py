"""Multi-scale diffusion: one network per stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from estimators.denoising import Denoising
from estimators.mismatch import check_range
from scoresde.bases import Basis
from scoresde.checks import expect
from scoresde.diagonal import DiagonalSDE
from scoresde.equation import Coefficients
from scoresde.estimator import Denoiser, ScoreEstimator
from scoresde.noise import Generators, Noise
from scoresde.weighting import Weighting


class MultiScale(ScoreEstimator):
    """A denoiser for every stage of an SDE that drops blocks (Batzolis et al. 2022, section 5).

    Each network sees the surviving components only, at their own resolution, and is trained on
    its own interval of time. Stages are independent: train them together through `loss`, or
    each by itself as the `Denoising` estimator that it is.

    Args:
        sde: Drops blocks, see `scoresde.DiagonalSDE`.
        networks: One for every stage, coarse first (the order of ``sde.stages()``); the same
            object several times for a shared network.
        network_bases: The basis whose events each network sees, for instance `scoresde.Packed`; see
            `Denoising`.
        options: Further arguments of every `Denoising`; scales are those of the whole SDE.

    Raises:
        ValueError: If there is not one network, or not one basis of them, per stage.

    Example:
        >>> from estimators import MultiScale, ResidualMLP
        >>> from scoresde import Cosine, DiagonalSDE, Haar
        >>> from solvers import DDIM
        >>> sde = DiagonalSDE(Cosine(), Haar((1, 4, 4), levels=1), drop=[1.0, 0.5])
        >>> networks = [ResidualMLP((stage.dim,), 16, 1) for stage in sde.stages()]
        >>> DDIM(8).sample(MultiScale(sde, networks), (5,)).shape
        torch.Size([5, 1, 4, 4])
    """

    references = "batzolis2022"

    def __init__(
        self,
        sde: DiagonalSDE,
        networks: Sequence[nn.Module],
        *,
        network_bases: Sequence[Basis | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(sde)
        stages = sde.stages()
        bases = [None] * len(stages) if network_bases is None else network_bases
        expect(len(networks) == len(stages), "networks", f"{len(stages)}", len(networks))
        expect(len(bases) == len(stages), "network_bases", f"{len(stages)}", len(bases))
        models = [
            Denoising(sde, network, stage=stage, network_basis=basis, **options)
            for network, stage, basis in zip(networks, stages, bases, strict=True)
        ]
        self.stages = nn.ModuleList(models)
        check_range(sde, models[0].data_mean, models[0].data_std)
        self._place = {stage.dim: i for i, stage in enumerate(stages)}

    def denoise(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        """That of the stage whose components are the state.

        Raises:
            ValueError: If ``z`` has the length of no stage.
        """
        return self._stage(z).denoise(z, t, condition)

    def denoisers(self, at: Coefficients, condition: Any = None) -> Iterator[Denoiser]:
        """Those of the stage whose components are the state."""
        return self._stage(at.like).denoisers(at, condition)

    def _stage(self, z: Tensor) -> Denoising:
        dim = z.shape[-1]
        expect(dim in self._place, "z", f"one of {list(self._place)} components", dim)
        stage = self.stages[self._place[dim]]
        assert isinstance(stage, Denoising)
        return stage

    def losses(
        self,
        x: Tensor,
        condition: Any = None,
        generator: Generators = None,
        weighting: Weighting | None = None,
    ) -> Tensor:
        """Sum of the stages' losses, ``(batch,)``: sums, so that nats stay nats."""
        noise = Noise.of(generator)
        parts = [
            stage.losses(x, condition, noise, weighting)
            for stage in self.stages
            if isinstance(stage, Denoising)
        ]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def loss(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """Mean of `losses`, per component of the data."""
        losses = self.losses(x, condition, generator)
        expect(len(losses) > 0, "x", "at least one event", tuple(x.shape))
        return losses.mean() / self.sde.basis.dim
