"""Networks as functions of coefficients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.bases import Basis, Identity
from scoresde.checks import expect, instance
from scoresde.estimator import Denoiser
from scoresde.precision import cast_like, expect_near, to_device
from scoresde.sdes.diagonal_coefficients import DiagonalCoefficients


def predictor(
    network: nn.Module, basis: Basis, like: Tensor, dtype: torch.dtype, condition: Any = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network as a function of coefficients in its units, and of noise levels.

    Events and conditions are cast to its dtype, with one batch axis; a single label is expanded.

    Args:
        network: See `estimators.Denoising`.
        basis: Of the events that it sees.
        like: A state ``(*batch, n)`` like those to come.
        dtype: That of the network's weights.
        condition: Passed on to it.

    Raises:
        TypeError: If the network takes no condition, and there is one.
    """
    expect_near("condition", condition, network)
    state_dtype, flat = like.dtype, like.ndim == 2
    if condition is not None:
        _expect_conditional(network)
    if isinstance(condition, Tensor):
        condition = _one_batch_axis(condition, like.shape[:-1])
        condition = condition.to(dtype) if condition.is_floating_point() else condition
    conditions = () if condition is None else (condition,)

    # asked at every step of a solver: what does nothing is not called
    def predict(z: Tensor, noise_level: Tensor) -> Tensor:
        x = basis.synthesise(z)
        if not flat:
            x = x.reshape(z.shape[:-1].numel(), *basis.event_shape)
        prediction = network(x if dtype == state_dtype else x.to(dtype), noise_level, *conditions)
        if getattr(prediction, "shape", None) != x.shape or prediction.is_complex():
            wanted = f"an output of shape {tuple(x.shape)}, that of its input"
            expect(False, "network", wanted, _shown(prediction))
        if prediction.dtype != state_dtype:
            prediction = prediction.to(state_dtype)
        output = basis.analyse(prediction)
        return output if flat else output.reshape(z.shape)

    return predict


_CLEAN = -8.0
"""The noise level that a network is given for clean components, whose own is minus infinity."""


def c_noise(
    at: DiagonalCoefficients, apart: bool, least: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The noise level for a network: a quarter of ``log(sigma/alpha)`` (Karras et al. 2022).

    Args:
        at: Coefficients at ``k`` times.
        apart: Whether of every component; of the blocks' average else.
        least: Of every component or block, the least that it was trained with; that of what is
            clean if None.
        dtype: Of the network.

    Returns:
        ``(k, rows)``, or ``(k, rows, m)`` of every component.
    """
    if apart:
        level, shape = at.layout.expand(at.noise_levels), at.like.shape
        level = level[..., : shape[-1]]
    else:
        level, shape = at.noise_level, at.like.shape[:-1]
    level = level.nan_to_num(nan=_CLEAN).clamp(min=_CLEAN)  # none is finite, or this one is not
    if least is not None:
        level = torch.maximum(level, at.layout.expand(cast_like(least, level)))
    one_for_all = [1] * (1 + len(shape) - level.ndim)
    level = to_device((level / 4).to(dtype), at.like.device)
    level = level.reshape(len(at.t), *one_for_all, *level.shape[1:])
    rows = at.like.shape[:-1].numel()
    return level.expand(-1, *shape).reshape(len(at.t), rows, *shape[at.like.ndim - 1 :])


def corrected(
    predict: Callable[[Tensor, Tensor], Tensor],
    first: Denoiser,
    scaled: Denoiser,
    out: Tensor,
    c_noise: Tensor,
    z: Tensor,
) -> Tensor:
    """``first(z) + out predict(scaled(z), c_noise)``: a denoised mean corrected by the network."""
    return torch.addcmul(first(z), out, predict(scaled(z), c_noise))


def centred(
    predict: Callable[[Tensor, Tensor], Tensor],
    mean: Tensor,
    alpha: Tensor,
    skip: Tensor,
    scale: Tensor,
    out: Tensor,
    c_noise: Tensor,
    z: Tensor,
) -> Tensor:
    """`corrected` for a state around its mean."""
    deviation = torch.addcmul(z, alpha, mean, value=-1)
    first = torch.addcmul(mean, skip, deviation)
    return torch.addcmul(first, out, predict(scale * deviation, c_noise))


def affine(offset: Sequence[Tensor] | None, slope: Sequence[Tensor]) -> Iterator[Denoiser]:
    """``offset + slope z`` at each of several times."""
    if offset is None:
        return map(partial(partial, torch.mul), slope)
    return map(partial(partial, torch.addcmul), offset, slope)


def _one_batch_axis(condition: Tensor, batch: torch.Size) -> Tensor:
    if condition.ndim == 0:
        return condition.expand(batch.numel())
    fits = len(batch) > 1 and condition.shape[: len(batch)] == batch
    return condition.flatten(0, len(batch) - 1) if fits else condition


def seen_basis(given: Basis | None, own: Basis, dim: int) -> Basis:
    """The basis whose events a network sees, of which a stage has the first components."""
    whole = own if dim == own.dim else Identity((dim,))
    basis = whole if given is None else given
    instance("network_basis", basis, Basis)
    expect(basis.dim == dim, "network_basis", f"{dim} components", basis.dim)
    return basis


def expect_arguments(network: nn.Module) -> None:
    """Raises ``TypeError`` if a network takes neither events and level, nor a condition besides."""
    if not (_takes(network, 2) or _takes(network, 3)):
        expected = "network: expected one that is called as network(x, noise_level)"
        raise TypeError(f"{expected}, got {_call(network)}")


def _expect_conditional(network: nn.Module) -> None:
    if not _takes(network, 3):
        expected = "condition: expected None, as the network takes none besides (x, noise_level)"
        raise TypeError(f"{expected}, got one for {_call(network)}")


def _takes(network: nn.Module, count: int) -> bool:
    """Whether it can be called with so many arguments, as far as it says."""
    try:
        signature = inspect.signature(getattr(network, "forward", network))
    except (TypeError, ValueError):  # compiled by others
        return True
    with suppress(TypeError):
        signature.bind(*range(count))
        return True
    return False


def _call(network: nn.Module) -> str:
    signature = inspect.signature(getattr(network, "forward", network))
    return f"{type(network).__name__}.forward{signature}"


def _shown(output: Any) -> str:
    """The shape of a network's output, or what it is and what to do about it."""
    if isinstance(output, Tensor):
        return f"{tuple(output.shape)}{' of complex numbers' * output.is_complex()}"
    names = [
        name for name, value in getattr(output, "__dict__", {}).items() if torch.is_tensor(value)
    ]
    part = f".{names[0]}" if names else ", or the part of it that is one"
    return (
        f"a {type(output).__name__}, no tensor: wrap the network in an estimators.NetworkAdapter, "
        f"or in a module whose forward returns network(x, noise_level){part}"
    )
