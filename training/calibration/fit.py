"""Fitting the maps: ridge regression, and a network with one hidden layer.

Letters: n samples, D ``d_model``, C = 4·D channels of an input ``[u; z*_before]``, H hidden width.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from deq_model.warm_start import WarmStart
from training.calibration.samples import Samples

_LOG = logging.getLogger(__name__)
STORED = torch.float16
"""Of the matrices of a map: they are rounded before anything is measured."""

PENALTIES = tuple(10.0**power for power in range(-5, 1))
"""Of the ridge regression, per sample, on inputs of variance 1."""

_CHUNK = 4096
_BATCH = 256
_LR = 2e-3
_WARM_UP = 50
_LEAST_STD = 1e-3  # of the mean one: a channel that never moves must not be blown up

Told = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Scaling:
    """Mean and standard deviation of the inputs' channels, ``(C,)`` each."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, samples: Samples) -> Self:
        """Over all samples, in float64, chunk by chunk."""
        total = samples.previous.new_zeros(2, 4 * samples.previous.shape[1], dtype=torch.float64)
        for injection, previous, _ in samples.batches(_CHUNK):
            x = torch.cat([injection, previous], dim=1).double()
            total += torch.stack([x.sum(0), x.square().sum(0)])
        mean, square = total / len(samples)
        std = (square - mean.square()).clamp(min=0).sqrt()
        return cls(mean, std.clamp(min=max(_LEAST_STD * float(std.mean()), 1e-12)))

    def scaled(self, injection: Tensor, previous: Tensor, dtype: torch.dtype) -> Tensor:
        """Inputs of mean 0 and variance 1, ``(n, C)``."""
        x = torch.cat([injection, previous], dim=1).to(dtype)
        return (x - self.mean.to(dtype)) / self.std.to(dtype)

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The weight ``(·, C)`` and bias that do to plain inputs what these do to scaled ones.

        The bias makes up for what rounding the weight does to the mean input.
        """
        plain = (weight.double() / self.std).to(STORED).double()
        return plain, bias.double() - plain @ self.mean


def stored(warm_start: WarmStart) -> WarmStart:
    """The map as it is stored: matrices in ``STORED``, biases in float32."""
    dtypes = {1: torch.float32, 2: STORED}
    found: dict[str, Any] = {
        name: tensor.to(dtypes[tensor.ndim]) for name, tensor in warm_start.tensors.items()
    }
    return replace(warm_start, **found)


def rounded(warm_start: WarmStart) -> WarmStart:
    """The map with its numbers as they are stored, in float32."""
    return stored(warm_start).to(warm_start.bias.device, torch.float32)


@torch.no_grad()
def start_error(warm_start: WarmStart | None, samples: Samples) -> float:
    """Mean of ``‖z_init − z*‖ / ‖z*‖``, each token's predecessor known; 1 without a map."""
    if warm_start is None:
        return 1.0
    total = 0.0
    for injection, previous, z_star in samples.batches(_CHUNK):
        off = (warm_start(injection, previous) - z_star).norm(dim=1)
        total += float((off / z_star.norm(dim=1).clamp(min=1e-9)).double().sum())
    return total / len(samples)


@torch.no_grad()
def fit_linear(fitted: Samples, tuning: Samples) -> WarmStart:
    """Ridge regression, with the penalty that has the least error on ``tuning``.

    ``(XᵀX + λ n) W = Xᵀ Y`` for all λ by one eigendecomposition: ``O(C³)``, ``C²`` numbers.
    """
    scaling = Scaling.of(fitted)
    gram, cross, centre = _products(fitted, scaling)
    value, vector = torch.linalg.eigh(gram)
    seen = vector.T @ cross
    best: tuple[float, WarmStart] | None = None
    for penalty in PENALTIES:
        solution = vector @ (seen / (value.clamp(min=0) + penalty * len(fitted))[:, None])
        weight, bias = scaling.folded(solution.T, centre)
        warm_start = rounded(_linear(weight, bias))
        error = start_error(warm_start, tuning)
        _LOG.debug("ridge regression, penalty %g: error %.4f", penalty, error)
        if best is None or not best[0] <= error:  # also where it was no number
            best = error, warm_start
    assert best is not None
    return best[1]


def _products(samples: Samples, scaling: Scaling) -> tuple[Tensor, Tensor, Tensor]:
    """``XᵀX`` ``(C, C)``, ``Xᵀ(Y − mean)`` ``(C, D)`` and the mean of Y, in float64."""
    channels = scaling.mean.numel()
    dim = samples.z_star.shape[1]
    gram = scaling.mean.new_zeros(channels, channels)
    cross = scaling.mean.new_zeros(channels, dim)
    centre = samples.z_star.mean(0, dtype=torch.float64)
    for injection, previous, z_star in samples.batches(_CHUNK):
        x = scaling.scaled(injection, previous, torch.float64)
        gram += x.T @ x
        cross += x.T @ (z_star.double() - centre)
    return gram, cross, centre


def _linear(weight: Tensor, bias: Tensor) -> WarmStart:
    dim = weight.shape[0]
    return WarmStart(
        from_injection=weight[:, : 3 * dim], from_previous=weight[:, 3 * dim :], bias=bias
    )


def fit_network(
    fitted: Samples,
    tuning: Samples,
    *,
    hidden: int,
    epochs: int,
    seed: int,
    layer_norm: bool,
    progress: Told | None = None,
) -> WarmStart:
    """One hidden layer with ReLU by Adam; of the states after each epoch the best on ``tuning``.

    Args:
        fitted: samples to fit on.
        tuning: samples to choose by.
        hidden: H.
        epochs: passes over ``fitted``.
        seed: of weights and order.
        layer_norm: normalise the output, as f of a post-LN model does.
        progress: called with epochs done and epochs in all.
    """
    generator = torch.Generator().manual_seed(seed)
    fit = _NetworkFit(fitted, hidden=hidden, layer_norm=layer_norm, generator=generator)
    steps = epochs * math.ceil(len(fitted) / _BATCH)
    best: tuple[float, WarmStart] | None = None
    for epoch in range(epochs):
        order = torch.randperm(len(fitted), generator=generator)
        for injection, previous, z_star in fitted.batches(_BATCH, order):
            fit.step(injection, previous, z_star, steps=steps)
        error = start_error(fit.warm_start(), tuning)
        _LOG.debug("network, epoch %d of %d: error %.4f", epoch + 1, epochs, error)
        if best is None or not best[0] <= error:  # also where it was no number
            best = error, fit.warm_start()
        if progress is not None:
            progress(epoch + 1, epochs)
    assert best is not None
    return best[1]


class _NetworkFit:
    """A network on its way, over scaled inputs."""

    def __init__(
        self, samples: Samples, *, hidden: int, layer_norm: bool, generator: torch.Generator
    ) -> None:
        like = samples.previous
        dim = like.shape[1]
        self._scaling = Scaling.of(samples)
        self._layer_norm = layer_norm
        # Errors count relative to the size of a state, whatever it is.
        self._size = float(samples.z_star.square().mean())

        def drawn(n_out: int, n_in: int) -> nn.Parameter:
            weight = torch.randn(n_out, n_in, generator=generator) * math.sqrt(2 / n_in)
            return nn.Parameter(weight.to(like.device, torch.float32))

        self._inner, self._out = drawn(hidden, 4 * dim), drawn(dim, hidden)
        self._inner_bias = nn.Parameter(torch.zeros(hidden, device=like.device))
        self._out_bias = nn.Parameter(torch.zeros(dim, device=like.device))
        parameters = [self._inner, self._inner_bias, self._out, self._out_bias]
        self._optimiser = torch.optim.Adam(parameters, lr=_LR)
        self._step = 0

    def step(self, injection: Tensor, previous: Tensor, z_star: Tensor, *, steps: int) -> None:
        """One step of Adam, of so many in all: a short warm-up, then a cosine to 0."""
        rate = 0.5 * _LR * (1 + math.cos(math.pi * self._step / steps))
        self._step += 1
        for group in self._optimiser.param_groups:
            group["lr"] = rate * min(1.0, self._step / _WARM_UP)
        loss = (self._mapped(injection, previous) - z_star).square().mean() / self._size
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()

    def _mapped(self, injection: Tensor, previous: Tensor) -> Tensor:
        x = self._scaling.scaled(injection, previous, torch.float32)
        inner = nn.functional.linear(x, self._inner, self._inner_bias).relu()
        z = nn.functional.linear(inner, self._out, self._out_bias)
        return nn.functional.layer_norm(z, (z.shape[-1],)) if self._layer_norm else z

    @torch.no_grad()
    def warm_start(self) -> WarmStart:
        """The map as it stands, its scaling folded in."""
        weight, bias = self._scaling.folded(self._inner, self._inner_bias)
        dim = self._out.shape[0]
        return rounded(
            WarmStart(
                from_injection=weight[:, : 3 * dim],
                from_previous=weight[:, 3 * dim :],
                bias=bias,
                out=self._out.detach().clone(),
                out_bias=self._out_bias.detach().clone(),
                layer_norm=self._layer_norm,
            )
        )
