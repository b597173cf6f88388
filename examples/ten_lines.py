"""Ten lines from data to samples and likelihoods; replace any of them by your own."""

from estimators import Denoising, ResidualMLP, measure
from scoresde import Cosine, DiagonalSDE, Haar, log_prob
from scoresde.data import load, split
from scoresde.data.events import events
from scoresde.training import Training
from solvers import ExponentialMultistep

train, held_out = split(load("digits"), 0.8)
sde = DiagonalSDE(Cosine(), Haar((1, 8, 8), levels=3), speeds=[1.0, 1.1, 1.25, 1.5])
network = ResidualMLP((1, 8, 8), width=128)
model = Denoising(sde, network, **measure(sde, events(train)))
Training(steps=200).fit(model, train)
solver = ExponentialMultistep(steps=16)
images = solver.sample(model, (16,))
nats = log_prob(model, events(held_out)[:16], solver).value
print(f"{len(images)} images; {nats.mean():.1f} nats per held-out digit")
