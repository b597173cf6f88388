"""A training run between two updates: all that the rest of it depends on."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from scoresde.checks import expect
from scoresde.data import Dataset
from scoresde.data.events import events, some
from scoresde.estimator import ScoreEstimator
from scoresde.noise import Generators
from scoresde.training import checkpoint
from scoresde.training.about import About
from scoresde.training.distributed import Processes, average_over, share
from scoresde.training.history import History, OnMeasure
from scoresde.training.settings import PRECISIONS, Settings
from scoresde.training.streams import Stream
from scoresde.wrappers import matched

_WRITTEN = ("step", "steps", "losses", "measured", "best", "recent", "seconds")

_TRIED = 512
"""Among so many events the one whose loss is not finite is looked for."""


@attrs.define(eq=False)
class Run:
    """What goes on while an estimator is trained; `scoresde.training.Training.fit` drives it.

    Attributes:
        stream: Of what draws from torch's global generators, dropout above all.
        average: Moving averages of the weights, by name.
        whole: Whether it is between two updates, and the estimator has its own weights.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import VP, DiagonalSDE, Identity
        >>> from scoresde.data import Dataset
        >>> from scoresde.training.distributed import SINGLE_PROCESS
        >>> from scoresde.training.run import Run
        >>> from scoresde.training.settings import Settings
        >>> model = Denoising(DiagonalSDE(VP(), Identity((2,))), ResidualMLP((2,), 8, 1))
        >>> run = Run.new(Settings(steps=2), model, seed=0, processes=SINGLE_PROCESS)
        >>> run.update(Dataset("mine", torch.randn(10, 2)))
        False
        >>> run.step, run.over
        (1, False)
    """

    training: Settings
    estimator: ScoreEstimator
    seed: int
    processes: Processes
    generator: torch.Generator
    stream: Stream
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device
    dtype: torch.dtype
    average: dict[str, Tensor]
    step: int = 0
    steps: list[int] = attrs.field(factory=list)
    losses: list[float] = attrs.field(factory=list)
    measured: list[float] = attrs.field(factory=list)
    best: int = 0
    recent: float = 0.0
    seconds: float = 0.0
    kept: dict[str, Tensor] = attrs.field(factory=dict)
    whole: bool = True

    @classmethod
    def new(
        cls, training: Settings, estimator: ScoreEstimator, seed: int, processes: Processes
    ) -> Run:
        """A run before its first update."""
        weights = list(estimator.parameters())
        expect(len(weights) > 0, "estimator", "weights to train", type(estimator).__name__)
        device, floating = weights[0].device, [p.dtype for p in weights if p.is_floating_point()]
        return cls(
            training,
            estimator,
            seed,
            processes,
            torch.Generator("cpu").manual_seed(seed),
            Stream(seed, processes.process_index, device),
            torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.weight_decay),
            torch.amp.GradScaler(device.type, enabled=training.precision == "float16"),
            device,
            # formulas around networks of less precision stay in single precision
            torch.promote_types(floating[0], torch.float32),
            {name: p.detach().clone() for name, p in estimator.named_parameters()},
        )

    def check(self) -> None:
        """Whether the processes can go on together."""
        size, several = self.training.batch_size, self.processes.num_processes
        expect(size % several == 0, "batch_size", f"a multiple of {several} processes", size)
        own = self.processes.mixed_precision
        expect(own == "no", "processes", "mixed_precision 'no', as Training has its own", own)
        weights = sum(float(p.detach().double().sum()) for p in self.estimator.parameters())
        found = self._gathered(
            torch.tensor([weights, self.step], dtype=torch.float64, device="cpu")
        )
        expect(
            torch.allclose(found, found[0].expand_as(found), rtol=1e-6, equal_nan=True),
            "processes",
            "the same weights on all, and a folder that all of them see",
            f"sums of weights and steps {found.tolist()}",
        )

    def check_alike(self, about: About) -> None:
        """Whether the processes have been called with the same arguments."""
        own = about.digests()
        found = self._gathered(torch.tensor(list(own.values()), dtype=torch.int64, device="cpu"))
        unlike = [n for n, same in zip(own, (found == found[0]).all(0), strict=True) if not same]
        expect(
            not unlike,
            "processes",
            f"the same {', '.join(unlike)} on all",
            ", ".join(str(about.entries.get(name, "others")) for name in unlike),
        )

    @property
    def stopped(self) -> bool:
        """Whether patience has ended."""
        patience = self.training.patience
        return patience is not None and sum(s > self.best for s in self.steps) >= patience

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.stopped or self.step >= self.training.steps

    @property
    def due(self) -> bool:
        """Whether a measurement is, which has not been made."""
        every = max(1, self.training.steps // self.training.measurements)
        now = self.step > 0 and (self.step % every == 0 or self.step >= self.training.steps)
        return now and self.step not in self.steps[-1:]

    @property
    def history(self) -> History:
        """What it has seen."""
        best = self.best or self.step
        return History(
            [*self.steps], [*self.losses], [*self.measured], best, self.seconds, self.stopped
        )

    def loss(self, data: Dataset, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Of this process's part of some events."""
        return self._loss(data, *share(rows, generator, self.processes))

    def _loss(self, data: Dataset, rows: Tensor, generator: Generators) -> Tensor:
        x = events(data, generator, rows).to(self.device, self.dtype)
        kind = PRECISIONS[self.training.precision]
        with torch.autocast(self.device.type, kind, enabled=kind is not None):
            return self.estimator.loss(x, generator=generator)

    def update(self, data: Dataset, asked: bool = False) -> bool:
        """One update, and whether any process has been asked to end."""
        self.whole = False
        with self.stream.in_place():
            for group in self.optimizer.param_groups:
                group["lr"] = self.training.lr * self.training.rate(self.step)
            self.optimizer.zero_grad()
            size = (self.training.batch_size,)
            rows = torch.randint(len(data), size, generator=self.generator, device="cpu")
            loss = self.loss(data, rows, self.generator)
            self.scaler.scale(loss).backward()
        loss = loss.detach()
        end = torch.full_like(loss, float(asked))
        gradients = [p.grad for p in self.estimator.parameters() if p.grad is not None]
        average_over(self.processes, [*gradients, loss, end])
        self._expect_finite(f"the loss is {float(loss)} at step {self.step + 1}", loss, data, rows)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.estimator.parameters(), self.training.clip)
        if not (self.scaler.is_enabled() or math.isfinite(norm)):  # that one leaves the step out
            raise FloatingPointError(f"the gradient's norm is {norm} at step {self.step + 1}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        for name, weight in self.estimator.named_parameters():
            now, before = weight.detach(), self.average[name]
            before.copy_(self.training.averaged(before, now, self.step) if self.step else now)
        self.step += 1
        self.recent += float(loss)
        self.whole = True
        return asked if self.processes.num_processes == 1 else bool(end > 0)

    def measure(
        self, data: Dataset, held_out: Dataset | None, on_measure: OnMeasure | None
    ) -> None:
        """The held-out loss of the averaged weights, which are kept if it is the lowest."""
        with self._averaged():
            # without events to measure: whether the weights that are kept say anything
            found = self.held_out_loss(data if held_out is None else held_out, held_out is not None)
            self.losses.append(self.recent / (self.step - (self.steps[-1] if self.steps else 0)))
            self.steps.append(self.step)
            self.recent = 0.0
            if held_out is not None:
                self.measured.append(found)
                if found < min(self.measured[:-1], default=math.inf):
                    self.best, state = self.step, self.estimator.state_dict()
                    self.kept = {name: value.clone() for name, value in state.items()}
            if on_measure is not None:
                on_measure(self.step, self.estimator, self.history)

    @torch.no_grad()
    def held_out_loss(self, data: Dataset, all_events: bool = True) -> float:
        """With the same events, times and noise at every call; of one batch only if told so."""
        generator, batch = torch.Generator("cpu").manual_seed(self.seed), self.training.batch_size
        # few events are repeated with other noise, many are not all needed
        count = batch * max(1, 4096 // batch) if all_events else batch
        rows = torch.arange(count, device="cpu") % len(data)
        parts = rows.split(batch * max(1, some(data) // batch))
        with Stream(self.seed, device=self.device).in_place():
            losses = [self.loss(data, part, generator) * len(part) for part in parts]
        mean = torch.stack(losses).sum() / len(rows)
        average_over(self.processes, [mean])
        of = "the held-out loss" if all_events else "the loss of the averaged weights"
        self._expect_finite(f"{of} is {float(mean)} after step {self.step}", mean, data, rows)
        return float(mean)

    @torch.no_grad()
    def _expect_finite(self, said: str, loss: Tensor, data: Dataset, rows: Tensor) -> None:
        """Raises ``FloatingPointError`` that names the first event whose own loss is not finite."""
        if math.isfinite(loss):
            return
        self.estimator.eval()
        for row in rows.unique(sorted=True)[:_TRIED]:
            generator = torch.Generator("cpu").manual_seed(self.seed)
            if not math.isfinite(self._loss(data, row.unsqueeze(0), generator)):
                said = f"{said}, as that of event {int(row)} of {data.name} is by itself"
                if bool(data.read(row.unsqueeze(0)).isnan().any()):
                    said += ", of which values are missing: only estimators with observe= take such"
                break
        raise FloatingPointError(said)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The estimator with its averaged weights, inside."""
        own = {name: value.clone() for name, value in self.estimator.state_dict().items()}
        self.whole = False
        self._take_average()
        self.estimator.eval()
        try:
            yield
        finally:
            self.estimator.load_state_dict(own)
            self.estimator.train()
            self.whole = True

    @torch.no_grad()
    def _take_average(self) -> None:
        for name, weight in self.estimator.named_parameters():
            weight.copy_(self.average[name])

    def _gathered(self, own: Tensor) -> Tensor:
        """What every process has of its own, ``(processes, ...)``, on the CPU."""
        return self.processes.gather(own.unsqueeze(0).to(self.processes.device)).cpu()

    def end(self) -> None:
        """Leaves the estimator with the weights to keep."""
        if self.kept:
            self.estimator.load_state_dict(self.kept)
        else:
            self._take_average()
        self.estimator.eval()

    def save(self, write: checkpoint.Write, about: About) -> None:
        """Writes it, by the first of the processes.

        Raises:
            FloatingPointError: If a weight is not finite; nothing is written then.
        """
        for name, weight in (*self.estimator.named_parameters(), *self.average.items()):
            if not bool(weight.isfinite().all()):
                raise FloatingPointError(f"{name} is not finite after step {self.step}")
        state = self.optimizer.state_dict()["state"]
        tensors = {
            **{f"model.{k}": v for k, v in self.estimator.state_dict().items()},
            **{f"average.{k}": v for k, v in self.average.items()},
            **{f"kept.{k}": v for k, v in self.kept.items()},
            **{f"optimizer.{i}.{k}": v for i, own in state.items() for k, v in own.items()},
            "generator": self.generator.get_state(),
            **{f"stream.{k}": self._gathered(v) for k, v in self.stream.states.items()},
        }
        about.note(self.estimator)
        written = {name: getattr(self, name) for name in _WRITTEN}
        written |= {"about": attrs.asdict(about, value_serializer=_listed)}
        written |= {"scaler": self.scaler.state_dict(), "over": self.over}
        if self.processes.is_main_process:
            write(tensors, written)
        self.processes.wait_for_everyone()  # none reads before it is written

    def restore(self, folder: str | os.PathLike[str], about: About) -> None:
        """Takes up what `save` has written, if it is of the same.

        Raises:
            CheckpointError: If it is damaged, or no run.
            OtherRun: If it is of something else; the message names what.
        """
        tensors, content = checkpoint.load(folder)
        match content.get("about"):
            case {"entries": dict(entries), "moved": list(moved), "settings": settings}:
                written = About(entries, set(moved), settings)
            case _:
                expected = "expected a run that says what it is of, got none, or an older one"
                raise checkpoint.CheckpointError(f"{folder}: {expected}")
        written.refuse(about, folder)
        about.moved |= written.moved
        # as long as it is not extended: what was built then stays so
        try:
            self._take(tensors, content)
        except (KeyError, RuntimeError, ValueError) as error:
            raise checkpoint.CheckpointError(
                f"{folder}: not a run of this model: {error}"
            ) from error

    def _take(self, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            start = f"{prefix}."
            return {k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)}

        optimizer: dict[int, dict[str, Tensor]] = {}
        for name, value in part("optimizer").items():
            index, key = name.split(".")
            optimizer.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.estimator.load_state_dict(part("model"))
        for name, value in matched(part("average"), self.average).items():
            self.average[name].copy_(value)
        self.optimizer.load_state_dict({"state": optimizer, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.scaler.load_state_dict(content["scaler"])
        for kind, states in part("stream").items():
            if kind in self.stream.states:
                # more processes than wrote it share what there is
                own = states[self.processes.process_index % len(states)]
                self.stream.states[kind] = own.clone()  # a view crashes torch
        for name in _WRITTEN:
            setattr(self, name, content[name])
        self.kept = part("kept")


def _listed(_: object, __: object, value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else value
