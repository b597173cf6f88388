"""A probability flow together with the integrals of its divergence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import Self

from scoresde.bases import Identity
from scoresde.blocks import Blocks
from scoresde.equation import AugmentedEquation, Coefficients, Field, Forcing
from scoresde.internals.derivatives import vjp
from scoresde.internals.modes import evaluation_mode
from scoresde.likelihood.traces import Trace
from scoresde.precision import shallow_copy
from scoresde.propagator import Propagator
from scoresde.reverse import ProbabilityFlow
from scoresde.sdes.sde_coefficients import ReverseCoefficients


class DensityFlow(AugmentedEquation):
    """A probability flow that carries the integrals of its divergence, by component.

    The state is ``(z, l)``, ``(*batch, n + estimates n)``, with ``dl_i/dt = dv_i/dz_i``. A solver
    that takes steps in log-SNR integrates each ``l_i`` over its own component's, where it is
    smooth for any schedule.

    Args:
        flow: The flow.
        trace: How divergences are found.
        probes: The trace's probes.
        checkpointing: Whether gradients evaluate the score again instead of storing it.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, ExactTrace, Identity, Noise, ProbabilityFlow
        >>> from scoresde.likelihood import DensityFlow
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> probes = ExactTrace().draw(torch.zeros(1, 2), Noise())
        >>> density = DensityFlow(ProbabilityFlow(model), ExactTrace(), probes)
        >>> y = torch.tensor([[1.0, 1.0, 0.0, 0.0]])  # a state, and two integrals
        >>> velocity = density.f(torch.tensor(0.5), y)
        >>> torch.allclose(velocity[:, :2], velocity[:, 2:])  # linear in z, and z is 1
        True
    """

    def __init__(
        self, flow: ProbabilityFlow, trace: Trace, probes: Tensor, checkpointing: bool = False
    ) -> None:
        super().__init__(Identity((flow.dim * (1 + trace.estimates),)), flow.T, flow.eps)
        self.flow, self.trace, self.probes = flow, trace, probes
        self.checkpointing, self._count = checkpointing, [0]  # shared with what is selected of it
        self.error = probes.new_full((), torch.nan)
        """What a method says of its own error in the integrals, ``(*batch,)``."""

    @property
    def evaluated(self) -> int:
        """At how many states the score has been evaluated."""
        return self._count[0]

    @property
    def stochastic(self) -> bool:
        """No."""
        return False

    @property
    def span(self) -> tuple[float, float]:
        """The flow's."""
        return self.flow.span

    def layout(self, dim: int) -> Blocks:
        """The flow's, once for the state and once for every estimate."""
        copies = 1 + self.trace.estimates
        return self.flow.layout(dim // copies).repeated(copies)

    def select(self, rows: Tensor, batch: Sequence[int]) -> Self:
        """The flow of some samples, with their probes."""
        flow, probes = self.flow.select(rows, batch), self.trace.select(self.probes, rows)
        return shallow_copy(self, flow=flow, probes=probes)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """``(v, dv_i/dz_i)``."""
        return self.field(t, y).drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(y)

    def at(self, t: Tensor, like: Tensor) -> DensityCoefficients:
        """See `scoresde.equation.Equation.at`."""
        return DensityCoefficients(self, self.flow.at(t, self.state(like)), like)

    def breakpoints(self) -> list[float]:
        """The flow's."""
        return self.flow.breakpoints()

    def evaluate(self, forcing: Forcing, z: Tensor) -> tuple[Tensor, Tensor]:
        """The forcing ``F`` of the flow, and ``dF_i/dz_i``, ``(*batch, estimates, n)``."""
        self._count[0] += z.shape[:-1].numel()

        def both(z: Tensor) -> tuple[Tensor, Tensor]:
            value, pull_back = vjp(forcing, z, self._known())
            return value, self.trace(pull_back, z, self.probes)

        if not (self.checkpointing and torch.is_grad_enabled()):
            return both(z)

        def again(z: Tensor) -> tuple[Tensor, Tensor]:
            with evaluation_mode(
                self.flow.estimator
            ):  # gradients may come when nobody asks any more
                return both(z)

        value, diagonal = _Again.apply(again, z, *self._known())  # type: ignore[no-untyped-call]
        return value, diagonal

    def start(self, z: Tensor) -> Tensor:
        """The state at a ``z``, with nothing integrated yet."""
        return torch.cat([z, z.new_zeros(*z.shape[:-1], self.trace.estimates * z.shape[-1])], -1)

    def split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and the integrals of the divergence, ``(*batch, estimates)``."""
        z = self.state(y)
        integrals = y[..., z.shape[-1] :].unflatten(-1, (self.trace.estimates, z.shape[-1]))
        return z, integrals.sum(-1)

    def state(self, y: Tensor) -> Tensor:
        """The ``z`` of a state with its integrals."""
        return y[..., : y.shape[-1] // (1 + self.trace.estimates)]

    def _known(self) -> Iterator[Tensor]:
        """Tensors besides the state that gradients are wanted of."""
        model = self.flow.estimator
        inputs = (*model.parameters(), *model.buffers(), *tree_leaves(self.flow.condition))
        yield from (v for v in inputs if isinstance(v, Tensor) and v.requires_grad)


class DensityCoefficients(Coefficients):
    """Coefficients of a `DensityFlow` at several times.

    Args:
        density: The flow with its integrals.
        flow: What the flow says of them.
        like: A state with its integrals.
    """

    def __init__(self, density: DensityFlow, flow: ReverseCoefficients, like: Tensor) -> None:
        super().__init__(flow.t, like, density.layout(like.shape[-1]))
        self.density, self.flow = density, flow

    def __getitem__(self, index: Any) -> Self:
        return type(self)(self.density, self.flow[index], self.like)

    @property
    def noise_level(self) -> Tensor:
        """The flow's."""
        return self.flow.noise_level

    def propagator(self, end: DensityCoefficients) -> Propagator:
        """The flow's; an integral's only part is its forcing, over the same ``h``."""
        blocks, copies = self.flow.blocks, self.density.trace.estimates
        ahead = self.flow.propagator(end.flow)
        known = blocks.broadcastable(*ahead[:4], *ahead.moments, ahead.cubic)
        width = max(len(blocks), *(v.shape[-1] for v in known))
        step = [v.expand(*v.shape[:-1], width) for v in known]
        h, none = step[2], torch.zeros_like(step[2])
        alone = (torch.ones_like(h), h, h, none, none + 1 / 2, none + 1 / 3, none + 1 / 4)
        pairs = zip(step, alone, strict=True)
        decay, gain, h, damping, *means = (torch.cat([a, *[b] * copies], -1) for a, b in pairs)
        return Propagator(decay, gain, h, damping, None, *means)

    def fields(self) -> Iterator[Field]:
        """The forcing of an integral is ``dl_i/dh_i``, which goes on where a clock stops."""
        flow = self.flow
        by_length, by_time = (
            zip(*flow.each(*values), strict=True)
            for values in (
                (flow.slope_by_length, flow.response_by_length),
                (flow.slope, flow.response),
            )
        )
        for field, length, time in zip(flow.fields(), by_length, by_time, strict=True):
            forcing, drift = (
                partial(self._forcing, field, *length),
                partial(self._drift, field, *time),
            )
            yield Field(forcing, field.increment, drift, torch.zeros_like)

    def _forcing(self, field: Field, slope: Tensor, response: Tensor, y: Tensor) -> Tensor:
        forcing, growth = self._growth(field, slope, response, self.density.state(y))
        return torch.cat([forcing, growth.flatten(-2)], -1)

    def _drift(self, field: Field, slope: Tensor, response: Tensor, y: Tensor) -> Tensor:
        z = self.density.state(y)
        forcing, growth = self._growth(field, slope, response, z)
        velocity = torch.addcmul(slope * z, response, forcing)
        return torch.cat([velocity, growth.flatten(-2)], -1)

    def _growth(
        self, field: Field, slope: Tensor, response: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The forcing, and ``dv_i/dz_i``, by time or by length: the drift is affine in it."""
        forcing, diagonal = self.density.evaluate(field.forcing, z)
        return forcing, slope.unsqueeze(-2) + response.unsqueeze(-2) * diagonal


class _Again(torch.autograd.Function):
    """A function of a state, and of tensors that it knows, evaluated anew for its gradient.

    What `torch.utils.checkpoint` does, which does not go with `torch.func`.
    """

    @staticmethod
    def forward(ctx: Any, function: Any, z: Tensor, *known: Tensor) -> Any:
        ctx.function, ctx.known = function, known
        ctx.save_for_backward(z)
        return function(z)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        with torch.enable_grad():
            z = ctx.saved_tensors[0].detach().requires_grad_()
            values = ctx.function(z)
            # steps share what was prepared for all of them
            gradients = torch.autograd.grad(
                values, [z, *ctx.known], slopes, allow_unused=True, retain_graph=True
            )
        return None, *gradients
