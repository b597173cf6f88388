"""Wrappers of wrappers, asked everything that estimators are asked, against closed forms.

Data are Gaussian, so that whatever is conditioned on, guided to or shifted, the posterior is a
Gaussian that linear algebra knows: per event, each with an observation of its own, in a batch
that is no multiple of what solvers compute together.
"""

from types import SimpleNamespace

import pytest
import torch
from strategies import random_covariance
from torch.distributions import MultivariateNormal

from estimators import ClassifierFree, Gaussian, Guidance, MultiScale
from scoresde import (
    DiagonalSDE,
    ExactTrace,
    Haar,
    Hutchinson,
    Joint,
    LogLinear,
    Noise,
    Quadrature,
    ScoreDistribution,
    ScoreEstimator,
    bound,
    condition,
    log_prob,
)
from scoresde.conditioning import ConditionalEstimator, Observation
from scoresde.likelihood import HutchPlusPlus, importance
from scoresde.training.distributed import SingleProcess, sample
from solvers import DDIM, Adaptive, ExponentialMultistep

BATCH, N = 18, 4
BASIS = Joint(y=(1,), w=(1,), x=Haar((2,), 1))
DTYPES = [torch.float32, torch.float64]


class Shifted(ScoreEstimator):
    """The data of another, moved by what it has learned and by what it is told."""

    def __init__(self, inner):
        super().__init__(inner.sde)
        self.inner = inner
        self.shift = torch.nn.Parameter(torch.zeros(N))

    def denoise(self, z, t, condition=None):
        alpha = self.sde.kernel(self.sde.time(t, z)).alpha.to(z)
        n = z.shape[-1]
        shift = (self.shift + (0.0 if condition is None else condition)).to(z)[..., :n]
        alpha = alpha if alpha.shape[-1] == 1 else alpha[..., :n]
        return self.inner.denoise(z - alpha * shift, t) + shift


class Silent(torch.nn.Module):
    def forward(self, x, level, condition=None):
        return torch.zeros_like(x)


def total(x):
    """Of an event or a part of one: not linear, as what is observed and the 3 add to it."""
    return x.sum(-1, keepdim=True) + 3


def last(x):
    return 2 * x[..., -1:] - x[..., -2:-1]


def problem(dtype):
    """A model and all that is observed of its events, one of each for every event."""
    g = torch.Generator().manual_seed(5)
    mean = torch.randn(N, generator=g, dtype=torch.float64)
    covariance = random_covariance(N, g)
    drawn = torch.randn(5, BATCH, 1, generator=g, dtype=torch.float64).to(dtype)
    told = torch.randn(BATCH, N, generator=g, dtype=torch.float64).to(dtype)
    y, w, one, other, detail = (v.requires_grad_() for v in drawn)
    known = SimpleNamespace(y=y, w=w, one=one, other=other, detail=detail, told=told)
    known.told.requires_grad_()
    known.mean, known.covariance = mean, covariance
    return known


def joint(known, dtype, speeds=1.0, drop=None):
    sde = DiagonalSDE(LogLinear(16.0, -16.0), BASIS, speeds, drop=drop)
    rows = BASIS.synthesise(torch.eye(N, dtype=torch.float64))
    covariance = rows.mT @ known.covariance @ rows
    model = Gaussian(sde, BASIS.synthesise(known.mean), covariance)
    return Shifted(model).to(dtype)


def seen(*values):
    """Some components of the state, by index: as `Observation`."""
    state, mask = torch.zeros(BATCH, N).to(values[0][1]), torch.zeros(N, dtype=torch.bool)
    for i, value in values:
        mask[i] = True
        state = torch.where(torch.arange(N) == i, value, state)
    return Observation(mask, state)


def scales(known, dtype):
    basis_speeds = torch.tensor([1.0, 1.0, 1.0, 2.0])
    around = joint(known, dtype, basis_speeds, [1.0, 1.0, 1.0, 0.5])
    return MultiScale(around.sde, [Silent(), Silent()], baseline=around)


# Each: what is made of a model, and what of the state is said to be known: rows of a matrix, what
# they give, and the deviation of the noise on it.
UNIT = torch.eye(N, dtype=torch.float64)


def row(operator, *without):
    """Of an operator on events that lack some components of the state."""
    rows = BASIS.synthesise(UNIT)
    first = len([i for i in without if i < 2])
    A = (operator(rows[..., first:]) - operator(torch.zeros(N - first).to(rows))).mT
    return A.index_fill(-1, torch.tensor(without, dtype=torch.long), 0.0)


def guided(model, operator, y, noise=0.4):
    return Guidance(model, operator, y, noise)


COMPOSITIONS = {
    "alone": lambda m, k: (m, []),
    "part": lambda m, k: (condition(m, clean=True, y=k.y), [(UNIT[:1], k.y, 0.0)]),
    "mask": lambda m, k: (
        ConditionalEstimator(m, seen((0, k.y), (3, k.detail)), clean=True),
        [(UNIT[:1], k.y, 0.0), (UNIT[3:], k.detail, 0.0)],
    ),
    "guided": lambda m, k: (guided(m, total, k.one), [(row(total), k.one - 3, 0.4)]),
    "guided part": lambda m, k: (
        guided(condition(m, clean=True, y=k.y), total, k.one),
        [(UNIT[:1], k.y, 0.0), (row(total, 0), k.one - 3, 0.4)],
    ),
    "guided mask": lambda m, k: (
        guided(ConditionalEstimator(m, seen((0, k.y), (3, k.detail)), clean=True), total, k.one),
        [(UNIT[:1], k.y, 0.0), (UNIT[3:], k.detail, 0.0), (row(total), k.one - 3, 0.4)],
    ),
    "part of guided": lambda m, k: (
        condition(guided(m, total, k.one), clean=True, y=k.y),
        [(row(total), k.one - 3, 0.4), (UNIT[:1], k.y, 0.0)],
    ),
    "mask of guided": lambda m, k: (
        ConditionalEstimator(guided(m, total, k.one), seen((3, k.detail)), clean=True),
        [(row(total), k.one - 3, 0.4), (UNIT[3:], k.detail, 0.0)],
    ),
    "part of part": lambda m, k: (
        condition(condition(m, clean=True, y=k.y), clean=True, w=k.w),
        [(UNIT[:1], k.y, 0.0), (UNIT[1:2], k.w, 0.0)],
    ),
    "mask of part": lambda m, k: (
        ConditionalEstimator(condition(m, clean=True, y=k.y), seen((3, k.detail)), clean=True),
        [(UNIT[:1], k.y, 0.0), (UNIT[3:], k.detail, 0.0)],
    ),
    "mask of mask": lambda m, k: (
        ConditionalEstimator(
            ConditionalEstimator(m, seen((1, k.w)), clean=True), seen((3, k.detail)), clean=True
        ),
        [(UNIT[1:2], k.w, 0.0), (UNIT[3:], k.detail, 0.0)],
    ),
    "guided guided mask": lambda m, k: (
        guided(
            guided(ConditionalEstimator(m, seen((0, k.y)), clean=True), total, k.one), last, k.other
        ),
        [(UNIT[:1], k.y, 0.0), (row(total), k.one - 3, 0.4), (row(last), k.other, 0.4)],
    ),
    "mask of guided part": lambda m, k: (
        ConditionalEstimator(
            guided(condition(m, clean=True, y=k.y), last, k.other), seen((1, k.w)), clean=True
        ),
        [(UNIT[:1], k.y, 0.0), (row(last, 0), k.other, 0.4), (UNIT[1:2], k.w, 0.0)],
    ),
}
MADE = {
    "still": lambda k, dtype: (
        condition(joint(k, dtype, BASIS.per_block(y=0, w=1, x=1)), y=k.y),
        [(UNIT[:1], k.y, 0.0)],
    ),
    "guided still": lambda k, dtype: (
        guided(condition(joint(k, dtype, BASIS.per_block(y=0, w=1, x=1)), y=k.y), last, k.other),
        [(UNIT[:1], k.y, 0.0), (row(last, 0), k.other, 0.4)],
    ),
    "scales": lambda k, dtype: (scales(k, dtype), []),
    "part of scales": lambda k, dtype: (
        condition(scales(k, dtype), clean=True, y=k.y),
        [(UNIT[:1], k.y, 0.0)],
    ),
    "mask of scales": lambda k, dtype: (
        ConditionalEstimator(scales(k, dtype), seen((0, k.y), (1, k.w)), clean=True),
        [(UNIT[:1], k.y, 0.0), (UNIT[1:2], k.w, 0.0)],
    ),
}
TOLD = {
    "guided by labels": lambda m, k: (m, []),
    "guided by labels, part": lambda m, k: (
        condition(m, clean=True, y=k.y),
        [(UNIT[:1], k.y, 0.0)],
    ),
    "guided twice, mask": lambda m, k: (
        guided(ConditionalEstimator(m, seen((0, k.y)), clean=True), total, k.one),
        [(UNIT[:1], k.y, 0.0), (row(total), k.one - 3, 0.4)],
    ),
}
NAMES = [*COMPOSITIONS, *MADE, *TOLD]
DEEPEST = [
    "alone",
    "mask",
    "part of guided",
    "guided guided mask",
    "mask of guided part",
    "guided still",
    "scales",
    "mask of scales",
    "guided by labels, part",
    "guided twice, mask",
]
"""What the others are parts of, for questions that are answered by many denoised means."""


def composed(name, dtype):
    """The estimator, its condition, what is unobserved of its state, and its distribution."""
    known, condition, moved = problem(dtype), None, 0.0
    if name in MADE:
        model, facts = MADE[name](known, dtype)
    elif name in TOLD:
        # of Gaussians the extrapolated denoised mean is that of data as far again
        labelled = ClassifierFree(joint(known, dtype), torch.zeros(N), guidance=1.5)
        model, facts = TOLD[name](labelled, known)
        condition, moved = known.told, 1.5 * known.told.double()
    else:
        model, facts = COMPOSITIONS[name](joint(known, dtype), known)
    (shift,) = (v for k, v in model.named_parameters() if k.endswith("shift"))
    mean, covariance = known.mean + moved + shift.double(), known.covariance
    mean = mean.expand(BATCH, N)
    left = torch.ones(N, dtype=torch.bool)
    for A, value, noise in facts:
        inner = A @ covariance @ A.mT + noise**2 * torch.eye(len(A), dtype=torch.float64)
        gain = covariance @ A.mT @ torch.linalg.inv(inner)
        mean = mean + (value.double() - mean @ A.mT) @ gain.mT
        covariance = covariance - gain @ A @ covariance
        if noise == 0:
            left = left & (A[0] == 0)
    distribution = MultivariateNormal(mean[:, left], covariance[left][:, left])
    leaves = {"shift": shift, **{k: v for k, v in vars(known).items() if v.requires_grad}}
    return SimpleNamespace(
        model=model,
        condition=condition,
        left=left,
        distribution=distribution,
        leaves=leaves,
        dtype=dtype,
    )


def events(made, rows):
    """Draws of the distribution as events of the model, ``(rows, BATCH, ...)``, and themselves."""
    with torch.no_grad():
        unobserved = made.distribution.sample((rows,))
        z = torch.zeros(rows, BATCH, N, dtype=torch.float64)
        z[..., made.left] = unobserved
        return made.model.sde.basis.inverse(z.to(made.dtype)), unobserved.to(made.dtype).double()


every_composition = pytest.mark.parametrize("name", NAMES)
each_of_the_deepest = pytest.mark.parametrize("name", DEEPEST)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def tolerance(dtype, single, double):
    return {"rtol": 0, "atol": single if dtype == torch.float32 else double}


@every_dtype
@every_composition
def test_denoised_means_are_those_of_the_posterior(name, dtype):
    made = composed(name, dtype)
    sde, distribution, left = made.model.sde, made.distribution, made.left
    rows = torch.tensor([3, 17, 3, 0])
    few = made.model.select(rows, (BATCH,))
    told = None if made.condition is None else made.condition[rows]
    for t in torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64):
        stage = next(s for s in sde.stages() if s.end <= float(t) <= s.start)
        some = left[: stage.dim]
        alpha, sigma = (v.expand(N)[: stage.dim][some] for v in sde.kernel(t.reshape(1)))
        alpha, sigma = alpha.double(), sigma.double()
        mean, covariance = distribution.mean[:, : len(alpha)], distribution.covariance_matrix[0]
        covariance = covariance[: len(alpha), : len(alpha)]
        z = sde.basis(events(made, 2)[0])[..., : stage.dim]
        z = sde.diffuse(z, t, torch.randn(z.shape).to(z))
        cross = covariance * alpha
        gain = cross @ torch.linalg.inv(alpha[:, None] * cross + torch.diag(sigma**2))
        wanted = mean + (z[..., some].double() - alpha * mean) @ gain.mT
        found = made.model.denoise(z, t, made.condition)
        torch.testing.assert_close(
            found[..., some].double(), wanted, **tolerance(dtype, 1e-4, 1e-6)
        )
        pinned = sde.basis(torch.zeros(sde.basis.event_shape).to(z))[..., : stage.dim][..., ~some]
        assert torch.equal(found[..., ~some], pinned.expand_as(found[..., ~some]))
        alone = few.denoise(z[0, rows], t, told)
        torch.testing.assert_close(alone, found[0, rows], **tolerance(dtype, 1e-5, 1e-12))


class Spikes(Noise):
    """As `scoresde.testing.Impulses`, for every event of a batch."""

    def __init__(self):
        super().__init__()
        self.used = 0

    def __call__(self, like):
        out, n = torch.zeros_like(like), like.shape[-1]
        rows = torch.arange(n) + 1 + self.used
        self.used += n
        out[rows, :, torch.arange(n)] = 1.0
        return out


@pytest.mark.covering(1)
@each_of_the_deepest
@pytest.mark.parametrize(
    "how",
    [
        (ExponentialMultistep(60), torch.float32),
        (ExponentialMultistep(80, eta=1.0), torch.float64),
        (Adaptive(rtol=1e-3, atol=1e-3), torch.float32),
        (Adaptive(rtol=1e-3, atol=1e-3), torch.float64),
    ],
    ids=["flow32", "sde64", "adaptive32", "adaptive64"],
)
def test_samples_have_the_distribution_of_the_posterior(name, how):
    """Solvers are affine maps of their noise here: of zeros and units they tell both moments."""
    solver, dtype = how
    made = composed(name, dtype)
    numbers = N * (1 + (solver.eta > 0) * solver.steps)
    told = None if made.condition is None else made.condition.expand(1 + numbers, BATCH, N)
    x = solver.sample(made.model, (1 + numbers, BATCH), condition=told, generator=Spikes())
    z = made.model.sde.basis(x)[..., made.left].double()
    response = (z[1:] - z[0]).movedim(0, -1)
    close = tolerance(dtype, 1e-2, 1e-2)
    torch.testing.assert_close(z[0], made.distribution.mean, **close)
    torch.testing.assert_close(response @ response.mT, made.distribution.covariance_matrix, **close)


def quadrature(name):
    """Densities to a hundredth of a nat; what enters on the way makes two walks of one."""
    return Quadrature(40 if "scales" in name else 24)


METHODS = {
    "quadrature": (quadrature, ExactTrace(chunk=1), torch.float32),
    "multistep": (lambda name: ExponentialMultistep(50), ExactTrace(), torch.float64),
    "adaptive": (lambda name: Adaptive(rtol=1e-3, atol=1e-3), Hutchinson(20), torch.float32),
    "hutch++": (quadrature, HutchPlusPlus(30, 3), torch.float64),
}


@pytest.mark.covering(1)
@each_of_the_deepest
@pytest.mark.parametrize("how", METHODS)
def test_densities_are_those_of_the_posterior(name, how):
    method, trace, dtype = METHODS[how]
    made = composed(name, dtype)
    x, unobserved = events(made, 2)
    told = None if made.condition is None else made.condition.expand(2, BATCH, N)
    options = {"trace": trace, "condition": told, "generator": torch.manual_seed(0)}
    with torch.no_grad():
        found = log_prob(made.model, x, method(name), errors=False, **options)
    wanted = made.distribution.log_prob(unobserved)
    assert found.value.shape == (2, BATCH)
    doubt = 7 * found.standard_error.double() + 3e-2
    assert ((found.value - wanted).abs() < doubt).all()


class Design(Noise):
    """Points that are to quadratic functions as normal numbers are; times at even distances."""

    cycle = 24

    def __init__(self):
        super().__init__()
        self.used = 0

    def stratified(self, like, draws=1):
        places = torch.arange(draws) // self.cycle + 0.5
        return (places * self.cycle / draws).to(like).unsqueeze(-1).expand(-1, len(like))

    def __call__(self, like):
        out, n = torch.zeros_like(like), like.shape[-1]
        point, self.used = self.used % (2 * n), (self.used + 1) % self.cycle
        out[..., point // 2] = (1 - 2 * (point % 2)) * n**0.5
        return out


@pytest.mark.covering(1)
@every_dtype
@each_of_the_deepest
def test_bounds_are_those_of_the_posterior(name, dtype):
    """Scores are exact, and signals have gone where noise enters: the bound is the density."""
    made = composed(name, dtype)
    x, unobserved = events(made, 1)
    told = None if made.condition is None else made.condition.expand(1, BATCH, N)
    options = {"condition": told, "moments": (torch.tensor(0.3), torch.tensor(0.8))}
    wanted = -made.distribution.log_prob(unobserved)
    with torch.no_grad():
        times = importance(made.model, x, strata=24, **options)
        # the density of tuned times has kinks, which even distances do not meet
        even = "log_snr", 60, tolerance(dtype, 2e-3, 2e-5)
        for grid, cycles, close in (even, (times, 120, {"atol": 0.2})):
            design = {"draws": cycles * Design.cycle, "generator": Design()}
            found = bound(made.model, x, times=grid, **design, **options)
            torch.testing.assert_close(found.double(), wanted, **{"rtol": 0, **close})


@every_dtype
@every_composition
def test_a_bound_has_its_own_generator(name, dtype):
    """The same in any company, however many times are drawn."""
    made = composed(name, dtype)
    x, _ = events(made, 1)

    def generators(rows):
        return [torch.Generator().manual_seed(i) for i in rows]

    rows = [17, 2, 5]
    told = made.condition
    few = made.model.select(torch.tensor(rows), (BATCH,))
    with torch.no_grad():
        all_of_them = bound(
            made.model, x[0], draws=3, condition=told, generator=generators(range(BATCH))
        )
        told = None if told is None else told[rows]
        alone = bound(few, x[0, rows], draws=3, condition=told, generator=generators(rows))
    rtol = 5e-3 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(alone, all_of_them[rows], rtol=rtol, atol=rtol)


@pytest.mark.covering(1)
@every_dtype
@each_of_the_deepest
def test_distributions_are_of_the_posterior(name, dtype):
    made = composed(name, dtype)
    solver = DDIM(4)
    own = made.model.batch_shape
    if made.condition is not None and own:
        with pytest.raises(ValueError, match=r"condition: expected None beside .* own \(18,\)"):
            ScoreDistribution(made.model, solver, condition=made.condition)
        return
    distribution = ScoreDistribution(
        made.model, solver, condition=made.condition, method=quadrature(name)
    )
    assert distribution.batch_shape == (own if made.condition is None else (BATCH,))
    assert own == (BATCH,) or name in ("alone", "scales", "guided by labels")
    spread_out = distribution.expand((BATCH,))
    x, unobserved = events(made, 1)
    assert spread_out.sample((1,)).shape == x.shape
    # with one event under every observation
    with torch.no_grad():
        found, alike = spread_out.log_prob(torch.cat([x, x[:, :1].expand_as(x)]))
        torch.testing.assert_close(spread_out.log_prob(x[0, 0]), alike)
    torch.testing.assert_close(
        found.double(), made.distribution.log_prob(unobserved[0]), rtol=0, atol=5e-2
    )


@pytest.mark.covering(1)
@every_dtype
@each_of_the_deepest
@pytest.mark.parametrize(
    "solver",  # however rough: every sample has its own noise, and its own steps
    [DDIM(6, eta=1.0), Adaptive(rtol=0.1, atol=0.1)],
    ids=["ddim", "adaptive"],
)
def test_processes_share_samples_of_the_posterior(name, dtype, solver):
    made = composed(name, dtype)

    def generators():
        return [torch.Generator().manual_seed(i) for i in range(BATCH)]

    whole = solver.sample(
        made.model, (BATCH,), condition=made.condition, generator=generators(), dtype=dtype
    )
    for i, rows in {1: slice(5, 10), 3: slice(15, 18)}.items():  # the last draws some for nothing
        part = sample(
            solver,
            made.model,
            generators(),
            SingleProcess(4, i),
            condition=made.condition,
            dtype=dtype,
        )
        wanted = whole[rows]
        torch.testing.assert_close(part[: len(wanted)], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.covering(1)
@each_of_the_deepest
@every_dtype
def test_gradients_are_those_of_the_posterior(name, dtype):
    """In events, in what is observed, in what is told and in what is learned."""
    checkpointing = dtype == torch.float32
    made = composed(name, dtype)
    x, unobserved = events(made, 1)
    x.requires_grad_()
    unobserved = made.model.sde.basis(x)[..., made.left].double()
    wanted = made.distribution.log_prob(unobserved)
    found = log_prob(
        made.model, x, quadrature(name), condition=made.condition, checkpointing=checkpointing
    ).value
    leaves = {"x": x, **made.leaves}
    slopes = [
        torch.autograd.grad(value.sum(), leaves.values(), allow_unused=True, retain_graph=True)
        for value in (found, wanted)
    ]
    used = 0
    for key, mine, truth in zip(leaves, *slopes, strict=True):
        if truth is None:
            continue
        used += 1
        size = float(truth.abs().amax())
        assert mine is not None, key
        error = (mine.double() - truth.double()).abs().amax()
        assert error < 2e-3 * (1 + size) * (10 if key == "shift" else 1), key
    assert used >= 2


def test_bounds_that_hold_are_no_numbers_below():
    """Observed components count nowhere: the truth is .408 nats."""
    sde = DiagonalSDE(LogLinear(), Joint(y=(1,), x=(1,)))
    model = Gaussian(sde, torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    posterior = condition(model, clean=True, y=torch.ones(1))
    found = bound(posterior, torch.full((4, 1), 0.8), moments=(0.8, 0.6))
    torch.testing.assert_close(found, torch.full((4,), 0.4081), rtol=0, atol=1e-3)


def wide(batch, **options):
    model = joint(problem(torch.float32), torch.float32)
    return condition(model, clean=True, y=torch.zeros(*batch, 1), **options)


def noisy():
    return condition(joint(problem(torch.float32), torch.float32), y=torch.zeros(1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: bound(noisy(), torch.zeros(2, 3)), "observed: .* that do not diffuse .*density"),
        (lambda: importance(noisy(), torch.zeros(2, 3)), "observed: .* that do not diffuse"),
        (
            lambda: bound(
                joint(problem(torch.float32), torch.float32, BASIS.per_block(y=0, w=1, x=1)),
                torch.zeros(2, 4),
            ),
            "speeds: expected components that diffuse: .* got 1 that stand still",
        ),
        (lambda: DDIM(2).sample(wide((3, 5))), r"sample_shape: .* ends with \(3, 5\)"),
        (lambda: DDIM(2).sample(wide((3, 5)), (2, 3, 4)), "sample_shape: .* fit each other"),
        (lambda: bound(wide((3,)), torch.zeros(4, 3)), r"x: .* got \(4,\) and \(3,\)"),
        (lambda: log_prob(wide((3,)), torch.zeros(4, 3)), r"x: .* got \(4,\) and \(3,\)"),
        (lambda: importance(wide((3,)), torch.zeros(0, 3, 3)), "x: expected at least one event"),
        (lambda: condition(wide((3,)), w=torch.zeros(4, 1)), "observed: .* fit each other"),
        (
            lambda: sample(DDIM(2), wide((3,)), [torch.Generator() for _ in range(7)]),
            r"observed: .* got \(3,\) and \(7,\)",
        ),
        (lambda: guided(wide((3,)), last, torch.zeros(7, 1)), r"y: .*\(7,\) and \(3,\)"),
        (
            lambda: ConditionalEstimator(
                wide(()), Observation(UNIT[0].bool(), torch.zeros(4)), clean=True
            ),
            r"observed: .* not observed yet, got \[0\] again",
        ),
        (
            lambda: ConditionalEstimator(
                scales(problem(torch.float32), torch.float32),
                Observation(UNIT[3].bool(), torch.zeros(4)),
                clean=True,
            ),
            "observed: .* from T on: .* got 1 dropped before",
        ),
        (
            lambda: ConditionalEstimator(
                wide(()), Observation(~UNIT[0].bool(), torch.zeros(4)), clean=True
            ),
            "observed: expected some components that are not, got all 4",
        ),
        (
            lambda: ConditionalEstimator(wide(()), Observation(torch.ones(3) > 0, torch.zeros(3))),
            "observed: expected a mask of 4 components, got one of 3",
        ),
        (lambda: Observation(torch.ones(3) > 0, torch.zeros(2)), r"values: .*\(3,\), got \(2,\)"),
    ],
)
def test_what_cannot_be_composed_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@every_dtype
def test_batches_of_any_shape(dtype):
    """Observations ``(3, 5)``, samples in front of them, one event under all, no event at all."""
    model = joint(problem(dtype), dtype)
    posterior = condition(model, clean=True, y=torch.randn(3, 5, 1, dtype=dtype))
    x = DDIM(4).sample(posterior, (2, 3, 5))
    with torch.no_grad():
        assert x.shape == (2, 3, 5, 3)
        assert bound(posterior, x, draws=2).shape == (2, 3, 5)
        assert bound(posterior, x[0, 0, 0]).shape == (3, 5)
        assert bound(posterior, x[:0]).shape == (0, 3, 5)
        assert log_prob(posterior, x[0, 0, 0]).value.shape == (3, 5)


def test_nothing_observed_is_the_model_itself():
    model = joint(problem(torch.float64), torch.float64)
    same = ConditionalEstimator(model, Observation(torch.zeros(N) > 0, torch.zeros(N)), clean=True)
    z = torch.randn(5, N, dtype=torch.float64)
    torch.testing.assert_close(same.denoise(z, 0.3), model.denoise(z, 0.3))


@every_dtype
def test_what_is_observed_stays_under_guidance_where_it_diffuses(dtype):
    model = guided(noisy().to(dtype), last, torch.zeros(1, dtype=dtype))
    assert (model.denoise(torch.randn(5, N, dtype=dtype), 0.5)[:, 0] == 0).all()


def test_conditions_that_are_no_tensors_go_with_their_events():
    class Told(ScoreEstimator):
        def denoise(self, z, t, condition=None):
            return condition["mean"] + 0 * z

    told = {"mean": torch.randn(9, 2), "name": "mine"}
    model = Told(DiagonalSDE(LogLinear(), Joint(y=(1,), x=(1,))))
    x = Adaptive(pad_to_multiple_of=16).sample(model, (9,), condition=told)
    torch.testing.assert_close(x, told["mean"], rtol=0, atol=0.05)
    close = bound(model, told["mean"], condition=told, draws=3)
    assert (close < bound(model, told["mean"] + 1, condition=told, draws=3)).all()
