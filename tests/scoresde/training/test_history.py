"""What a run has measured, for whoever wants to keep it."""

import pytest
import torch
from runs import DATA, Stop, model

from scoresde.training import Training


class SummaryWriter:
    """What TensorBoard's does, in a list."""

    def __init__(self):
        self.seen = []

    def add_scalar(self, tag, value, step):
        self.seen.append((tag, value, step))


def logged(writer, training, stop=None, **options):
    def log(step, estimator, history):
        for name in ("losses", "held_out", "lr", "norms"):
            writer.add_scalar(name, getattr(history, name)[-1], step)

    def on_step(step):
        if step == stop:
            raise Stop

    options |= {"progress": False, "on_measure": log, "on_step": on_step}
    return training.fit(model(), DATA, DATA.subset("held_out", torch.arange(9)), **options)


def test_a_logger_is_a_callback_of_three_lines(tmp_path):
    """Of a run that was resumed it hears the same, each measurement at its step."""
    training = Training(steps=8, batch_size=16, measurements=4)
    whole, parts = SummaryWriter(), SummaryWriter()
    history = logged(whole, training)
    with pytest.raises(Stop):
        logged(parts, training, stop=5, folder=tmp_path, save_every=4)
    resumed = logged(parts, training, folder=tmp_path, save_every=4)
    assert whole.seen == parts.seen
    assert [step for _, _, step in whole.seen] == [2] * 4 + [4] * 4 + [6] * 4 + [8] * 4
    names = ("losses", "held_out", "lr", "norms")
    assert [getattr(resumed, n) for n in names] == [getattr(history, n) for n in names]


def test_the_rate_is_that_of_the_last_update():
    training, rates = Training(steps=6, batch_size=16, measurements=3, lr=0.1, warmup=0.5), []
    real = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        rates.append(self.param_groups[0]["lr"])
        return real(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        history = training.fit(model(), DATA, progress=False)
    assert history.steps == [2, 4, 6]
    assert history.lr == [rates[1], rates[3], rates[5]]
    assert history.lr[0] == pytest.approx(0.1 * 2 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_are_means_of_those_before_clipping(dtype):
    norms, real = [], torch.nn.utils.clip_grad_norm_

    def clip(weights, largest):
        weights = [*weights]
        squares = sum(float(w.grad.double().square().sum()) for w in weights)
        norms.append(squares**0.5)
        return real(weights, largest)

    training = Training(steps=5, batch_size=16, measurements=2, clip=0.01)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
        history = training.fit(model().to(dtype), DATA, progress=False)
    assert min(norms) > 0.01
    means = [sum(norms[:2]) / 2, sum(norms[2:4]) / 2, norms[4]]
    assert history.norms == pytest.approx(means, rel=1e-5)
