"""Laws of solvers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from scoresde.bases import Identity
from scoresde.likelihood import log_prob
from scoresde.noise import Noise
from scoresde.reverse import ReverseSDE
from scoresde.sampling.grid import GRIDS
from scoresde.schedules import VP, LogLinear
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import SDE
from scoresde.solver import Solver
from scoresde.testing.gaussian import GaussianData
from scoresde.testing.measures import (
    DOUBLE,
    Brownian,
    Impulses,
    assert_holds,
    assert_same,
    convergence_order,
    moments,
    standard_normal,
)
from scoresde.testing.precision import assert_single_precision


class _Decay(SDE):
    """``dy = -y dt + eta dw``: a stranger's SDE, of which a solver knows nothing more."""

    def __init__(self, eta: float) -> None:
        super().__init__((1,))
        self.eta = eta

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return -y

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y, self.eta)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0


class _Same(Noise):
    """The same numbers in either precision."""

    def __init__(self) -> None:
        super().__init__(torch.Generator().manual_seed(0))

    def __call__(self, like: Tensor) -> Tensor:
        return super().__call__(like.double()).to(like)


class SolverLaws(ABC):
    """Laws of a `scoresde.Solver`.

    Attributes:
        adaptive: Whether its error is set by a tolerance, not by ``steps``: then orders are not
            measured, and the error is asked to be below ``tolerance``.
        tolerance: See there.

    Example:
        >>> from scoresde.testing import SolverLaws
        >>> from solvers import DDIM
        >>> class TestMine(SolverLaws):
        ...     def make(self, steps, eta):
        ...         return DDIM(steps, eta=eta)
        >>> TestMine().test_the_same_seed_gives_the_same_samples()
    """

    adaptive = False
    tolerance = 1e-2

    @abstractmethod
    def make(self, steps: int, eta: float) -> Solver:
        """One of them; ``eta`` above 0 is asked for only if it declares a ``weak_order``."""

    def _bed(self) -> tuple[GaussianData, DiagonalSDE]:
        basis = Identity((2,), {"a": 1, "b": 1})
        sde = DiagonalSDE(VP(0.3, [6.0, 9.0], eps=0.1), basis, [1.0, 0.7], [1.0, 0.8])
        mean = torch.tensor([1.0, -0.5], dtype=DOUBLE)
        covariance = torch.tensor([[0.5, 0.3], [0.3, 1.2]], dtype=DOUBLE)
        model = GaussianData(sde, mean, covariance)
        sde.prior = model.marginal(sde.T)
        return model, sde

    def _kinds(self) -> list[float]:
        return [0.0] if self.make(1, 0.0).weak_order is None else [0.0, 1.0]

    def _error(self, steps: int, eta: float) -> float:
        """Of the mean and covariance of what comes out."""
        model, sde = self._bed()
        solver, reverse, end = (
            self.make(steps, eta),
            ReverseSDE(model, eta),
            model.marginal(sde.eps),
        )
        start = sde.prior
        assert isinstance(start, MultivariateNormal)

        def run(rows: int, noise: Impulses) -> Tensor:
            y = noise.draw(start, torch.empty(rows, 2, dtype=DOUBLE))
            return solver.integrate(reverse, y, -GRIDS["uniform_time"](sde, steps), noise)

        mean, covariance = moments(run, 2 + 2 * steps * (eta > 0))
        return float((covariance - end.covariance_matrix).norm() + (mean - end.mean).norm())

    def _ordered(self, eta: float, order: float) -> None:
        if self.adaptive:
            error = self._error(50, eta)
            assert_holds(f"the error is below {self.tolerance}", error < self.tolerance, error)
            return
        counts = (64, 128, 256)
        errors = [self._error(n, eta) for n in counts]
        order_seen = convergence_order(counts, errors)
        law = f"with eta = {eta:g} the error falls with the order declared, {order:g}"
        assert_holds(
            law,
            order_seen > order - 0.35 or errors[-1] < 1e-9,
            f"{order_seen:.2f}, errors {errors}",
        )

    def test_the_order_it_declares(self) -> None:
        """Of the probability flow, where components differ."""
        self._ordered(0.0, self.make(1, 0.0).order)

    def test_the_weak_order_it_declares(self) -> None:
        """Of the distribution that the reverse SDE leads to, if it takes equations with noise."""
        order = self.make(1, 0.0).weak_order
        if order is not None:
            self._ordered(1.0, order)

    def test_the_strong_order_it_declares(self) -> None:
        """Of paths, against its own finest steps of the same Brownian motion.

        Asked of solvers that ask for one random number a step, or two as
        `scoresde.testing.measures.Brownian` gives them.
        """
        order = self.make(1, 0.0).strong_order
        if order is None:
            return
        model, sde = self._bed()
        reverse, y = ReverseSDE(model, 1.0), standard_normal(64, 2)
        counted = Impulses()
        self.make(4, 1.0).integrate(reverse, y, -GRIDS["uniform_time"](sde, 4), counted)
        draws = counted.used // 8
        assert_holds("a step asks for one or two numbers", draws in (1, 2), draws)
        noise, ends = Brownian(standard_normal(512, 64, 2), standard_normal(512, 64, 2, seed=1)), {}
        for steps in (512, 256, 128, 64, 32):
            ts = -GRIDS["uniform_time"](sde, steps)
            if steps != 256:
                solver = self.make(steps, 1.0)
                ends[steps] = solver.integrate(reverse, y, ts, noise.drawn(draws))
            noise = noise.coarsened()
        counts = (32, 64, 128)
        errors = [float((ends[n] - ends[512]).norm(dim=-1).median()) for n in counts]
        order_seen = convergence_order(counts, errors)
        law = f"along one Brownian motion the error falls with the strong order declared, {order:g}"
        assert_holds(
            law,
            order_seen > order - 0.35 or errors[-1] < 1e-9,
            f"{order_seen:.2f}, errors {errors}",
        )

    def test_drift_and_diffusion_are_enough(self) -> None:
        """It integrates an SDE of which nothing else is known: ``dy = -y dt + eta dw``."""
        for eta in self._kinds():
            solver, sde = self.make(200, eta), _Decay(eta)
            ts = torch.linspace(0, 1, 201, dtype=DOUBLE)

            def run(rows: int, noise: Impulses) -> Tensor:
                return solver.integrate(sde, torch.ones(rows, 1, dtype=DOUBLE), ts, noise)  # noqa: B023

            mean, covariance = moments(run, 200 * (eta > 0))
            law = f"dy = -y dt + {eta:g} dw takes 1 at time 0 to N(e^-1, eta^2 (1 - e^-2)/2) at 1"
            actual = torch.cat([mean, covariance.flatten()])
            expected = [math.exp(-1), eta**2 * -math.expm1(-2) / 2]
            assert_same(law, actual, torch.tensor(expected, dtype=DOUBLE), rtol=0, atol=0.01)

    def test_a_walk_shows_where_it_has_been(self) -> None:
        """One state per step, the last the end; two walks are one, with its memory."""
        model, sde = self._bed()
        reverse, y = ReverseSDE(model, 0.0), standard_normal(3, 2)
        solver, ts = self.make(20, 0.0), -GRIDS["uniform_time"](sde, 20)
        end = solver.integrate(reverse, y, ts, Noise())
        tolerance = {"rtol": 0, "atol": self.tolerance if self.adaptive else 1e-9}
        states = list(solver.path(reverse, y, ts, Noise()))
        assert_holds("a path has a state for every step", len(states) == len(ts) - 1, len(states))
        assert_same("a path ends where integrate does", states[-1], end, **tolerance)
        *_, (middle, memory) = solver.walk(reverse, y, ts[:11], Noise())
        *_, (last, _) = solver.walk(reverse, middle, ts[10:], Noise(), memory)
        law = "a walk that is handed its memory goes on as if it had not stopped"
        if memory is not None:
            assert_same(law, last, end, **tolerance)

    def test_components_may_enter_on_the_way(self) -> None:
        """In two stages, as in multi-scale diffusion: samples are distributed as data."""
        basis = Identity((3,), {"a": 2, "b": 1})
        sde = DiagonalSDE(LogLinear(10.0, -12.0), basis, [1.0, 2.0], drop=[1.0, 0.5])
        covariance = torch.tensor([[0.5, 0.3, 0.1], [0.3, 1.2, 0.2], [0.1, 0.2, 0.4]], dtype=DOUBLE)
        model = GaussianData(sde, torch.tensor([0.3, -0.5, 0.1], dtype=DOUBLE), covariance)
        solver = self.make(100, 0.0)

        def run(rows: int, noise: Impulses) -> Tensor:
            return solver.sample(model, (rows,), generator=noise, dtype=DOUBLE)

        actual, expected = moments(run, 3), model.marginal(sde.eps)
        law = "samples are distributed as data where components enter on the way"
        assert_same(f"{law}: mean", actual[0], expected.mean, rtol=0, atol=0.1)
        assert_same(f"{law}: covariance", actual[1], expected.covariance_matrix, rtol=0, atol=0.1)

    def test_clean_components_stay(self) -> None:
        """Those of speed 0 are left as they are, and nothing divides by their noise."""
        sde = DiagonalSDE(VP(eps=0.01), Identity((2,), {"x": 1, "y": 1}), [1.0, 0.0])
        covariance = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=DOUBLE)
        model = GaussianData(sde, torch.zeros(2, dtype=DOUBLE), covariance)
        for eta in self._kinds():
            y, ts = standard_normal(5, 2), -GRIDS["log_snr"](sde, 20)
            noise = Noise(torch.Generator().manual_seed(0))
            end = self.make(20, eta).integrate(ReverseSDE(model, eta), y, ts, noise)
            assert_same("clean components stay as they are", end[:, 1], y[:, 1], rtol=0, atol=1e-9)
            assert_holds("the others stay finite", torch.isfinite(end), end)

    def test_log_densities_are_carried_along(self) -> None:
        """`scoresde.log_prob` with this solver is the closed form."""
        model, sde = self._bed()
        x = standard_normal(4, 2)
        solver = self.make(200 if self.make(1, 0.0).order < 2 else 50, 0.0)
        actual = log_prob(model, x, solver, errors=False).value
        expected = model.marginal(sde.eps).log_prob(sde.basis(x))
        assert_same("log_prob is that of the data", actual, expected, rtol=0, atol=0.1)

    def test_the_same_seed_gives_the_same_samples(self) -> None:
        """And the global generator is left alone."""
        model, _ = self._bed()
        for eta in self._kinds():
            solver = self.make(8, eta)
            torch.manual_seed(0)
            before = torch.get_rng_state()
            one, two = (
                solver.sample(model, (5,), generator=torch.Generator().manual_seed(3))
                for _ in range(2)
            )
            assert_same("the same seed gives the same samples", one, two, rtol=0, atol=0)
            untouched = torch.equal(before, torch.get_rng_state())
            assert_holds("torch's global generator is left alone", untouched, "another state")

    def test_a_sample_has_a_generator_of_its_own(self) -> None:
        """And does not depend on the others."""
        model, sde = self._bed()
        y = standard_normal(5, 2) * torch.tensor([1.0, 1, 1, 10, 100], dtype=DOUBLE).unsqueeze(-1)
        for eta in self._kinds():
            solver, reverse = self.make(8, eta), ReverseSDE(model, eta)
            ts = -GRIDS["log_snr"](sde, 8)

            def ends(*rows: int) -> Tensor:
                noise = Noise([torch.Generator().manual_seed(row) for row in rows])
                return solver.integrate(reverse, y[list(rows)], ts, noise)  # noqa: B023

            together = ends(*range(5))
            law = "a sample does not depend on its batch mates"
            # what shares its steps with others shares their errors
            atol = 0.1 * self.tolerance if self.adaptive else 1e-8
            for i in range(5):
                assert_same(law, ends(i)[0], together[i], rtol=1e-6, atol=atol)

    def test_single_precision(self) -> None:
        """From prior to data, near and far: finite, and where float64 ends, with gradients."""
        _, sde = self._bed()
        far = torch.tensor([1.0, 10.0, 100.0], dtype=DOUBLE).unsqueeze(-1)
        for eta in self._kinds():
            solver, ts = self.make(20, eta), -GRIDS["log_snr"](sde, 20)

            def find(model: Any, y: Tensor) -> dict[str, Tensor]:
                reverse = ReverseSDE(model, eta)  # noqa: B023
                return {"the end": solver.integrate(reverse, y, ts, _Same())}  # noqa: B023

            tolerance = self.tolerance if self.adaptive else 1e-3
            law = f"with eta = {eta:g} an integration"
            assert_single_precision(
                law,
                self._bed()[0],
                find,
                far * standard_normal(3, 2),
                size=far,
                tolerance=tolerance,
            )

    def test_batches_and_precision(self) -> None:
        """``(2, 3)`` samples, or none; float32 stays float32; the start is not written on."""
        model, sde = self._bed()
        for eta in self._kinds():
            solver = self.make(6, eta)
            x = solver.sample(model, (2, 3), generator=torch.Generator().manual_seed(0))
            assert_holds("samples are (*batch, *event_shape)", x.shape == (2, 3, 2), tuple(x.shape))
            none = solver.sample(model, (0,), generator=torch.Generator())
            assert_holds(
                "no samples are (0, *event_shape)", none.shape == (0, 2), tuple(none.shape)
            )
            start = standard_normal(4, 2).float()
            y = start.clone()
            ts = -GRIDS["log_snr"](sde, 6)
            end = solver.integrate(ReverseSDE(model, eta), y, ts, Noise.of(torch.Generator()))
            assert_holds("states keep their dtype", end.dtype == torch.float32, end.dtype)
            assert_same("the start of an integration is not written on", y, start, rtol=0, atol=0)
