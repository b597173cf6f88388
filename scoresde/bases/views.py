"""Forms in which a network sees the first coefficients of a basis, by name."""

from __future__ import annotations

from collections.abc import Callable

from scoresde.bases.basis import Basis
from scoresde.bases.identity import Identity
from scoresde.bases.joint import Joint
from scoresde.bases.packed import Packed
from scoresde.bases.wavelet import Wavelet
from scoresde.checks import look_up

View = Callable[[Basis, int], Basis]
"""``(basis, dim)`` to a basis of ``dim`` components, whose events a network sees."""


def coefficients(basis: Basis, dim: int) -> Basis:
    """The coefficients themselves, as vectors.

    Example:
        >>> from scoresde import Haar
        >>> from scoresde.bases.views import coefficients
        >>> coefficients(Haar((1, 4, 4), levels=1), 4).event_shape
        torch.Size([4])
    """
    return Identity((dim,), basis.blocks.prefix(dim).sizes)


def events(basis: Basis, dim: int) -> Basis:
    """Events, of lower resolution where there are fewer coefficients: see `Basis.prefix`.

    Example:
        >>> from scoresde import Haar
        >>> from scoresde.bases.views import events
        >>> events(Haar((1, 4, 4), levels=1), 4).event_shape
        torch.Size([1, 2, 2])
    """
    return basis.prefix(dim)


def packed(basis: Basis, dim: int) -> Basis:
    """Bands as channels, at half the resolution of `events`; the events where there is one band.

    Example:
        >>> from scoresde import Haar
        >>> from scoresde.bases.views import packed
        >>> [packed(Haar((1, 4, 4), levels=1), dim).event_shape for dim in (4, 16)]
        [torch.Size([1, 2, 2]), torch.Size([4, 2, 2])]
    """
    return _packed(basis.prefix(dim))


def _packed(basis: Basis) -> Basis:
    if isinstance(basis, Joint):
        return basis.mapped(_packed)
    return Packed(basis) if isinstance(basis, Wavelet) and basis.levels else basis


VIEWS: dict[str, View] = {f.__name__: f for f in (coefficients, events, packed)}
"""The views above, by name."""


def view(name: str | View) -> View:
    """A view by name; a function of one's own passes through.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> from scoresde.bases.views import view
        >>> view("packed").__name__
        'packed'
    """
    return look_up("view", name, VIEWS)
