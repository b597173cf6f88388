"""Settings of the training loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from scoresde.checks import choice, expect, positive, real, validator, whole
from scoresde.training.precisions import AUTO, PRECISIONS

PRESETS: dict[str, dict[str, Any]] = {
    "images": {
        "steps": 20_000,
        "batch_size": 32,
        "lr": 2e-3,
        "ema": 0.999,
        "clip": 1.0,
        "precision": AUTO,
    }
}
"""Settings by the name of what they are for. Those of images are what the benchmark ``trained`` was
won with, where networks see few events: small batches, and a rate as large as they bear."""

_MEASURED, _FEWEST, _MOST = 0.1, 256, 4096
"""Share of a training's time that measurements take, and events of one. A mean of 4,096 has an
error of a 64th of the deviation of one of them, so that the lowest of ten is hardly so by chance;
one of 256 has that of a 16th, which a training as short as that moves by more."""

_LARGEST_BATCH = 2**20
"""Events per update, all in memory at once: more is a slip."""

_MOST_WORKERS = 1024
"""Of processes that read: more is a slip."""

_LARGEST = 1e30
"""Of rates and norms, which have to be numbers in single precision, and their squares in double."""


@attrs.frozen(kw_only=True)
class TrainingSettings:
    """AdamW with warm-up, cosine decay and averaging.

    Source:
        Loshchilov and Hutter 2019 (arXiv 1711.05101) for AdamW, 2017 (1608.03983) for the decay;
        Polyak and Juditsky 1992 for averaging.

    Args:
        steps: Number of updates.
        batch_size: Events per update, of all processes together.
        lr: Largest learning rate.
        warmup: Share of the steps over which the rate rises.
        weight_decay: Of AdamW.
        clip: Largest norm of the gradient.
        ema: Decay of the exponential moving average of the weights, per update; smaller among
            the first updates, so that the average forgets the untrained weights.
        snapshots: How often averages of two widths are written beside the run, from which
            `scoresde.training.post_hoc.PostHocAverages` makes averages of any width afterwards; 0
            for never.
        measurements: How often the held-out loss is measured.
        measured_events: Events, with times and noises, of which a held-out loss is the mean; they
            are repeated where there are fewer. If None, as many as let all measurements take a
            tenth of the time that updates take: from 256 to 4,096.
        precision: Of the networks' products: ``"float32"``, that of the weights; ``"tf32"``, single
            precision with products of 10 bits, on devices that have it; ``"bfloat16"``;
            ``"float16"``; or ``"auto"``, bfloat16 on devices with instructions for it, as far as
            torch tells, and float32 on others. Weights, their average and all formulas around the
            network are not affected; gradients in float16 are scaled against underflow.
        accumulation: Number of parts in which the gradient of a batch is computed, for batches that
            do not fit in memory: the same up to the order of summation.
        compile: Whether networks are compiled by `torch.compile` for updates.
        capture: Whether a CUDA device computes the gradient of a batch by a CUDA graph that is
            captured once, which saves the launches of small kernels; ignored elsewhere. For one
            process and whole batches; what a loss depends on besides weights and buffers is as it
            was at the first update.
        channels_last: Whether weights of convolutions over images are stored as
            ``torch.channels_last``, which is faster on tensor cores.
        workers: Processes that read ahead data that stay on the disk. They affect only the speed.
            If None, as many as there are processors to spare, where an accelerator trains.
        patience: After how many measurements without a lower held-out loss to stop; never if None.

    Raises:
        ValueError: If a number is out of its range, a count is not whole or more than 2**31 (a
            batch 2**20 events), or the precision unknown.

    Example:
        >>> from scoresde.training.settings import TrainingSettings
        >>> TrainingSettings(steps=100, warmup=0.1).lr_factor(4)  # half of the largest rate
        0.5
    """

    references = "loshchilov2019 polyak1992"

    steps: int = attrs.field(default=2000, validator=validator(whole, 1))
    batch_size: int = attrs.field(default=128, validator=validator(whole, 1, _LARGEST_BATCH))
    lr: float = attrs.field(
        default=1e-3, validator=[validator(real, 0, _LARGEST), validator(positive)]
    )
    warmup: float = attrs.field(default=0.1, validator=validator(real, 0, 1))
    weight_decay: float = attrs.field(default=0.01, validator=validator(real, 0, _LARGEST))
    clip: float = attrs.field(
        default=1.0, validator=[validator(real, 0, _LARGEST), validator(positive)]
    )
    ema: float = attrs.field(default=0.998, validator=validator(real, 0, 1))
    snapshots: int = attrs.field(default=0, validator=validator(whole, 0))
    measurements: int = attrs.field(default=10, validator=validator(whole, 1))
    measured_events: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(validator(whole, 1))
    )
    precision: str = attrs.field(default="float32", validator=validator(choice, AUTO, *PRECISIONS))
    accumulation: int = attrs.field(default=1, validator=validator(whole, 1))
    compile: bool = attrs.field(default=False, validator=validator(choice, False, True))
    capture: bool = attrs.field(default=False, validator=validator(choice, False, True))
    channels_last: bool = attrs.field(default=False, validator=validator(choice, False, True))
    workers: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(validator(whole, 0, _MOST_WORKERS))
    )
    patience: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(validator(whole, 1))
    )

    def __attrs_post_init__(self) -> None:
        size, parts = self.batch_size, self.accumulation
        expect(size % parts == 0, "batch_size", f"a multiple of accumulation, {parts}", size)
        expect(
            not (self.capture and parts > 1),
            "accumulation",
            "1, as capture takes whole batches",
            parts,
        )
        for name in ("ema", "warmup"):
            expect(getattr(self, name) < 1, name, "a number below 1", getattr(self, name))

    @property
    def of_the_result(self) -> dict[str, Any]:
        """Settings on which the result depends, by name: all but ``workers``."""
        values = attrs.asdict(self).items()
        return {f"training.{name}": value for name, value in values if name != "workers"}

    @property
    def held_out_count(self) -> int:
        """Events of a measurement, in whole batches: one at least."""
        wanted = self.measured_events
        if wanted is None:
            # an update goes through a network three times, forward once and back for two
            share = _MEASURED * 3 * self.steps * self.batch_size / self.measurements
            wanted = min(max(int(share), _FEWEST), _MOST)
        return self.batch_size * max(1, wanted // self.batch_size)

    def lr_factor(self, step: int) -> float:
        """The learning rate at a step over ``lr``: linear up to 1, then half a cosine down to 0."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

    def ema_decay(self, count: int) -> float:
        """The decay of the weights' moving average, ``count`` updates after the first."""
        # (1 + n)/(10 + n) forgets untrained weights: the average is of about the last ninth of n
        return min(self.ema, (1 + count) / (10 + count)) if count else 0.0


def expanded(options: str | Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file, with those of the preset that it names.

    Raises:
        ValueError: If the name is unknown.
    """
    given = {"preset": options} if isinstance(options, str) else dict(options)
    if "preset" not in given:
        return given
    name = given.pop("preset")
    choice("training.preset", name, *PRESETS)
    return PRESETS[name] | given
