"""The diffusers library itself: its U-Nets by name, and pipelines that it has written."""

import sys

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from test_unet import SMALL, learned

from estimators import Denoising, DiffusersUNet, UNet, from_diffusers
from scoresde import Cosine, DiagonalSDE, Identity, Noise, ReverseSDE
from scoresde.testing import NetworkLaws
from solvers import DDIM


class TestImages(NetworkLaws):
    event_shape = (3, 10, 7)

    def make(self):
        return learned(DiffusersUNet(self.event_shape, **SMALL))


class TestSignals(NetworkLaws):
    event_shape = (9,)

    def make(self):
        return learned(DiffusersUNet(self.event_shape, **SMALL, attention=0))


class TestVectors(NetworkLaws):
    event_shape = (1, 8, 8)

    def make(self):
        return learned(DiffusersUNet(self.event_shape, **SMALL, condition_dim=2))

    def condition(self, batch):
        return torch.randn(batch, 2, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_hears_of_noise_labels_and_far_pixels(dtype):
    network = learned(DiffusersUNet((1, 16, 16), **SMALL, classes=2)).to(dtype)
    x = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    zero, first, none = torch.zeros(1, dtype=dtype), torch.tensor([0]), torch.tensor([2])
    far = x.clone().requires_grad_()
    out = network(far, zero, first)
    out[0, 0, 0, 0].backward()
    assert far.grad[0, 0, -1, -1] != 0  # by attention
    for other in (network(x, zero + 1, first), network(x, zero, none)):
        assert not torch.allclose(out, other, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("attention", [0, 4, 8])
def test_it_is_the_other_library_s_network_by_another_hand(attention):
    """As many weights, and attention where that has it."""
    options = {"channels": [8, 16, 32], "blocks": 2, "attention": attention, "classes": 3}
    sizes = []
    for make in (UNet, DiffusersUNet):
        network = make((3, 16, 16), **options)
        sizes.append(sorted(p.shape.numel() for p in network.parameters()))
        assert not network(torch.ones(2, 3, 16, 16), torch.zeros(2), torch.tensor([0, 3])).any()
    assert sizes[0] == sizes[1]


def test_it_is_trained():
    model = Denoising(DiagonalSDE(Cosine(), Identity((1, 8, 8))), DiffusersUNet((1, 8, 8), **SMALL))
    model.loss(torch.randn(4, 1, 8, 8)).backward()
    assert model.network.body.conv_out.weight.grad.any()


def test_volumes_are_refused():
    with pytest.raises(ValueError, match="spatial: expected 1 or 2 axes"):
        DiffusersUNet((1, 4, 4, 4), **SMALL, spatial=3)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'scoresde\[diffusers\]'"):
        DiffusersUNet((1, 8, 8))


def theirs():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        num_class_embeds=3,
    )


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    """Of a network in the folder itself, as the hub has some."""
    network = theirs()
    network.save_pretrained(tmp_path, safe_serialization=False)
    DDPMScheduler().save_pretrained(tmp_path)
    found = from_diffusers(tmp_path).network.network.state_dict()
    assert all(torch.equal(found[name], w) for name, w in network.state_dict().items())
    path = tmp_path / "diffusion_pytorch_model.bin"
    kept = {k: w for k, w in torch.load(path).items() if not k.startswith("conv_in")}
    torch.save(kept, path)
    with pytest.raises(ValueError, match=r"expected all weights .* none of conv_in.bias, conv_in"):
        from_diffusers(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_pipeline_that_the_library_wrote(tmp_path, dtype):
    """Our steps of it are those of its own scheduler."""
    network = theirs()
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    model = from_diffusers(tmp_path).to(dtype)
    scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler", clip_sample=False)
    scheduler.set_timesteps(5)
    start, labels = torch.randn(2, 1, 8, 8, dtype=dtype), torch.tensor([0, 2])
    x, network = start, network.to(dtype).eval()
    with torch.no_grad():
        for step in scheduler.timesteps:
            x = scheduler.step(network(x, step, labels).sample, step, x, eta=0.0).prev_sample
        times = torch.tensor([(int(k) + 1) / 1000 for k in scheduler.timesteps]).double()
        z = DDIM().integrate(ReverseSDE(model, 0.0, labels), start.flatten(1), -times, Noise())
        z = model.denoise(z, float(times[-1]), labels).reshape_as(x)
    torch.testing.assert_close(z, x, rtol=0, atol=1e-3 * float(x.abs().max()))
