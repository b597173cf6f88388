"""The phase-space diffusions of the literature, by name."""

from __future__ import annotations

from scoresde.bases import Basis
from scoresde.phase_space.diffusion import PhaseSDE
from scoresde.phase_space.dynamics import Dynamics
from scoresde.precision import Numbers
from scoresde.schedules import Schedule
from scoresde.sdes.clock import Clock


class CLD(PhaseSDE):
    """Critically damped Langevin diffusion: see `Dynamics.cld`.

    Args:
        schedule: See `PhaseSDE`.
        basis: See `PhaseSDE`.
        friction: See `Dynamics.cld`.
        gamma: See `Dynamics.cld`.
        speeds: See `PhaseSDE`.
        scale: See `PhaseSDE`.
        mean: See `PhaseSDE`.
        delays: See `PhaseSDE`.
        std: See `PhaseSDE`.

    Raises:
        ValueError: As of `PhaseSDE` and `Dynamics.cld`.

    Example:
        >>> from scoresde import CLD, VP, Identity
        >>> sde = CLD(VP(), Identity((3,)))
        >>> sde.dim  # three positions and three velocities
        6
    """

    references = "dockhorn2022"

    def __init__(
        self,
        schedule: Schedule,
        basis: Basis,
        friction: float = 1.0,
        gamma: float = 0.04,
        speeds: Clock | Numbers = 1.0,
        scale: Numbers = 1.0,
        mean: Numbers = 0.0,
        delays: Numbers = 0.0,
        std: Numbers = 0.0,
    ) -> None:
        dynamics = Dynamics.cld(friction, gamma)
        super().__init__(schedule, basis, dynamics, speeds, scale, mean, delays, std)


class PSLD(PhaseSDE):
    """Phase-space Langevin diffusion: see `Dynamics.psld`.

    Args:
        schedule: See `PhaseSDE`.
        basis: See `PhaseSDE`.
        friction: See `Dynamics.psld`.
        leak: See `Dynamics.psld`.
        gamma: See `Dynamics.psld`.
        speeds: See `PhaseSDE`.
        scale: See `PhaseSDE`.
        mean: See `PhaseSDE`.
        delays: See `PhaseSDE`.
        std: See `PhaseSDE`.

    Raises:
        ValueError: As of `PhaseSDE` and `Dynamics.psld`.

    Example:
        >>> from scoresde import PSLD, VP, Identity
        >>> PSLD(VP(), Identity((3,))).dim
        6
    """

    references = "pandey2023"

    def __init__(
        self,
        schedule: Schedule,
        basis: Basis,
        friction: float = 4.01,
        leak: float = 0.01,
        gamma: float = 0.04,
        speeds: Clock | Numbers = 1.0,
        scale: Numbers = 1.0,
        mean: Numbers = 0.0,
        delays: Numbers = 0.0,
        std: Numbers = 0.0,
    ) -> None:
        dynamics = Dynamics.psld(friction, leak, gamma)
        super().__init__(schedule, basis, dynamics, speeds, scale, mean, delays, std)


class HOLD(PhaseSDE):
    """Third-order Langevin diffusion: see `Dynamics.hold`.

    Args:
        schedule: See `PhaseSDE`.
        basis: See `PhaseSDE`.
        gamma: See `Dynamics.hold`.
        speeds: See `PhaseSDE`.
        scale: See `PhaseSDE`.
        mean: See `PhaseSDE`.
        delays: See `PhaseSDE`.
        std: See `PhaseSDE`.

    Raises:
        ValueError: As of `PhaseSDE` and `Dynamics.hold`.

    Example:
        >>> from scoresde import HOLD, VP, Identity
        >>> HOLD(VP(), Identity((3,))).dim  # with accelerations
        9
    """

    references = "sterling2025"

    def __init__(
        self,
        schedule: Schedule,
        basis: Basis,
        gamma: float = 0.04,
        speeds: Clock | Numbers = 1.0,
        scale: Numbers = 1.0,
        mean: Numbers = 0.0,
        delays: Numbers = 0.0,
        std: Numbers = 0.0,
    ) -> None:
        super().__init__(schedule, basis, Dynamics.hold(gamma), speeds, scale, mean, delays, std)
