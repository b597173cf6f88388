"""Averages of the weights of a finished run, of any width, from snapshots of two.

An average with the power profile ``beta_n = (1 - 1/n)^(g + 1)`` weighs the update ``m`` of ``n`` by
``m^g``, up to a constant: its relative width is ``sqrt(g + 1)/((g + 2) sqrt(g + 3))``, for runs of
any length. Snapshots of two such averages span nearly all others (Karras et al. 2024).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect, real
from scoresde.data.events import as_dataset
from scoresde.data.placement import PlacedEvents
from scoresde.estimator import ScoreEstimator
from scoresde.training import checkpoint
from scoresde.training.average import GAMMAS, WeightAverage
from scoresde.training.distributed import SINGLE_PROCESS
from scoresde.training.settings import TrainingSettings
from scoresde.training.state import TrainingState

FOLDER = "averages"
"""Of the snapshots, in that of a run."""

WIDTHS = (0.02, 0.05, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25)
"""That are tried where none is named: from an average of the last updates to one of nearly all."""

_SMALLEST, _LARGEST = 0.02, 0.28
"""Widths. Of narrower ones 20 snapshots miss a third (at .01), with coefficients that add up to 46
in size; of a power profile that falls, the width of equal weights is ``1/sqrt(12)``."""


@attrs.frozen
class PostHocAverages:
    """Averages of any width of a run's weights, from the snapshots of ``Training(snapshots=)``.

    The coefficients of snapshots are found by least squares between profiles, by the ema-pytorch
    library: ``pip install "scoresde[averages]"``.

    Args:
        paths: Checkpoints of the snapshots, by the updates after which they were taken.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.training import Training
        >>> from scoresde.training.post_hoc import PostHocAverages
        >>> model = Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1))
        >>> x, folder = torch.randn(100, 2), tempfile.mkdtemp()
        >>> _ = Training(steps=8, snapshots=4).fit(model, x, folder=folder, progress=False)
        >>> averages = PostHocAverages.load(folder)
        >>> losses = averages.losses(model, x, widths=[0.05, 0.2])
        >>> averages.load_into(model, min(losses, key=losses.get))
    """

    references = "karras2024"

    paths: dict[int, Path]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> PostHocAverages:
        """Those in the folder of a run.

        Raises:
            FileNotFoundError: If there is none.
        """
        paths = (path.parent for path in Path(folder, FOLDER).glob("*/config.json"))
        snapshots = {int(path.name): path for path in paths}
        if not snapshots:
            expected = "expected a run with snapshots, which [training] has with snapshots = 20"
            raise FileNotFoundError(f"{folder}: {expected}, got none")
        return cls(dict(sorted(snapshots.items())))

    def weights(self, width: float) -> dict[str, Tensor]:
        """The average at the end of the run with a power profile of a relative width, by name.

        Args:
            width: As a share of the run.

        Raises:
            CheckpointError: If a snapshot is damaged.
            ImportError: If the library is missing.
            ValueError: If the width is not between 0.02 and 0.28.
        """
        real("width", width)
        wanted = f"a share of the run, from {_SMALLEST} to {_LARGEST}"
        expect(_SMALLEST <= width <= _LARGEST, "width", wanted, width)
        total: dict[str, Tensor] = {}
        for path, coefficients in zip(self.paths.values(), self._coefficients(width), strict=True):
            tensors, _ = checkpoint.load(path)
            for key, value in tensors.items():
                index, _, name = key.partition(".")
                share = coefficients[int(index)] * value.double()
                total[name] = share if name not in total else total[name] + share
        return total

    def load_into(self, estimator: ScoreEstimator, width: float) -> None:
        """Gives an estimator the weights of a width; see `weights`."""
        average = WeightAverage(estimator)
        average.restore(self.weights(width))
        average.load()

    def losses(
        self,
        estimator: ScoreEstimator,
        held_out: Any,
        widths: Sequence[float | None] = WIDTHS,
        *,
        training: TrainingSettings | None = None,
        seed: int = 0,
    ) -> dict[float | None, float]:
        """The held-out loss of averages of several widths, with the same noise for all of them.

        Args:
            estimator: Of the run; its weights are restored at the end.
            held_out: Events, as `scoresde.training.Training.fit` takes them.
            widths: See `weights`; None is for the weights as they are.
            training: Settings of the run, for its precision and size of batches.
            seed: Of the run.
        """
        settings = TrainingSettings() if training is None else training
        run = TrainingState.new(settings, estimator, seed, SINGLE_PROCESS)
        placed = PlacedEvents.of("held_out", as_dataset("held_out", held_out), run.device)
        before = {name: value.clone() for name, value in estimator.state_dict().items()}
        was_training, losses = estimator.training, dict[float | None, float]()
        estimator.eval()
        try:
            for width in widths:
                if width is None:
                    estimator.load_state_dict(before)
                else:
                    self.load_into(estimator, width)
                losses[width] = run.held_out_loss(placed)
        finally:
            estimator.load_state_dict(before)
            estimator.train(was_training)
        return losses

    def _coefficients(self, width: float) -> list[list[float]]:
        """Coefficients of the profiles of every snapshot, which add up to 1: of an average."""
        try:
            from ema_pytorch.post_hoc_ema import sigma_rel_to_gamma, solve_weights
        except ImportError as error:
            message = "averages need ema-pytorch: pip install 'scoresde[averages]'"
            raise ImportError(message) from error
        steps = torch.tensor([*self.paths], dtype=torch.float64).repeat_interleave(len(GAMMAS))
        gammas = torch.tensor(GAMMAS, dtype=torch.float64).repeat(len(self.paths))
        wanted = torch.tensor([sigma_rel_to_gamma(width)], dtype=torch.float64)
        solution = solve_weights(steps, gammas, steps[-1:], wanted)
        # least squares between profiles does not ask for it: few snapshots would shrink weights
        coefficients = (solution / solution.sum()).reshape(-1, len(GAMMAS))
        return coefficients.tolist()  # type: ignore[no-any-return]


def keep(folder: Path, run: TrainingState) -> None:
    """Writes a snapshot of a run's profiles, by the first of its processes."""
    if run.processes.is_main_process:
        checkpoint.save(folder / FOLDER / str(run.step), run.profile_tensors(), {"step": run.step})


def forget(folder: Path) -> None:
    """Removes the snapshots of another run."""
    for path in sorted(Path(folder, FOLDER).glob("*/config.json")):
        checkpoint.remove(path.parent)
