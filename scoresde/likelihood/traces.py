"""How the trace of a Jacobian is found."""

from __future__ import annotations

from abc import ABC, abstractmethod

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect, validator, whole
from scoresde.internals.derivatives import PullBack, batched
from scoresde.internals.free_memory import device_chunk_size
from scoresde.noise import Noise


class Trace(ABC):
    """Estimates of the diagonal of a Jacobian, whose sum is a divergence.

    There may be several independent estimates; only their sum has to be unbiased.

    Example:
        >>> import torch
        >>> from scoresde import ExactTrace, Hutchinson, Noise
        >>> def pull_back(v): return v @ torch.tensor([[1.0, 2.0], [2.0, 3.0]])
        >>> z, noise = torch.zeros(1, 2), Noise(torch.Generator().manual_seed(0))
        >>> for trace in (ExactTrace(), Hutchinson(probes=1000)):
        ...     diagonals = trace(pull_back, z, trace.draw(z, noise))
        ...     print(trace.estimates, diagonals.sum(-1).mean().round().item())
        1 4.0
        1000 4.0
    """

    @property
    @abstractmethod
    def estimates(self) -> int:
        """Number of independent estimates."""

    @abstractmethod
    def draw(self, z: Tensor, noise: Noise) -> Tensor:
        """Vectors to multiply the Jacobian with, the same throughout a trajectory."""

    def select(self, probes: Tensor, rows: Tensor) -> Tensor:
        """The probes of some samples: their places in the flattened batch."""
        return probes.reshape(len(probes), -1, probes.shape[-1])[:, rows]

    @abstractmethod
    def __call__(self, pull_back: PullBack, z: Tensor, probes: Tensor) -> Tensor:
        """The diagonal at ``z``: ``(*batch, estimates, n)``."""

    def standard_error(self, integrals: Tensor) -> Tensor:
        """Of the mean of independent estimates ``(*batch, estimates)``; NaN if there is one."""
        if self.estimates == 1 or not integrals.numel():
            return torch.full_like(integrals[..., 0], torch.nan)
        error: Tensor = integrals.std(-1) / self.estimates**0.5
        return error


@attrs.frozen
class ExactTrace(Trace):
    """All ``n`` diagonal entries, by as many batched vector-Jacobian products.

    Args:
        chunk: How many at a time; as many as there is memory for if None, see
            `scoresde.internals.free_memory.device_chunk_size`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, ExactTrace, Identity, log_prob
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), torch.eye(2))
        >>> log_prob(model, torch.zeros(1, 2), trace=ExactTrace(chunk=1)).standard_error
        tensor([0.])
    """

    chunk: int | None = None

    @property
    def estimates(self) -> int:
        """One."""
        return 1

    def draw(self, z: Tensor, noise: Noise) -> Tensor:
        """The unit vectors."""
        return torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    def select(self, probes: Tensor, rows: Tensor) -> Tensor:
        """All samples have the same."""
        return probes

    def __call__(self, pull_back: PullBack, z: Tensor, probes: Tensor) -> Tensor:
        """``e_i^T J e_i``."""

        def entry(unit: Tensor) -> Tensor:
            return (pull_back(unit.expand_as(z)) * unit).sum(-1)

        chunk = device_chunk_size(len(probes), z) if self.chunk is None else self.chunk
        return batched(entry, probes, chunk).movedim(0, -1).unsqueeze(-2)

    def standard_error(self, integrals: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(integrals[..., 0])


@attrs.frozen
class Hutchinson(Trace):
    """``E v^T J v`` with random signs ``v`` (Hutchinson 1990): unbiased, exact if diagonal.

    Args:
        probes: How many; with two or more their spread gives a standard error.

    Raises:
        ValueError: If ``probes`` is not a whole number of at least 1.

    Example:
        >>> import torch
        >>> from scoresde import Hutchinson, Noise
        >>> trace, z = Hutchinson(probes=2), torch.zeros(1, 3)
        >>> probes = trace.draw(z, Noise())
        >>> trace(lambda v: v * torch.tensor([1.0, 2.0, 3.0]), z, probes).sum(-1)
        tensor([[6., 6.]])
    """

    references = "hutchinson1990"

    probes: int = attrs.field(default=8, validator=validator(whole, 1))

    @property
    def estimates(self) -> int:
        """One per probe."""
        return self.probes

    def draw(self, z: Tensor, noise: Noise) -> Tensor:
        """Random signs, ``(probes, *batch, n)``."""
        drawn = torch.stack([noise(z) for _ in range(self.probes)])
        return torch.where(drawn > 0, 1.0, -1.0).to(z)

    def __call__(self, pull_back: PullBack, z: Tensor, probes: Tensor) -> Tensor:
        """``v_i (J^T v)_i`` for every probe."""

        def product(probe: Tensor) -> Tensor:
            return pull_back(probe) * probe

        return batched(product, probes, device_chunk_size(len(probes), z)).movedim(0, -2)


@attrs.frozen
class HutchPlusPlus(Trace):
    """Hutchinson's estimate of what a low-rank approximation leaves over: unbiased, less noisy.

    With ``A`` the Jacobian's transpose, random signs ``S`` give a first guess ``a`` of the mean of
    its diagonal and an orthonormal basis ``Q`` of the range of ``(A - a) S``; then, with
    ``P = Q Q^T`` and random signs ``g`` of their own,

        diag A = a + diag[(A - a) P] + E g * [(A - a)(1 - P) g].

    Exact if ``A`` is a multiple of the identity; a clear gain where a few directions make up most
    of the rest (Meyer et al. 2021; of the diagonal, Baston and Nakatsukasa 2022). Costs
    ``2 rank + probes`` products.

    Args:
        probes: How many ``g``; with two or more their spread gives a standard error.
        rank: Number of directions, at most that of components.

    Raises:
        ValueError: If ``probes`` or ``rank`` is not a whole number of at least 1; on use, if there
            are more directions than components.

    Example:
        >>> import torch
        >>> from scoresde import Noise
        >>> from scoresde.likelihood import HutchPlusPlus
        >>> trace, z = HutchPlusPlus(probes=2, rank=1), torch.zeros(1, 3)
        >>> trace(lambda v: 2 * v, z, trace.draw(z, Noise())).sum(-1)
        tensor([[6., 6.]])
    """

    references = "meyer2021 baston2022"

    probes: int = attrs.field(default=4, validator=validator(whole, 1))
    rank: int = attrs.field(default=4, validator=validator(whole, 1))

    @property
    def estimates(self) -> int:
        """One per ``g``."""
        return self.probes

    def draw(self, z: Tensor, noise: Noise) -> Tensor:
        """Random signs, ``(rank + probes, *batch, n)``."""
        expect(self.rank <= z.shape[-1], "rank", f"at most {z.shape[-1]}", self.rank)
        return Hutchinson(self.rank + self.probes).draw(z, noise)

    def __call__(self, pull_back: PullBack, z: Tensor, probes: Tensor) -> Tensor:
        """See the class."""
        chunk = device_chunk_size(len(probes), z)
        products = batched(pull_back, probes, chunk)
        s, a_s = probes[: self.rank], products[: self.rank]
        # any guess and any basis are right on average
        guess = (s * a_s).mean(0).mean(-1, keepdim=True).detach()
        q = torch.linalg.qr((a_s - guess * s).detach().movedim(0, -1)).Q.movedim(-1, 0)
        a_q = batched(pull_back, q, chunk)
        known = guess + ((a_q - guess * q) * q).sum(0)
        g, a_g = probes[self.rank :], products[self.rank :]
        along = torch.einsum("k...n,m...n->km...", q, g).unsqueeze(-1)
        rest = g - (along * q.unsqueeze(1)).sum(0)
        pulled = a_g - (along * a_q.unsqueeze(1)).sum(0)
        diagonals: Tensor = known + g * (pulled - guess * rest)
        return diagonals.movedim(0, -2)
