"""The random numbers of one training step, drawn for all its streams at once.

A step may be cut: its streams over ranks, a rank's streams over chunks. Each part must then
compute what it would compute in one piece. So the numbers are drawn once for all streams, by every
rank from a generator in the same state, and ``Draws.part`` gives each part its own:

    draws = model.draw(streams=16, tgt_len=64, mem_len=64, generator=generator, jacobian=True)
    mine = draws.part(8, 12)
    result = model.train_block(tokens[8:12], …, draws=mine)
    jac_loss = frobenius_estimate(result.f_z, result.z, v=mine.jacobian)

The generator's state afterwards depends on the arguments of ``draw`` alone. Losses, estimates and
gradients of parts are means over their rows: the whole's is their mean, weighted by streams.

Letters: S streams, L tokens of a block, M tokens of memory, D ``d_model``.
"""

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deq_model.config import ModelConfig
from deq_model.errors import ConfigError
from deq_model.function import FunctionDropout


@dataclass(frozen=True, slots=True, kw_only=True)
class Masks:
    """Dropout masks of one forward pass; what is kept weighs ``1 / (1 − p)``.

    Attributes:
        embedding: ``(S, 1, D)`` on the embeddings.
        hidden: ``(S, 1, D)`` before the softmax.
        function: of f, at every call of it.
    """

    embedding: Tensor
    hidden: Tensor
    function: FunctionDropout

    def part(self, begin: int, end: int) -> Self:
        """The masks of streams ``begin`` to ``end − 1``."""
        return dataclasses.replace(
            self,
            embedding=self.embedding[begin:end],
            hidden=self.hidden[begin:end],
            function=self.function.part(begin, end),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Random numbers of S streams.

    Attributes:
        streams: S.
        masks: of dropout; None where nothing is dropped.
        jacobian: ``(S, L, D)`` standard normal, for ``frobenius_estimate``; None if not asked for.
        spectral: ``(S, L, D)`` standard normal, for ``spectral_radius``; None if not asked for.
    """

    streams: int
    masks: Masks | None = None
    jacobian: Tensor | None = None
    spectral: Tensor | None = None

    def part(self, begin: int, end: int) -> "Draws":
        """Those of streams ``begin`` to ``end − 1``.

        Raises:
            ConfigError: there are no such streams.
        """
        if not 0 <= begin <= end <= self.streams:
            raise ConfigError(
                f"begin and end must ascend within [0, {self.streams} streams], "
                f"got {begin} and {end}"
            )
        return Draws(
            streams=end - begin,
            masks=None if self.masks is None else self.masks.part(begin, end),
            jacobian=None if self.jacobian is None else self.jacobian[begin:end],
            spectral=None if self.spectral is None else self.spectral[begin:end],
        )

    def check(self, streams: int) -> None:
        """Raises ConfigError unless these are for so many streams; one would fit all by itself."""
        if streams != self.streams:
            raise ConfigError(
                f"draws must be for the block's {streams} streams, got those of {self.streams}; "
                "draws.part(begin, end) takes some"
            )


def draw_masks(
    config: ModelConfig,
    *,
    streams: int,
    tgt_len: int,
    mem_len: int,
    like: Tensor,
    generator: torch.Generator | None,
) -> Masks | None:
    """Masks on the device and in the dtype of ``like``; None where nothing is dropped."""
    if config.dropout == 0 and config.dropatt == 0:
        return None

    def mask(*shape: int, share: float = config.dropout) -> Tensor:
        kept = torch.empty(shape, device=like.device, dtype=like.dtype)
        return kept.bernoulli_(1 - share, generator=generator) / (1 - share)

    attention_shape = (streams, config.n_head, tgt_len, mem_len + tgt_len)
    return Masks(
        embedding=mask(streams, 1, config.d_model),
        hidden=mask(streams, 1, config.d_model),
        function=FunctionDropout(
            position=mask(1, config.d_model),
            attention_output=mask(streams, 1, config.d_model),
            inner=mask(streams, 1, config.d_inner),
            output=mask(streams, 1, config.d_model),
            attention_weight=(
                mask(*attention_shape, share=config.dropatt) if config.dropatt else None
            ),
        ),
    )
