"""Laws of SDEs."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.estimator import DirectScoreEstimator
from scoresde.noise import Noise
from scoresde.reverse import ProbabilityFlow, ReverseSDE
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.sde import SDE
from scoresde.testing.measures import (
    DOUBLE,
    assert_holds,
    assert_same,
    assert_saved,
    has_kernel,
    standard_normal,
)
from scoresde.testing.precision import assert_single_precision


class _Pull(DirectScoreEstimator):
    """A score that is no SDE's own."""

    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        return -0.7 * z - 0.3 * z.sin()


class _Learned(_Pull):
    """With a weight."""

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde)
        self.weight = nn.Parameter(torch.tensor(0.8, dtype=DOUBLE))

    def score(self, z: Tensor, t: Tensor | float, condition: Any = None) -> Tensor:
        return self.weight * super().score(z, t)


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

    def _states(self) -> tuple[SDE, Tensor, Tensor]:
        """An SDE, states ``(3, n)`` and times ``(3, 1)`` at which its rates do not jump."""
        sde = self.make()
        times, breakpoints = self._times(sde), torch.tensor(sde.breakpoints(), dtype=DOUBLE)
        smooth = ((times.unsqueeze(-1) / breakpoints - 1).abs() > 1e-3).all(-1)
        ts = times[smooth][[2, 8, -2]].unsqueeze(-1)
        return sde, standard_normal(3, sde.dim).abs(), ts

    def test_drift_and_diffusion_have_the_shape_of_the_state(self) -> None:
        """Any batch, an empty one as well, either precision."""
        sde = self.make()
        for batch in ((3,), (2, 3), (0,)):
            for dtype in (torch.float32, DOUBLE):
                z = standard_normal(*batch, sde.dim).abs().to(dtype)
                t = torch.tensor(sde.T / 2, dtype=dtype)
                for name in ("f", "g"):
                    value = getattr(sde, name)(t, z)
                    shape_and_dtype = (tuple(value.shape), value.dtype)
                    law = f"{name} has the shape and dtype of the state"
                    assert_holds(law, shape_and_dtype == (tuple(z.shape), dtype), shape_and_dtype)
                    assert_holds(f"{name} is finite", torch.isfinite(value), value)

    def test_samples_stand_alone(self) -> None:
        """Each with a time of its own, ``(batch, 1)``, and whatever is beside it."""
        sde, z, ts = self._states()
        for name in ("f", "g"):
            together = getattr(sde, name)(ts, z)
            alone = torch.cat(
                [getattr(sde, name)(t, row) for t, row in zip(ts.split(1), z.split(1), strict=True)]
            )
            law = f"{name} of a sample depends on its own state and time only"
            assert_same(law, together, alone, rtol=1e-6, atol=1e-8)

    def test_noise_is_diagonal(self) -> None:
        """The ``i``-th entry of ``g`` depends on no other component."""
        sde, z, ts = self._states()
        for t, row in zip(ts[:, 0], z, strict=True):
            jacobian = torch.func.jacrev(lambda y, t=t: sde.g(t, y.unsqueeze(0))[0])(row)
            law = "g_i depends on the i-th component only"
            assert_same(law, jacobian, jacobian.diagonal().diag(), rtol=0, atol=1e-9)

    def test_the_reverse_equations(self) -> None:
        """``f - (1 + eta^2)/2 (g^2 s + div g^2)`` and ``eta g``, whatever the score ``s``."""
        sde, z, ts = self._states()
        model = _Pull(sde)
        for t, row in zip(ts[:, 0], z.split(1), strict=True):
            f, g = sde.f(t, row), sde.g(t, row)

            def variance(y: Tensor, t: Tensor = t) -> Tensor:
                return sde.g(t, y) ** 2

            divergence: Tensor = torch.func.jvp(variance, (row,), (torch.ones_like(row),))[1]
            pull = g**2 * sde.score(model, row, t) + divergence
            tolerance = {"rtol": 1e-5, "atol": 1e-7}
            for eta in (0.0, 0.7, 1.0):
                reverse, law = ReverseSDE(model, eta), f"with eta = {eta:g} the reverse equation"
                wanted = (1 + eta**2) / 2 * pull - f
                words = f"{law} drifts by f - (1 + eta^2)/2 (g^2 s + div g^2)"
                assert_same(words, reverse.f(-t, row), wanted, **tolerance)
                assert_same(f"{law} has the noise eta g", reverse.g(-t, row), eta * g, **tolerance)
            flow = ProbabilityFlow(model)
            words = "the probability flow is f - (g^2 s + div g^2)/2"
            assert_same(words, flow.f(t, row), f - pull / 2, **tolerance)

    def test_a_short_step_is_the_equation(self) -> None:
        """What solvers are told, against ``f`` and ``g``: forward, in reverse and of the flow."""
        sde, z, ts = self._states()
        model, xi = _Pull(sde), standard_normal(1, sde.dim, seed=1)
        equations = [
            ("forward", sde, 1),
            ("in reverse", ReverseSDE(model, 0.7), -1),
            ("along the probability flow", ProbabilityFlow(model), 1),
        ]
        for (way, equation, sign), t, row in itertools.product(equations, ts, z.split(1)):
            start, h = sign * t, 1e-6 * t
            at = equation.at(torch.stack([start, start + h]), row)
            step = at[:1].propagator(at[1:]).expand(at.blocks)
            decay, gain, noise_std = step.decay, step.gain, step.noise_std
            field = next(at.fields())
            end = decay * row + gain * field.forcing(row)
            tolerance = {"rtol": 1e-3, "atol": 1e-5}
            law = f"a short step {way} is "
            drift = equation.f(start[0], row)
            assert_same(f"{law}f h (decay, gain, forcing)", (end - row) / h, drift, **tolerance)
            assert_same(f"{law}f h, also where prepared", field.drift(row), drift, **tolerance)
            noise = torch.zeros(()) if noise_std is None else noise_std * field.increment(row, xi)
            actual, expected = noise / h**0.5, equation.g(start[0], row)
            wanted = (expected * xi).detach()
            assert_same(
                f"{law}g sqrt(h) xi (noise)",
                actual.expand_as(row), wanted, 1e-3, 1e-5 * (1 + float(wanted.abs().max())),
            )  # fmt: skip
            assert_same(f"{law}g, also where prepared", field.diffusion(row), expected, **tolerance)

    def test_single_precision(self) -> None:
        """From the first to the last time, near and far: finite, and what float64 says.

        Drift, diffusion, the probability flow, kernels and steps, and their gradients in the state
        and the parameters.
        """
        sde, u = self.make(), torch.linspace(0, 1, 8, dtype=DOUBLE).repeat(3)
        low = max(sde.eps, 1e-4 * sde.T)
        ts = (low * (sde.T / low) ** u).clamp(low, sde.T).unsqueeze(-1)
        far = torch.tensor([1.0, 30.0, 1e3], dtype=DOUBLE).repeat_interleave(8).unsqueeze(-1)
        z = far * standard_normal(24, sde.dim).abs()
        breakpoints = torch.tensor([0.0, *sde.breakpoints()], dtype=DOUBLE)
        ts = torch.where(((ts - breakpoints).abs() < 1e-4 * sde.T).any(-1, keepdim=True), low, ts)

        def find(sde: Any, z: Tensor, t: Tensor) -> dict[str, Tensor]:
            t = t.detach()
            flow, end = ProbabilityFlow(_Pull(sde)), (t + sde.T) / 2
            at = ReverseSDE(_Pull(sde), 0.7).at(-torch.stack([end, t]), z)
            step = at[:1].propagator(at[1:])
            fields = {"f": sde.f(t, z), "g": sde.g(t, z), "the flow": flow.f(t, z)}
            fields |= {"gain": step.gain[0], "h": step.h[0], "damping": step.damping[0]}
            assert step.noise_std is not None
            fields |= {"decay": at.cast(step.decay[0]) * z, "noise": at.cast(step.noise_std[0]) * z}
            return fields | (sde.kernel(t)._asdict() if has_kernel(sde) else {})

        assert_single_precision("an SDE", sde, find, z, ts, size=far)

    def test_data_are_clean_at_time_0(self) -> None:
        """The kernel there is the identity, if it has one."""
        sde = self.make()
        if has_kernel(sde):
            alpha, sigma = sde.kernel(torch.zeros(1, dtype=DOUBLE))
            assert_same("alpha(0) = 1", alpha, torch.ones_like(alpha))
            assert_same("sigma(0) = 0", sigma, torch.zeros_like(sigma))

    def test_transitions_compose(self) -> None:
        """Of `scoresde.DiagonalSDE`: transitions and bridges carry marginals to marginals."""
        sde = self.make()
        if not isinstance(sde, DiagonalSDE):
            return
        ts = self._times(sde).unsqueeze(-1)
        s, t = ts[:-4], ts[4:]
        early, late = sde.at(s), sde.at(t)
        now, then = early.kernel, late.kernel
        step, bridge = early.transition(late), early.bridge(late)
        n = sde.basis.dim
        laws = {
            "kernel(t) is kernel(s) and then transition(s, t)": (
                (now.alpha * step.alpha, then.alpha),
                ((step.alpha * now.sigma) ** 2 + step.sigma**2, then.sigma**2),
            ),
            "bridge(s, t) takes the kernel at t to that at s": (
                (bridge.now * then.alpha + bridge.start, now.alpha),
                ((bridge.now * then.sigma) ** 2 + bridge.sigma**2, now.sigma**2),
            ),
        }
        for law, pairs in laws.items():
            for actual, expected in pairs:
                shape = (*actual.shape[:-1], n)
                assert_same(law, actual.expand(shape), expected.expand(shape), rtol=1e-6)
        z, xi = standard_normal(len(ts), n), standard_normal(len(ts), n, seed=1)
        alpha, sigma = sde.kernel(ts)
        actual = sde.diffuse(z, ts.squeeze(-1), xi)
        assert_same("diffuse is alpha z + sigma noise", actual, alpha * z + sigma * xi)

    def test_the_prior_is_of_states(self) -> None:
        """Drawn in their shape, with a density, if it has one."""
        sde, noise = self.make(), Noise(torch.Generator().manual_seed(0))
        stage = sde.stages()[0]
        if not sde.linear and sde.prior is None:
            return
        z = sde.append(torch.empty(4, 0, dtype=DOUBLE), stage, noise)
        wanted = (4, stage.dim * sde.copies)
        assert_holds("the prior draws states (4, n)", z.shape == wanted, tuple(z.shape))
        assert_holds("the prior draws finite states", torch.isfinite(z), z)
        rest, log_prob = sde.marginalise(z, stage, 0)
        shapes = (tuple(rest.shape), tuple(log_prob.shape))
        assert_holds("the prior has one log-density per state", shapes == ((4, 0), (4,)), shapes)

    def test_the_kernel_obeys_the_moment_equations(self) -> None:
        """``alpha' = f alpha`` and ``(sigma^2)' = 2 f sigma^2 + g^2``, if it has a kernel."""
        sde, one = self.make(), torch.ones(1, self.make().basis.dim, dtype=DOUBLE)
        if not has_kernel(sde):
            return
        for t in self._times(sde):
            t = t.reshape(1)
            if any(abs(float(t) / b - 1) < 1e-3 for b in sde.breakpoints()):
                continue

            def moments(t: Tensor) -> tuple[Tensor, Tensor]:
                alpha, sigma = sde.kernel(t)
                return alpha.expand(one.shape[-1]), (sigma**2).expand(one.shape[-1])

            derivatives: Any = torch.func.jvp(moments, (t,), (torch.ones_like(t),))
            (alpha, variance), (slope, growth) = derivatives
            f, g = sde.f(t[0], one)[0], sde.g(t[0], one)[0]
            assert_same("alpha' = f alpha", slope, f * alpha, rtol=1e-5, atol=1e-7)
            wanted, moving = 2 * f * variance + g**2, variance > 0
            law = "(sigma^2)' = 2 f sigma^2 + g^2"
            assert_same(law, growth[moving], wanted[moving], rtol=1e-5, atol=1e-7)

    def test_a_step_is_two_halves(self) -> None:
        """Coefficients of steps compose, where the forcing is constant."""
        sde = self.make()
        ones = torch.eye(sde.dim, dtype=DOUBLE)
        like, ts = ones[:1], self._times(sde, 12).flip(0)
        a, b, c = (ts[i:][: len(ts) - 2].unsqueeze(-1) for i in range(3))
        for eta in (0.0, 1.0):
            one, two, three = (ReverseSDE(_Pull(sde), eta).at(-t, like) for t in (a, b, c))
            pairs = ((one, two), (two, three), (one, three))
            first, second, both = (s.propagator(t).expand(s.blocks) for s, t in pairs)
            law = f"with eta = {eta:g} a step is two steps of half the way: "
            for i in range(len(a)):
                onward, start, whole = second.decay[i], first.decay[i] * ones, both.decay[i] * ones
                assert_same(law + "decay", onward * start, whole, atol=1e-8)
                gain = onward * first.gain[i] + second.gain[i]
                assert_same(law + "gain", gain, both.gain[i].expand_as(gain), atol=1e-8)
            assert_same(law + "h", first.h + second.h, both.h, atol=1e-8)
            stds = (first.noise_std, second.noise_std, both.noise_std)
            if eta:
                for i in range(len(a)):
                    early, late, whole = ((std[i] * ones).mT for std in stds if std is not None)
                    grown = (second.decay[i] * early.mT).mT
                    covariance = grown @ grown.mT + late @ late.mT
                    assert_same(law + "noise", covariance, whole @ whole.mT, rtol=1e-6, atol=1e-8)

    def test_noise_levels_rise(self) -> None:
        """With time, where they are finite."""
        sde = self.make()
        noise_levels = sde.at(self._times(sde).unsqueeze(-1)).noise_levels
        rise = noise_levels.diff(dim=0)
        assert_holds("noise levels do not fall", (rise >= 0) | rise.isnan(), noise_levels[:3])

    def test_stages_reach_from_prior_to_data(self) -> None:
        """From ``T`` to ``eps`` without a gap, with more components each time."""
        sde = self.make()
        stages = sde.stages()
        ends = (stages[0].start, stages[-1].end, stages[-1].dim)
        wanted = (sde.T, sde.eps, sde.basis.dim)
        assert_holds(
            "stages go from T to eps, to all components",
            ends == wanted,
            ends,
        )
        for one, two in itertools.pairwise(stages):
            fits = one.end == two.start and one.dim < two.dim
            assert_holds("a stage starts where the last one ended", fits, (one, two))

    def test_torchsde_and_torchdiffeq_run_on_it(self) -> None:
        """``sdeint(sde, z, ts)`` and ``odeint(sde, z, ts)``, as they are."""
        import torchdiffeq
        import torchsde

        sde, z = self.make(), standard_normal(3, self.make().dim).abs()
        ts = torch.linspace(sde.T / 2, sde.T, 3, dtype=DOUBLE)
        paths = {
            "torchsde": torchsde.sdeint(sde, z, ts, dt=sde.T / 20, method="euler"),
            "torchdiffeq": torchdiffeq.odeint(sde, z, ts, method="midpoint"),
        }
        for name, path in paths.items():
            assert_holds(
                f"{name} runs on it", torch.isfinite(path) & (path.shape == (3, *z.shape)), path
            )

    def test_integrators_may_look_past_the_ends_of_time(self) -> None:
        """As adaptive ones do; what they find there has to be finite."""
        sde, z = self.make(), standard_normal(3, self.make().dim).abs()
        flow, reverse = ProbabilityFlow(_Pull(sde)), ReverseSDE(_Pull(sde), 0.0)
        past = 0.1 * sde.T
        looks = {
            "forward, after T": (sde, sde.T + past),
            "the probability flow, after T": (flow, sde.T + past),
            "the probability flow, before eps": (flow, sde.eps - past),
            "the reverse equation, before -T": (reverse, -sde.T - past),
            "the reverse equation, after -eps": (reverse, -sde.eps + past),
        }
        for way, (equation, t) in looks.items():
            state = z.clone().requires_grad_()
            drift = equation(torch.tensor(t, dtype=DOUBLE), state)
            (slope,) = torch.autograd.grad(drift.sum(), state)
            finite = drift.isfinite() & slope.isfinite()
            assert_holds(f"what is seen past the ends of time is finite ({way})", finite, drift)

    def test_adjoints_find_the_weights(self) -> None:
        """``odeint_adjoint`` and ``sdeint_adjoint`` give those of a score their gradients."""
        import torchdiffeq
        import torchsde

        sde, z = self.make(), standard_normal(3, self.make().dim).abs()
        model, ends = _Learned(sde), torch.tensor([0.44, 0.46], dtype=DOUBLE) * sde.T
        flow, reverse = ProbabilityFlow(model), ReverseSDE(model)
        path = torchsde.BrownianInterval(
            -float(ends[1]), -float(ends[0]), size=z.shape, entropy=0, dtype=DOUBLE
        )
        grid = {"method": "rk4", "options": {"step_size": sde.T / 100}}
        noisy = {"method": "euler", "bm": path, "dt": sde.T / 1000}
        runs: dict[str, Callable[[str], Any]] = {
            "odeint": lambda name: getattr(torchdiffeq, name)(flow, z, ends, **grid),
            "sdeint": lambda name: getattr(torchsde, name)(reverse, z, -ends.flip(0), **noisy),
        }
        for name, run in runs.items():
            slopes: list[Tensor] = []
            for adjoint in ("", "_adjoint"):
                end = run(name + adjoint)[-1]
                law = f"{name}{adjoint} gives the weights of a score their gradient"
                assert_holds(law, end.requires_grad, "none")
                (gradient,) = torch.autograd.grad(end.sum(), model.weight, allow_unused=True)
                assert_holds(law, gradient is not None, gradient)
                slopes.append(gradient)
            law = f"the gradient of {name}_adjoint is that of {name}"
            # without noise both have hardly an error
            assert_same(law, slopes[1], slopes[0], rtol=0.1 if name == "sdeint" else 0.01)

    def test_saved_and_loaded(self) -> None:
        """``state_dict`` holds all its numbers."""
        sde, z = self.make(), standard_normal(2, self.make().dim).abs()
        t = torch.tensor(sde.T / 2, dtype=DOUBLE)
        assert_saved(
            "a state_dict is the whole SDE", sde, lambda s: (s.f(t, z) + s.g(t, z)).detach()
        )
