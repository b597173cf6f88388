"""Denoising score matching."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from estimators.mismatch import check_range, check_standard
from estimators.prediction import (
    affine,
    c_noise,
    centred,
    corrected,
    expect_arguments,
    predictor,
    seen_basis,
)
from estimators.times import TrainingDraws, TrainingTimes, first_noise_level, training_times
from scoresde.bases import Basis, Identity
from scoresde.checks import expect, instance, readable
from scoresde.conditioning import Observed, observed
from scoresde.estimator import Denoiser, PlannedEstimator, ScoreEstimator
from scoresde.noise import Generators, Noise
from scoresde.objectives import parametrization as forms
from scoresde.objectives import weighting as weightings
from scoresde.objectives.parametrization import Affine, Parametrization
from scoresde.objectives.time_distribution import GRID_STEPS, TimeDistribution
from scoresde.objectives.weighting import Weighting, WeightingInputs
from scoresde.precision import (
    Float64Constants,
    Numbers,
    expect_near,
    network_dtype,
    shallow_copy,
)
from scoresde.sampling.grid import Grid, restrict
from scoresde.sdes.clock import Clock
from scoresde.sdes.diagonal import DiagonalSDE
from scoresde.sdes.diagonal_coefficients import DiagonalCoefficients
from scoresde.sdes.sde import Stage
from scoresde.sdes.sde_coefficients import SDECoefficients


class _Preconditioning(NamedTuple):
    """Terms of parametrisation and weights, with ``k`` times in front.

    Where data are ``clean``, and there is no noise, ``positive`` is 1, and ``plain`` the
    parametrisation of that; ``clean`` is None if they are known to be so nowhere.
    """

    alpha: Tensor
    sigma: Tensor
    clean: Tensor | None
    positive: Tensor
    plain: Affine
    form: Affine
    scale: Tensor
    """``sqrt(V)``."""

    def part(self, whole: DiagonalCoefficients, times: slice, own: DiagonalCoefficients) -> Self:
        """The same at some of the times, for states that have the first of the components."""

        def restricted(value: Any) -> Any:
            if isinstance(value, Affine):
                return Affine(*map(restricted, value))
            return None if value is None else whole.blocks.restrict(value[:, times], own.blocks)

        return type(self)(*map(restricted, self))


class Denoising(Float64Constants, PlannedEstimator):
    """A network trained by denoising score matching (Vincent 2011; Song et al. 2021, eq. 7).

    The network sees events, whatever the basis: with ``m`` and ``sd`` the data's mean and
    standard deviation in coefficients and ``V = alpha^2 sd^2 + sigma^2``,

        D = m + c_skip (z - alpha m) + c_out U F(U^T (z - alpha m)/sqrt(V), c_noise),

    where ``c_noise = level/4`` is EDM's ``log(sigma)/4`` for any schedule (for a non-uniform
    SDE, the blocks' average) and ``(c_skip, c_out)`` are the parametrisation's. Scales per band
    matter more than other settings: measure them with `estimators.measure`.

    The first terms are the denoised mean of a Gaussian. Where more is known, a ``baseline``
    replaces them, ``D = D_baseline + c_out F``: a network with output 0 is then as good as that.

    Args:
        sde: How data are diffused.
        network: ``network(x, noise_level)`` or ``network(x, noise_level, condition)``; events
            ``(batch, *event_shape)`` in and out, levels ``(batch,)``.
        parametrization: What the network predicts; see `scoresde.objectives.parametrization`.
        weighting: See `scoresde.objectives.weighting`. By default that of the network's own error,
            of one size at all noise levels (Karras et al. 2022); of photographs that are measured
            band by band, ``"balanced"`` learns coarse bands sooner.
        times: Times of components in training: one for all, with the density of a grid given by its
            name or function, or ``"blocks"`` or ``"components"`` for independent ones, or
            ``"fronts-of-blocks"`` or ``"fronts-of-components"``, or other
            `estimators.times.TrainingTimes`. Unless there is one for all the estimator has vector
            time: the network is given a noise level per component, ``(batch, n)``, and samples may
            be drawn in any order (`with_clock`).
        data_mean: ``m``, along the component axis.
        data_std: ``sd``, along the component axis.
        stage: Where and on how many components the network works; throughout and on all of
            them if None.
        network_basis: The basis whose events the network sees instead of the SDE's, with the
            stage's components as coefficients; for fewer than all, the coefficients themselves if
            None.
        observe: Which components are shown clean in training, at time 0, drawn for every event: a
            name in `scoresde.conditioning.masks.OBSERVED` or a function. The estimator then has
            vector time as well, and one network learns every conditional. With vector time
            components that are NaN in the data are missing: shown as noise, without loss.
        baseline: Estimator under the same SDE that the network corrects; the best linear one if
            None.

    Raises:
        TypeError: If the network cannot be called, or a stage, a basis or the baseline is of
            another type.
        ValueError: If a name is unknown, a scale or the network's basis does not fit the SDE's, or
            the baseline has another SDE.

    Example:
        >>> import torch
        >>> from estimators import Denoising, ResidualMLP
        >>> from scoresde import EDM, DiagonalSDE, Identity
        >>> sde = DiagonalSDE(EDM(), Identity((2,)))
        >>> model = Denoising(sde, ResidualMLP((2,), width=16, depth=1), data_std=2.0)
        >>> model.loss(torch.randn(8, 2)).backward()
        >>> model.denoise(torch.ones(1, 2), 2.0).detach()  # untrained: the best linear guess
        tensor([[0.5000, 0.5000]])
    """

    references = "vincent2011 song2021 karras2022 kingma2021"

    sde: DiagonalSDE
    events: Basis | None
    _first_level: Tensor | None
    data_mean: Tensor
    data_std: Tensor

    def __init__(
        self,
        sde: DiagonalSDE,
        network: nn.Module,
        *,
        parametrization: str | Parametrization = "preconditioned",
        weighting: str | Weighting = "prediction",
        times: str | Grid | TrainingTimes = "log_snr",
        data_mean: Numbers = 0.0,
        data_std: Numbers = 1.0,
        stage: Stage | None = None,
        network_basis: Basis | None = None,
        observe: str | Observed | None = None,
        baseline: ScoreEstimator | None = None,
    ) -> None:
        super().__init__(sde)
        instance("sde", sde, DiagonalSDE)
        instance("network", network, Callable)  # type: ignore[arg-type]
        expect_arguments(network)
        self.network = network
        self.parametrization = forms.parametrization(parametrization)
        self.weighting = weightings.weighting(weighting)
        self.stage = Stage(sde.T, sde.eps, sde.basis.dim) if stage is None else stage
        instance("stage", self.stage, Stage)
        self.network_basis = seen_basis(network_basis, sde.basis, self.stage.dim)
        self.observe = None if observe is None else observed(observe)
        if baseline is not None:
            instance("baseline", baseline, ScoreEstimator)
            expect(baseline.sde is sde, "baseline", "an estimator with this very SDE", baseline.sde)
        self.baseline, self._met, self.events = baseline, False, None
        self.times = training_times(times, whole=self.stage.dim == sde.basis.dim)
        self.draw_times = TimeDistribution(restrict(self.times.grid(sde, GRID_STEPS), self.stage))
        # what nobody has shown clean in training is heard of as it is at the first time
        first = first_noise_level(sde) if self.times.apart and self.observe is None else None
        self.register_buffer("_first_level", first, persistent=False)
        self.constant("data_mean", data_mean)
        self.constant("data_std", data_std, positive=True)
        for name in ("data_mean", "data_std"):
            sde.basis.blocks.check(name, getattr(self, name), alone=True)
        if stage is None:
            check_range(sde, self.data_mean, self.data_std)

    def prepare(self, at: SDECoefficients, condition: Any = None) -> Iterator[Denoiser]:
        """See `scoresde.estimator.PlannedEstimator`."""
        if not isinstance(at, DiagonalCoefficients):
            raise TypeError(f"at: expected what sde.at(times, like=z) says, got a {type(at)}")
        dtype = network_dtype(self.network) or at.like.dtype
        predict = predictor(self.network, self.network_basis, at.like, dtype, condition)
        no_mean = self._is_centred
        if self.baseline is None and at.t.shape[1:-1].numel() > 1 and not no_mean:
            return map(partial(partial, centred, predict), *self._prepare_centred(at, dtype))
        c_noise, *coefficients = self._prepare(at, dtype, no_mean)
        out, skip, scale, *shifts = at.each(*coefficients)
        constant, offset = shifts or (None, None)
        firsts = affine(constant, skip)
        if self.baseline is not None:
            firsts = self.baseline.denoisers(at)
        steps = (firsts, affine(offset, scale), out, c_noise.unbind())
        return map(partial(partial, corrected, predict), *steps)

    def _prepare(
        self, at: DiagonalCoefficients, dtype: torch.dtype, no_mean: bool
    ) -> tuple[Tensor, ...]:
        """The terms that depend on times alone, with ``k`` of each in front.

        ``c_noise, out, skip, scale, constant, offset`` of
        ``D = constant + skip z + out F(offset + scale z, c_noise)``, without constants that are 0.
        """
        alpha, *_, form, scale = self.preconditioning(at)
        prepared = self._c_noise(at, dtype), form.out, form.skip, scale.reciprocal()
        if not no_mean:
            mean, alpha, scale, skip = at.blocks.broadcastable(
                self._data("data_mean", at), alpha, scale, form.skip
            )
            return *prepared, mean - skip * alpha * mean, -alpha * mean / scale
        return prepared

    def _prepare_centred(
        self, at: DiagonalCoefficients, dtype: torch.dtype
    ) -> Iterator[Sequence[Tensor]]:
        """As `_prepare`, for times of many events and states less their mean ``alpha m``.

        What is subtracted is never formed; of few times it is, once for many steps.
        """
        alpha, *_, form, scale = self.preconditioning(at)
        mean = at.cast(self._data("data_mean", at)).expand(len(at.t), -1)
        yield mean.unbind()
        yield from at.each(alpha, form.skip, scale.reciprocal(), form.out)
        yield self._c_noise(at, dtype).unbind()

    def _c_noise(self, at: DiagonalCoefficients, dtype: torch.dtype) -> Tensor:
        return c_noise(at, self.has_vector_time, self._first_level, dtype)

    @property
    def has_vector_time(self) -> bool:
        """Whether the network is given the noise level of every component, not the average."""
        return self.observe is not None or self.times.apart

    def with_clock(self, clock: Clock) -> Self:
        """See `scoresde.ScoreEstimator.with_clock`: one of independent ``times``, at any levels.

        Raises:
            ValueError: If there is one time for all in training, or for all of a block.
        """
        instance("clock", clock, Clock)
        self.times.check(clock, self.sde.blocks)
        return super().with_clock(clock)

    def losses(
        self,
        x: Tensor,
        condition: Any = None,
        generator: Generators = None,
        weighting: Weighting | None = None,
    ) -> Tensor:
        """``sum_i w_i(t) (z_0,i - D_i)^2`` for one random time per event.

        Times are stratified over the batch (Kingma et al. 2021, appendix I.1). With the
        likelihood weighting these are nats.

        Args:
            x: Events, ``(batch, *event_shape)``.
            condition: Passed on to the network.
            generator: Seeds times and noise.
            weighting: Instead of the estimator's own.

        Returns:
            ``(batch,)``.
        """
        expect_near("x", x, self)
        basis = self.sde.basis if self.events is None else self.events
        z = basis(x)[..., : self.stage.dim]
        if not (self._met or torch.compiler.is_compiling()):
            self._met = True  # the first events only: looking at them waits for the device
            check_standard(self.sde, x, z, self.data_mean, self.data_std)
        return self.coefficient_losses(z, condition, generator, weighting)

    def on_coefficients(self) -> Self:
        """A view of the estimator whose events are coefficients, the first ``stage.dim`` of them.

        For training on transformed data, ``sde.basis(x)[:, :stage.dim]``. The network is shared,
        and loss and denoised means are the same.

        Example:
            >>> import torch
            >>> from estimators import Denoising, ResidualMLP
            >>> from scoresde import VP, DiagonalSDE, Haar
            >>> model = Denoising(DiagonalSDE(VP(), Haar((1, 4), 1, 1)), ResidualMLP((1, 4), 8, 1))
            >>> view, x, g = model.on_coefficients(), torch.randn(5, 1, 4), torch.Generator()
            >>> loss = model.loss(x, generator=g.manual_seed(0))
            >>> torch.equal(view.loss(model.sde.basis(x), generator=g.manual_seed(0)), loss)
            True
        """
        blocks = self.sde.blocks.prefix(self.stage.dim)
        return shallow_copy(self, events=Identity((blocks.dim,), blocks.sizes))

    def coefficient_losses(
        self,
        z: Tensor,
        condition: Any = None,
        generator: Generators = None,
        weighting: Weighting | None = None,
    ) -> Tensor:
        """`losses` of transformed events: ``z``, ``(batch, stage.dim)``, in the place of ``x``."""
        if z.ndim != 2 or z.shape[-1] != self.stage.dim:  # asked at every update
            expect(False, "z", f"coefficients (batch, {self.stage.dim})", tuple(z.shape))
        drawn = self.draw(z, Noise.of(generator))
        at = self.sde.at(drawn.times.unsqueeze(0), drawn.z)
        return self.drawn_losses(at, drawn, condition, weighting)

    def draw(self, z: Tensor, noise: Noise) -> TrainingDraws:
        """Random times and noise for coefficients ``(batch, stage.dim)``."""
        times, density = self.draw_times(self.times.quantiles(self.sde, z, noise))
        missing = None
        if self.has_vector_time:
            missing, times = z.isnan(), self.sde.blocks.expand(times)
            if self.observe is not None:
                times = torch.where(self.observe(self.sde, z, noise), 0.0, times)
            times, z = times.masked_fill(missing, self.sde.T), z.masked_fill(missing, 0.0)
        return TrainingDraws(z, times, density, noise(z), missing)

    def drawn_losses(
        self,
        at: DiagonalCoefficients,
        drawn: TrainingDraws,
        condition: Any = None,
        weighting: Weighting | None = None,
    ) -> Tensor:
        """`coefficient_losses` of given draws, with the SDE's coefficients at their times."""
        known, z = self.preconditioning(at), drawn.z
        weight = self._weights(at, drawn.density, weighting or self.weighting)
        ((alpha,), (sigma,), (weight,)) = at.each(known.alpha, known.sigma, weight)
        z_t = torch.addcmul(alpha * z, sigma, drawn.xi)
        if drawn.missing is not None:
            weight = torch.where(drawn.missing, 0.0, weight)
        (denoise,) = self.denoisers(at, condition)
        errors: Tensor = weight * (z - denoise(z_t)).square()
        return errors.sum(-1)

    def _weights(self, at: DiagonalCoefficients, density: Tensor, weighting: Weighting) -> Tensor:
        """Weights of the components' errors, 0 for clean ones."""
        alpha, _, clean, positive, plain, _, _ = self.preconditioning(at)
        weight = weighting(WeightingInputs(at, alpha, positive, plain.out, density))
        return weight if clean is None else torch.where(clean, 0.0, weight)

    def loss(self, x: Tensor, condition: Any = None, generator: Generators = None) -> Tensor:
        """Mean of `losses`, per component: with the likelihood weighting, nats per dimension."""
        losses = self.losses(x, condition, generator)
        expect(len(losses) > 0, "x", "at least one event", tuple(x.shape))
        return losses.mean() / self.sde.basis.dim

    def preconditioning(self, at: DiagonalCoefficients) -> _Preconditioning:
        """Terms of parametrisation and weights, computed once."""
        known = at.cache.get(id(self))
        if known is None:
            known = at.cache[id(self)] = self._preconditioned(at)
        return known

    def _preconditioned(self, at: DiagonalCoefficients) -> _Preconditioning:
        alpha, sigma, std = at.blocks.broadcastable(at.alpha, at.sigma, self._data("data_std", at))
        visible, scale = alpha.clamp(min=forms.FAINT), torch.hypot(alpha * std, sigma)
        if readable(sigma) and int(sigma.count_nonzero()) == sigma.numel():  # mostly, and cheap
            form = self.parametrization(visible, sigma, std)
            return _Preconditioning(alpha, sigma, None, sigma, form, form, scale)
        clean = sigma == 0
        positive = sigma.masked_fill(clean, 1.0)
        plain = self.parametrization(visible, positive, std)
        form = forms.where_clean(plain, clean)
        return _Preconditioning(alpha, sigma, clean, positive, plain, form, scale)

    @property
    def _is_centred(self) -> bool:
        """Whether the mean is one number, known without waiting for it, and 0."""
        value = self.constant_on("data_mean", torch.device("cpu"))
        known = value.numel() == 1 and readable(value) and not value.requires_grad
        return known and float(value) == 0

    def _data(self, name: str, at: DiagonalCoefficients) -> Tensor:
        """A moment of the data, ``(1 | blocks | m)``."""
        (value,) = self.constants(at.t, name)
        return at.layout.restrict(value if value.ndim else value.unsqueeze(-1), at.blocks)
