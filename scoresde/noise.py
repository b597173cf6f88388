"""Sources of random numbers: reproducible, with a stream for every sample where that is wanted.

With one `torch.Generator` a batch is drawn as a whole. With a list of them, one per sample, every
sample has a stream of its own, and does not depend on its batch or the number of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution

from scoresde.checks import expect, instance
from scoresde.internals.default_generator import DefaultGenerator
from scoresde.precision import cast_like


class Noise:
    """A source of random numbers in the shape of a state: standard normal ones when called.

    Args:
        generator: One generator for all samples, a sequence with one per sample (in the order
            of the flattened batch), or None for torch's global one.

    Raises:
        TypeError: If a generator is none.

    Example:
        >>> import torch
        >>> from scoresde import Noise
        >>> g = [torch.Generator().manual_seed(i) for i in range(3)]
        >>> many = Noise(g)(torch.empty(3, 2))
        >>> alone = Noise([torch.Generator().manual_seed(2)])(torch.empty(1, 2))
        >>> torch.equal(many[2], alone[0])
        True
    """

    def __init__(
        self, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> None:
        single = generator is None or isinstance(generator, torch.Generator)
        for g in () if single else generator if isinstance(generator, Sequence) else [generator]:
            instance("generator", g, torch.Generator)
        self.generator = generator

    @classmethod
    def of(cls, generator: Generators) -> Noise:
        """A source from generators; a source is returned unchanged."""
        return generator if isinstance(generator, Noise) else cls(generator)

    def __call__(self, like: Tensor) -> Tensor:
        """Standard normal numbers with shape ``(*batch, n)``, dtype and device of ``like``.

        Raises:
            ValueError: If there is not one generator per sample.
        """
        return self._numbers(torch.randn, like)

    def check(self, count: int) -> None:
        """Raises ``ValueError`` if there are generators of samples, and not one for each."""
        got = len(self.generator) if isinstance(self.generator, Sequence) else count
        expect(got == count, "generator", f"one generator, or {count}: one per sample", got)

    def part(self, rows: slice) -> Noise:
        """For some samples: their generators if there is one each, else the same source."""
        return Noise(self.generator[rows]) if isinstance(self.generator, Sequence) else self

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers uniform on ``[0, 1)``, with shape, dtype and device of ``like``."""
        return self._numbers(torch.rand, like)

    def stratified(self, like: Tensor, draws: int = 1) -> Tensor:
        """Uniform numbers on ``[0, 1)``, evenly spaced over the batch (Kingma et al. 2021, I.1).

        With one generator per sample, the numbers of each are evenly spaced by themselves, and do
        not depend on its batch; one draw per event is not spaced then.

        Args:
            like: One row per event, ``(batch, n)``.
            draws: Numbers per event; they are all evenly spaced together.

        Returns:
            ``(draws, batch)``, in float32 at least: a coarser type rounds them up to 1.
        """
        each = isinstance(self.generator, Sequence)
        dtype = torch.promote_types(like.dtype, torch.float32)
        start = self.uniform(
            like.new_empty(len(like) if each else min(len(like), 1), 1, dtype=dtype)
        )
        count = draws if each else draws * len(like)
        steps = torch.arange(count, dtype=dtype, device=like.device)
        if each:
            steps = steps.unsqueeze(-1)
        # the part behind the point is exact, and below 1
        u: Tensor = torch.add(start.mT, steps, alpha=1 / max(count, 1)).frac()
        return u.reshape(draws, len(like))

    def draw(self, distribution: Distribution, like: Tensor) -> Tensor:
        """Samples of a distribution over one state ``(n,)``, in the shape of ``like``.

        Distributions take no generator: ours replaces torch's default one meanwhile.
        """
        if not isinstance(self.generator, Sequence):
            with nullcontext() if self.generator is None else DefaultGenerator(self.generator):
                return cast_like(distribution.sample(like.shape[:-1]), like)

        def sample(row: Tensor, generator: torch.Generator) -> Tensor:
            with DefaultGenerator(generator):
                return distribution.sample()

        return self._per_sample(sample, like)

    def _numbers(self, source: Callable[..., Tensor], like: Tensor) -> Tensor:
        if isinstance(self.generator, Sequence):
            return self._per_sample(partial(_drawn, source), like)
        return cast_like(_drawn(source, like, self.generator), like)

    def _per_sample(
        self, draw: Callable[[Tensor, torch.Generator], Tensor], like: Tensor
    ) -> Tensor:
        """A row for every sample, from its own generator: gathered there, and sent together."""
        assert isinstance(self.generator, Sequence)
        count = like.shape[:-1].numel()
        self.check(count)
        place = self.generator[0].device if count else like.device
        pinned = place.type == "cpu" and like.is_cuda
        shape = (count, like.shape[-1])
        rows = torch.empty(shape, dtype=like.dtype, device=place, pin_memory=pinned)
        for row, g in zip(rows, self.generator, strict=True):
            row.copy_(draw(row, g))
        return cast_like(rows.reshape(like.shape), like)


def _drawn(
    source: Callable[..., Tensor], like: Tensor, generator: torch.Generator | None
) -> Tensor:
    """Numbers where the generator is, from where a device can fetch them by itself."""
    device = like.device if generator is None else generator.device
    pinned = device.type == "cpu" and like.is_cuda
    options = {"dtype": like.dtype, "device": device, "generator": generator}
    return source(like.shape, **options, pin_memory=pinned)


class NoiseShard(Noise):
    """The noise of one process's shard of a batch.

    Every process draws the whole batch's numbers, from generators in the same state, and keeps
    those of its own events: every ``count``-th, from ``index`` on. Together these are the numbers
    of one process.

    Args:
        generator: Of the whole batch.
        index: Which part.
        count: Of how many.
    """

    def __init__(self, generator: Generators, index: int, count: int) -> None:
        super().__init__()
        self.batch_noise, self.rows = Noise.of(generator), slice(index, None, count)

    def __call__(self, like: Tensor) -> Tensor:
        """See `Noise`."""
        return self.batch_noise(self._whole_batch(like))[self.rows]

    def uniform(self, like: Tensor) -> Tensor:
        """See `Noise`."""
        return self.batch_noise.uniform(self._whole_batch(like))[self.rows]

    def stratified(self, like: Tensor, draws: int = 1) -> Tensor:
        """See `Noise`."""
        return self.batch_noise.stratified(self._whole_batch(like), draws)[:, self.rows]

    def draw(self, distribution: Distribution, like: Tensor) -> Tensor:
        """See `Noise`."""
        return self.batch_noise.draw(distribution, self._whole_batch(like))[self.rows]

    def _whole_batch(self, like: Tensor) -> Tensor:
        return like.new_empty(len(like) * self.rows.step, *like.shape[1:])


Generators = torch.Generator | Sequence[torch.Generator] | Noise | None
"""One generator, one per sample, a source of one's own, or None, as sampling takes them."""
