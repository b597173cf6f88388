"""Laws that every schedule, basis, SDE, estimator and solver obeys, for the tests of plugins.

    from scoresde.testing import SolverLaws

    class TestMine(SolverLaws):
        def make(self, steps, eta):
            return MySolver(steps, eta=eta)

Inherit the laws of a kind, say how one is made, and pytest runs them all. They need nothing
else, compute in float64 on the CPU, take seconds, and name the law that is broken. What a class
does not claim (a kernel, a loss, an order for equations with noise) is not asked of it.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from scoresde.bases import Basis, Identity
from scoresde.diagonal import DiagonalSDE
from scoresde.estimator import ScoreEstimator
from scoresde.grid import GRIDS
from scoresde.noise import Noise
from scoresde.schedules import VP, Schedule
from scoresde.sde import SDE
from scoresde.solver import Solver

DOUBLE = torch.float64


def same(law: str, found: Tensor, wanted: Tensor, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    """Raises ``AssertionError`` with the law's words unless two tensors agree.

    Example:
        >>> import torch
        >>> from scoresde.testing import same
        >>> same("halves add up", torch.tensor(0.5) * 2, torch.tensor(1.0))
    """
    torch.testing.assert_close(
        found, wanted, rtol=rtol, atol=atol, equal_nan=True, msg=lambda m: f"{law}: {m}"
    )


def holds(law: str, condition: bool | Tensor, found: object) -> None:
    """Raises ``AssertionError`` with the law's words unless a condition holds everywhere.

    Example:
        >>> from scoresde.testing import holds
        >>> holds("time passes", 2 > 1, 2)
    """
    if not bool(torch.as_tensor(condition).all()):
        raise AssertionError(f"{law}: found {found}")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers.

    Example:
        >>> from scoresde.testing import random
        >>> random(2, 3).shape
        torch.Size([2, 3])
    """
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class Impulses(Noise):
    """Row 0 of a batch gets no noise, row ``1 + k`` only the ``k``-th number asked for.

    Example:
        >>> import torch
        >>> from scoresde.testing import Impulses
        >>> Impulses()(torch.empty(3, 2))
        tensor([[0., 0.],
                [1., 0.],
                [0., 1.]])
    """

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def __call__(self, like: Tensor) -> Tensor:
        """See the class."""
        n, rows = like.shape[-1], torch.arange(like.shape[-1]) + 1 + self.used
        self.used += n
        out = torch.zeros_like(like)
        inside = rows < len(like)
        out[rows[inside], torch.arange(n)[inside]] = 1.0
        return out

    def draw(self, distribution: Distribution, like: Tensor) -> Tensor:
        """A draw of a multivariate normal distribution."""
        assert isinstance(distribution, MultivariateNormal)
        factor = torch.linalg.cholesky(distribution.covariance_matrix)
        drawn: Tensor = distribution.mean + self(like) @ factor.mT
        return drawn.to(like)


def moments(run: Callable[[int, Impulses], Tensor], numbers: int = 1) -> tuple[Tensor, Tensor]:
    """The law of what a solver makes of Gaussian data: exact, without sampling.

    There every step is an affine map of the state and of the random numbers it asks for. Fed with
    no noise, and then with each single number equal to 1, one batch reads off the whole map.

    Args:
        run: ``run(rows, noise)`` gives ``rows`` samples made of the noise.
        numbers: A guess at how many random numbers are asked for.

    Returns:
        Mean and covariance, flattened: ``(n,)`` and ``(n, n)``.

    Example:
        >>> import torch
        >>> from scoresde.testing import moments
        >>> moments(lambda rows, noise: 1 + 2 * noise(torch.empty(rows, 1)))
        (tensor([1.]), tensor([[4.]]))
    """
    noise = Impulses()
    states = run(1 + numbers, noise).flatten(1)
    if noise.used > numbers:
        return moments(run, noise.used)
    mean, responses = states[0], states[1:] - states[0]
    return mean, responses.mT @ responses


def slope(counts: Sequence[int], errors: Sequence[float]) -> float:
    """Minus the exponent of the power law that errors follow.

    Example:
        >>> from scoresde.testing import slope
        >>> round(slope([10, 20, 40], [1.0, 0.25, 0.0625]), 6)
        2.0
    """
    x, y = (torch.tensor(v, dtype=DOUBLE).log() for v in (counts, errors))
    x = x - x.mean()
    return -float((x * y).sum() / (x * x).sum())


def saved(law: str, module: nn.Module, look: Callable[[Any], Tensor]) -> None:
    """A copy with other numbers becomes the module again by its ``state_dict``.

    Example:
        >>> import torch
        >>> from scoresde.testing import saved
        >>> saved("weights are saved", torch.nn.Linear(1, 1), lambda layer: layer.weight)
    """
    before, other = look(module), copy.deepcopy(module)
    with torch.no_grad():
        for value in other.state_dict().values():
            if value.is_floating_point():
                value.mul_(0.9)
    other.load_state_dict(module.state_dict())
    same(law, look(other), before)


class BasisLaws(ABC):
    """Laws of a `scoresde.Basis`.

    Example:
        >>> from scoresde import Identity
        >>> from scoresde.testing import BasisLaws
        >>> class TestMine(BasisLaws):
        ...     def make(self):
        ...         return Identity((3,))
        >>> TestMine().test_events_come_back()
    """

    @abstractmethod
    def make(self) -> Basis:
        """One of them."""

    def _events(self, *batch: int, seed: int = 0) -> tuple[Basis, Tensor]:
        basis = self.make().double()
        return basis, random(*batch, *basis.event_shape, seed=seed)

    def test_events_come_back(self) -> None:
        """``inverse(basis(x)) = x``, whatever the batch."""
        for batch in ((), (3,), (2, 3)):
            basis, x = self._events(*batch)
            z = basis(x)
            holds("coefficients are (*batch, n)", z.shape == (*batch, basis.dim), tuple(z.shape))
            same("a basis is invertible", basis.inverse(z), x)

    def test_it_is_orthonormal(self) -> None:
        """Scalar products stay, and the transpose is the inverse."""
        basis, x = self._events(4)
        z = basis(x)
        same("a basis is orthonormal", z @ z.mT, x.flatten(1) @ x.flatten(1).mT)
        v = random(4, basis.dim, seed=1)
        (transposed,) = torch.func.vjp(basis.analyse, x)[1](v)
        same("the transpose of an orthonormal basis is its inverse", transposed, basis.inverse(v))

    def test_it_is_linear(self) -> None:
        """``basis(a x + y) = a basis(x) + basis(y)``."""
        basis, x = self._events(2)
        y = self._events(2, seed=1)[1]
        same("a basis is linear", basis(3 * x + y), 3 * basis(x) + basis(y))

    def test_blocks_share_out_the_components(self) -> None:
        """Their sizes add up to the number of components of an event."""
        basis = self.make()
        total = (sum(basis.blocks.sizes.values()), math.prod(basis.event_shape))
        holds("blocks share out all components", total == (basis.dim, basis.dim), total)

    def test_single_precision(self) -> None:
        """float32 in, float32 out, right to its digits."""
        basis, x = self._events(3)
        z, small = basis(x), self.make()(x.float())
        holds("coefficients have the dtype of events", small.dtype == torch.float32, small.dtype)
        same("float32 is accurate", small.double(), z, rtol=1e-4, atol=1e-4)


class ScheduleLaws(ABC):
    """Laws of a `scoresde.Schedule`.

    Example:
        >>> from scoresde import VP
        >>> from scoresde.testing import ScheduleLaws
        >>> class TestMine(ScheduleLaws):
        ...     def make(self):
        ...         return VP()
        >>> TestMine().test_the_log_snr_falls()
    """

    @abstractmethod
    def make(self) -> Schedule:
        """One of them."""

    def _times(self) -> tuple[Schedule, Tensor]:
        schedule = self.make()
        u = torch.linspace(0.01, 0.99, 60, dtype=DOUBLE).unsqueeze(-1)
        return schedule, schedule.eps * (schedule.T / schedule.eps) ** u

    def test_the_log_snr_falls(self) -> None:
        """Strictly, from ``eps`` to ``T``."""
        schedule, t = self._times()
        snr = schedule.log_snr(t)
        holds("the log-SNR falls all the time", snr.diff(dim=0) < 0, snr.flatten()[:5].tolist())

    def test_the_log_snr_is_that_of_signal_and_noise(self) -> None:
        """``2 log(alpha/sigma)``."""
        schedule, t = self._times()
        wanted = 2 * (schedule.alpha(t) / schedule.sigma(t)).log()
        same("log_snr = 2 log(alpha/sigma)", schedule.log_snr(t), wanted, rtol=1e-5, atol=1e-5)

    def test_rates_are_derivatives(self) -> None:
        """``f = (log alpha)'`` and ``g^2 = (sigma^2)' - 2 f sigma^2``."""
        schedule, t = self._times()

        def levels(t: Tensor) -> tuple[Tensor, Tensor]:
            return schedule.log_alpha(t), schedule.sigma(t) ** 2

        found: Any = torch.func.jvp(levels, (t,), (torch.ones_like(t),))
        (_, variance), (slope, growth) = found
        f, g2 = schedule.rates(t)
        same("f is the derivative of log alpha", f, slope.expand_as(f), rtol=1e-5, atol=1e-7)
        wanted = growth - 2 * slope * variance
        same("g^2 = (sigma^2)' - 2 f sigma^2", g2, wanted.expand_as(g2), rtol=1e-5, atol=1e-7)

    def test_single_precision(self) -> None:
        """Right to the digits of float32 over the whole range."""
        schedule, t = self._times()
        for name in ("alpha", "sigma"):
            small = getattr(schedule, name)(t.float())
            holds(f"{name} has the dtype of times", small.dtype == torch.float32, small.dtype)
            wanted = getattr(schedule, name)(t.float().double())
            same(f"{name} is accurate in float32", small.double(), wanted, rtol=1e-4, atol=1e-7)

    def test_saved_and_loaded(self) -> None:
        """``state_dict`` holds all its numbers."""
        schedule, t = self._times()
        saved("a state_dict is the whole schedule", schedule, lambda s: s.log_snr(t).detach())


class SDELaws(ABC):
    """Laws of a `scoresde.SDE`.

    Example:
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.testing import SDELaws
        >>> class TestMine(SDELaws):
        ...     def make(self):
        ...         return DiagonalSDE(VP(), Identity((2,)))
        >>> TestMine().test_a_step_is_two_halves()
    """

    @abstractmethod
    def make(self) -> SDE:
        """One of them."""

    def _times(self, sde: SDE, count: int = 20) -> Tensor:
        u = torch.linspace(0.05, 0.95, count, dtype=DOUBLE)
        low = max(sde.eps, 1e-4 * sde.T)
        return low * (sde.T / low) ** u

    def test_drift_and_diffusion_have_the_shape_of_the_state(self) -> None:
        """Any batch, either precision."""
        sde = self.make()
        for batch in ((3,), (2, 3)):
            for dtype in (torch.float32, DOUBLE):
                z = random(*batch, sde.basis.dim).abs().to(dtype)
                t = torch.tensor(sde.T / 2, dtype=dtype)
                for name in ("f", "g"):
                    value = getattr(sde, name)(t, z)
                    found = (tuple(value.shape), value.dtype)
                    law = f"{name} has the shape and dtype of the state"
                    holds(law, found == (tuple(z.shape), dtype), found)
                    holds(f"{name} is finite", torch.isfinite(value), value)

    def test_the_kernel_obeys_the_moment_equations(self) -> None:
        """``alpha' = f alpha`` and ``(sigma^2)' = 2 f sigma^2 + g^2``, if it has a kernel."""
        sde, one = self.make(), torch.ones(1, self.make().basis.dim, dtype=DOUBLE)
        for t in self._times(sde):
            t = t.reshape(1)
            if any(abs(float(t) / b - 1) < 1e-3 for b in sde.breakpoints()):
                continue
            try:
                sde.kernel(t)
            except NotImplementedError:
                return

            def levels(t: Tensor) -> tuple[Tensor, Tensor]:
                alpha, sigma = sde.kernel(t)
                return alpha.expand(one.shape[-1]), (sigma**2).expand(one.shape[-1])

            found: Any = torch.func.jvp(levels, (t,), (torch.ones_like(t),))
            (alpha, variance), (slope, growth) = found
            f, g = sde.f(t[0], one)[0], sde.g(t[0], one)[0]
            same("alpha' = f alpha", slope, f * alpha, rtol=1e-5, atol=1e-7)
            wanted, moving = 2 * f * variance + g**2, variance > 0
            law = "(sigma^2)' = 2 f sigma^2 + g^2"
            same(law, growth[moving], wanted[moving], rtol=1e-5, atol=1e-7)

    def test_a_step_is_two_halves(self) -> None:
        """Coefficients of steps compose, where the forcing is constant."""
        sde, like = self.make(), torch.ones(1, self.make().basis.dim, dtype=DOUBLE)
        ts = self._times(sde, 12).flip(0)
        a, b, c = (ts[i:][: len(ts) - 2].unsqueeze(-1) for i in range(3))
        for eta in (0.0, 1.0):
            first, second, both = (
                sde.marginal_propagator(s, t, like, eta) for s, t in ((a, b), (b, c), (a, c))
            )
            law = f"with eta = {eta:g} a step is two steps of half the way: "
            same(law + "decay", second.decay * first.decay, both.decay, atol=1e-8)
            gain = second.decay * first.gain + second.gain
            same(law + "gain", gain, both.gain, atol=1e-8)
            same(law + "h", first.h + second.h, both.h, atol=1e-8)
            if first.noise is not None and second.noise is not None and both.noise is not None:
                noise = ((second.decay * first.noise) ** 2 + second.noise**2).sqrt()
                same(law + "noise", noise, both.noise, rtol=1e-6, atol=1e-8)

    def test_levels_rise(self) -> None:
        """With time, where they are finite."""
        sde = self.make()
        levels = sde.levels(self._times(sde).unsqueeze(-1))
        rise = levels.diff(dim=0)
        holds("levels do not fall", (rise >= 0) | rise.isnan(), levels[:3])

    def test_stages_reach_from_prior_to_data(self) -> None:
        """From ``T`` to ``eps`` without a gap, with more components each time."""
        sde = self.make()
        stages = sde.stages()
        ends = (stages[0].start, stages[-1].end, stages[-1].dim)
        wanted = (sde.T, sde.eps, sde.basis.dim)
        holds(
            "stages go from T to eps, to all components",
            ends == wanted,
            ends,
        )
        for one, two in itertools.pairwise(stages):
            fits = one.end == two.start and one.dim < two.dim
            holds("a stage starts where the last one ended", fits, (one, two))

    def test_torchsde_and_torchdiffeq_run_on_it(self) -> None:
        """``sdeint(sde, z, ts)`` and ``odeint(sde, z, ts)``, as they are."""
        import torchdiffeq
        import torchsde

        sde, z = self.make(), random(3, self.make().basis.dim).abs()
        ts = torch.linspace(sde.T / 2, sde.T, 3, dtype=DOUBLE)
        paths = {
            "torchsde": torchsde.sdeint(sde, z, ts, dt=sde.T / 20, method="euler"),
            "torchdiffeq": torchdiffeq.odeint(sde, z, ts, method="midpoint"),
        }
        for name, path in paths.items():
            holds(f"{name} runs on it", torch.isfinite(path) & (path.shape == (3, *z.shape)), path)

    def test_saved_and_loaded(self) -> None:
        """``state_dict`` holds all its numbers."""
        sde, z = self.make(), random(2, self.make().basis.dim).abs()
        t = torch.tensor(sde.T / 2, dtype=DOUBLE)
        saved("a state_dict is the whole SDE", sde, lambda s: (s.f(t, z) + s.g(t, z)).detach())


class EstimatorLaws(ABC):
    """Laws of a `scoresde.ScoreEstimator`.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.testing import EstimatorLaws
        >>> class TestMine(EstimatorLaws):
        ...     def make(self):
        ...         sde = DiagonalSDE(VP(), Identity((2,)))
        ...         return Gaussian(sde, torch.zeros(2), torch.eye(2))
        >>> TestMine().test_a_sample_does_not_hear_its_neighbours()
    """

    @abstractmethod
    def make(self) -> ScoreEstimator:
        """One of them."""

    def condition(self, batch: Sequence[int]) -> Any:
        """What it is conditioned on, if anything."""
        return None

    def _model(self) -> ScoreEstimator:
        return self.make().double().eval()

    def test_answers_have_the_shape_of_the_state(self) -> None:
        """Any batch; one time, one per sample; either precision."""
        for dtype in (torch.float32, DOUBLE):
            model = self.make().to(dtype).eval()
            for batch in ((3,), (2, 3)):
                z, condition = random(*batch, model.sde.basis.dim).to(dtype), self.condition(batch)
                time = model.sde.T / 2
                first = model.score(z, time, condition)
                found = (tuple(first.shape), first.dtype)
                law = "scores have the shape and dtype of the state"
                holds(law, found == (tuple(z.shape), dtype), found)
                if dtype == DOUBLE:
                    per_sample = model.score(z, torch.full(batch, time, dtype=DOUBLE), condition)
                    same("one time is as one per sample", per_sample, first, rtol=1e-5, atol=1e-6)

    def test_its_answers_are_one_answer(self) -> None:
        """``D = (z + sigma^2 s)/alpha``, ``eps = -sigma s``, if the SDE has a kernel."""
        model, batch = self._model(), (4,)
        z, condition = random(*batch, model.sde.basis.dim), self.condition(batch)
        for share in (0.2, 0.5, 0.9):
            t = share * model.sde.T
            try:
                alpha, sigma = (v.to(z) for v in model.sde.kernel(torch.tensor([t], dtype=DOUBLE)))
            except NotImplementedError:
                return
            with torch.no_grad():
                score, mean = model.score(z, t, condition), model.denoise(z, t, condition)
                noise = model.noise(z, t, condition)
            moving = (sigma > 0).expand_as(z)
            tolerance = {"rtol": 1e-5, "atol": 1e-6}
            same(
                "alpha D = z + sigma^2 s (Tweedie)",
                (alpha * mean)[moving], (z + sigma**2 * score)[moving], **tolerance,
            )  # fmt: skip
            same("noise = -sigma s", noise[moving], (-sigma * score)[moving], **tolerance)

    def test_several_times_are_as_one_by_one(self) -> None:
        """`scoresde.ScoreEstimator.denoisers` against `scoresde.ScoreEstimator.denoise`."""
        model, batch = self._model(), (4,)
        z, condition = random(*batch, model.sde.basis.dim), self.condition(batch)
        ts = model.sde.T * torch.tensor([0.9, 0.5, 0.2], dtype=DOUBLE)
        try:
            model.sde.kernel(ts[:1])
        except NotImplementedError:
            return
        with torch.no_grad():
            for t, found in zip(ts, model.denoisers(ts, z, condition), strict=True):
                law = "denoisers are denoise at each of the times"
                same(law, found(z), model.denoise(z, t, condition), rtol=1e-6, atol=1e-8)

    def test_a_sample_does_not_hear_its_neighbours(self) -> None:
        """Rows alone are rows in company."""
        model, batch = self._model(), (5,)
        z, condition = random(*batch, model.sde.basis.dim), self.condition(batch)
        rows = torch.tensor([3, 1])
        few = model.taken(rows, batch)
        part = condition[rows] if isinstance(condition, Tensor) else condition
        with torch.no_grad():
            together = model.score(z, model.sde.T / 2, condition)[rows]
            alone = few.score(z[rows], model.sde.T / 2, part)
        same(
            "a sample's score does not depend on the others", alone, together, rtol=1e-6, atol=1e-8
        )

    def test_its_loss_can_be_trained(self) -> None:
        """Finite, the same for the same seed, with gradients, and falling, if it has one."""
        model = self.make().double().train()
        x, condition = random(64, *model.sde.basis.event_shape), self.condition((64,))

        def loss(seed: int = 0) -> Tensor:
            torch.manual_seed(seed)
            return model.loss(x, condition, generator=torch.Generator().manual_seed(seed))

        try:
            before = loss()
        except NotImplementedError:
            return
        first = float(before.detach())
        holds("a loss is one finite number", math.isfinite(first) and before.ndim == 0, before)
        same("the same seed gives the same loss", loss(), before)
        learned = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(before, learned, allow_unused=True)
        strong = sum(float(g.abs().sum()) for g in gradients if g is not None)
        holds("a loss has gradients", 0 < strong < math.inf, strong)
        optimizer = torch.optim.Adam(learned, 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        after = float(loss().detach())
        holds("a loss falls where it is minimised", after < first, (first, after))


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

    def _bed(self) -> tuple[Any, DiagonalSDE]:
        from estimators import Gaussian

        basis = Identity((2,), {"a": 1, "b": 1})
        sde = DiagonalSDE(VP(0.3, [6.0, 9.0], eps=0.1), basis, [1.0, 0.7], [1.0, 0.8])
        mean = torch.tensor([1.0, -0.5], dtype=DOUBLE)
        covariance = torch.tensor([[0.5, 0.3], [0.3, 1.2]], dtype=DOUBLE)
        model = Gaussian(sde, mean, covariance)
        sde.prior = self._law(model, sde.T)
        return model, sde

    @staticmethod
    def _law(model: Any, t: float) -> MultivariateNormal:
        found: MultivariateNormal = model.marginal(torch.tensor([t], dtype=DOUBLE))
        component = found.component_distribution  # type: ignore[attr-defined]
        return MultivariateNormal(component.mean[0], component.covariance_matrix[0])

    def _error(self, steps: int, eta: float) -> float:
        """Of the mean and covariance of what comes out."""
        model, sde = self._bed()
        solver, reverse, end = (
            self.make(steps, eta),
            sde.reverse(model, eta),
            self._law(model, sde.eps),
        )
        start = sde.prior
        assert isinstance(start, MultivariateNormal)

        def run(rows: int, noise: Impulses) -> Tensor:
            y = noise.draw(start, torch.empty(rows, 2, dtype=DOUBLE))
            return solver.integrate(reverse, y, -GRIDS["uniform_time"](sde, steps), noise)

        mean, covariance = moments(run, 2 * steps)
        return float((covariance - end.covariance_matrix).norm() + (mean - end.mean).norm())

    def _ordered(self, eta: float, order: float) -> None:
        if self.adaptive:
            error = self._error(50, eta)
            holds(f"the error is below {self.tolerance}", error < self.tolerance, error)
            return
        counts = (64, 128, 256)
        errors = [self._error(n, eta) for n in counts]
        found = slope(counts, errors)
        law = f"with eta = {eta:g} the error falls with the order declared, {order:g}"
        holds(law, found > order - 0.35 or errors[-1] < 1e-9, f"{found:.2f}, errors {errors}")

    def test_the_order_it_declares(self) -> None:
        """Of the probability flow, where components differ."""
        self._ordered(0.0, self.make(1, 0.0).order)

    def test_the_weak_order_it_declares(self) -> None:
        """Of the reverse SDE's law, if it takes equations with noise."""
        order = self.make(1, 0.0).weak_order
        if order is not None:
            self._ordered(1.0, order)

    def _kinds(self) -> list[float]:
        return [0.0] if self.make(1, 0.0).weak_order is None else [0.0, 1.0]

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
            same("the same seed gives the same samples", one, two, rtol=0, atol=0)
            untouched = torch.equal(before, torch.get_rng_state())
            holds("torch's global generator is left alone", untouched, "another state")

    def test_a_sample_has_a_generator_of_its_own(self) -> None:
        """And is the same alone and in company."""
        model, _ = self._bed()
        for eta in self._kinds():
            solver = self.make(8, eta)
            together = solver.sample(
                model, (3,), generator=[torch.Generator().manual_seed(s) for s in range(3)]
            )
            alone = solver.sample(model, (1,), generator=[torch.Generator().manual_seed(2)])
            law = "a sample does not depend on its batch mates"
            # what shares its steps with others shares their errors
            atol = 0.1 * self.tolerance if self.adaptive else 1e-8
            same(law, alone[0], together[2], rtol=1e-6, atol=atol)

    def test_batches_and_precision(self) -> None:
        """``(2, 3)`` samples; float32 stays float32; the start is not written on."""
        model, sde = self._bed()
        for eta in self._kinds():
            solver = self.make(6, eta)
            x = solver.sample(model, (2, 3), generator=torch.Generator().manual_seed(0))
            holds("samples are (*batch, *event_shape)", x.shape == (2, 3, 2), tuple(x.shape))
            start = random(4, 2).float()
            y = start.clone()
            ts = -GRIDS["log_snr"](sde, 6)
            end = solver.integrate(sde.reverse(model, eta), y, ts, Noise.of(torch.Generator()))
            holds("states keep their dtype", end.dtype == torch.float32, end.dtype)
            same("the start of an integration is not written on", y, start, rtol=0, atol=0)
