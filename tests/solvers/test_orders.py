"""Solvers converge at the order they declare: measured under schedules that differ by component."""

import functools
import math

import attrs
import numpy as np
import pytest
import torch
from exact_moments import marginal, push, with_true_prior
from models import ADAPTIVE, SOLVERS, ScoreOnly
from strategies import gaussian, mixture

from scoresde import (
    EDM,
    SDE,
    VE,
    VP,
    DiagonalSDE,
    Identity,
    LogLinear,
    Noise,
    Quadrature,
    ReverseSDE,
    log_prob,
)
from scoresde.sampling.grid import GRIDS
from solvers import (
    SRA,
    Adaptive,
    EulerMaruyama,
    ExponentialMultistep,
    ExponentialRungeKutta,
    Heun,
    TorchDiffEq,
    TorchSDE,
)

pytestmark = pytest.mark.usefixtures("float64")

BASIS = {"event_shape": (3,), "blocks": {"a": 2, "b": 1}}
SDES = {
    "VP": lambda: DiagonalSDE(
        VP(0.3, [6.0, 9.0], eps=0.1), Identity(**BASIS), [1.0, 0.6], [1.0, 0.7]
    ),
    "VE": lambda: DiagonalSDE(
        VE([0.3, 0.5], [3.0, 5.0], eps=0.1), Identity(**BASIS), [1.0, 0.7], [1.0, 0.7]
    ),
    # clocks that start, and stop: rates jump on the way
    "stopping": lambda: DiagonalSDE(
        VP(0.3, 9.0, eps=0.1), Identity(**BASIS), [1.5, 2.0], delays=[1 / 3, 0.0]
    ),
    "log-linear": lambda: DiagonalSDE(
        LogLinear([4.0, 5.0], [-4.0, -3.0], eps=0.05), Identity(**BASIS), [1.0, 1.5], [1.0, 0.7]
    ),
}
METHODS = {
    **{f"torchdiffeq-{m}": TorchDiffEq(method=m) for m in ("euler", "midpoint", "heun2", "heun3")},
    "torchdiffeq-rk4": TorchDiffEq(method="rk4"),
    "torchsde-milstein": TorchSDE(method="milstein"),
    "torchsde-srk": TorchSDE(method="srk"),
    **{name: SOLVERS[name]() for name in sorted({*SOLVERS} - ADAPTIVE)},
    **{
        f"multistep-{order}-{'corrected' if corrected else 'predicted'}": ExponentialMultistep(
            order=order, corrected=corrected
        )
        for order in (1, 2, 3)
        for corrected in (False, True)
        # this one is there already, by its defaults
        if ExponentialMultistep(order=order, corrected=corrected) != ExponentialMultistep()
    },
}
each_sde = pytest.mark.parametrize("case", SDES)


def slope(counts, errors):
    """Minus the exponent of a power law."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@functools.cache
def flow(case):
    """The reverse ODE of a mixture, states at its start and, to many digits, at its end."""
    sde = SDES[case]()
    model = mixture(sde, 3)
    reverse = ReverseSDE(model, 0.0)
    torch.manual_seed(1)
    z = model.marginal(torch.tensor([sde.T])).sample((8,))
    solver = TorchDiffEq(method="dopri8", rtol=1e-8, atol=1e-8)
    return reverse, z, solver.integrate(reverse, z, torch.tensor([-sde.T, -sde.eps]), Noise())


def many(name):
    """Orders show late where terms of several orders are alike."""
    return "multistep" in name


@pytest.mark.covering(1)
@each_sde
@pytest.mark.parametrize("name", METHODS)
def test_order_on_the_probability_flow_of_a_mixture(name, case):  # invariant 39
    solver, (reverse, z, end) = METHODS[name], flow(case)
    counts = [16, 48] if name in {"torchsde-srk", "torchdiffeq-rk4"} else [32, 64]
    counts = [64, 128] if many(name) else counts
    errors = [
        (solver.integrate(reverse, z, -GRIDS["log_snr"](reverse.sde, n), Noise()) - end)
        .abs()
        .mean()
        for n in counts
    ]
    assert slope(counts, errors) == pytest.approx(
        solver.order, abs=0.25 if "torch" in name else 0.2
    )


@functools.cache
def densities():
    """Of a mixture: the model, events, and to many digits what they have."""
    model = mixture(SDES["VP"](), 3)
    x = model.marginal(torch.tensor([model.sde.eps])).sample((24,))
    precise = TorchDiffEq(method="dopri8", rtol=1e-7, atol=1e-7)
    return model, x, log_prob(model, x, precise, errors=False).value


@pytest.mark.parametrize(
    "name", ["ddim", "heun", "sra", "exponential-runge-kutta", *(m for m in METHODS if many(m))]
)
def test_densities_have_the_order_of_the_solver(name):
    """Integrals of the divergence have steps, weights and damping of their own."""
    model, x, truth = densities()
    counts = [32, 64] if many(name) else [16, 32]
    if many(name) and METHODS[name].corrected and METHODS[name].order > 1:
        counts = [96, 192]
    errors = []
    for n in counts:
        found = log_prob(model, x, attrs.evolve(METHODS[name], steps=n), errors=False)
        errors.append(float((found.value - truth).abs().mean()))
    assert slope(counts, errors) == pytest.approx(METHODS[name].order, abs=0.25)


@pytest.mark.parametrize(
    ("schedule", "speeds", "delays", "order"),
    [(EDM(0.1, 4.0), [1.0, 2.0], 0.0, 2), (VE(0.3, 4.0, eps=0.1), [1.5, 2.0], [1 / 3, 0.0], 3)],
    ids=["stopping", "starting"],
)
def test_densities_have_it_where_clocks_start_and_stop(schedule, speeds, delays, order):
    """Ends of steps are corrected by what is known where the next ones start."""
    sde = DiagonalSDE(schedule, Identity(**BASIS), speeds, delays=delays)
    model, counts = with_true_prior(gaussian(sde, 3)), [24, 72]
    end = marginal(model, sde.eps)
    x, errors = end.mean + torch.tensor([[0.3, -0.5, 0.2], [-0.6, 0.1, 0.4]]), []
    for n in counts:
        found = log_prob(model, x, ExponentialMultistep(n, order=order), errors=False).value
        errors.append(float((found - end.log_prob(x)).abs().mean()))
    assert slope(counts, errors) > order - 0.5


@pytest.mark.parametrize("case", ["VP", "stopping", "log-linear"])
def test_the_error_of_a_quadratures_path_enters_squared(case):
    """The path is of second order, densities are of more: of every event, from its true prior."""
    model = mixture(SDES[case](), 3)
    start, end = (model.marginal(torch.tensor([t])) for t in (model.sde.T, model.sde.eps))
    model.sde.prior = start
    x, counts = end.sample((24,)), [16, 32, 64, 128]
    errors = [
        float(
            (log_prob(model, x, Quadrature(n, tolerance=None)).value - end.log_prob(x)).abs().mean()
        )
        for n in counts
    ]
    assert slope(counts, errors) > 3


@pytest.mark.covering(2)
@each_sde
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s().weak_order is not None])
def test_weak_order_on_a_gaussian(name, case, eta):  # invariant 39
    """Means and covariances of the samples' distribution, exact."""
    solver = METHODS[name]
    model = with_true_prior(gaussian(SDES[case](), 3))
    sde = model.sde
    reverse, end = ReverseSDE(model, eta), marginal(model, sde.eps)
    counts = [192, 384] if many(name) else [24, 48]
    errors = []
    for n in counts:
        mean, covariance = push(solver, reverse, sde.prior, -GRIDS["uniform_time"](sde, n))
        errors.append((covariance - end.covariance_matrix).norm().item())
        errors[-1] += (mean - end.mean).norm().item()
    assert slope(counts, errors) == pytest.approx(solver.weak_order, abs=0.2)


class Brownian(Noise):
    """One Brownian motion, asked for in steps of any power of 2."""

    def __init__(self, steps, shape):
        super().__init__()
        self.increment = torch.randn(steps, *shape)
        # of what its mean over a step differs from the mean of the step's ends
        self.bend = torch.randn(steps, *shape)

    def coarsened(self):
        """Over steps twice as long: increments, and their first moments, add up."""
        area = (self.increment + self.bend / 3**0.5) / 2
        (a, b), (first, second) = (
            v.unflatten(0, (-1, 2)).unbind(1) for v in (self.increment, area)
        )
        wider = object.__new__(Brownian)
        wider.increment = (a + b) / 2**0.5
        wider.bend = (2 * (first + second + a) / 2**1.5 - wider.increment) * 3**0.5
        return wider

    def drawn(self, draws):
        """What a solver with so many draws a step hears."""
        kinds = (self.increment, self.bend)[:draws]
        self.queue = iter(torch.stack(kinds, 1).flatten(0, 1))
        return self

    def __call__(self, like):
        return next(self.queue)


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s().strong_order is not None])
def test_strong_order_on_a_mixture(name):  # invariant 39
    solver = SOLVERS[name]()
    late, sde = solver.strong_order > 1, SDES["VE"]()
    model = mixture(sde, 3)
    reverse = ReverseSDE(model, 1.0)
    z = torch.randn(256, 3) * sde.kernel(torch.tensor([sde.T])).sigma
    # an order above 1 shows late, and is measured against finer steps of the same solver
    fine, counts = (512, [128, 64, 32]) if late else (128, [64, 32, 16])
    noise, ends = Brownian(fine, z.shape), {}

    def end(solver, steps):
        ts = -torch.linspace(sde.T, sde.eps, steps + 1)
        return solver.integrate(reverse, z, ts, noise.drawn(2 if isinstance(solver, SRA) else 1))

    exact, steps = end(SRA(), fine), fine
    while steps > counts[-1]:
        noise, steps = noise.coarsened(), steps // 2
        ends[steps] = end(solver, steps) if steps in counts else None
    # the median path: a few are decided between two modes by the last digit
    errors = [(ends[n] - exact).norm(dim=-1).median() for n in counts]
    # of an order above 1 what is smooth, with order 2, is seen until steps are very small
    assert -0.2 < slope(counts, errors) - solver.strong_order < (0.45 if late else 0.2)


def test_coarser_steps_of_one_brownian_motion_are_as_random():
    noise = Brownian(2**16, (1,)).coarsened().coarsened()
    both = torch.cat([noise.increment, noise.bend], -1)
    torch.testing.assert_close(torch.cov(both.mT), torch.eye(2), rtol=0, atol=0.03)


@pytest.mark.parametrize("case", ["VP", "stopping"])
@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"])
def test_adaptive_methods_follow_their_tolerance(method, case):
    reverse, z, end = flow(case)
    ts = torch.tensor([-reverse.T, -reverse.eps])
    loose, tight = (
        (TorchDiffEq(method=method, rtol=tol, atol=tol).integrate(reverse, z, ts, Noise()) - end)
        .abs()
        .max()
        # to more digits a second-order method with dense steps takes thousands
        for tol in (1e-3, 1e-5 if method == "adaptive_heun" else 1e-6)
    )
    assert tight < loose / 10
    assert tight < 2e-3


@pytest.mark.parametrize("name", [n for n, s in SOLVERS.items() if s().weak_order is not None])
def test_euler_maruyama_moments_converge_to_the_kernel(name):  # invariant 4
    """Diffusing forward, from a Gaussian: exact for those that know the kernel."""
    sde = SDES["stopping"]()
    model = gaussian(sde, 3)
    start, end = marginal(model, sde.eps), marginal(model, sde.T)
    counts = [24, 48, 96]
    errors = []
    for n in counts:
        mean, covariance = push(SOLVERS[name](), sde, start, GRIDS["uniform_time"](sde, n).flip(0))
        errors.append((covariance - end.covariance_matrix).norm().item())
        errors[-1] += (mean - end.mean).norm().item()
    if max(errors) > 1e-9:
        assert slope(counts, errors) == pytest.approx(SOLVERS[name]().weak_order, abs=0.25)
    assert errors[-1] < 0.1
    if name in {"ddim", "exponential-multistep"}:
        assert max(errors) < 1e-9


def test_the_multistep_solver_is_of_first_weak_order_where_it_does_not_know_the_noise():
    """It takes ``g`` at the start of a step then, as it says."""
    model = with_true_prior(gaussian(SDES["VP"](), 3))

    class Stranger(SDE):
        def f(self, t, y):
            return model.sde.f(t, y)

        def g(self, t, y):
            return model.sde.g(t, y)

    sde = Stranger(basis=model.sde.basis, eps=0.1)
    reverse, end = ReverseSDE(ScoreOnly(sde, model.score)), marginal(model, 0.1)
    counts = [48, 96, 192]
    errors = []
    for n in counts:
        ts = torch.linspace(-1, -0.1, n + 1)
        covariance = push(SOLVERS["exponential-multistep"](), reverse, model.sde.prior, ts)[1]
        errors.append((covariance - end.covariance_matrix).norm().item())
    assert slope(counts, errors) == pytest.approx(1, abs=0.25)


def test_a_power_law_has_its_exponent():
    counts = [8, 16, 32]
    assert slope(counts, [3 / n**2 for n in counts]) == pytest.approx(2)
    assert math.isclose(slope(counts, [1.0, 1.0, 1.0]), 0, abs_tol=1e-12)


DECLARED = {
    EulerMaruyama: (1.0, 1.0, 1.0),
    Heun: (2.0, 2.0, None),
    SRA: (2.0, 2.0, 1.5),
    ExponentialRungeKutta: (3.0, None, None),
    Adaptive: (3.0, None, None),
}
"""Of ODEs, weak, strong: Kloeden and Platen 1992, Roessler 2010, Lu et al. 2022."""


@pytest.mark.parametrize("kind", DECLARED, ids=lambda kind: kind.__name__)
def test_solvers_declare_the_orders_of_the_literature(kind):
    solver = kind()
    assert (solver.order, solver.weak_order, solver.strong_order) == DECLARED[kind]
