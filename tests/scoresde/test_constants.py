"""Constants of equations and estimators are the same for every event: one axis, of components."""

import pytest
import torch

from estimators import Denoising, ResidualMLP, SlicedScoreMatching, TransitionMatching
from scoresde import VP, CoxIngersollRoss, DiagonalSDE, GeometricBrownian, Identity


def _diagonal(**constants):
    return DiagonalSDE(VP(), Identity((2,)), **constants)


def _network():
    return ResidualMLP((2,), 4, 1)


MADE = {
    "scale": _diagonal,
    "mean": _diagonal,
    "std": _diagonal,
    "speeds": _diagonal,
    "delays": _diagonal,
    "level": lambda **constants: CoxIngersollRoss((2,), **constants),
    "growth": lambda **constants: GeometricBrownian((2,), **constants),
    "data_mean": lambda **constants: Denoising(_diagonal(), _network(), **constants),
    "data_std": lambda **constants: Denoising(_diagonal(), _network(), **constants),
}
TRAINED = {
    f"{made.__name__}: {name}": (made, name)
    for made in (SlicedScoreMatching, TransitionMatching)
    for name in ("data_mean", "data_std")
}


@pytest.mark.parametrize("shape", [(3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_axis(name, shape, dtype):
    with pytest.raises(ValueError, match=rf"^{name}: expected one axis at most, of components"):
        MADE[name](**{name: torch.full(shape, 0.5, dtype=dtype)})


@pytest.mark.parametrize("case", TRAINED)
def test_one_axis_without_a_kernel(case):
    made, name = TRAINED[case]
    with pytest.raises(ValueError, match=rf"^{name}: expected one axis at most, of components"):
        made(GeometricBrownian((2,)), _network(), **{name: torch.ones(3, 2)})
