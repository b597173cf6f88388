"""Columns of a table as standard normal coordinates, whatever their kind, and back.

A diffusion of the coordinates ``z`` is a model of the table: with ``q(z | v)`` the distribution of
the coordinates of a value ``v``,

    P(v) = E_q [p(z) / q(z | v)],

a density ``p(z) dz/dv`` where there is one coordinate for a value, and a probability where a value
has an interval of them. `Column.encode` returns ``z`` and ``-log q(z | v)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import attrs
import numpy as np
import torch
from scipy import optimize, special, stats
from torch import Tensor

from scoresde.checks import expect
from scoresde.data.conversion import Array
from scoresde.internals.messages import join_names
from scoresde.tables.cells import Cells

KINDS = ("number", "count", "category")
"""What a column can be: real numbers, whole numbers, one of some values."""

FEW, OFTEN = 20, 10
"""Numbers are categories if there are at most so many, each so often: between such values there is
nothing, and a density of them would be as high as one likes."""

_SAMPLE = 10_000
"""Rows of which the shape of a column is measured: one number, known to a hundredth then."""

_EDGE = 1e-9
"""Of probabilities: coordinates stay within six deviations, which networks have met."""


class Column(ABC):
    """One column: its name, and the map between its values and coordinates.

    Example:
        >>> import numpy as np
        >>> from scoresde.tables.cells import Cells
        >>> from scoresde.tables.column import column
        >>> sizes = column("size", Cells(np.array([0.5, 2.0, np.nan, 7.5])))
        >>> z, _ = sizes.encode(Cells(np.array([2.0])), np.array([0.5]))
        >>> sizes.kind, sizes.decode(z)
        ('number', array([2.]))
    """

    kind: ClassVar[str]
    ordered: bool
    """Whether one value can be below another, so that there are quantiles."""
    name: Hashable

    @abstractmethod
    def encode(self, cells: Cells, u: Array) -> tuple[Array, Array]:
        """Coordinates ``(N,)``, NaN where a value is missing, and ``-log q`` of each, 0 there.

        Args:
            cells: Values.
            u: Where in its interval each is, from 0 to 1, ``(N,)``.

        Raises:
            ValueError: If a value is none that the column can have.
        """

    @abstractmethod
    def decode(self, z: Array) -> Array:
        """Values ``(N,)``."""

    def quantile(self, z: Tensor, q: float) -> Tensor:
        """Quantiles ``(N,)`` of draws of coordinates ``(draws, N)``.

        Coordinates rise with values, so that a quantile of the one is one of the other.
        """
        return z.sort(0).values[min(int(q * len(z)), len(z) - 1)]


@attrs.frozen(kw_only=True)
class Number(Column):
    """Real numbers: standardised, their skewness taken away (Yeo and Johnson 2000).

    Args:
        name: Of the column.
        middle: Of the values: their mean, or 0 if all have one sign.
        unit: Their deviation, or the median of their sizes.
        power: From 0 to 2, for which the map is one-to-one.
        mean: After the power.
        std: After the power.
        low: Lowest that a sample can be: numbers of one sign keep it.
        high: Highest.

    Example:
        >>> import numpy as np
        >>> from scoresde.tables.cells import Cells
        >>> from scoresde.tables.column import Number
        >>> length = Number(name="length", middle=5, unit=2, power=1, mean=0, std=1)
        >>> z, log_slope = length.encode(Cells(np.array([9.0])), np.zeros(1))
        >>> z.round(6).tolist(), np.exp(log_slope).tolist(), length.decode(z).tolist()
        ([2.0], [0.5], [9.0])
    """

    references: ClassVar[str] = "yeo2000"

    kind: ClassVar[str] = "number"
    name: Hashable
    middle: float
    unit: float
    power: float
    mean: float
    std: float
    low: float = -math.inf
    high: float = math.inf
    ordered: bool = attrs.field(default=True, init=False)

    @classmethod
    def measured(cls, name: Hashable, values: Array) -> dict[str, float]:
        """Arguments for values, none missing."""
        low = 0.0 if values.min() >= 0 else -math.inf
        high = 0.0 if values.max() <= 0 else math.inf
        middle, unit = float(values.mean()), float(values.std())
        if low == 0 or high == 0:  # powers of one sign are powers as they are, and logarithms
            middle, unit = 0.0, float(np.median(np.abs(values))) or unit
        standard = (values - middle) / unit
        every = max(1, len(standard) // _SAMPLE)

        def cost(power: float) -> float:
            return -float(stats.yeojohnson_llf(power, standard[::every]))

        power = float(optimize.minimize_scalar(cost, bounds=(0, 2), method="bounded").x)
        bent = stats.yeojohnson(standard, power)
        mean, std = float(bent.mean()), float(bent.std())
        measured = {"middle": middle, "unit": unit, "power": power, "mean": mean, "std": std}
        return {**measured, "low": low, "high": high}

    def encode(self, cells: Cells, u: Array) -> tuple[Array, Array]:
        """See the base class."""
        standard = (cells.numbers(self.name) - self.middle) / self.unit
        z = (stats.yeojohnson(standard, self.power) - self.mean) / self.std
        slope = (self.power - 1) * np.sign(standard) * np.log1p(np.abs(standard))
        log_slope = slope - math.log(self.unit * self.std)
        return z, np.where(np.isnan(z), 0.0, log_slope)

    def decode(self, z: Array) -> Array:
        """See the base class."""
        bent, power = z * self.std + self.mean, self.power
        above, below = np.maximum(bent, 0.0), np.maximum(-bent, 0.0)
        standard: Array = special.inv_boxcox1p(above, power) - special.inv_boxcox1p(
            below, 2 - power
        )
        values: Array = (self.middle + self.unit * standard).clip(self.low, self.high)
        return values


@attrs.frozen(kw_only=True)
class Count(Number):
    """Whole numbers: coordinates of ``v`` are spread from ``v - 1/2`` to ``v + 1/2``.

    See Theis et al. 2016. Samples stay between the lowest and the highest that have been seen.
    Takes the arguments of `Number`.

    Example:
        >>> import numpy as np
        >>> from scoresde.tables.column import Count
        >>> rooms = {"middle": 3, "unit": 1, "power": 1, "mean": 0, "std": 1}
        >>> Count(name="rooms", low=1, high=8, **rooms).decode(np.array([-4.0, 0.3, 1.7])).tolist()
        [1.0, 3.0, 5.0]
    """

    references: ClassVar[str] = "yeo2000 theis2016"

    kind: ClassVar[str] = "count"

    def encode(self, cells: Cells, u: Array) -> tuple[Array, Array]:
        """See the base class."""
        values = cells.numbers(self.name)
        wrong = values[~np.isnan(values) & (values != np.rint(values))]
        expect(not len(wrong), f"column {self.name!r}", "whole numbers", wrong[:1].tolist())
        return super().encode(Cells(values + u - 0.5), u)

    def decode(self, z: Array) -> Array:
        """See the base class."""
        values: Array = np.rint(super().decode(z))
        return values


@attrs.frozen(kw_only=True)
class Category(Column):
    """One of some values: each has an interval of the normal distribution, of its frequency.

    Args:
        name: Of the column.
        values: In the order of their intervals.
        shares: How frequent each is.
        ordered: Whether that is an order of the values.

    Example:
        >>> import numpy as np
        >>> from scoresde.tables.column import Category
        >>> town = Category(name="town", values=("a", "b"), shares=(0.5, 0.5), ordered=False)
        >>> town.decode(np.array([-0.1, 0.1])).tolist()
        ['a', 'b']
    """

    kind: ClassVar[str] = "category"
    name: Hashable
    values: tuple[Any, ...]
    shares: tuple[float, ...]
    ordered: bool

    def encode(self, cells: Cells, u: Array) -> tuple[Array, Array]:
        """See the base class."""
        indices = {value: i for i, value in enumerate(self.values)}
        unknown = [v for v in cells.distinct() if v not in indices]
        wanted = f"values that were there when the model was fitted ({join_names(self._words)})"
        expect(not unknown, f"column {self.name!r}", wanted, join_names(map(repr, unknown), 3))
        missing = cells.missing
        known = [0 if gone else indices[v] for v, gone in zip(cells.values, missing, strict=True)]
        share = np.array(self.shares)[known]
        start = self._ends[known] - share
        z = special.ndtri((start + share * u).clip(_EDGE, 1 - _EDGE))
        log_factor = np.log(share) + z**2 / 2 + math.log(2 * math.pi) / 2
        return np.where(missing, np.nan, z), np.where(missing, 0.0, log_factor)

    def decode(self, z: Array) -> Array:
        """See the base class."""
        numbers = all(isinstance(v, float) for v in self.values)
        values = np.empty(len(self.values), float if numbers else object)
        values[:] = self.values
        decoded: Array = values[np.searchsorted(self._ends[:-1], special.ndtr(z))]
        return decoded

    def quantile(self, z: Tensor, q: float) -> Tensor:
        """See `Column`; without an order, those in the interval of the most frequent value."""
        if self.ordered:
            return super().quantile(z, q)
        ends = torch.from_numpy(self._ends).to(z)
        indices = torch.searchsorted(ends[:-1].contiguous(), torch.special.ndtr(z))
        middles = ends - torch.tensor(self.shares).to(z) / 2
        middle: Tensor = torch.special.ndtri(middles[indices.mode(0).values])
        return middle

    @property
    def _ends(self) -> Array:
        return np.cumsum(self.shares)

    @property
    def _words(self) -> list[str]:
        return [repr(v) for v in self.values]


def column(name: Hashable, cells: Cells, kind: str | None = None) -> Column:
    """The column of some values, by their kind.

    Args:
        name: Of the column.
        cells: Values.
        kind: One of `KINDS`. By default words and truth values are categories, and so are a few
            numbers (`FEW`) that come often; other numbers are counts if all are whole.

    Raises:
        ValueError: If it cannot be of that kind, has no value, or nearly every row has a category
            of its own.

    Example:
        >>> import numpy as np
        >>> from scoresde.tables.cells import Cells
        >>> from scoresde.tables.column import column
        >>> column("stars", Cells(np.array([1.0, 2.0, 2.0, 3.0] * 10))).kind
        'category'
        >>> column("visits", Cells(np.array([1.0, 2.0, 2.0, 3.0]))).kind
        'count'
    """
    location, values = f"column {name!r}", cells.values[~cells.missing]
    expect(len(values) > 0, location, "some values", "none")
    expect(kind in (None, *KINDS), f"kinds, {location}", f"one of {', '.join(KINDS)}", repr(kind))
    distinct = cells.distinct()
    if kind is None:
        few = len(distinct) <= FEW and len(distinct) * OFTEN <= len(values)
        kind = "category" if few or cells.words or len(distinct) == 1 else "number"
        if kind == "number" and bool((values == np.rint(values)).all()):
            kind = "count"
    if kind == "category":
        return _category(name, cells, distinct)
    numbers = cells.numbers(name)[~cells.missing]
    expect(len(distinct) > 1, location, f"several values of a {kind}", f"{distinct[0]!r} alone")
    measured = Number.measured(name, numbers)
    finite = math.isfinite(measured["unit"]) and 0 < measured["std"] < math.inf
    expect(
        finite, location, "numbers whose squares can be added", f"up to {np.abs(numbers).max():g}"
    )
    if kind == "number":
        return Number(name=name, **measured)
    whole = bool((numbers == np.rint(numbers)).all())
    expect(whole, location, "whole numbers of a count", "others")
    seen = {"low": float(numbers.min()), "high": float(numbers.max())}
    return Count(name=name, **{**measured, **seen})


def _category(name: Hashable, cells: Cells, distinct: Sequence[Any]) -> Category:
    known = int((~cells.missing).sum())
    usual = len(distinct) <= max(FEW, known // 2)
    got = f"{len(distinct)} in {known} rows (a name of rows? leave it out)"
    expect(usual, f"column {name!r}", "categories that come again", got)
    counts = dict.fromkeys(distinct, 0)
    for value in cells.values[~cells.missing]:
        counts[value] += 1
    shares = tuple(count / known for count in counts.values())
    return Category(name=name, values=tuple(counts), shares=shares, ordered=cells.ordered)
