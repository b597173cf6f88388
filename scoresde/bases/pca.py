"""Principal components: a basis fitted to data."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from scoresde.bases.basis import Basis, checked_shape, transformed
from scoresde.bases.moments import batches, streaming_moments
from scoresde.blocks import Blocks
from scoresde.checks import expect, floating
from scoresde.precision import precision


class PCA(Basis):
    """``z = U x`` for a given orthonormal matrix, usually fitted by `fit`.

    With ``Cov(x) = U^T diag(v) U`` the coefficients are uncorrelated with variances ``v``. Nothing
    is centred: the mean of ``z`` is ``U`` times that of ``x``.

    Args:
        components: ``U``, ``(n, n)``: one component per row, orthonormal to 1e-5.
        event_shape: Shape of one event, flattened row-major; ``(n,)`` if not given.
        blocks: Name and size of each block, leading components first, for instance
            ``{"subspace": 10, "rest": 54}``; one block named ``all`` if not given.

    Attributes:
        components: ``U`` in float64, saved with the state.
        variances: ``v`` in decreasing order, ``(n,)``, saved with the state; NaN if the basis
            was not fitted.

    Raises:
        TypeError: If ``components`` is not a floating-point tensor.
        ValueError: If it is not square, not orthonormal, or of another size than the event.

    Source:
        Pearson 1901; in diffusion, Jing et al. 2022, *Subspace Diffusion Generative Models*
        (arXiv 2205.01490).

    Example:
        >>> import torch
        >>> from scoresde import PCA
        >>> data = torch.tensor([[3.0, 4.0], [-3.0, -4.0], [8.0, -6.0], [-8.0, 6.0]])
        >>> pca = PCA.fit(data, blocks={"subspace": 1, "rest": 1})
        >>> pca.variances  # of lengths 10 and 5 in two of four events
        tensor([50.0000, 12.5000], dtype=torch.float64)
        >>> pca(data[2]).round(decimals=3).abs()  # along the first component
        tensor([10.,  0.])
    """

    references = "pearson1901 jing2022"
    supplied: ClassVar = {"components": "data_components"}  # by a configuration, see SUPPLIED there

    components: Tensor
    variances: Tensor

    def __init__(
        self,
        components: Tensor,
        event_shape: Sequence[int] | None = None,
        blocks: Mapping[str, int] | None = None,
    ) -> None:
        floating("components", components)
        n = len(components) if components.ndim else 0
        expect(
            n > 0 and components.shape == (n, n),
            "components",
            "a square matrix (n, n)",
            f"shape {tuple(components.shape)}",
        )
        matrix = components.detach().to(precision(components.device), copy=True)
        # 1e-5: what is left of float32 components of some thousand numbers, from other programs
        error = (
            (matrix @ matrix.mT - torch.eye(n, dtype=matrix.dtype, device=matrix.device))
            .abs()
            .max()
            .item()
        )
        # of products in float32
        expect(error <= 1e-5, "components", "orthonormal rows, to 1e-5", f"an error of {error:.2g}")
        shape = checked_shape([n] if event_shape is None else event_shape)
        expect(
            shape.numel() == n,
            "event_shape",
            f"the {n} numbers of the components",
            tuple(shape),
        )
        super().__init__(shape, Blocks({"all": n} if blocks is None else blocks))
        self.register_buffer("components", matrix)
        self.register_buffer("variances", matrix.new_full((n,), torch.nan))

    @classmethod
    def fit(cls, data: Tensor | Iterable[Tensor], blocks: Mapping[str, int] | None = None) -> Self:
        """The principal components of data, by decreasing variance.

        Fewer samples than components will do: directions without variance complete the basis.
        The largest entry of every component is made positive, so that a fit is reproducible.

        Args:
            data: ``(N, *event_shape)``, or pieces of them, one after the other.
            blocks: As of the class.

        Returns:
            The basis, on the device of the data.

        Raises:
            TypeError: If ``data`` is not a floating-point tensor.
            ValueError: If it holds no events, or NaN or infinite numbers.
        """
        chunks = batches(data)
        first = next(chunks, torch.empty(0))
        expect(
            first.ndim > 1 and first.numel() > 0,
            "data",
            "shape (N, *event_shape), not empty",
            tuple(first.shape),
        )
        dtype = precision(first.device)
        rows = (batch.flatten(1).to(dtype) for batch in itertools.chain([first], chunks))
        _, covariance = streaming_moments(rows, lambda row: row.mT @ row)
        variances, columns = torch.linalg.eigh(covariance)  # in increasing order
        components = columns.mT.flip(0)
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        basis = cls(components * largest.sign(), first.shape[1:], blocks)
        basis.variances.copy_(variances.flip(0).clamp(min=0))
        return basis

    @property
    def groups(self) -> Blocks:
        """Single components of vectors, the blocks of other events, as `scoresde.Identity`."""
        return self.blocks.singles() if len(self.event_shape) == 1 else self.blocks

    def analyse(self, x: Tensor) -> Tensor:
        """See the class."""
        return transformed(self.flatten(x), self.cast("components", x).mT)

    def synthesise(self, z: Tensor) -> Tensor:
        """See the class."""
        return self.unflatten(transformed(z, self.cast("components", z)))
