import pytest
import torch
from exact_moments import with_true_prior
from strategies import gaussian

from scoresde import (
    EDM,
    VP,
    Clock,
    DiagonalSDE,
    Haar,
    Identity,
    Joint,
    LogLinear,
    Noise,
    ReverseSDE,
)
from scoresde.sdes.fronts import along, front, in_order, patches
from solvers import ExponentialMultistep

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("ranks", [[0, 1, 2], [2, 0, 0, 1], [0, 0.5, 3], [5, 7]])
def test_clocks_start_when_the_one_before_has_gone_its_share(ranks, overlap):
    first = 0.02
    clock = front(ranks, overlap, first)
    rank = torch.tensor(ranks, dtype=torch.float64)
    starts = clock.delays + first / clock.speeds
    stops = clock.delays + 1 / clock.speeds
    alone = (1 - overlap) * (1 - first) / clock.speeds
    torch.testing.assert_close(starts - starts.min(), (rank.max() - rank) * alone)
    assert float(stops.max()) == pytest.approx(1.0)
    assert float(clock.delays.min()) == 0.0


def test_without_overlap_there_is_no_gap():
    schedule = EDM()
    clock = front([0, 1, 2, 3], first=schedule.eps / schedule.T)
    sde = DiagonalSDE(schedule, Identity((4,)), clock)
    breakpoints = torch.tensor([sde.eps, *sde.breakpoints(), sde.T])
    assert len(breakpoints) == 5
    middles = ((breakpoints[1:] + breakpoints[:-1]) / 2).unsqueeze(-1)
    assert torch.equal(sde.at(middles).g2 > 0, torch.eye(4, dtype=torch.bool).flip(-1))


def test_all_together_is_uniform():
    clock = front([0, 1, 2], overlap=1.0)
    assert clock.delays is None
    assert clock.speeds.tolist() == 1.0


def test_ranks_of_places():
    shape = (2, 3, 4)
    channel, row, column = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    assert torch.equal(along(shape, -2), row.flatten())
    assert torch.equal(along(shape, 0), channel.flatten())
    assert torch.equal(along(shape, 2, window=3), (column // 3).flatten())
    assert torch.equal(patches(shape, (2, 2, 2)), (row // 2 * 2 + column // 2).flatten())
    # two patches in a row, the second of which is not full
    assert patches((4, 3), (2, 2)).tolist() == [0, 0, 1, 0, 0, 1, 2, 2, 3, 2, 2, 3]


def test_ranks_in_few_digits_make_clocks_of_all():
    few, all_digits = (torch.tensor([0, 1, 2], dtype=d) for d in (torch.float32, torch.float64))
    assert torch.equal(front(few, 0.3).delays, front(all_digits, 0.3).delays)


def test_ranks_of_names():
    blocks = Joint(y=Haar((1, 4, 4), levels=1), x=(2,)).blocks
    names = [*blocks.sizes]
    assert len(names) > 2
    assert names[-1] == "x"
    assert in_order(blocks, ["x"]).tolist() == [1] * (len(names) - 1) + [0]
    assert in_order(blocks, ["x", "y"]).tolist() == [1] * (len(names) - 1) + [0]
    ranks = in_order(blocks, [names[1], "x"]).tolist()  # a block of a part, and a part
    assert ranks == [0 if name == names[1] else 1 if name == "x" else 2 for name in names]
    for order in (["x", "x"], ["y", names[1]], [names[1], "y"], ["z"], [names[0][:-1]]):
        with pytest.raises(ValueError, match=r"^order: expected blocks, each once"):
            in_order(blocks, order)


def test_axes_are_counted_from_both_ends():
    assert torch.equal(along((2, 3), -2), along((2, 3), 0))
    assert torch.equal(along((2, 3), 1), along((2, 3), -1))
    for axis in (2, -3):
        with pytest.raises(ValueError, match="axis"):
            along((2, 3), axis)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: front([0, 1], overlap=-0.1), "overlap"),
        (lambda: front([0, 1], first=-0.1), "first"),
        (lambda: front([0, 1], overlap=1.5), "overlap"),
        (lambda: front([0, 1], first=1.0), "first"),
        (lambda: front([0, float("nan")]), "ranks"),
        (lambda: patches((4, 4), (2,)), "patch_shape"),
        (lambda: patches((4, 4), (2, 0)), "patch_shape"),
        (lambda: along((4, 4), 2), "axis"),
        (lambda: along((4, 4), 0, window=0), "window"),
    ],
)
def test_what_is_no_front_is_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_clocks_that_never_run_together_draw_conditionals(order):
    """Autoregression: every component is drawn given those before it, to the last digit.

    Of a Gaussian the flow is then Knothe's and Rosenblatt's map: in the order of the ranks the
    Cholesky factor of the covariance.
    """
    first = 1e-3
    sde = DiagonalSDE(LogLinear(14.0, -14.0, eps=first), Identity((3,)), front(order, first=first))
    model = gaussian(sde, 3)
    xi, (_, sigma) = torch.eye(4, 3), sde.kernel(torch.tensor([sde.T]))
    alpha, _ = sde.kernel(torch.tensor([sde.T]))
    solver = ExponentialMultistep(150)
    start = alpha * model.means[0] + sigma * xi
    end = solver.integrate(ReverseSDE(model, 0.0), start, -solver.times(sde), Noise())
    place = torch.tensor(order).argsort()
    factor = torch.linalg.cholesky(model.covariances[0][place][:, place])
    found = (end - end[3:])[:3].mT[place][:, place]
    torch.testing.assert_close(found, factor, rtol=0, atol=2e-3)
    torch.testing.assert_close(end[3], model.means[0], rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_window_rolls_over_a_series(dtype):
    """With overlap as well samples are those of the data: the marginals know no clock."""
    clock = front(along((4, 1), axis=0), overlap=0.7)
    sde = DiagonalSDE(VP(), Identity((4, 1)), clock)
    model = with_true_prior(gaussian(sde, 1))
    xi = torch.cat([torch.eye(4), torch.zeros(1, 4)]).to(dtype)
    start = sde.prior.loc + xi @ sde.prior.scale_tril.mT.to(dtype)
    solver = ExponentialMultistep(80)
    end = solver.integrate(ReverseSDE(model, 0.0), start.to(dtype), -solver.times(sde), Noise())
    assert end.dtype == dtype
    columns = (end[:4] - end[4:]).double()
    alpha, sigma = (v.expand(4) for v in sde.kernel(torch.tensor([sde.eps])))
    wanted = alpha[:, None] * model.covariances[0] * alpha + torch.diag(sigma**2)
    torch.testing.assert_close(columns.mT @ columns, wanted, rtol=0, atol=5e-3)


def test_a_front_is_a_clock():
    assert isinstance(front([0, 1]), Clock)
