"""Execution of networks during training: compilation, precision, memory format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from scoresde.checks import expect
from scoresde.estimator import ScoreEstimator
from scoresde.internals.wrappers import unwrapped
from scoresde.sdes.sde import SDE
from scoresde.training.precisions import autocast, autocast_dtype
from scoresde.training.settings import TrainingSettings


class Execution:
    """Compilation, precision and memory format of an estimator's networks.

    Args:
        training: The settings.
        estimator: What is trained; its weights are converted to the memory format.

    Raises:
        ValueError: If it has nothing that could be compiled, or that has channels.
    """

    def __init__(self, training: TrainingSettings, estimator: ScoreEstimator) -> None:
        self._precision = training.precision
        self._device = next(estimator.parameters()).device
        self._dtype = autocast_dtype(training.precision, self._device)
        self._compiled: list[tuple[nn.Module, Callable[..., Any]]] = []
        networks, name = [*_networks(estimator)], type(estimator).__name__
        if training.channels_last:
            weights = [p for network in networks for p in network.parameters() if p.ndim == 4]
            expect(len(weights) > 0, "channels_last", "networks with weights of four axes", name)
            for weight in weights:
                weight.data = weight.data.to(memory_format=torch.channels_last)
        if training.compile:
            expect(len(networks) > 0, "compile", "an estimator with networks", name)
            # those that somebody has compiled already are run as they are
            plain = [n for n in networks if unwrapped(n) is n and n._compiled_call_impl is None]
            self._compiled = [(network, torch.compile(network._call_impl)) for network in plain]

    @contextmanager
    def running(self, updates: bool) -> Iterator[None]:
        """Inside, networks are run by the settings, forwards and backwards.

        Args:
            updates: Whether for updates: anything else is too short to be compiled for.
        """
        compiled = self._compiled if updates else []
        before = torch.get_float32_matmul_precision()
        for network, call in compiled:
            network._compiled_call_impl = call
        if self._precision == "tf32":
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            for network, _ in compiled:
                network._compiled_call_impl = None
            if self._precision == "tf32":
                torch.set_float32_matmul_precision(before)

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, products of networks are rounded; torch has it for the forward pass only."""
        return autocast(self._dtype, self._device)


def _networks(module: nn.Module) -> Iterator[nn.Module]:
    """The networks of an estimator: parts with weights that are no estimators or lists of them."""
    for part in module.children():
        inner = unwrapped(part)
        if isinstance(inner, (ScoreEstimator, nn.ModuleList, nn.ModuleDict)):
            yield from _networks(inner)
        elif not isinstance(inner, SDE) and any(p.requires_grad for p in part.parameters()):
            yield part
