# ruff: noqa: E501
"""What a user gets wrong is named: the argument, what was expected and what came."""

import re
from functools import partial

import pytest
import torch
from torch import nn

from estimators import Denoising, Gaussian, GaussianMixture, MultiScale, ResidualMLP
from estimators.times import Independent
from scoresde import (
    EDM,
    PCA,
    SDE,
    VE,
    VP,
    Clock,
    Cosine,
    DiagonalSDE,
    DirectScoreEstimator,
    Haar,
    Hutchinson,
    Identity,
    Joint,
    LogLinear,
    Noise,
    Quadrature,
    RectifiedFlow,
    ReverseSDE,
    ScoreDistribution,
    ScoreEstimator,
    bound,
    condition,
    log_prob,
)
from scoresde.conditioning import ConditionedBasis, Observation, Particles
from scoresde.likelihood import HutchPlusPlus, importance
from scoresde.objectives.time_distribution import TimeDistribution
from scoresde.planning import plan
from scoresde.plugins import get
from scoresde.sampling.grid import GRIDS, restrict
from scoresde.sampling.grid import check as check_times
from solvers import DDIM, Adaptive, ExponentialMultistep, Heun, Langevin, TorchDiffEq, TorchSDE

BASIS = Identity((4,), {"a": 1, "b": 3})
DIFFUSION = DiagonalSDE(VP(), BASIS)
MODEL = Gaussian(DIFFUSION, torch.zeros(4), torch.eye(4))
NETWORK = ResidualMLP((4,), 8, 1)
Z = torch.zeros(2, 4)


class NoPrior(SDE):
    def f(self, t, y):
        return -y

    def g(self, t, y):
        return torch.ones_like(y)


class Score(DirectScoreEstimator):
    def score(self, z, t, condition=None):
        return -z


class OneNumber(nn.Module):
    def forward(self, x, level):
        return x[..., :1]


class Output(dict):
    """As libraries of networks have one."""

    def __init__(self, sample):
        super().__init__(sample=sample)
        self.sample = sample


class Returns(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, level):
        return self.kind(x)


class Diverging(ScoreEstimator):
    def denoise(self, z, t, condition=None):
        return z * float("nan")


def estimator_without_a_method():
    class Empty(ScoreEstimator):
        pass

    return Empty(DIFFUSION)


CASES = {
    # shapes
    "event of another shape": (lambda: BASIS(torch.zeros(2, 5)), ValueError, r"x: .*4.*\(2, 5\)"),
    "state of another length": (lambda: BASIS.inverse(Z[:, :3]), ValueError, r"z: .*\(2, 3\)"),
    "likelihood of another shape": (
        lambda: log_prob(MODEL, torch.zeros(2, 3), DDIM(2)), ValueError, r"x: .*\(2, 3\)"),
    "network with another output": (
        lambda: Denoising(DIFFUSION, OneNumber()).denoise(Z, 0.5), ValueError, r"network: .*\(2, 4\).*\(2, 1\)"),
    "network with an output of its library": (
        lambda: Denoising(DIFFUSION, Returns(Output)).denoise(Z, 0.5), ValueError,
        r"network: .*\(2, 4\).* got an? Output, no tensor: wrap .* network\(x, noise_level\)\.sample$"),
    "network with two outputs": (
        lambda: Denoising(DIFFUSION, Returns(lambda x: (x, x))).denoise(Z, 0.5), ValueError,
        r"network: .*\(2, 4\).* got a tuple, no tensor: wrap .*, or the part of it"),
    "network with complex outputs": (
        lambda: Denoising(DIFFUSION, Returns(lambda x: x + 0j)).denoise(Z, 0.5), ValueError,
        r"network: .*\(2, 4\).* got \(2, 4\) of complex numbers"),
    "network without an output": (
        lambda: Denoising(DIFFUSION, Returns(lambda x: None)).denoise(Z, 0.5), ValueError,
        r"network: .*\(2, 4\).* got a NoneType, no tensor"),
    "arguments of sample swapped": (
        lambda: DDIM(2).sample((4,), MODEL), TypeError,
        r"^estimator: expected a ScoreEstimator, got \(4,\)"),
    "arguments of log_prob swapped": (
        lambda: log_prob(Z, MODEL), TypeError, "^estimator: expected a ScoreEstimator, got tensor"),
    "a distribution of a network": (
        lambda: ScoreDistribution(nn.Linear(1, 1), DDIM(2)), TypeError, "^estimator: .* got Linear"),
    "a network instead of an estimator": (
        lambda: DDIM(2).sample(nn.Linear(1, 1)), TypeError, "^estimator: .* got Linear"),
    "times for another batch": (
        lambda: MODEL.score(Z, torch.full((3,), 0.5)), ValueError, r"t: .*\(2,\).*\(3,\)"),
    "times with too many axes": (
        lambda: MODEL.score(Z, torch.full((1, 2, 4), 0.5)), ValueError, r"t: .*\(1, 2, 4\)"),
    "speeds that fit no axis": (
        lambda: DiagonalSDE(VP(), BASIS, speeds=[1.0, 1.0, 1.0]), ValueError, r"speeds: .*1.*2.*4.*got 3"),
    "scale that fits no axis": (
        lambda: DiagonalSDE(VP(), BASIS, scale=[1.0, 1.0, 1.0]), ValueError, "scale: .*got 3"),
    "schedule that fits no axis": (
        lambda: DiagonalSDE(VP(beta_max=[9.0, 9.0, 9.0]), BASIS), ValueError, "schedule: .*got 3"),
    "blocks that miss components": (
        lambda: Identity((4,), {"a": 1}), ValueError, "blocks: .*4 components.*got 1"),
    "empty block": (lambda: Identity((4,), {"a": 4, "b": 0}), ValueError, r"sizes\['b'\]: .*got 0"),
    "odd size for a pyramid": (lambda: Haar((1, 6, 6), 2), ValueError, r"levels: .*2\*\*2.*\(6, 6\)"),
    "means of another shape": (
        lambda: GaussianMixture(DIFFUSION, [1.0], torch.zeros(1, 3), torch.eye(4)[None]),
        ValueError, r"means: .*\(1, 4\).*\(1, 3\)"),
    "one network for four stages": (
        lambda: MultiScale(
            DiagonalSDE(VP(), BASIS, [1, 2], drop=[1.0, 0.5]), [ResidualMLP((4,))]),
        ValueError, "networks: expected 2, got 1"),
    "state of no stage": (
        lambda: MultiScale(DIFFUSION, [ResidualMLP((4,))]).denoise(Z[:, :2], 0.5),
        ValueError, r"z: expected one of \[4\] components, got 2"),
    # kinds of numbers
    "integers as events": (lambda: BASIS(torch.zeros(2, 4, dtype=torch.long)), TypeError, "x: .*int64"),
    "a list as an event": (lambda: BASIS([0.0] * 4), TypeError, "x: .*Tensor.*list"),
    "NaN in data": (
        lambda: log_prob(MODEL, Z * float("nan"), DDIM(2)), ValueError, "x: .*finite.*8 NaN"),
    "NaN in a parameter": (lambda: VP(beta_max=float("nan")), ValueError, "beta_max: .*finite"),
    "words as a parameter": (lambda: VP(beta_max="fast"), (TypeError, ValueError), "str|fast"),
    # ranges
    "negative variance scale": (
        lambda: DiagonalSDE(VP(), BASIS, scale=-1.0), ValueError, "scale: .*positive"),
    "zero noise rate": (lambda: VP(beta_min=0.0), ValueError, "beta_min: .*positive"),
    "sigma_max below sigma_min": (lambda: VE(1.0, 0.5), ValueError, "sigma_max: .*more than"),
    "log-SNR that rises": (lambda: LogLinear(-1.0, 1.0), ValueError, "log_snr_min: .*below"),
    "cosine that ends above 0": (lambda: Cosine(1.0), ValueError, "log_snr_min: .*below 0"),
    "time range upside down": (lambda: EDM(2.0, 1.0), ValueError, "sigma_min, sigma_max: .*0 < sigma_min"),
    "rectified flow to 1": (lambda: RectifiedFlow(T=1.0), ValueError, "T: .*below 1"),
    "negative speed": (lambda: Clock([-1.0]), ValueError, "speeds: .*at least 0"),
    "negative time": (lambda: MODEL.score(Z, -0.1), ValueError, "t: .*from 0 to 1.*-0.1"),
    "a tensor's time after the end": (
        lambda: DIFFUSION.diffuse(Z, torch.tensor(2.0), Z), ValueError, r"^t: .* from 0 to 1.0, got 2.0$"),
    "times before the start": (
        lambda: DIFFUSION.diffuse(Z, torch.tensor([0.5, -0.5]), Z), ValueError, r"got -0.5 to 0.5$"),
    "time after the end": (lambda: DIFFUSION.diffuse(Z, 2.0, Z), ValueError, "t: .*got 2.0"),
    "negative eta": (lambda: DDIM(5, eta=-1.0), ValueError, "eta: .*from 0 to 1000, got -1"),
    "noise whose square is no number": (
        lambda: DDIM(5, eta=1e300), ValueError, r"eta: .*from 0 to 1000, got 1e\+300"),
    "yes as a number": (lambda: DDIM(5, eta=True), ValueError, "eta: .*finite number.*True"),
    "steps for years": (
        lambda: DDIM(2 * 10**9), ValueError, "steps: .*at most 1000000, got 2000000000"),
    "negative eta of an SDE": (lambda: ReverseSDE(MODEL, -1.0), ValueError, "eta: .*at least 0"),
    "half a step": (lambda: Heun(2.5), ValueError, "steps: .*whole number.*2.5"),
    "endless noise": (lambda: Heun(eta=float("inf")), ValueError, "eta: .*finite.*inf"),
    "tolerance of nothing": (lambda: TorchDiffEq(rtol=0.0), ValueError, "rtol: .*positive"),
    "no such method": (lambda: TorchSDE(method="rk4"), ValueError, "method: .*'srk', got 'rk4'"),
    "corrector that is none": (lambda: Heun(corrector=3), TypeError, "corrector"),
    "a number of samples": (
        lambda: Heun(2).sample(MODEL, 64),
        TypeError,
        r"sample_shape: .*\(64,\), got 64",
    ),
    "a seed for a generator": (
        lambda: Heun(2).sample(MODEL, (1,), generator=0),
        TypeError,
        "generator: expected a Generator, got 0",
    ),
    "no solver": (lambda: log_prob(MODEL, Z, 3), TypeError, "method: .*got 3"),
    "no trace": (lambda: log_prob(MODEL, Z, trace="exact"), TypeError, "trace: .*'exact'"),
    "no schedule": (lambda: DiagonalSDE("vp", BASIS), TypeError, "schedule: expected a Schedule"),
    "no basis": (lambda: DiagonalSDE(VP(), (4,)), TypeError, "basis: expected a Basis"),
    "no network": (lambda: Denoising(DIFFUSION, "mlp"), TypeError, "network: .*'mlp'"),
    "no SDE": (lambda: Denoising(VP(), NETWORK), TypeError, "sde: expected a.* SDE"),
    "letters for speeds": (lambda: DiagonalSDE(VP(), BASIS, "ab"), TypeError, "speeds: .*'ab'"),
    "complex scales": (
        lambda: DiagonalSDE(VP(), BASIS, scale=torch.ones(4) + 1j),
        TypeError,
        "scale: .*real numbers.*complex64",
    ),
    "levels without end": (lambda: Haar((4,), 10**30), ValueError, "levels: "),
    "corrections of no length": (lambda: Langevin(snr=0.0), ValueError, "snr: .*positive.*0"),
    "fourth order": (
        lambda: ExponentialMultistep(order=4), ValueError, "order: .*1.*2.*3.*4"),
    "no steps": (lambda: Heun(0), ValueError, "steps: .*at least 1.*0"),
    "times that rise": (
        lambda: DDIM(2, grid=lambda *_: torch.tensor([0.1, 0.5, 1.0])).sample(MODEL, (1,)),
        ValueError, "times: .*decreasing"),
    "times beyond T": (
        lambda: DDIM(2, grid=lambda *_: torch.tensor([2.0, 0.5])).sample(MODEL, (1,)),
        ValueError, r"times: .*\[0, 1.0\]"),
    "drop times that rise": (
        lambda: DiagonalSDE(VP(), BASIS, drop=[0.5, 1.0]), ValueError, "drop: .*not increasing"),
    "indefinite covariance": (
        lambda: Gaussian(DIFFUSION, torch.zeros(4), -torch.eye(4)), ValueError, "covariances: .*semi-definite"),
    "complex means": (
        lambda: GaussianMixture(DIFFUSION, [1.0], 1j * torch.ones(1, 4), torch.eye(4)[None]),
        TypeError, "means: .*real"),
    "complex mean": (
        lambda: Gaussian(DIFFUSION, 1j * torch.ones(4), torch.eye(4)), TypeError, "mean: .*real"),
    "negative mixture weight": (
        lambda: GaussianMixture(DIFFUSION, [-1.0], torch.zeros(1, 4), torch.eye(4)[None]),
        ValueError, "weights: .*positive"),
    "skewed basis": (lambda: PCA(2 * torch.eye(4)), ValueError, "components: .*orthonormal"),
    # names
    "unknown grid": (lambda: DDIM(5, grid="log-snr"), ValueError, "grid: .*'log-snr'.*did you mean 'log_snr'"),
    "function of too little": (
        lambda: Denoising(DIFFUSION, lambda x: x), TypeError,
        r"^network: .* network\(x, noise_level\), got function.forward\(x\)$"),
    "function that cannot be told": (
        lambda: Denoising(DIFFUSION, lambda x, level: x).denoise(Z, 0.5, Z), TypeError,
        r"^condition: .*, got one for function.forward\(x, level\)$"),
    "unknown parametrisation": (
        lambda: Denoising(DIFFUSION, NETWORK, parametrization="velocty"), ValueError, "did you mean 'velocity'"),
    "unknown weighting": (
        lambda: Denoising(DIFFUSION, NETWORK, weighting="likelyhood"), ValueError, "did you mean 'likelihood'"),
    "unknown method": (lambda: TorchSDE(5, method="rk4"), ValueError, "method.*euler"),
    "unknown plugin": (lambda: get("solvers", "huen"), LookupError, "did you mean 'heun'"),
    "unknown group": (lambda: get("solver", "heun"), ValueError, "did you mean 'solvers'"),
    # what does not go together
    "noise for an ODE solver": (
        lambda: TorchDiffEq(eta=1.0).sample(MODEL, (1,)), ValueError, "eta: .*ODEs"),
    "sampling without a prior": (
        lambda: DDIM(5).sample(Score(NoPrior((4,))), (1,)), ValueError, "prior: .*NoPrior"),
    "denoising without a kernel": (
        lambda: Score(NoPrior((4,))).denoise(Z, 0.5), NotImplementedError, "NoPrior has no closed-form"),
    "training what is exact": (lambda: MODEL.loss(Z), NotImplementedError, "Gaussian.*nothing to train"),
    "estimator that answers nothing": (estimator_without_a_method, TypeError, "Empty .*denoise"),
    "two generators for three samples": (
        lambda: DDIM(5).sample(MODEL, (3,), generator=[torch.Generator(), torch.Generator()]),
        ValueError, "generator: .*3: one per sample, got 2"),
    "an estimator that gives NaN": (
        lambda: DDIM(5).sample(Diverging(DIFFUSION), (1,)), ValueError, "samples: .*finite.*4 NaN"),
    "a plan without a budget": (
        lambda: plan(BASIS, VP(), {"a": torch.ones(1), "b": torch.ones(3)}, ExponentialMultistep()),
        ValueError, "error, cost, evaluations"),
    "a plan for other bands": (
        lambda: plan(BASIS, VP(), {"c": torch.ones(1)}, ExponentialMultistep(), cost=4),
        ValueError, r"bands: .*\['c'\]"),
    "distribution int": (lambda: ScoreDistribution(MODEL, DDIM(2)).log_prob(Z.long()), TypeError, "value: expected a floating-point tensor, got torch.int64"),
    "distribution list": (lambda: ScoreDistribution(MODEL, DDIM(2)).log_prob([0.0] * 4), TypeError, "value: expected a torch.Tensor, got list"),
    "distribution solver": (lambda: ScoreDistribution(MODEL, MODEL), TypeError, "solver: expected a Solver"),
    "distribution condition": (lambda: ScoreDistribution(MODEL, DDIM(2), condition=[1.0]), TypeError, "condition: expected a Tensor"),
    "sample dtype int": (lambda: DDIM(2).sample(MODEL, dtype=torch.long), ValueError, "dtype: expected a floating-point one, got torch.int64"),
    "sample dtype complex": (lambda: DDIM(2).sample(MODEL, dtype=torch.complex64), ValueError, "dtype: expected a floating-point one"),
    "sample dtype str": (lambda: DDIM(2).sample(MODEL, dtype="float32"), TypeError, "dtype: expected a dtype, got 'float32'"),
    "sparse": (lambda: log_prob(MODEL, Z.to_sparse()), TypeError, "x: expected a dense tensor, got torch.sparse_coo"),
    "loss of nothing": (lambda: Denoising(DIFFUSION, NETWORK).loss(Z[:0]), ValueError, "x: expected at least one event"),
    "stages' loss of nothing": (lambda: MultiScale(DIFFUSION, [NETWORK]).loss(Z[:0]), ValueError, "x: expected at least one event"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_clear_error(case):
    act, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        act()


COUNT, POSITIVE, SWITCH = (
    [[1], [0, 1.5, True]],
    [[1e-30], [0.0, float("inf")]],
    [[False, True], [0]],
)
STAGED = DiagonalSDE(VP(), BASIS, drop=[1.0, 0.5])
LIMITS = {
    "steps of a solver": (DDIM, "steps", [1, 10**6], [0, 10**6 + 1, 2.0]),
    "eta": (DDIM, "eta", [0, 1000], [-1e-9, 1000.1]),
    "churn": (DDIM, "churn", [0], [-1e-9, float("nan")]),
    "final_denoise": (DDIM, "final_denoise", *SWITCH),
    "corrector": (DDIM, "corrector", [None, Langevin()], ["langevin"]),
    "grid": (DDIM, "grid", ["karras", (1.0, 0.5)], ["kara", len]),
    "order": (ExponentialMultistep, "order", [1, 2, 3], [0, 4, 2.0]),
    "rtol": (Adaptive, "rtol", *POSITIVE),
    "atol": (Adaptive, "atol", *POSITIVE),
    "max_steps": (Adaptive, "max_steps", *COUNT),
    "pad_to_multiple_of": (Adaptive, "pad_to_multiple_of", *COUNT),
    "rtol of odeint": (TorchDiffEq, "rtol", *POSITIVE),
    "atol of odeint": (TorchDiffEq, "atol", *POSITIVE),
    "steps of a corrector": (Langevin, "steps", *COUNT),
    "snr": (Langevin, "snr", *POSITIVE),
    "steps of a quadrature": (Quadrature, "steps", *COUNT),
    "tolerance": (Quadrature, "tolerance", [None, 0], [-1e-9, "0"]),
    "probes": (Hutchinson, "probes", *COUNT),
    "probes beside directions": (HutchPlusPlus, "probes", *COUNT),
    "rank": (HutchPlusPlus, "rank", *COUNT),
    "over": (Independent, "over", ["blocks", "components"], ["block"]),
    "together": (Independent, "together", [0, 1], [-1e-9, 1.1]),
    "count": (Particles, "count", [2], [1]),
    "moves": (Particles, "moves", *COUNT),
    "log_weight_std": (Particles, "log_weight_std", [1e-3, 10], [9e-4, 10.1]),
    "scale": (partial(DiagonalSDE, VP(), BASIS), "scale", [1e-6], [0.0]),
    "std": (partial(DiagonalSDE, VP(), BASIS), "std", [0.0], [-1e-9]),
    "drop": (
        partial(DiagonalSDE, VP(), BASIS),
        "drop",
        [[1.0, 1.0], [1.0, 0.5]],
        [[0.9, 0.5], [1.0, 1.1], [1.0, 1e-3], [1.0], [1.0, 0.5, 0.4]],
    ),
    "eta of an equation": (partial(ReverseSDE, MODEL), "eta", [0.0], [-1e-9]),
    "data_std": (partial(Denoising, DIFFUSION, NETWORK), "data_std", [1e-3], [0.0, [1.0] * 3]),
    "shares": (
        partial(MultiScale, STAGED, lambda shape: ResidualMLP(shape, 8, 1)),
        "shares",
        [1, [1e-9, 1.0]],
        [0.0, 1.1, [1.0], [1.0, 0.0]],
    ),
    "draws": (partial(bound, MODEL, Z), "draws", *COUNT),
    "batch_size": (partial(DDIM(1).sample, MODEL, (2,)), "batch_size", *COUNT),
    "strata": (lambda strata: importance(MODEL, Z, strata=strata), "strata", [1], []),
}


@pytest.mark.parametrize("case", LIMITS)
def test_limits(case):
    """The last value that is good is taken, and the first that is not refused by its name."""
    make, name, good, bad = LIMITS[case]
    for value in good:
        make(**{name: value})
    for value in bad:
        with pytest.raises((TypeError, ValueError), match=rf"^{name}\b.*: "):
            make(**{name: value})


META = torch.zeros(2, 4, device="meta")
PARTS = Joint(y=(1,), x=(2,), w=(1,))
JOINT = Gaussian(DiagonalSDE(VP(), PARTS), torch.zeros(4), torch.eye(4))
TWO, THREE = torch.zeros(2, 1), torch.zeros(3, 1)
LEARNER = Denoising(DIFFUSION, ResidualMLP((4,), 8, 1, condition_dim=1))
STAGES = MultiScale(STAGED, lambda shape: ResidualMLP(shape, 8, 1))
KNOWN = Observation(torch.tensor([True, False]), torch.zeros(2, 2))
NAMED = {
    "sample_shape": [
        lambda: DDIM(1).sample(condition(JOINT, y=TWO), (3,)),
        lambda: DDIM(1).sample(MODEL, (-1,)),
    ],
    "speeds": [lambda: Clock("fast"), lambda: DiagonalSDE(VP(), BASIS, [1.0, "fast"])],
    "delays": [lambda: Clock(1.0, "late"), lambda: Clock(1.0, 1j)],
    "drop": [lambda: DiagonalSDE(VP(), BASIS, drop="late")],
    "mean": [lambda: DiagonalSDE(VP(), BASIS, mean=[0.0] * 3)],
    "t": [
        lambda: MODEL.score(Z, "now"),
        lambda: DIFFUSION.diffuse(Z, torch.tensor(1j), Z),
        lambda: DIFFUSION.diffuse(Z, torch.tensor([0.5, 1.5]), Z),
    ],
    "z": [
        lambda: DIFFUSION.diffuse(Z.long(), 0.5, Z),
        lambda: LEARNER.coefficient_losses(Z[:, :3]),
        lambda: LEARNER.coefficient_losses(Z[0]),
    ],
    "x": [
        lambda: MODEL.states(META),
        lambda: LEARNER.loss(META),
        lambda: STAGES.loss(META),
        lambda: condition(JOINT, y=TWO).states(torch.zeros(3, 3)),
        lambda: bound(MODEL, Z * torch.nan),
        lambda: importance(MODEL, Z * torch.nan),
        lambda: importance(MODEL, Z[:0]),
    ],
    "grid": [lambda: DDIM(grid=["late", "early"]), lambda: Independent(grid=3)],
    "times": [
        lambda: check_times(DIFFUSION, "late"),
        lambda: check_times(DIFFUSION, [1.0]),
        lambda: check_times(DIFFUSION, [[1.0, 0.5]]),
        lambda: check_times(DIFFUSION, [1.0, -1e-9]),
        lambda: check_times(STAGED, [1.0, 0.6, 0.1]),
        lambda: restrict("late", STAGED.stages()[0]),
        lambda: TimeDistribution("late"),
        lambda: TimeDistribution([1.0]),
        lambda: TimeDistribution([1.0, 1.0]),
        lambda: Denoising(DIFFUSION, NETWORK, times=len),
        lambda: Denoising(DIFFUSION, NETWORK, times="late"),
    ],
    "steps": [
        lambda: DDIM(2, grid=(1.0, 0.5)).times(DIFFUSION),
        lambda: GRIDS["karras"](DIFFUSION, 0),
    ],
    "observed": [
        lambda: Observation(torch.tensor([True]), torch.tensor([torch.nan])),
        lambda: condition(JOINT, y=TWO, x=torch.zeros(3, 2)),
        lambda: condition(JOINT, y=TWO, x=torch.zeros(2, 2), w=TWO),
        lambda: condition(JOINT),
        lambda: KNOWN.joined(Observation(torch.tensor([False, True]), torch.zeros(3, 2))),
        lambda: KNOWN.joined(KNOWN),
        lambda: KNOWN.select(torch.arange(1), (3,)),
        lambda: ConditionedBasis(Identity((3,)), KNOWN, None),
        lambda: ConditionedBasis(Identity((1,)), Observation(TWO[0] == 0, TWO), None),
    ],
    "mask": [lambda: Observation([True], TWO), lambda: Observation(TWO[0], TWO)],
    "values": [lambda: Observation(TWO[0] == 0, [1.0]), lambda: Observation(TWO == 0, TWO)],
    "y": [
        lambda: condition(JOINT, y=META[:, :1]),
        lambda: condition(JOINT, y=torch.zeros(1, dtype=torch.long)),
        lambda: condition(JOINT, y=torch.zeros(2, 2)),
    ],
    "condition": [
        lambda: LEARNER.denoise(Z, 0.5, META[:, :1]),
        lambda: ScoreDistribution(LEARNER, DDIM(1), condition=torch.tensor(1.0)),
        lambda: ScoreDistribution(condition(JOINT, y=TWO), DDIM(1), condition=TWO),
    ],
    "data_mean": [lambda: Denoising(DIFFUSION, NETWORK, data_mean="none")],
    "data_std": [lambda: Denoising(DIFFUSION, NETWORK, data_std=[1.0, 1.0, 1.0])],
    "baseline": [lambda: Denoising(DIFFUSION, NETWORK, baseline=JOINT)],
    "network_bases": [lambda: MultiScale(STAGED, [NETWORK] * 2, network_bases=[None])],
    "networks": [lambda: MultiScale(STAGED, [NETWORK] * 3), lambda: MultiScale(STAGED, list)],
    "stage": [lambda: Denoising(DIFFUSION, NETWORK, stage=(1.0, 0.0, 4))],
    "generator": [
        lambda: bound(MODEL, Z, generator=[torch.Generator()]),
        lambda: Noise([3]),
        lambda: Noise([torch.Generator()]).stratified(Z),
    ],
    "estimator": [
        lambda: bound(Z, MODEL),
        lambda: ReverseSDE(DIFFUSION),
        lambda: importance(DIFFUSION, Z),
    ],
    "prior": [lambda: condition(with_prior(), y=torch.zeros(1)), lambda: bound(with_prior(), Z)],
    "compile": [
        lambda: DDIM(1).compiled(MODEL, compile=2),
        lambda: DDIM(1).compiled(MODEL, compile={"mode": "max-autotune"}),
        lambda: DDIM(1).compiled(MODEL, compile={"backend": "cudagraphs"}),
        lambda: DDIM(1).compiled(MODEL, compile={"options": {"triton.cudagraphs": True}}),
    ],
    "solver": [lambda: Adaptive().compiled(MODEL)],
    "output": [lambda: DDIM(1).sample(MODEL, (1,), output="x.npz")],
    "rank": [lambda: log_prob(MODEL, Z, DDIM(1), trace=HutchPlusPlus(2, 5))],
}


def with_prior():
    prior = torch.distributions.Normal(torch.zeros(4), torch.ones(4))
    return Gaussian(DiagonalSDE(VP(), PARTS, prior=prior), torch.zeros(4), torch.eye(4))


@pytest.mark.parametrize("name", NAMED)
def test_what_is_wrong_is_named_first(name):
    for i, act in enumerate(NAMED[name]):
        with pytest.raises((TypeError, ValueError)) as error:
            act()
        assert re.match(rf"{name}\b.*: ", str(error.value)), (i, str(error.value))
