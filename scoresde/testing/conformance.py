"""The laws of plugins, which are found by their entry points.

    from scoresde.testing import conformance

    globals().update(conformance("my-distribution"))

is all the tests that a distribution of plugins needs. Classes are made with the defaults of their
arguments, what is `supplied`, and what they say themselves of others, as a configuration would, in
a class attribute; another one has attributes of their laws:

    class Mine(ScoreEstimator):
        example = {"rate": 0.5}     # an argument without a default
        laws = {"exact": True}      # attributes of EstimatorLaws
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import plugins
from scoresde.bases import Identity
from scoresde.checks import choice, expect
from scoresde.estimator import KernelEstimator
from scoresde.schedules import VP
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde_coefficients import Kernel
from scoresde.testing.bases import BasisLaws
from scoresde.testing.degradations import DegradationLaws
from scoresde.testing.estimators import EstimatorLaws
from scoresde.testing.measures import standard_normal
from scoresde.testing.networks import NetworkLaws
from scoresde.testing.schedules import ScheduleLaws
from scoresde.testing.sdes import SDELaws
from scoresde.testing.solvers import SolverLaws

LAWS: dict[str, type] = {
    "sdes": SDELaws,
    "schedules": ScheduleLaws,
    "bases": BasisLaws,
    "estimators": EstimatorLaws,
    "networks": NetworkLaws,
    "solvers": SolverLaws,
    "degradations": DegradationLaws,
}
"""The laws of every group of `scoresde.plugins.GROUPS`."""

SHAPES = {"bases": (2, 4, 4)}
"""Of the events that things of a group are made for; ``(3,)`` of the others."""


class _Perceptron(nn.Module):
    """A network for estimators that want one."""

    def __init__(self, size: int, width: int = 16) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear_in, self.linear_out = nn.Linear(size + 1, width), nn.Linear(width, size)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.randn(weight.shape, generator=generator) / len(weight) ** 0.5)

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        hidden = self.linear_in(torch.cat([x.flatten(1), noise_level.unsqueeze(-1)], -1))
        out: Tensor = self.linear_out(nn.functional.silu(hidden))
        return out.reshape(x.shape)


class _StandardNormal(KernelEstimator):
    """An estimator for those that wrap one."""

    def denoised(self, z: Tensor, kernel: Kernel, condition: Any = None) -> Tensor:
        alpha, sigma = kernel
        return alpha * z / (alpha**2 + sigma**2)


def supplied(group: str) -> dict[str, Callable[[], Any]]:
    """Makers of the arguments that the laws of a group supply, by name or as a class calls them.

    Beside those of a configuration (`scoresde.app.config.SUPPLIED`) these are the parts that a file
    would name in tables of their own.
    """
    shape = SHAPES.get(group, (3,))
    n = math.prod(shape)
    basis = Identity((3,), {"a": 2, "b": 1})
    sde = cache(lambda: DiagonalSDE(VP(), basis, [1.0, 0.6]))  # the estimator's as well
    return {
        "event_shape": lambda: shape,
        "data_mean": lambda: torch.zeros(n),
        "data_std": lambda: torch.ones(n),
        "data_components": lambda: torch.linalg.qr(standard_normal(n, n)).Q,
        "schedule": VP,
        "basis": lambda: basis,
        "sde": sde,
        "estimator": lambda: _StandardNormal(sde()),
        "null_condition": lambda: 2,
        "network": lambda: _Perceptron(n),
        "networks": lambda: lambda shape: _Perceptron(math.prod(shape)),
    }


def arguments(group: str, factory: Callable[..., Any]) -> dict[str, Any]:
    """The arguments with which laws call a factory.

    Raises:
        TypeError: If an argument is not known.
        ValueError: If its own example is of an argument that it does not take.
    """
    supplied_arguments, meanings = supplied(group), getattr(factory, "supplied", {})
    parameters = inspect.signature(factory).parameters
    # a class may be made of other things than its parent, whose example it has
    example = getattr(factory, "example", {})
    for name in vars(factory).get("example", {}):
        choice("example", name, *parameters)
    # a module that laws have moved or trained would be so for the next
    arguments = {k: copy.deepcopy(v) for k, v in example.items() if k in parameters}
    for name, parameter in parameters.items():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if name not in arguments and by_name and parameter.default is parameter.empty:
            meaning = meanings.get(name, name)
            if meaning not in supplied_arguments:
                raise TypeError(
                    f"{name}: expected a default, or a value in the class attribute 'example', "
                    f"got neither for {factory}"
                )
            arguments[name] = supplied_arguments[meaning]()
    return arguments


def conforming(group: str, name: str, factory: Callable[..., Any], **settings: Any) -> type:
    """The laws of something, as a class that pytest collects.

    Args:
        group: One of `scoresde.plugins.GROUPS`.
        name: What to call it.
        factory: Makes one of `arguments`; a solver besides of ``steps`` and ``eta``.
        settings: Attributes of the laws, beside those that the factory says in ``laws``.

    Raises:
        ValueError: If there is no such group, or its laws have no such attribute.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.testing.conformance import conforming
        >>> conforming("schedules", "vp", VP)().test_the_log_snr_falls()
    """

    def make(self: Any, steps: int | None = None, eta: float = 0.0) -> Any:
        of_solver = {} if steps is None else {"steps": steps, "eta": eta}
        return factory(**{**arguments(group, factory), **of_solver})

    choice("group", group, *LAWS)
    options = {**getattr(factory, "laws", {}), **settings}
    for option in options:
        choice("laws", option, *(known for known in dir(LAWS[group]) if known[0] != "_"))
    if group == "networks":
        options.setdefault("event_shape", getattr(factory, "example", {}).get("event_shape", (3,)))
    title = "_".join(["Test", group, *re.findall(r"\w+", name)])
    return type(title, (LAWS[group],), {"make": make, **options})


def conformance(distribution: str) -> dict[str, type]:
    """The laws of all that a distribution offers, as classes that pytest collects, by their names.

    Raises:
        ValueError: If nothing is offered, as where it is not installed.
        PluginError: If something cannot be imported.

    Example:
        >>> from scoresde.testing import conformance
        >>> "Test_solvers_ddim" in conformance("scoresde")
        True
    """
    cases = [
        plugin
        for group in LAWS
        for plugin in plugins.available(group).values()
        if plugin.distribution == distribution
    ]
    expect(bool(cases), "distribution", "an installed one with entry points", distribution)
    classes = [conforming(plugin.group, plugin.name, _loaded(plugin)) for plugin in cases]
    return {laws.__name__: laws for laws in classes}


def _loaded(plugin: plugins.Plugin) -> Callable[..., Any]:
    factory = plugin.load()
    assert callable(factory), f"{plugin.value} can be called"
    return factory
