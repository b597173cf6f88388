"""The example plugin: installed beside us it is found by name, and it does what it claims."""

import os
import subprocess
import sys
from pathlib import Path

import exact_moments
import numpy as np
import pytest
import torch

from estimators import Gaussian
from scoresde import DCT, DiagonalSDE, Identity, data, log_prob

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"
NAMES = {
    "sdes": "ornstein-uhlenbeck",
    "schedules": "constant-rate",
    "estimators": "independent-gaussian",
    "solvers": "exponential-midpoint",
}


SCRIPT = """
import sys

import numpy as np
import pytest
import torch

from scoresde import Identity, plugins
from scoresde.app.cli import main
from scoresde.app.model import Model

config, tests, folder, *names = sys.argv[1:]
kinds = dict(zip(names[::2], names[1::2], strict=True))
for group, name in kinds.items():
    found = plugins.available(group)[name]
    assert found.distribution == "scoresde-example-plugin", found
    assert plugins.check(group) == {}
sde, _, estimator, solver = (plugins.get(group, name) for group, name in kinds.items())
model = estimator(sde(Identity((2,)), rate=[0.5, 2.0], T=12.0))
assert model.__module__.startswith("scoresde_example_plugin")
torch.nn.init.constant_(model.mean, 3.0)
torch.nn.init.constant_(model.log_std, -1.0)
x = solver(40).sample(model, (4000,), generator=torch.Generator().manual_seed(0))
np.save(f"{folder}/drawn.npy", x.numpy())
for command in (
    ["list"],
    ["train", config, "--output", f"{folder}/model"],
    ["sample", f"{folder}/model", "--count", "5", "--output", f"{folder}/levels.npy"],
):
    main(command, standalone_mode=False)
# quantised, a Gaussian is cut off at the ends of the scale: its moments are seen before that
model = Model.load(f"{folder}/model")
chance = torch.Generator().manual_seed(0)
drawn = model.solver.sample(model.estimator, (2000,), generator=chance)
np.save(f"{folder}/numbers.npy", drawn.detach().numpy())
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:randomly", tests]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What is said, and a folder with what is written, where the plugin is installed."""
    site, folder = (tmp_path_factory.mktemp(name) for name in ("site", "folder"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--target", site, PLUGIN], check=True)
    names = [word for pair in NAMES.items() for word in pair]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, PLUGIN / "config.toml", PLUGIN / "tests", folder, *names],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, folder


@pytest.fixture(scope="module")
def plugin():
    sys.path.insert(0, str(PLUGIN))
    import scoresde_example_plugin

    yield scoresde_example_plugin
    sys.path.remove(str(PLUGIN))


def test_installed_it_is_listed_loaded_and_sampled_from_by_name(installed):
    said, folder = installed
    assert set(NAMES.values()) <= set(said.split())
    x, std = torch.from_numpy(np.load(folder / "drawn.npy")), torch.tensor(-1.0).exp()
    assert (x.mean(0) - 3).abs().max() < 5 * std / 4000**0.5
    assert (x.std(0) / std - 1).abs().max() < 5 / 8000**0.5


def test_the_command_line_trains_and_samples_what_a_file_names(installed):
    _, folder = installed
    levels = np.load(folder / "levels.npy")
    assert (levels.shape, levels.dtype, levels.max() <= 16) == ((5, 1, 8, 8), np.uint8, True)
    dct = DCT((1, 8, 8))
    z = dct(torch.from_numpy(np.load(folder / "numbers.npy")))
    images = data.digits()
    true = dct(data.dequantize(images.values, images.bins))
    assert ((z.mean(0) - true.mean(0)) / true.std(0)).abs().max() < 0.2
    assert (z.std(0) / true.std(0)).log().abs().max() < 0.2


def test_its_own_tests_pass_where_it_is_installed(installed):
    said, _ = installed
    assert " passed" in said
    assert "failed" not in said


def test_not_installed_it_is_not_there():
    from scoresde import plugins

    assert NAMES["sdes"] not in plugins.available("sdes")


def exact(plugin):
    """A correlated Gaussian under the plugin's SDE, started from its true distribution at ``T``."""
    sde = plugin.OrnsteinUhlenbeck(DCT((4,)), rate=[0.5, 1.0, 1.0, 2.0], T=3.0)
    factor = torch.eye(4) + torch.ones(4, 4).tril(-1) / 2
    model = Gaussian(sde, torch.tensor([1.0, 0, -1, 2]), factor @ factor.mT)
    return exact_moments.with_true_prior(model)


@pytest.mark.usefixtures("float64")
def test_the_sde_is_ornstein_uhlenbeck(plugin):
    sde = plugin.OrnsteinUhlenbeck(Identity((3,)), rate=[0.5, 1.0, 2.0], T=3.0)
    assert isinstance(sde, DiagonalSDE)
    t, z = torch.tensor([1.5]), torch.tensor([[1.0, -1.0, 2.0]])
    torch.testing.assert_close(sde.f(t, z), torch.tensor([[-0.5, 1.0, -4.0]]))
    torch.testing.assert_close(sde.g(t, z) ** 2, torch.tensor([[1.0, 2.0, 4.0]]))
    # what is stationary stays so
    alpha, sigma = sde.kernel(torch.linspace(0, 3, 7).unsqueeze(-1))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(7, 3))


@pytest.mark.usefixtures("float64")
def test_the_solver_has_the_order_it_claims(plugin):
    model = exact(plugin)
    truth = exact_moments.events(model, exact_moments.marginal(model, model.sde.eps))

    def error(steps):
        solver = plugin.ExponentialMidpoint(steps)

        def run(rows, noise):
            return solver.sample(model, (rows,), generator=noise)

        found = exact_moments.moments(run)
        return sum((a - b).norm() for a, b in zip(found, truth, strict=True))

    once, twice = error(100), error(200)
    assert abs(torch.log2(once / twice) - plugin.ExponentialMidpoint.order) < 0.15
    assert twice < 1e-3


@pytest.mark.usefixtures("float64")
def test_likelihood_with_the_solver_is_the_closed_form(plugin):
    model = exact(plugin)
    truth = exact_moments.marginal(model, model.sde.eps)
    z = truth.sample((4,))
    solver = plugin.ExponentialMidpoint(200)
    found = log_prob(model, model.sde.basis.inverse(z), solver, errors=False).value
    torch.testing.assert_close(found, truth.log_prob(z), rtol=0, atol=1e-2)


def test_the_solver_declines_noise(plugin):
    with pytest.raises(ValueError, match="eta"):
        plugin.ExponentialMidpoint(2, eta=1.0).sample(exact(plugin), (1,))


@pytest.mark.usefixtures("float64")
def test_the_estimator_is_exact_for_independent_gaussians(plugin):
    sde = plugin.OrnsteinUhlenbeck(Identity((3,)))
    mean, variance = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.1, 1.0, 4.0])
    model, exact = plugin.IndependentGaussian(sde), Gaussian(sde, mean, variance.diag())
    with torch.no_grad():
        model.mean.copy_(mean)
        model.log_std.copy_(variance.log() / 2)
    z, t = torch.randn(7, 3), torch.linspace(0.1, 6, 7)
    torch.testing.assert_close(model.denoise(z, t), exact.denoise(z, t))
    torch.testing.assert_close(model.score(z, t), exact.score(z, t))


def test_the_estimator_learns_the_moments_of_data(plugin):
    model = plugin.IndependentGaussian(plugin.OrnsteinUhlenbeck(Identity((3,))))
    mean, std = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.5, 1.0, 2.0])
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    g = torch.Generator().manual_seed(0)
    for _ in range(400):
        optimizer.zero_grad()
        model.loss(mean + std * torch.randn(512, 3, generator=g), generator=g).backward()
        optimizer.step()
    assert ((model.mean - mean) / std).abs().max() < 0.1
    assert (model.log_std - std.log()).abs().max() < 0.1
