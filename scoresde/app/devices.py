"""Devices by their names: where models are made, trained and asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import torch

from scoresde.checks import expect, instance
from scoresde.internals.messages import join_names

if TYPE_CHECKING:
    from scoresde.training.distributed import Processes

_KINDS = ("cuda", "xpu", "mps")
"""Of accelerators, by torch's names; ROCm's are ``cuda`` to it. No machine has two of them."""

AUTO = "auto"


def accelerators() -> list[torch.device]:
    """The accelerators that torch can use here."""
    counts = {kind: torch.get_device_module(kind).device_count() for kind in _KINDS}
    return [torch.device(kind, i) for kind, count in counts.items() for i in range(count)]


def device(name: str, value: str | torch.device | None) -> torch.device:
    """A device that is there.

    Args:
        name: Of the argument, for the message.
        value: ``"cpu"``; ``"cuda"`` or whatever else torch calls an accelerator, or one of several
            by its number, ``"cuda:1"``; ``"auto"`` for the accelerator if there is one, and else
            the CPU; None for the device on which torch makes tensors by default, the CPU unless
            ``torch.set_default_device`` has said otherwise.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there is no such device; the message says which there are.

    Example:
        >>> from scoresde.app.devices import device
        >>> device("device", None), device("device", "cpu")
        (device(type='cpu'), device(type='cpu'))
    """
    if value is None:
        return torch.get_default_device()
    value = str(value) if isinstance(value, torch.device) else value
    instance(name, value, str)
    there = accelerators()
    if value == AUTO:
        return torch.device(there[0].type if there else "cpu")
    wanted = f"one that is there ({join_names(map(str, (AUTO, 'cpu', *there)))})"
    try:
        chosen = torch.device(value)
    except RuntimeError as error:  # no kind that torch knows
        raise ValueError(f"{name}: expected {wanted}, got {value}") from error
    kinds = {torch.device(each.type) for each in there}
    expect(chosen.type == "cpu" or chosen in {*there, *kinds}, name, wanted, value)
    return chosen


def chosen_device(value: str) -> torch.device:
    """The device that ``--device`` names, printed where it was left open."""
    chosen = device("--device", value)
    if value == AUTO and chosen.type != "cpu":
        model = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else ""
        click.echo(f"--device: {chosen}{model and f', {model}'}", err=True)
    return chosen


def processes(value: str) -> Processes:
    """The processes that accelerate or torchrun has started, with ``--device``.

    Raises:
        ImportError: If accelerate is not there.
        ValueError: If that is one device, or none that accelerate gives to processes.
    """
    chosen = device("--device", value)
    wanted = "a kind of device, as every process of --distributed has one of its own"
    expect(chosen.index is None, "--device", wanted, value)
    try:
        from accelerate import Accelerator
    except ImportError as error:
        message = "several processes need accelerate: pip install 'scoresde[distributed]'"
        raise ImportError(message) from error
    accelerator: Processes = Accelerator(cpu=chosen.type == "cpu")
    given = accelerator.device.type
    expect(given == chosen.type, "--device", f"{given}, which accelerate takes here", value)
    count = accelerator.num_processes
    if accelerator.is_main_process:
        click.echo(f"--distributed: {count} process{'es' * (count > 1)} on {given}", err=True)
    if count == 1:
        click.echo(
            "Warning: --distributed: one process trains alone; accelerate launch starts one for "
            "each GPU, torchrun --nproc_per_node 2 --no-python scoresde train ... two on CPUs",
            err=True,
        )
    return accelerator
