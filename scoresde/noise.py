"""Where random numbers come from: reproducible, and per sample if asked.

With one `torch.Generator` a batch is drawn as a whole. With a list of them, one per sample,
every sample has a stream of its own: it is the same alone, in any company and on any number
of devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoresde.checks import expect


class Noise:
    """A source of standard normal numbers in the shape of a state.

    Args:
        generator: One generator for all samples, a sequence with one per sample (in the order
            of the flattened batch), or None for torch's global one.

    Example:
        >>> g = [torch.Generator().manual_seed(i) for i in range(3)]
        >>> many = Noise(g)(torch.empty(3, 2))
        >>> alone = Noise([torch.Generator().manual_seed(2)])(torch.empty(1, 2))
        >>> torch.equal(many[2], alone[0])
        True
    """

    def __init__(
        self, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> None:
        self.generator = generator

    @classmethod
    def of(cls, generator: Generators) -> Noise:
        """A source from generators, or a source of one's own as it is."""
        return generator if isinstance(generator, Noise) else cls(generator)

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normal numbers with shape ``(*batch, n)``, dtype and device of ``like``.

        Raises:
            ValueError: If there is not one generator per sample.
        """
        if self.generator is None or isinstance(self.generator, torch.Generator):
            return self._draw(like, self.generator)
        rows = like.reshape(-1, like.shape[-1])
        self._one_each(rows)
        drawn = [self._draw(row, g) for row, g in zip(rows, self.generator, strict=True)]
        return torch.stack(drawn).reshape(like.shape)

    def draw(self, distribution: Distribution, like: Tensor) -> Tensor:
        """Samples of a distribution over one state ``(n,)``, in the shape of ``like``.

        `torch.distributions` know only the global generator: it is seeded from ours for the
        moment of drawing, and restored.
        """
        if self.generator is None:
            return distribution.sample(like.shape[:-1]).to(like)
        if isinstance(self.generator, torch.Generator):
            with _seeded(self.generator):
                return distribution.sample(like.shape[:-1]).to(like)
        rows = like.reshape(-1, like.shape[-1])
        self._one_each(rows)
        drawn = []
        for g in self.generator:
            with _seeded(g):
                drawn.append(distribution.sample().to(like))
        return torch.stack(drawn).reshape(like.shape)

    @staticmethod
    def _draw(like: Tensor, generator: torch.Generator | None) -> Tensor:
        device = like.device if generator is None else generator.device
        return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(
            like.device
        )

    def _one_each(self, rows: Tensor) -> None:
        assert isinstance(self.generator, Sequence)
        expect(
            len(self.generator) == len(rows),
            "generator",
            f"one generator, or {len(rows)}: one per sample",
            len(self.generator),
        )


Generators = torch.Generator | Sequence[torch.Generator] | Noise | None
"""What sampling takes: one generator, one per sample, a source of one's own, or None."""


@contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Seeds the global generators from ``generator`` inside, restores them after."""
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    with torch.random.fork_rng():
        torch.manual_seed(int(seed))
        yield
