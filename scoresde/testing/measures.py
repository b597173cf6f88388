"""Measurements of laws: agreement, exact moments, orders, Brownian motion."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from scoresde.noise import Noise
from scoresde.sdes.sde import SDE
from scoresde.testing.device_calls import DeviceCalls

DOUBLE = torch.float64


def assert_same(
    law: str, actual: Tensor, expected: Tensor, rtol: float = 1e-7, atol: float = 1e-9
) -> None:
    """Raises ``AssertionError`` with the law's words unless two tensors agree.

    Example:
        >>> import torch
        >>> from scoresde.testing import assert_same
        >>> assert_same("halves add up", torch.tensor(0.5) * 2, torch.tensor(1.0))
    """
    torch.testing.assert_close(
        actual, expected, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{law}: {m}"
    )


def assert_holds(law: str, condition: bool | Tensor, actual: object) -> None:
    """Raises ``AssertionError`` with the law's words unless a condition holds everywhere.

    Example:
        >>> from scoresde.testing import assert_holds
        >>> assert_holds("time passes", 2 > 1, 2)
    """
    if not bool(torch.as_tensor(condition).all()):
        raise AssertionError(f"{law}: found {actual}")


def assert_no_waiting(what: str, compute: Callable[[], object]) -> None:
    """Raises ``AssertionError`` if the host waits for a device, or for what it copies to one.

    Example:
        >>> import torch
        >>> from scoresde.testing.measures import assert_no_waiting
        >>> x = torch.ones(2, device="meta")
        >>> assert_no_waiting("a sum", lambda: x + x)
    """
    with DeviceCalls() as calls:
        compute()
    law = f"{what} reads nothing from a device, and copies nothing to it that blocks"
    assert_holds(law, not (calls.reads or calls.copies), str(calls))


def standard_normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers.

    Example:
        >>> from scoresde.testing import standard_normal
        >>> standard_normal(2, 3).shape
        torch.Size([2, 3])
    """
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Impulses(Noise):
    """Row 0 of a batch gets no noise, row ``1 + k`` only the ``k``-th number asked for.

    Example:
        >>> import torch
        >>> from scoresde.testing import Impulses
        >>> Impulses()(torch.empty(3, 2))
        tensor([[0., 0.],
                [1., 0.],
                [0., 1.]])
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def __call__(self, like: Tensor) -> Tensor:
        """See the class."""
        n, rows = like.shape[-1], torch.arange(like.shape[-1]) + 1 + self.used
        self.used += n
        out = torch.zeros_like(like)
        inside = rows < len(like)
        out[rows[inside], torch.arange(n)[inside]] = 1.0
        return out

    def draw(self, distribution: Distribution, like: Tensor) -> Tensor:
        """A draw of a multivariate normal distribution."""
        assert isinstance(distribution, MultivariateNormal)
        factor = torch.linalg.cholesky(distribution.covariance_matrix)
        drawn: Tensor = distribution.mean + self(like) @ factor.mT
        return drawn.to(like)


class Brownian(Noise):
    """One Brownian motion, asked for in steps of any power of 2.

    Solvers get its increments, and, if they ask twice in a step, the difference between its mean
    over the step and the mean of its ends; both in units of their deviation.

    Args:
        increment: ``(steps, *batch, n)``.
        bend: The second numbers, alike.

    Example:
        >>> import torch
        >>> from scoresde.testing import Brownian
        >>> fine = Brownian(torch.ones(4, 1), torch.zeros(4, 1))
        >>> fine.coarsened().drawn(1)(torch.empty(1))  # two increments, in units of sqrt(2)
        tensor([1.4142])
    """

    def __init__(self, increment: Tensor, bend: Tensor) -> None:
        super().__init__()
        self.increment, self.bend = increment, bend

    def coarsened(self) -> Brownian:
        """Over steps twice as long: increments, and their first moments, add up."""
        area = (self.increment + self.bend / 3**0.5) / 2
        (a, b), (first, second) = (
            v.unflatten(0, (-1, 2)).unbind(1) for v in (self.increment, area)
        )
        increment = (a + b) / 2**0.5
        return Brownian(increment, (2 * (first + second + a) / 2**1.5 - increment) * 3**0.5)

    def drawn(self, draws: int) -> Brownian:
        """Ready for a solver with so many draws a step."""
        kinds = (self.increment, self.bend)[:draws]
        self._queue = iter(torch.stack(kinds, 1).flatten(0, 1))
        return self

    def __call__(self, like: Tensor) -> Tensor:
        """See the class."""
        drawn: Tensor = next(self._queue)
        return drawn


def moments(run: Callable[[int, Impulses], Tensor], numbers: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what a solver makes of Gaussian data: exact, without sampling.

    There every step is an affine map of the state and of the random numbers it asks for. Fed with
    no noise, and then with each single number equal to 1, one batch reads off the whole map.

    Args:
        run: ``run(rows, noise)`` gives ``rows`` samples made of the noise.
        numbers: A guess at how many random numbers are asked for.

    Returns:
        Mean and covariance, flattened: ``(n,)`` and ``(n, n)``.

    Example:
        >>> import torch
        >>> from scoresde.testing import moments
        >>> moments(lambda rows, noise: 1 + 2 * noise(torch.empty(rows, 1)))
        (tensor([1.]), tensor([[4.]]))
    """
    noise = Impulses()
    states = run(1 + numbers, noise).flatten(1)
    if noise.used > numbers:
        return moments(run, noise.used)
    mean, responses = states[0], states[1:] - states[0]
    return mean, responses.mT @ responses


def convergence_order(counts: Sequence[int], errors: Sequence[float]) -> float:
    """Order of convergence: minus the slope of log errors over log counts of steps.

    Example:
        >>> from scoresde.testing import convergence_order
        >>> round(convergence_order([10, 20, 40], [1.0, 0.25, 0.0625]), 6)
        2.0
    """
    x, y = (torch.tensor(v, dtype=DOUBLE).log() for v in (counts, errors))
    x = x - x.mean()
    return -float((x * y).sum() / (x * x).sum())


def has_kernel(sde: SDE) -> bool:
    """Whether an SDE knows the kernel of its states.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.testing import has_kernel
        >>> has_kernel(DiagonalSDE(VP(), Identity((2,))))
        True
    """
    try:
        sde.kernel(torch.tensor([sde.T / 2], dtype=DOUBLE))
    except NotImplementedError:
        return False
    return True


def assert_saved(law: str, module: nn.Module, evaluate: Callable[[Any], Tensor]) -> None:
    """A copy with other numbers becomes the module again by its ``state_dict``.

    Example:
        >>> import torch
        >>> from scoresde.testing import assert_saved
        >>> assert_saved("weights are saved", torch.nn.Linear(1, 1), lambda layer: layer.weight)
    """
    hidden = [
        f"{name}.{key}".lstrip(".")
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        for each in (value if isinstance(value, list | tuple) else [value])
        if isinstance(each, Tensor)
    ]
    assert_holds("tensors are parameters or buffers, which are moved and saved", not hidden, hidden)
    before, other = evaluate(module), copy.deepcopy(module)
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point():
                value.mul_(0.9)
    other.load_state_dict(module.state_dict())
    assert_same(law, evaluate(other), before)
