"""Laws of estimators."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils._pytree import tree_map_only

from scoresde.estimator import ScoreEstimator
from scoresde.internals.derivatives import vjp
from scoresde.likelihood import Quadrature, log_prob
from scoresde.reverse import ProbabilityFlow
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.selection import samples
from scoresde.testing.compositions import CompositionLaws
from scoresde.testing.device_calls import DeviceCalls
from scoresde.testing.measures import (
    DOUBLE,
    assert_holds,
    assert_no_waiting,
    assert_same,
    assert_saved,
    has_kernel,
    standard_normal,
)
from scoresde.testing.precision import assert_single_precision


class EstimatorLaws(CompositionLaws):
    """Laws of a `scoresde.ScoreEstimator`.

    Attributes:
        exact: Whether its scores are those of some data, in closed form: then they have to obey the
            Fokker-Planck equation, conditioned on some components or not, and have a bound that is
            one.
        updates: How many updates by Adam teach it a Gaussian, if it learns.
        rate: Their learning rate.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.testing import EstimatorLaws
        >>> class TestMine(EstimatorLaws):
        ...     def make(self):
        ...         sde = DiagonalSDE(VP(), Identity((2,)))
        ...         return Gaussian(sde, torch.zeros(2), torch.eye(2))
        >>> TestMine().test_a_sample_does_not_depend_on_its_batch()
    """

    exact = False
    updates = 100
    rate = 2e-2

    @abstractmethod
    def make(self) -> ScoreEstimator:
        """One of them."""

    def condition(self, batch: Sequence[int]) -> Any:
        """Its condition, None without any."""
        return None

    def _condition(self, batch: Sequence[int], dtype: torch.dtype) -> Any:
        """In a precision, if it is a matter of precision."""
        conditions = self.condition(batch)
        real = isinstance(conditions, Tensor) and conditions.is_floating_point()
        return conditions.to(dtype) if real else conditions

    def _model(self) -> ScoreEstimator:
        return self.make().double().eval()

    def _states(self, count: int) -> tuple[ScoreEstimator, Tensor, Tensor, Any]:
        """An estimator, states ``(count, n)``, times at which all are there, and a condition."""
        model = self._model()
        sde, z = model.sde, standard_normal(count, model.sde.basis.dim)
        last, u = sde.stages()[-1], torch.linspace(0.3, 0.95, count, dtype=DOUBLE)
        low = max(last.end, 1e-3 * last.start)
        return model, z, low * (last.start / low) ** u, self.condition((count,))

    def test_answers_have_the_shape_of_the_state(self) -> None:
        """Any batch, an empty one as well; either precision; the state is not written on."""
        for dtype in (torch.float32, DOUBLE):
            model = self.make().to(dtype).eval()
            for batch in ((3,), (2, 3), (0,)):
                z = standard_normal(*batch, model.sde.basis.dim).to(dtype)
                condition = self._condition(batch, dtype)
                before = z.clone()
                score = model.score(z, model.sde.T / 2, condition)
                shape_and_dtype = (tuple(score.shape), score.dtype)
                law = "scores have the shape and dtype of the state"
                assert_holds(law, shape_and_dtype == (tuple(z.shape), dtype), shape_and_dtype)
                assert_same("the state is not written on", z, before, rtol=0, atol=0)

    def test_one_time_is_one_per_sample(self) -> None:
        """The same for all, or each its own."""
        model, z, ts, condition = self._states(4)
        tolerance = {"rtol": 1e-5, "atol": 1e-6}
        with torch.no_grad():
            together = model.score(z, ts, condition)
            for i, t in enumerate(ts):
                shared, every = (model.score(z, s, condition) for s in (t, t.expand(4)))
                assert_same("one time is as one per sample", every, shared, **tolerance)
                law = "a sample is scored at its own time"
                assert_same(law, together[i], shared[i], **tolerance)

    def test_its_answers_are_one_answer(self) -> None:
        """``D = (z + sigma^2 s)/alpha``, ``eps = -sigma s``, if the SDE has a kernel."""
        model, batch = self._model(), (4,)
        z, condition = standard_normal(*batch, model.sde.basis.dim), self.condition(batch)
        if not has_kernel(model.sde):
            return
        for share in (0.2, 0.5, 0.9):
            t = share * model.sde.T
            alpha, sigma = (v.to(z) for v in model.sde.kernel(torch.tensor([t], dtype=DOUBLE)))
            with torch.no_grad():
                score, mean = model.score(z, t, condition), model.denoise(z, t, condition)
                noise = model.noise(z, t, condition)
            moving = (sigma > 0).expand_as(z)
            tolerance = {"rtol": 1e-5, "atol": 1e-6}
            assert_same(
                "alpha D = z + sigma^2 s (Tweedie)",
                (alpha * mean)[moving], (z + sigma**2 * score)[moving], **tolerance,
            )  # fmt: skip
            assert_same("noise = -sigma s", noise[moving], (-sigma * score)[moving], **tolerance)

    def test_several_times_are_as_one_by_one(self) -> None:
        """`scoresde.ScoreEstimator.denoisers` against `scoresde.ScoreEstimator.denoise`."""
        model, batch = self._model(), (4,)
        z, condition = standard_normal(*batch, model.sde.basis.dim), self.condition(batch)
        ts = model.sde.T * torch.tensor([0.9, 0.5, 0.2], dtype=DOUBLE)
        if not has_kernel(model.sde):
            return
        with torch.no_grad():
            for t, denoised in zip(
                ts, model.denoisers(model.sde.at(ts.unsqueeze(-1), z), condition), strict=True
            ):
                law = "denoisers are denoise at each of the times"
                assert_same(law, denoised(z), model.denoise(z, t, condition), rtol=1e-6, atol=1e-8)

    def test_a_sample_does_not_depend_on_its_batch(self) -> None:
        """Values of single rows are those of the whole batch."""
        model, batch = self._model(), (5,)
        z, condition = standard_normal(*batch, model.sde.basis.dim), self.condition(batch)
        rows = torch.tensor([3, 1])
        selected = model.select(rows, batch)
        part = condition[rows] if isinstance(condition, Tensor) else condition
        with torch.no_grad():
            together = model.score(z, model.sde.T / 2, condition)[rows]
            alone = selected.score(z[rows], model.sde.T / 2, part)
        assert_same(
            "a sample's score does not depend on the others", alone, together, rtol=1e-6, atol=1e-8
        )

    def test_its_derivative_is_that_of_its_values(self) -> None:
        """In the state: likelihoods take the divergence of what is answered."""
        model, z, ts, condition = self._states(3)
        u, v = standard_normal(*z.shape, seed=1), standard_normal(*z.shape, seed=2)

        def score(z: Tensor) -> Tensor:
            return model.score(z, ts, condition)

        with torch.no_grad():
            difference = (score(z + 1e-5 * v) - score(z - 1e-5 * v)) / 2e-5
        actual, expected = vjp(score, z)[1](u) * v, u * difference
        law = "the derivative of the score in the state is that of its values"
        assert_same(law, actual.sum(-1), expected.sum(-1), rtol=1e-4, atol=1e-5)

    def test_exact_scores_obey_fokker_planck(self) -> None:
        """``ds/dt = -grad(div v + v.s)`` with the probability flow ``v``, if it claims that."""
        if not self.exact:
            return
        model, z, ts, condition = self._states(3)
        for i, (t, row) in enumerate(zip(ts, z, strict=True)):
            self._is_transported(model, t, row, samples(condition, torch.tensor([i]), (3,)))

    @staticmethod
    def _is_transported(model: ScoreEstimator, t: Tensor, row: Tensor, condition: Any) -> None:
        flow = ProbabilityFlow(model, condition)

        def score(z: Tensor, t: Tensor = t) -> Tensor:
            return model.score(z.unsqueeze(0), t, condition)[0]

        def v(z: Tensor) -> Tensor:
            return flow.f(t, z.unsqueeze(0))[0]

        def outflow(z: Tensor) -> Tensor:
            divergence: Tensor = torch.func.jacrev(v)(z).diagonal().sum()
            return divergence + (v(z) * score(z)).sum()

        one = torch.ones_like(t)
        derivative: Any = torch.func.jvp(lambda t: score(row, t), (t,), (one,))[1]
        law = "exact scores obey the Fokker-Planck equation ds/dt = -grad(div v + v.s)"
        wanted, unobserved = -torch.func.grad(outflow)(row), ~model.sde.observed
        assert_same(law, derivative[unobserved], wanted[unobserved], rtol=1e-5, atol=1e-6)

    def _throughout(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For every stage, states ``(k, n)`` that data diffuse to, near and far, times and sizes.

        From the first time to the last; sizes are those of denoised means.
        """
        model, states = self._model(), []
        sde = model.sde
        unit = sde.scale.amax() if isinstance(sde, DiagonalSDE) else torch.ones((), dtype=DOUBLE)
        for stage in sde.stages():
            low = max(stage.end, 1e-3 * stage.start)
            u = torch.linspace(0, 1, 8, dtype=DOUBLE)
            ts = (low * (stage.start / low) ** u).clamp(low, stage.start).repeat(3).float().double()
            far = unit * torch.tensor([1.0, 30.0, 1e3], dtype=DOUBLE).repeat_interleave(8)
            x = far.reshape(-1, *[1] * len(sde.basis.event_shape)) * self._data(24)
            z, power = sde.basis(x), torch.ones(24, 1)
            z = z[..., : stage.dim]
            if has_kernel(sde):
                alpha, sigma = sde.kernel(ts.clamp(max=sde.T).unsqueeze(-1), stage.dim)
                z = alpha * z + sigma * standard_normal(24, stage.dim, seed=1)
                power = (alpha**2 + (sigma / unit) ** 2).sqrt().amin(-1, keepdim=True)
            z = z.detach()
            states.append((z, ts, (unit + z.abs().amax(-1, keepdim=True) / power).detach()))
        return states

    def _data(self, count: int) -> Tensor:
        """Events."""
        return standard_normal(count, *self._model().sde.basis.event_shape)

    def test_single_precision(self) -> None:
        """At all times and in all states, near and far: finite, and what float64 says.

        Denoised mean, noise and velocity, and their gradients in the state, the condition and the
        parameters.
        """
        model, batch = self._model(), (24,)

        def find(model: Any, z: Tensor, condition: Any, t: Tensor) -> dict[str, Tensor]:
            t = t.detach()  # no law of what is learned of time
            names = ("denoise", "noise", "velocity") if has_kernel(model.sde) else ("score",)
            return {name: getattr(model, name)(z, t, condition) for name in names}

        for z, ts, size in self._throughout():
            assert_single_precision(
                "an estimator", model, find, z, self.condition(batch), ts, size=size
            )

    def test_densities_in_single_precision(self) -> None:
        """`scoresde.log_prob`, where there is one: finite, and that of float64, with gradients."""
        model, batch = self._model(), (3,)
        x = self._data(3)

        # few nodes, and the same in both precisions
        few = Quadrature(6 * len(model.sde.stages()), tolerance=None)

        def find(model: Any, x: Tensor, condition: Any) -> dict[str, Tensor]:
            found = log_prob(model, x, few, condition=condition, checked=False)
            return {"log_prob": found.value}

        try:
            with torch.no_grad():
                value = find(model, x, self.condition(batch))["log_prob"]
        except (NotImplementedError, ValueError):  # no prior, or observed components diffuse
            return
        if not value.isfinite().all():  # what stands still has no density
            return
        assert_single_precision("densities", model, find, x, self.condition(batch), tolerance=1e-2)

    def test_where_there_is_no_noise(self) -> None:
        """At time 0, and where nothing diffuses: see `scoresde.objectives.parametrization`.

        The noise is 0, and with it score and velocity; the denoised mean is the state, if scores
        are ``exact``, and finite.
        """
        law = "where there is no noise, "
        for dtype in (torch.float32, DOUBLE):
            model, batch = self.make().to(dtype).eval(), (4,)
            if not has_kernel(model.sde):
                return
            z = model.sde.basis(self._data(4).to(dtype))
            condition = self._condition(batch, dtype)
            for t in (0.0, torch.zeros(4, dtype=dtype), model.sde.T / 2):
                state = z.detach().clone().requires_grad_()
                clean = model.sde.kernel(model.sde.time(t, z)).sigma.expand_as(z) == 0
                for name in ("noise", "score", "velocity", "denoise"):
                    value = getattr(model, name)(state, t, condition)
                    (slope,) = torch.autograd.grad(value.sum(), state, allow_unused=True)
                    where_clean, slope = value[clean], torch.zeros(()) if slope is None else slope
                    assert_holds(f"{law}{name} is finite", value.isfinite(), value)
                    assert_holds(f"{law}the gradient of {name} is finite", slope.isfinite(), slope)
                    if name != "denoise":
                        assert_same(f"{law}{name} is 0", where_clean, torch.zeros_like(where_clean))
                    elif self.exact:
                        close = {"rtol": 1e-5, "atol": 1e-5}
                        assert_same(
                            f"{law}the denoised mean is the state", where_clean, z[clean], **close
                        )

    def test_saved_and_loaded(self) -> None:
        """``state_dict`` holds all its numbers, each of them once, as files want it."""
        model, z, ts, condition = self._states(3)
        try:
            save(model.state_dict())
        except (RuntimeError, ValueError) as error:
            raise AssertionError(f"a state_dict can be written to a file: {error}") from error
        law = "a state_dict is the whole estimator"
        assert_saved(law, model, lambda m: m.score(z, ts, condition).detach())

    def _loss(self, dtype: torch.dtype = DOUBLE) -> tuple[ScoreEstimator, Tensor, Any] | None:
        """An estimator, events and their condition, if it learns."""
        model = self.make().to(dtype)
        x, condition = self._data(64).to(dtype), self._condition((64,), dtype)
        try:
            model.loss(x, condition, generator=torch.Generator())
        except NotImplementedError:
            return None
        return model, x, condition

    def test_its_loss_waits_for_no_device(self) -> None:
        """Its second one, forwards and back: nothing is read there, or brought there."""
        for dtype in (torch.float32, DOUBLE):
            if (learner := self._loss(dtype)) is None:
                return
            model, x, condition = tree_map_only(Tensor, lambda v: v.to("meta"), learner)
            model.to("meta")
            with DeviceCalls() as calls:
                model.loss(x, condition)
            reads = calls.reads.total()
            assert_holds("a first loss reads once from a device, at most", reads < 2, str(calls))
            assert_no_waiting("a loss", lambda: model.loss(x, condition).backward())  # noqa: B023

    def test_its_loss_hears_its_generator_only(self) -> None:
        """The same seed, the same loss; dropout, which is torch's own, is off here."""
        for dtype in (torch.float32, DOUBLE):
            if (learner := self._loss(dtype)) is not None:
                self._is_heard(*learner)

    @staticmethod
    def _is_heard(model: ScoreEstimator, x: Tensor, condition: Any) -> None:
        model.eval()

        def loss(seed: int) -> Tensor:
            torch.manual_seed(seed)
            return model.loss(x, condition, generator=torch.Generator().manual_seed(0)).detach()

        slopes = torch.autograd.grad(
            model.loss(x, condition, generator=torch.Generator().manual_seed(0)),
            [p for p in model.parameters() if p.requires_grad],
            allow_unused=True,
        )
        first, bad = loss(0), [s for s in slopes if s is not None and not s.isfinite().all()]
        assert_holds("the gradients of a loss are finite", not bad, bad)
        assert_holds("a loss is one finite number", first.isfinite() & (first.ndim == 0), first)
        assert_same(
            "a loss draws from the generator that is given, only", loss(1), first, rtol=0, atol=0
        )

    def test_it_learns(self) -> None:
        """To denoise a Gaussian of mean ``m`` and variance ``v``, in an orthonormal basis.

        The denoised mean is ``m + alpha v (z - alpha m)/(alpha^2 v + sigma^2)``.
        """
        if (learner := self._loss()) is None or not has_kernel(learner[0].sde):
            return
        model, _, condition = learner
        shape, generator = model.sde.basis.event_shape, torch.Generator().manual_seed(0)
        center = 1.5 * standard_normal(*shape, seed=1)

        def draw() -> Tensor:
            x = torch.randn(64, *shape, generator=generator, dtype=DOUBLE)
            return center + 0.5 * x

        @torch.no_grad()
        def error() -> float:
            """Mean square, from the last time at which all components are there."""
            _, z, ts, _ = self._states(64)
            alpha, sigma = model.sde.kernel(ts.unsqueeze(-1))
            mean = model.sde.basis(center)
            noisy = alpha * (mean + 0.5 * z) + sigma * standard_normal(*z.shape, seed=2)
            gain = alpha * 0.25 / (alpha**2 * 0.25 + sigma**2)
            wanted = mean + gain * (noisy - alpha * mean)
            answers = model.eval().denoise(noisy, ts, condition)
            return float((answers - wanted).square().mean())

        before = error()
        model.train()
        learned = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, self.rate)
        for i in range(self.updates):
            optimizer.zero_grad()
            loss = model.loss(draw(), condition, generator=generator)
            assert_holds("a loss is finite while it is minimised", loss.isfinite(), (i, loss))
            loss.backward()
            optimizer.step()
        law = "what minimises the loss denoises: its error falls to a quarter"
        after = error()
        assert_holds(
            law, after < max(0.25 * before, 1e-4), f"{before:.3g} before, {after:.3g} after"
        )
