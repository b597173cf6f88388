"""Models of another library: their files, and what their own sampler does, written out."""

import builtins
import json
import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from estimators import ClassifierFree, Gaussian, from_diffusers
from scoresde import Noise, ReverseSDE, bound, log_prob
from solvers import DDIM, ExponentialMultistep

STEPS = [900, 700, 500, 300, 100, 0]


class Theirs(nn.Module):
    """Told a step as a whole number, and a label if there is one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.heard = nn.Conv2d(1, 1, 3, padding=1), []

    def forward(self, sample, timestep, class_labels=None):
        self.heard.append(timestep.detach().clone())
        told = 0.0 if class_labels is None else class_labels.reshape(-1, 1, 1, 1) / 4
        return (self.layer(sample).tanh() * (1 + timestep.reshape(-1, 1, 1, 1) / 1000) + told,)


def folder_of(path, **scheduler):
    about = {"beta_schedule": "linear", "prediction_type": "epsilon", **scheduler}
    files = {
        "unet/config.json": {"sample_size": [4, 6], "in_channels": 1},
        "scheduler/scheduler_config.json": about,
    }
    for name, content in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(json.dumps(content))
    return path


def signal_of(kind):
    """Squares of alpha, one by one."""
    found, product = [], 1.0
    for k in range(1000):
        part = k / 999
        match kind:
            case "linear":
                beta = 1e-4 + (0.02 - 1e-4) * part
            case "scaled_linear":
                beta = (0.01 + (math.sqrt(0.02) - 0.01) * part) ** 2
            case "sigmoid":
                beta = 1e-4 + (0.02 - 1e-4) / (1 + math.exp(6 - 12 * part))
            case _:
                bars = [math.cos((v / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for v in (k, k + 1)]
                beta = min(1 - bars[1] / bars[0], 0.999)
        product *= 1 - beta
        found.append(product)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_ddim_on_the_models_steps_is_theirs(tmp_path, kind, prediction, dtype):
    """Song et al. 2021, eq. 12 with sigma = 0, down to the denoised mean at step 0."""
    network, labels = Theirs().to(dtype), torch.tensor([0, 3])
    folder = folder_of(tmp_path, beta_schedule=kind, prediction_type=prediction)
    model = from_diffusers(folder, network).to(dtype)
    signals = signal_of(kind)
    torch.manual_seed(1)
    x = start = torch.randn(2, 1, 4, 6, dtype=dtype)
    with torch.no_grad():
        for k, later in zip(STEPS, [*STEPS[1:], None], strict=True):
            alpha, sigma = signals[k] ** 0.5, (1 - signals[k]) ** 0.5
            out = network(x, torch.full((2,), float(k), dtype=dtype), labels)[0]
            match prediction:
                case "epsilon":
                    clean, noise = (x - sigma * out) / alpha, out
                case "sample":
                    clean, noise = out, (x - alpha * out) / sigma
                case _:
                    clean, noise = alpha * x - sigma * out, sigma * x + alpha * out
            end = 1.0 if later is None else signals[later]
            x = end**0.5 * clean + (1 - end) ** 0.5 * noise
        network.heard.clear()
        times = torch.tensor([(k + 1) / 1000 for k in STEPS], dtype=torch.float64)
        z = DDIM().integrate(ReverseSDE(model, 0.0, labels), start.flatten(1), -times, Noise())
        z = model.denoise(z, float(times[-1]), labels)
    assert [float(v[0]) for v in network.heard] == STEPS
    digits = 1e-9 if dtype == torch.float64 else 1e-4
    scale = float(x.abs().max())
    torch.testing.assert_close(z.reshape_as(x), x, rtol=0, atol=digits * scale)


def test_betas_may_be_given(tmp_path):
    betas = [0.1, 0.2, 0.4]
    model = from_diffusers(folder_of(tmp_path, trained_betas=betas), Theirs())
    t = torch.tensor([1 / 3, 2 / 3, 1.0]).double()
    signal = model.sde.schedule.alpha(t) ** 2
    torch.testing.assert_close(signal, torch.tensor([0.9, 0.72, 0.432]).double())


def test_any_solver_takes_them(tmp_path):
    model = from_diffusers(folder_of(tmp_path), Theirs())
    generator = torch.Generator().manual_seed(0)
    for solver in (ExponentialMultistep(6), DDIM(6, eta=1.0)):
        assert solver.sample(model, (2,), generator=generator).shape == (2, 1, 4, 6)
    x = torch.randn(3, 1, 4, 6)
    model.loss(x).backward()


def test_what_is_not_known_is_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="config"):
        from_diffusers(tmp_path, Theirs())
    for bad, message in (
        ({"prediction_type": "flow"}, "prediction_type"),
        ({"beta_schedule": "laplace"}, "beta_schedule"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: expected false"),
        ({"beta_end": 2.0}, "beta_end"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas: expected false"),
        ({"snr_shift_scale": 3.0}, "snr_shift_scale: expected false"),
        ({"timestep_type": "continuous"}, "timestep_type: expected 'discrete', got 'continuous'"),
        ({"_class_name": "LCMScheduler"}, "scheduler: expected .*, got LCMScheduler"),
    ):
        with pytest.raises(ValueError, match=message):
            from_diffusers(folder_of(tmp_path, **bad), Theirs())
    folder = folder_of(tmp_path)
    (folder / "unet/config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config.json: expected a JSON file"):
        from_diffusers(folder, Theirs())
    folder = folder_of(tmp_path)
    imported = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "diffusers":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"'scoresde\[diffusers\]', or give the network"):
        from_diffusers(folder)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler"])
def test_a_file_of_ddpm_may_leave_out_its_betas(name):
    said = {"unet": {"sample_size": 4, "in_channels": 1}, "scheduler": {"_class_name": name}}
    alpha = from_diffusers(said, Theirs()).sde.schedule.alpha(torch.tensor([0.5, 1.0]).double())
    squares = [signal_of("linear")[k] for k in (499, 999)]
    torch.testing.assert_close(alpha**2, torch.tensor(squares).double())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ScoreSdeVeScheduler", {"sigma_min": 0.01, "sigma_max": 1348.0}),
        ("EDMEulerScheduler", {"sigma_data": 0.5, "prediction_type": "epsilon"}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
        ("CMStochasticIterativeScheduler", {"sigma_max": 80.0, "rho": 7.0}),
        (None, {"num_train_timesteps": 1000}),
    ],
)
def test_other_noise_is_not_read_as_that_of_ddpm(name, settings):
    scheduler = settings if name is None else {"_class_name": name, **settings}
    said = {"unet": {"sample_size": 4, "in_channels": 1}, "scheduler": scheduler}
    with pytest.raises(ValueError, match=f"scheduler: expected .*, got {name or 'only'}"):
        from_diffusers(said, Theirs())


def test_a_network_of_another_kind_is_not_read(tmp_path):
    """Refused before there is one: no library is asked."""
    folder = folder_of(tmp_path)
    for bad, message in (({"_class_name": "UNet2DConditionModel"}, "UNet2DModel, got UNet2DCond"),
                         ({"out_channels": 2}, "out_channels: expected 1, .* got 2")):  # fmt: skip
        about = {"sample_size": 4, "in_channels": 1, **bad}
        (folder / "unet/config.json").write_text(json.dumps(about))
        with pytest.raises(ValueError, match=message):
            from_diffusers(folder)
        from_diffusers(folder, Theirs())  # which may be it, wrapped


def test_files_may_lie_in_the_folder_itself(tmp_path):
    (folder_of(tmp_path) / "unet/config.json").rename(tmp_path / "config.json")
    (tmp_path / "scheduler/scheduler_config.json").rename(tmp_path / "scheduler_config.json")
    assert from_diffusers(tmp_path, Theirs()).sde.basis.event_shape == (1, 4, 6)
    (tmp_path / "config.json").unlink()
    wanted = r"expected unet/config.json, or config.json in the folder itself"
    with pytest.raises(FileNotFoundError, match=wanted):
        from_diffusers(tmp_path, Theirs())


VARIANCE, MEANS = 0.3, (-0.5, 0.8, 0.0)


class Exact(nn.Module):
    """What such a network learns of Gaussian pixels, of a mean for each label."""

    def __init__(self, prediction, variance=VARIANCE, means=None):
        super().__init__()
        self.prediction, self.variance, self.means = prediction, variance, means
        self.weight = nn.Parameter(torch.zeros(()))
        self.log_snr = torch.tensor(signal_of("linear"), dtype=torch.float64).logit()

    def forward(self, sample, timestep, class_labels=None):
        step = timestep.double().reshape(-1, 1, 1, 1)
        first = step.long().clamp(max=998)  # levels between two steps are what is between theirs
        log_snr = self.log_snr[first].lerp(self.log_snr[first + 1], step - first)
        alpha, sigma = (v.sigmoid().sqrt().to(sample) for v in (log_snr, -log_snr))
        mean = 0.0
        if self.means is not None:
            mean = torch.tensor(self.means).to(sample)[class_labels].reshape(-1, 1, 1, 1)
        spread = alpha**2 * self.variance + sigma**2
        noise = sigma * (sample - alpha * mean) / spread
        clean = mean + alpha * self.variance * (sample - alpha * mean) / spread
        match self.prediction:
            case "epsilon":
                return (noise,)
            case "sample":
                return (clean,)
        return (alpha * noise - sigma * clean,)


def exact(tmp_path, prediction, dtype, **options):
    folder = folder_of(tmp_path, prediction_type=prediction)
    return from_diffusers(folder, Exact(prediction, **options).to(dtype)).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_densities_and_bounds(tmp_path, prediction, dtype):
    """Of Gaussian data in closed form: what the noise of the first step makes of them."""
    model, generator = exact(tmp_path, prediction, dtype), torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, 4, 6, generator=generator, dtype=dtype) * VARIANCE**0.5
    alpha, sigma = model.sde.kernel(torch.tensor([model.sde.eps]).double())
    distribution = Normal(0.0, float(alpha**2 * VARIANCE + sigma**2) ** 0.5)
    wanted = distribution.log_prob(x.double()).flatten(1).sum(1)
    found = log_prob(model, x, ExponentialMultistep(64))
    torch.testing.assert_close(found.value.double(), wanted, rtol=0, atol=2e-3)
    known = Gaussian(model.sde, torch.zeros(1, 4, 6), VARIANCE * torch.eye(24)).to(dtype)
    with torch.no_grad():
        bounds = [bound(m, x, draws=4, generator=torch.Generator().manual_seed(1))
                  for m in (model, known)]  # fmt: skip
    # steps that are nearly whole are made so before their network hears them
    torch.testing.assert_close(*bounds, rtol=2e-4, atol=0)
    assert (-bounds[0].mean() < wanted.mean() + 0.5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_guidance(tmp_path, dtype):
    """Away from what the label that stands for none is told, by as much as is asked for."""
    model = exact(tmp_path, "epsilon", dtype, means=MEANS)
    guided = ClassifierFree(model, 2, guidance=3.0)
    x = torch.randn(4, 24, dtype=dtype, generator=torch.Generator().manual_seed(0))
    labels, t = torch.tensor([0, 1, 1, 0]), 0.4
    alpha, sigma = (v.to(x) for v in model.sde.kernel(torch.tensor([t]).double()))
    share = alpha**2 * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    none = share * x / alpha
    mean = torch.tensor(MEANS, dtype=dtype)[labels].unsqueeze(1)
    told = mean + share * (x - alpha * mean) / alpha
    wanted = none + 3.0 * (told - none)
    torch.testing.assert_close(guided.denoise(x, t, labels), wanted, rtol=1e-4, atol=1e-4)
    options = {"condition": torch.zeros(400, dtype=torch.int64), "generator": torch.manual_seed(0)}
    sample = ExponentialMultistep(40).sample(ClassifierFree(model, 2), (400,), **options)
    assert sample.mean() == pytest.approx(MEANS[0], abs=0.03)
    assert sample.var() == pytest.approx(VARIANCE, rel=0.06)


def test_what_the_files_say_without_files():
    """A network that is there already, and the configurations beside it."""
    said = {"unet": {"sample_size": 4, "in_channels": 1}, "scheduler": {"beta_schedule": "linear"}}
    assert from_diffusers(said, Theirs()).sde.basis.event_shape == (1, 4, 4)
    for bad, message in (({"unet": {}}, "folder: scheduler"), (3, "folder: expected"),
                         ({**said, "unet": {"sample_size": "a"}}, "in_channels")):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=message):
            from_diffusers(bad, Theirs())
    with pytest.raises(TypeError, match="folder: expected a PathLike"):
        from_diffusers(said)


def test_what_is_known_of_its_data(tmp_path):
    folder, known = folder_of(tmp_path), from_diffusers.facts
    assert known(folder) == {"event_shape": [1, 4, 6], "bins": 256}
    about = {"sample_size": 4, "in_channels": 3, "num_class_embeds": 2}
    (folder / "unet/config.json").write_text(json.dumps(about))
    assert known(folder)["classes"] == ["0", "1"]
    (folder / "model_index.json").write_text(json.dumps({"vqvae": ["diffusers", "VQModel"]}))
    assert known(folder)["bins"] is None, "latents have no shades"
