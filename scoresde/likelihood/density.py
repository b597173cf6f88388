"""A probability flow that carries its log-density along."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from scoresde.derivatives import vjp
from scoresde.likelihood.traces import Trace
from scoresde.modes import asked
from scoresde.precision import replaced
from scoresde.reverse import ProbabilityFlow
from scoresde.sde import SDE, Forcing, Propagator


class DensityFlow(SDE):
    """A probability flow that carries the integrals of its divergence, by component.

    The state is ``(z, l)``, ``(*batch, n + estimates n)``, with ``dl_i/dt = dv_i/dz_i``. A
    solver that knows of steps in log-SNR integrates each ``l_i`` over its own component's,
    where it is smooth, whatever the schedule.

    Args:
        flow: The flow.
        trace: How divergences are found.
        probes: The trace's probes.
        checkpointing: Whether gradients evaluate the score a second time rather than remember the
            first.

    Example:
        >>> import torch
        >>> from estimators import Gaussian
        >>> from scoresde import VP, DiagonalSDE, Identity, Noise
        >>> from scoresde.likelihood import DensityFlow, ExactTrace
        >>> model = Gaussian(DiagonalSDE(VP(), Identity((2,))), torch.zeros(2), 4 * torch.eye(2))
        >>> flow = model.sde.probability_flow(model)
        >>> probes = ExactTrace().probes(torch.zeros(1, 2), Noise())
        >>> density = DensityFlow(flow, ExactTrace(), probes)
        >>> y = torch.tensor([[1.0, 1.0, 0.0, 0.0]])  # a state, and two integrals
        >>> velocity = density.f(torch.tensor(0.5), y)
        >>> torch.allclose(velocity[:, :2], velocity[:, 2:])  # linear in z, and z is 1
        True
    """

    def __init__(
        self, flow: ProbabilityFlow, trace: Trace, probes: Tensor, checkpointing: bool = False
    ) -> None:
        super().__init__((flow.basis.dim * (1 + trace.estimates),), T=flow.T, eps=flow.eps)
        self.flow, self.trace, self.probes = flow, trace, probes
        self.checkpointing, self._count = checkpointing, [0]  # shared with what is taken of it
        self.error = probes.new_tensor(torch.nan)
        """What a method says of its own error in the integrals, ``(*batch,)``."""

    @property
    def evaluated(self) -> int:
        """At how many states the score has been evaluated."""
        return self._count[0]

    def select(self, rows: Tensor, batch: Sequence[int]) -> DensityFlow:
        """With the flow's samples, and their probes."""
        flow, probes = self.flow.select(rows, batch), self.trace.select(self.probes, rows)
        return replaced(self, flow=flow, probes=probes)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """``(v, dv_i/dz_i)``."""
        velocity, _, diagonal = self._evaluate(t, y)
        return self._join(velocity, diagonal)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(y)

    def forcing(self, t: Tensor, y: Tensor) -> Tensor:
        """The flow's forcing, and ``dl_i/dh_i``."""
        _, forcing, diagonal = self._evaluate(t, y)
        pace = self.flow.sde.marginal_pace(t, forcing).unsqueeze(-2)
        # where nothing moves the quotient is 0, and so are its derivatives
        return self._join(forcing, diagonal / pace.masked_fill(pace == 0, torch.inf))

    def look(self, force: Forcing, z: Tensor) -> tuple[Tensor, Tensor]:
        """One evaluation: the forcing ``F``, and ``dF_i/dz_i``, ``(*batch, estimates, n)``."""
        self._count[0] += z.shape[:-1].numel()

        def both(z: Tensor) -> tuple[Tensor, Tensor]:
            forcing, pull_back = vjp(force, z, self._known())
            return forcing, self.trace(pull_back, z, self.probes)

        if not (self.checkpointing and torch.is_grad_enabled()):
            return both(z)

        def again(z: Tensor) -> tuple[Tensor, Tensor]:
            with asked(self.flow.estimator):  # gradients may come when nobody asks any more
                return both(z)

        forcing, diagonal = _Again.apply(again, z, *self._known())  # type: ignore[no-untyped-call]
        return forcing, diagonal

    def breakpoints(self) -> list[float]:
        """The flow's."""
        return self.flow.breakpoints()

    def propagator(self, t: Tensor, s: Tensor, like: Tensor) -> Propagator:
        """The flow's; an integral's only part is its forcing, over the same ``h``."""
        z, copies = self._state(like), self.trace.estimates
        decay, gain, h, damping = (
            v.expand(*v.shape[:-1], z.shape[-1]) for v in self.flow.propagator(t, s, z)[:4]
        )

        def join(state: Tensor, integral: Tensor) -> Tensor:
            return torch.cat([state, *[integral] * copies], -1)

        return Propagator(
            join(decay, torch.ones_like(h)),
            join(gain, h),
            join(h, h),
            join(damping, torch.zeros_like(h)),
            None,
        )

    def start(self, z: Tensor) -> Tensor:
        """The state at a ``z``, with nothing integrated yet."""
        return torch.cat([z, z.new_zeros(*z.shape[:-1], self.trace.estimates * z.shape[-1])], -1)

    def split(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and the integrals of the divergence, ``(*batch, estimates)``."""
        z = self._state(y)
        integrals = y[..., z.shape[-1] :].unflatten(-1, (self.trace.estimates, z.shape[-1]))
        return z, integrals.sum(-1)

    def _known(self) -> Iterator[Tensor]:
        """What the score depends on besides the state, if gradients are wanted."""
        model = self.flow.estimator
        given = (*model.parameters(), *model.buffers(), *tree_leaves(self.flow.condition))
        yield from (v for v in given if isinstance(v, Tensor) and v.requires_grad)

    def _state(self, y: Tensor) -> Tensor:
        return y[..., : y.shape[-1] // (1 + self.trace.estimates)]

    @staticmethod
    def _join(z: Tensor, diagonal: Tensor) -> Tensor:
        return torch.cat([z, diagonal.flatten(-2)], -1)

    def _evaluate(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity, forcing, and the diagonal of the velocity's Jacobian."""
        z = self._state(y)
        forcing, diagonal = self.look(partial(self.flow.forcing, t), z)
        drift, ones = self.flow.sde.marginal_drift, torch.ones_like(z)
        # affine: v = a z + c F
        slope = drift(t, ones, 0 * ones, 0.0).unsqueeze(-2)
        response = drift(t, 0 * ones, ones, 0.0).unsqueeze(-2)
        return drift(t, z, forcing, 0.0), forcing, slope + response * diagonal


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
            found = torch.autograd.grad(
                values, [z, *ctx.known], slopes, allow_unused=True, retain_graph=True
            )
        return None, *found
