"""Solving text as the engine serves it: per stream a window of tokens that slides to the right.

Letters: B streams, T tokens of each, W widest window, K ``mem_len + tgt_len``, D ``d_model``,
n rows of a call.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from deq_model.attention import relative_attention, span
from deq_model.function import EquilibriumWeights
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverOptions, SolverStatus
from deq_model.solvers.rows import RowSolver
from deq_model.warm_start import WarmStart

_FAR = 1 << 40
"""Positions of padding start here: beyond every token's reach."""

_STALL_CALLS = 16
"""As in the engine: so many calls without an accepted token, and the first one goes on alone."""

GATE = 0.3
"""As in the engine: a token takes part from the call on after which the one before it had a
relative residual within this, or was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SolvedStreams:
    """Fixed points of streams.

    Attributes:
        z_star: ``(B, T, D)``.
        nfe: ``(B, T)`` int64, calls of f on each token.
        status: ``(B, T)`` int64, a ``SolverStatus`` each.
        calls: calls of f, each on all streams.
    """

    z_star: Tensor
    nfe: Tensor
    status: Tensor
    calls: int

    @property
    def mean_nfe(self) -> float:
        """Calls of f per token."""
        return float(self.nfe.double().mean())

    @property
    def unconverged(self) -> int:
        """Tokens accepted above the tolerance."""
        return int((self.status != SolverStatus.CONVERGED).sum())

    def with_others(self, others: Self) -> Self:
        """These streams and others that are as long, behind them."""
        return dataclasses.replace(
            self,
            z_star=torch.cat([self.z_star, others.z_star]),
            nfe=torch.cat([self.nfe, others.nfe]),
            status=torch.cat([self.status, others.status]),
            calls=self.calls + others.calls,
        )


@torch.no_grad()
def solve_streams(
    model: DEQLanguageModel,
    weights: EquilibriumWeights,
    tokens: Tensor,
    options: SolverOptions,
    *,
    window: int = 1,
    warm_start: WarmStart | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SolvedStreams:
    """Solves streams side by side from an empty memory, each at its own pace.

    Contexts, acceptance and budgets are the engine's, and so is who takes part in a call where
    calls have no room to spare. A token is accepted at the state that the solver would ask next.

    Args:
        model: whose injection to use.
        weights: its folded ones.
        tokens: ``(B, T)`` int64.
        options: of the solver; ``max_nfe`` is the budget of one token.
        window: most tokens of a stream in a call of f.
        warm_start: gives the first states; None for zeros.
        progress: called with tokens done and tokens in all.
    """
    config = weights.config
    solve = _Solve(model, weights, tokens, options, min(window, config.klen), warm_start)
    while not solve.done:
        solve.enter()
        solve.call()
        if progress is not None:
            progress(solve.n_accepted, tokens.numel())
    return solve.found()


class _Solve:
    """The state of a pass. Token t of stream b has solver row ``b · W + t % W``."""

    def __init__(
        self,
        model: DEQLanguageModel,
        weights: EquilibriumWeights,
        tokens: Tensor,
        options: SolverOptions,
        window: int,
        warm_start: WarmStart | None,
    ) -> None:
        config, like = weights.config, model.injection.weight
        self._tokens = tokens = tokens.to(like.device)
        streams, length = tokens.shape
        self._model, self._weights, self._options = model, weights, options
        self._warm_start, self._window, self._config = warm_start, window, config
        self._solver = RowSolver(
            options.method,
            capacity=streams * window,
            dim=config.d_model,
            depth=options.depth,
            device=like.device,
            dtype=like.dtype,
            restart=options.restart,
        )
        heads = (streams, config.klen, config.n_head, config.d_head)
        self._key, self._value = like.new_zeros(heads), like.new_zeros(heads)
        self._position = tokens.new_full((streams, config.klen), -1)
        self._table = weights.position_table(config.klen, like.dtype)
        self._injection = like.new_zeros(streams * window, 3 * config.d_model)
        self._accepted, self._entered = tokens.new_zeros(streams), tokens.new_zeros(streams)
        self._ready = tokens.new_ones(streams)  # tokens of each window that take part
        self._stalled, self._unsettled = tokens.new_zeros(streams), tokens.new_zeros(streams) > 0
        self._row_nfe = tokens.new_zeros(streams * window)
        self._offset = torch.arange(window, device=like.device)
        self._stream = torch.arange(streams, device=like.device)
        self._z_star = like.new_zeros(streams, length, config.d_model)
        self._nfe, self._status = torch.zeros_like(tokens), torch.zeros_like(tokens)
        self._calls = 0

    @property
    def n_accepted(self) -> int:
        """Tokens that are done, of all streams."""
        return int(self._accepted.sum())

    @property
    def done(self) -> bool:
        """Whether every token is."""
        return self.n_accepted == self._tokens.numel()

    def enter(self) -> None:
        """Fills the windows, one token of each stream at a time."""
        length = self._tokens.shape[1]
        while True:
            most = self._ready.clamp(max=self._window)
            room = (self._entered - self._accepted < most) & (self._entered < length)
            streams = room.nonzero().squeeze(1)
            if len(streams) == 0:
                return
            self._enter(streams)

    def _enter(self, streams: Tensor) -> None:
        index = self._entered[streams]
        rows = streams * self._window + index % self._window
        injection = self._model.inject(self._tokens[streams, index])
        z_init = injection.new_zeros(len(streams), self._config.d_model)
        if self._warm_start is not None:
            z_init = self._warm_start(injection, self._previous(streams, index))
        self._injection[rows] = injection
        self._solver.start(rows, z_init)
        self._row_nfe[rows] = 0
        self._entered[streams] += 1

    def _previous(self, streams: Tensor, index: Tensor) -> Tensor:
        """``(n, D)`` z of the tokens before: z*, or where a solve stands; zeros for none."""
        before = index - 1
        rows = streams * self._window + before % self._window
        moving = self._solver.propose(rows)
        settled = self._z_star[streams, before.clamp(min=0)]
        inside = (before >= self._accepted[streams])[:, None]
        return torch.where(inside, moving, torch.where((before >= 0)[:, None], settled, 0.0))

    def call(self) -> None:
        """One call of f on all windows."""
        count = torch.minimum(self._entered - self._accepted, self._ready)
        count = torch.where(self._stalled >= _STALL_CALLS, count.clamp(max=1), count)
        width = int(count.max())
        offset = self._offset[:width]
        real = offset < count[:, None]  # (B, width)
        index = self._accepted[:, None] + offset
        grid = self._stream[:, None] * self._window + index % self._window
        rows = grid[real]
        z = self._solver.propose(rows)
        padded = z.new_zeros(*grid.shape, z.shape[1])
        padded[real] = z
        injection = self._injection[grid]
        at = torch.where(real, index, _FAR + offset)
        f_z = self._weights(padded, injection, self._attention(at))
        settled = (offset == 0) & ~self._unsettled[:, None]
        seen = self._solver.observe(rows, f_z[real], settled=settled[real])
        self._row_nfe[rows] += 1
        self._calls += 1
        residual = f_z.new_full(grid.shape, torch.inf)
        residual[real] = seen.residual_rel
        self._accept(grid, real, residual)

    def _attention(self, at: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Attention of windows at positions ``(B, width)``."""
        config = self._config
        used = min(config.klen, int(self._accepted.max()))
        reach = span(
            at,
            torch.cat([self._position[:, :used], at], dim=1),
            first=(at - at % config.tgt_len - config.mem_len).clamp(min=0),
            reach=config.attention_span,
        )

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return relative_attention(
                query,
                torch.cat([self._key[:, :used], key], dim=1),
                torch.cat([self._value[:, :used], value], dim=1),
                positions=self._table,
                r_w_bias=self._weights.r_w_bias,
                r_r_bias=self._weights.r_r_bias,
                span=reach,
            )

        return attend

    def _accept(self, grid: Tensor, real: Tensor, residual: Tensor) -> None:
        """The prefix of each window that is under the tolerance, or whose budgets are spent."""
        converged = (residual <= self._options.tol).long().cumprod(1).bool()
        spent = self._row_nfe[grid] >= self._options.max_nfe
        done = ((converged | spent) & real).long().cumprod(1).bool()
        number = done.sum(1)
        near = (residual <= GATE) | (self._offset[: grid.shape[1]] < number[:, None])
        self._ready = 1 + near.long().cumprod(1).sum(1) - number
        self._stalled = torch.where(number > 0, 0, self._stalled + 1)
        # A first token that rested was measured behind another state than the accepted one.
        called = torch.cat([real, torch.zeros_like(real[:, :1])], dim=1)
        called = called.gather(1, number[:, None]).squeeze(1)
        self._unsettled = (done & ~converged).any(1) | ((number > 0) & ~called)
        if bool(done.any()):
            self._store(grid, done, converged)
        self._accepted = self._accepted + number

    def _store(self, grid: Tensor, done: Tensor, converged: Tensor) -> None:
        rows, within = grid[done], converged[done]
        best = self._solver.best(rows)
        # As in the engine: the call has told where to go next, which is nearer.
        z_star = torch.where(within[:, None], self._solver.propose(rows), best.z)
        streams = self._stream[:, None].expand_as(grid)[done]
        index = (self._accepted[:, None] + self._offset[: grid.shape[1]])[done]
        entry = index % self._config.klen
        key, value = self._weights.project_history(z_star, self._injection[rows])
        self._key[streams, entry], self._value[streams, entry] = key, value
        self._position[streams, entry] = index
        self._z_star[streams, index] = z_star
        self._nfe[streams, index] = self._row_nfe[rows]
        left = torch.where(
            best.residual_rel.isfinite(), SolverStatus.MAX_NFE, SolverStatus.NONFINITE
        )
        self._status[streams, index] = torch.where(within, int(SolverStatus.CONVERGED), left)

    def found(self) -> SolvedStreams:
        """What has been solved."""
        return SolvedStreams(
            z_star=self._z_star, nfe=self._nfe, status=self._status, calls=self._calls
        )
