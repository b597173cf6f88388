"""The conditional estimators of Batzolis et al. 2022: settings of one joint diffusion.

A condition ``y`` is a part of the event, diffused together with the rest ``x``. They differ in the
noise that it gets; all learn by denoising score matching of both, and `scoresde.condition` makes
``p(x | y)`` of them.

``y`` ends with no noise in `cde`, with that of ``x`` in `cdiffe`, and with little in `cmde`, as in
`vs_cmde`, whose training begins with that of ``x``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from estimators.joint_network import JointNetwork
from estimators.multiscale import Maker, MultiScale, make_networks, one_for_each
from scoresde.bases import Joint
from scoresde.bases.views import view
from scoresde.conditioning import slowed
from scoresde.schedules import VP
from scoresde.sdes.diagonal import DiagonalSDE

_F = TypeVar("_F", bound=Callable[..., Any])

Networks = Sequence[nn.Module | Maker] | nn.Module | Maker

_FIXED = ("noise", "updates", "baseline")
"""What a name below says, and what needs the SDE that is made here."""


def multi_speed(
    sde: DiagonalSDE,
    networks: Networks,
    *,
    noise: float,
    given: str | Sequence[str] = "y",
    updates: int | None = None,
    network_bases: str = "events",
    budget: int | Sequence[int] | None = None,
    operations: int | Sequence[int] | None = None,
    **options: Any,
) -> MultiScale:
    """A joint estimator of which some parts will be given, with any noise on them.

    Args:
        sde: Of all parts, with a `scoresde.Joint` basis; what is given must be in the state from
            ``T`` on. If it drops blocks of the rest, there is a network for every stage.
        networks: One for every stage, of the events that `JointNetwork` sees; or functions from
            the shape of those to networks, see `MultiScale`.
        noise: ``sigma/alpha`` that given parts end with, in units of the SDE's scale: 0 where they
            stand still, infinite where they diffuse as the SDE has it.
        given: Names of the parts.
        updates: Over which noise shrinks to that in training, see
            `scoresde.conditioning.AnnealedClock`.
        network_bases: View of the parts, see `MultiScale`.
        budget: Parameters of all networks, or of each, see there.
        operations: Of an evaluation of all, or of each, see there.
        options: Other arguments of `MultiScale`, but its baseline.

    Returns:
        An estimator of all parts, with an SDE of its own.

    Raises:
        TypeError: If the SDE's basis is another one.
        ValueError: If a part is unknown, none or all are given, or a number is out of its range.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP
        >>> from estimators.conditional import multi_speed
        >>> from scoresde import VE, DiagonalSDE, Joint, condition
        >>> from solvers import DDIM
        >>> sde = DiagonalSDE(VE(0.01, 50.0), Joint(y=(1, 8, 4), x=(1, 8, 4)))
        >>> model = multi_speed(sde, lambda shape: ResidualMLP(shape, 16, 1), noise=0.5)
        >>> x = DDIM(4).sample(condition(model, y=torch.zeros(5, 1, 8, 4)), (3, 5))
        >>> x.shape
        torch.Size([3, 5, 1, 8, 4])
    """
    own = slowed(sde, [given] if isinstance(given, str) else given, noise, updates)
    seen, stages = view(network_bases), own.stages()
    bases = [seen(own.basis, stage.dim) for stage in stages]
    joint = [basis for basis in bases if isinstance(basis, Joint)]
    shapes = [*map(JointNetwork.seen_shape, joint)]
    modules = make_networks(
        one_for_each("networks", networks, len(stages)), shapes, budget, operations
    )
    shown = [*map(JointNetwork, joint, modules)]
    return MultiScale(own, shown, network_bases=bases, **options)


def _setting(function: _F) -> _F:
    """Shows what its ``options`` are in a signature, by which files are checked."""
    named = {**inspect.signature(multi_speed).parameters}
    named |= {n: p for n, p in inspect.signature(MultiScale).parameters.items() if n not in named}
    own = inspect.signature(function).parameters
    parameters = [p for p in own.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [
        p
        for name, p in named.items()
        if not (name in own or name in _FIXED or p.kind is p.VAR_KEYWORD)
    ]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    # for the laws of estimators: an SDE that has parts
    function.example = {"sde": DiagonalSDE(VP(), Joint(y=(1,), x=(2,)))}  # type: ignore[attr-defined]
    return function


@_setting
def cde(sde: DiagonalSDE, networks: Networks, **options: Any) -> MultiScale:
    """Conditional denoising: given parts have no noise.

    It has a density, and learns ``grad log p(x_t | y)`` without a bias.

    Args:
        sde: See `multi_speed`.
        networks: See there.
        options: See there; all but ``noise`` and ``updates``.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP, cde
        >>> from scoresde import VE, DiagonalSDE, Joint
        >>> sde = DiagonalSDE(VE(0.01, 50.0), Joint(y=(2,), x=(3,)))
        >>> model = cde(sde, lambda shape: ResidualMLP(shape, 16, 1))
        >>> model.sde.at(torch.ones(1)).sigma.round()
        tensor([ 0., 50.])
    """
    return multi_speed(sde, networks, noise=0.0, **options)


@_setting
def cdiffe(sde: DiagonalSDE, networks: Networks, **options: Any) -> MultiScale:
    """Conditional diffusive: given parts diffuse like the rest.

    Any part may be given after training; samples are of ``p(x_t | y_t)``, with a bias.

    Args:
        sde: See `multi_speed`.
        networks: See there.
        options: See there; all but ``noise`` and ``updates``.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP, cdiffe
        >>> from scoresde import VE, DiagonalSDE, Joint
        >>> sde = DiagonalSDE(VE(0.01, 50.0), Joint(y=(2,), x=(3,)))
        >>> model = cdiffe(sde, lambda shape: ResidualMLP(shape, 16, 1))
        >>> model.sde.at(torch.ones(1)).sigma.round()
        tensor([50., 50.])
    """
    return multi_speed(sde, networks, noise=math.inf, **options)


@_setting
def cmde(sde: DiagonalSDE, networks: Networks, *, noise: float = 0.5, **options: Any) -> MultiScale:
    """Conditional multi-speed diffusive: given parts diffuse less than the rest.

    The smaller the noise, the smaller the bias of `cdiffe`; with a variance-exploding schedule
    ``noise`` is the paper's largest ``sigma`` of ``y``: .5 for super-resolution, 1 for inpainting
    and edges.

    Args:
        sde: See `multi_speed`.
        networks: See there.
        noise: See there.
        options: See there; all but ``updates``.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP, cmde
        >>> from scoresde import VE, DiagonalSDE, Joint
        >>> sde = DiagonalSDE(VE(0.01, 50.0), Joint(y=(2,), x=(3,)))
        >>> model = cmde(sde, lambda shape: ResidualMLP(shape, 16, 1), noise=0.5)
        >>> model.sde.at(torch.ones(1)).sigma.round(decimals=4)
        tensor([ 0.5000, 50.0000])
    """
    return multi_speed(sde, networks, noise=noise, **options)


@_setting
def vs_cmde(
    sde: DiagonalSDE, networks: Networks, *, updates: int, noise: float = 0.5, **options: Any
) -> MultiScale:
    """`cmde` whose noise on given parts shrinks during training: variance shrinking.

    `scoresde.training.Training` does it; in a loop of one's own, call
    ``model.sde.clock.before_update(n)``. In evaluation mode this is a `cmde` with the last noise.

    Args:
        sde: See `multi_speed`.
        networks: See there.
        updates: See there.
        noise: See there.
        options: See there.

    Example:
        >>> import torch
        >>> from estimators import ResidualMLP, vs_cmde
        >>> from scoresde import VE, DiagonalSDE, Joint
        >>> sde = DiagonalSDE(VE(0.01, 50.0), Joint(y=(2,), x=(3,)))
        >>> model = vs_cmde(sde, lambda shape: ResidualMLP(shape, 16, 1), updates=1000)
        >>> model.sde.at(torch.ones(1)).sigma.round()
        tensor([50., 50.])
        >>> model.eval().sde.at(torch.ones(1)).sigma.round(decimals=4)
        tensor([ 0.5000, 50.0000])
    """
    return multi_speed(sde, networks, noise=noise, updates=updates, **options)


vs_cmde.example["updates"] = 10  # type: ignore[attr-defined]
