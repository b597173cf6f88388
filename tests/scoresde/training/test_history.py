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
        for name in ("losses", "held_out", "lr"):
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
    assert [step for _, _, step in whole.seen] == [2] * 3 + [4] * 3 + [6] * 3 + [8] * 3
    assert (resumed.losses, resumed.held_out, resumed.lr) == (
        history.losses,
        history.held_out,
        history.lr,
    )


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
