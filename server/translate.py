"""The only module that makes messages of the contract out of the engine's values."""

from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from cli.build import Build
from deq_model.tokenizers.base import EOS_TOKEN, Tokenizer
from deq_model.tokenizers.word import WordTokenizer
from deqlm.v1 import (
    common_pb2,
    generation_pb2,
    model_pb2,
    scoring_pb2,
    session_pb2,
    tokenizer_pb2,
)
from server.bounds import POLICIES
from server.config import RequestLimits
from server.engine.engine import Engine
from server.engine.results import (
    FinishReason,
    Generated,
    SessionView,
    Stopped,
    Times,
    TokenLogprob,
    Totals,
)
from server.engine.solve import Solve, Solved, SolveStats, Status
from server.inputs import Tokens

_POLICIES = {policy: number for number, policy in POLICIES.items()}
_STATUSES: dict[Status, common_pb2.SolverStatus] = {
    "converged": common_pb2.SOLVER_STATUS_CONVERGED,
    "loosened": common_pb2.SOLVER_STATUS_LOOSENED,
    "max_nfe": common_pb2.SOLVER_STATUS_MAX_NFE,
    "nonfinite": common_pb2.SOLVER_STATUS_NONFINITE,
}
_REASONS: dict[FinishReason, generation_pb2.FinishReason] = {
    "eos": generation_pb2.FINISH_REASON_STOP_EOS,
    "stop_id": generation_pb2.FINISH_REASON_STOP_ID,
    "stop_string": generation_pb2.FINISH_REASON_STOP_STRING,
    "length": generation_pb2.FINISH_REASON_LENGTH,
    "time": generation_pb2.FINISH_REASON_TIME,
    "calls": generation_pb2.FINISH_REASON_CALLS,
}
_STOPPED: dict[Stopped | None, common_pb2.StoppedBy] = {
    None: common_pb2.STOPPED_BY_UNSPECIFIED,
    "time": common_pb2.STOPPED_BY_TIME,
    "calls": common_pb2.STOPPED_BY_CALLS,
}


def totals(value: Totals) -> common_pb2.Totals:
    """Sums over tokens."""
    return common_pb2.Totals(
        scored_tokens=value.scored_tokens,
        logprob_sum=value.logprob_sum,
        mean_nll=value.mean_nll,
        perplexity=value.perplexity,
    )


def totals_of(tokens: Sequence[TokenLogprob]) -> Totals:
    """Sums over these tokens."""
    return Totals(len(tokens), sum(token.logprob for token in tokens))


def timing(times: Times) -> common_pb2.Timing:
    """Where the time went."""
    return common_pb2.Timing(queue_s=times.queue_s, compute_s=times.compute_s)


def solver_options(solve: Solve) -> common_pb2.SolverOptions:
    """Solver options, every one set."""
    return common_pb2.SolverOptions(
        tol=solve.tol,
        max_nfe=solve.max_nfe,
        policy=_POLICIES[solve.policy],
        keep_tol=solve.keep_tol,
    )


def stopped_by(stopped: Stopped | None) -> common_pb2.StoppedBy:
    """What cut an answer short."""
    return _STOPPED[stopped]


def solver_report(stats: SolveStats, solve: Solve) -> common_pb2.SolverReport:
    """What solving took, under which options."""
    solved = stats.solved_tokens
    finite = solved - stats.nonfinite_tokens
    status = _STATUSES[stats.status] if solved else common_pb2.SOLVER_STATUS_UNSPECIFIED
    return common_pb2.SolverReport(
        nfe_total=stats.nfe_total,
        token_evaluations=stats.token_evaluations,
        solved_tokens=solved,
        nfe_per_token=stats.token_evaluations / solved if solved else 0.0,
        residual_max=stats.residual_max,
        residual_mean=stats.residual_sum / finite if finite else 0.0,
        unconverged_tokens=stats.unconverged_tokens,
        converged=stats.unconverged_tokens == 0,
        status=status,
        tol=solve.tol,
        max_nfe=solve.max_nfe,
        policy=_POLICIES[solve.policy],
        applied_tol=max(solve.tol, stats.applied_tol),
        loosened_tokens=stats.loosened_tokens,
        shared_tokens=stats.shared_tokens,
        repaired_tokens=stats.repaired_tokens,
    )


def vocabulary_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token's text by itself; the end token's name where it has no bytes."""
    raw = tokenizer.token_bytes(token_id)
    if not raw and token_id == tokenizer.eos_id:
        return EOS_TOKEN
    return raw.decode("utf-8", errors="replace")


def token_scores(
    scored: Sequence[TokenLogprob], tokens: Tokens, tokenizer: Tokenizer
) -> list[scoring_pb2.TokenScore]:
    """Scores of an input's tokens, with offsets where it was text."""
    scores = []
    for index, token in enumerate(scored):
        score = scoring_pb2.TokenScore(
            token_id=token.token_id,
            text=vocabulary_text(tokenizer, token.token_id),
            raw=tokenizer.token_bytes(token.token_id),
            logprob=token.logprob,
            alternatives=alternatives(token, tokenizer),
            nfe=token.solved.nfe,
            residual=token.solved.residual,
            converged=_is_converged(token.solved),
            is_unknown=index in tokens.unknown,
        )
        span = tokens.spans[index] if tokens.spans else None
        if span is not None:
            score.byte_begin, score.byte_end = span
        scores.append(score)
    return scores


def alternatives(token: TokenLogprob, tokenizer: Tokenizer) -> list[common_pb2.TokenAlternative]:
    """The most likely tokens at a position."""
    return [
        common_pb2.TokenAlternative(
            token_id=token_id, text=vocabulary_text(tokenizer, token_id), logprob=logprob
        )
        for token_id, logprob in token.alternatives
    ]


def _is_converged(solved: Solved) -> bool:
    return solved.status == "converged"


def candidate_score(
    scored: Sequence[TokenLogprob],
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    include_tokens: bool,
    stopped: Stopped | None,
) -> scoring_pb2.CandidateScore:
    """The score of one candidate."""
    tokens = tokens.first(len(scored))
    return scoring_pb2.CandidateScore(
        tokens=token_scores(scored, tokens, tokenizer) if include_tokens else (),
        totals=totals(totals_of(scored)),
        unknown_tokens=len(tokens.unknown),
        stopped_by=stopped_by(stopped),
    )


def generated_token(
    token: TokenLogprob, text: str, tokenizer: Tokenizer
) -> generation_pb2.GenerateResponse:
    """A drawn token and its text."""
    return generation_pb2.GenerateResponse(
        token=generation_pb2.GeneratedToken(
            token_id=token.token_id,
            text=text,
            logprob=token.logprob,
            alternatives=alternatives(token, tokenizer),
            nfe=token.solved.nfe,
            residual=token.solved.residual,
            converged=_is_converged(token.solved),
        )
    )


def generation_finished(event: Generated, solve: Solve) -> generation_pb2.GenerateResponse:
    """The end of a generation."""
    finished = generation_pb2.GenerationFinished(
        reason=_REASONS[event.reason],
        text=event.text,
        generated_tokens=event.totals.scored_tokens,
        call=totals(event.totals),
        session=None if event.session is None else totals(event.session.totals),
        solver=solver_report(event.stats, solve),
        position=event.position,
        timing=timing(event.times),
        time_to_first_token_s=event.time_to_first_token_s or 0.0,
    )
    if event.stop_string is not None:
        finished.stop_string = event.stop_string
    elif event.stop_id is not None:
        finished.stop_id = event.stop_id
    return generation_pb2.GenerateResponse(finished=finished)


def session(view: SessionView, model: str) -> session_pb2.Session:
    """A session, as its owner may see it."""
    return session_pb2.Session(
        session_id=view.session_id,
        model=model,
        owner=view.owner,
        position=view.position,
        totals=totals(view.totals),
        create_time=_timestamp(view.create_time),
        last_used_time=_timestamp(view.last_used_time),
        expire_time=_timestamp(view.expire_time),
        memory_bytes=view.memory_bytes,
        busy=view.busy,
        ttl_s=view.ttl_s,
        solver=solver_options(view.solve),
        repairs=view.repairs,
    )


def _timestamp(wall_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(round(wall_s * 1e9))
    return stamp


def tokenized(tokens: Tokens, tokenizer: Tokenizer, model: str) -> tokenizer_pb2.TokenizeResponse:
    """The tokens of a text."""
    return tokenizer_pb2.TokenizeResponse(
        model=model,
        tokens=[_token(tokens, index, tokenizer) for index in range(len(tokens))],
        unknown_tokens=len(tokens.unknown),
    )


def _token(tokens: Tokens, index: int, tokenizer: Tokenizer) -> tokenizer_pb2.Token:
    token_id = tokens.ids[index]
    begin, end = tokens.spans[index] or (0, 0)
    return tokenizer_pb2.Token(
        token_id=token_id,
        text=vocabulary_text(tokenizer, token_id),
        raw=tokenizer.token_bytes(token_id),
        byte_begin=begin,
        byte_end=end,
        is_unknown=index in tokens.unknown,
    )


def model_info(
    engine: Engine, *, is_default: bool, limits: RequestLimits, solve: Solve, build: Build
) -> model_pb2.ModelInfo:
    """What a model is, and what may be asked of it."""
    config, tokenizer = engine.config, engine.tokenizer
    is_word = isinstance(tokenizer, WordTokenizer)
    kind = model_pb2.TOKENIZER_KIND_WORD if is_word else model_pb2.TOKENIZER_KIND_SENTENCEPIECE
    return model_pb2.ModelInfo(
        name=engine.name,
        is_default=is_default,
        architecture=_architecture(engine),
        n_parameters=engine.n_parameters,
        tokenizer=kind,
        vocab_size=tokenizer.n_token,
        eos_id=tokenizer.eos_id,
        dtype=str(engine.dtype).removeprefix("torch."),
        device=str(engine.device),
        mem_len=config.mem_len,
        tgt_len=config.tgt_len,
        context=config.klen,
        default_solver=solver_options(solve),
        solver=engine.solver,
        limits=_limits(limits),
        fingerprint=engine.fingerprint,
        server_version=build.version,
        server_revision=build.revision,
        torch_version=build.torch,
    )


def _architecture(engine: Engine) -> model_pb2.Architecture:
    config = engine.config
    return model_pb2.Architecture(
        d_model=config.d_model,
        d_embed=config.d_embed,
        n_head=config.n_head,
        d_head=config.d_head,
        d_inner=config.d_inner,
        n_token=config.n_token,
        cutoffs=config.cutoffs,
        div_val=config.div_val,
        local_size=config.local_size,
        pre_lnorm=config.pre_lnorm,
        weight_norm=config.norm == "weight_norm",
    )


def _limits(limits: RequestLimits) -> model_pb2.Limits:
    return model_pb2.Limits(
        max_text_bytes=limits.max_text_bytes,
        max_score_tokens=limits.max_score_tokens,
        max_tokens=limits.max_tokens,
        default_max_tokens=limits.default_max_tokens,
        max_candidates=limits.max_candidates,
        max_top_k=limits.max_top_k,
        max_stop_strings=limits.max_stop_strings,
        max_stop_string_bytes=limits.max_stop_string_bytes,
        max_nfe=limits.max_nfe,
        max_ttl_s=limits.max_ttl_s,
        default_ttl_s=limits.default_ttl_s,
        overload_tol=limits.overload_tol,
    )
