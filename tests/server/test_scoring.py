"""Score and ScoreStream against the real engine."""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqlm.v1 import common_pb2
from tests.server.calls import FLUSH, TIGHT, Stubs, to_input

TEXT = "It was a dark and stormy night; the rain fell in torrents — except at\noccasional “times”."
TOLERANCE = 5e-3
"""Of a log-probability, for states solved to TIGHT."""


def logprobs(tokens):
    return [token.logprob for token in tokens]


@pytest.fixture(scope="module")
def whole(live_server):
    """The text scored by one call."""
    return Stubs(live_server.channel).score(TEXT, solver=TIGHT, top_k=3)


def test_tokens_cover_the_text(whole):
    data = TEXT.encode()
    spans = [(token.byte_begin, token.byte_end) for token in whole.tokens]
    assert spans[0][0] == 0
    assert spans[-1][1] == len(data)
    assert all(end == begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert b"".join(token.raw for token in whole.tokens) == data
    assert all(token.raw == data[token.byte_begin : token.byte_end] for token in whole.tokens)


def test_totals_are_those_of_the_tokens(whole):
    total = math.fsum(logprobs(whole.tokens))
    assert whole.call.scored_tokens == len(whole.tokens) == whole.position
    assert whole.call.logprob_sum == pytest.approx(total)
    assert whole.call.mean_nll == pytest.approx(-total / len(whole.tokens))
    assert whole.call.perplexity == pytest.approx(math.exp(whole.call.mean_nll))
    assert not whole.HasField("session")


def test_alternatives_are_the_best_and_in_order(whole):
    for token in whole.tokens:
        best = logprobs(token.alternatives)
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert token.logprob <= best[0] + 1e-6


def test_a_small_vocabulary_has_fewer_alternatives_than_asked_for(stubs):
    answer = stubs.score("the of", model="words", top_k=100)
    assert [len(token.alternatives) for token in answer.tokens] == [22, 22]


def test_the_solver_tells_what_it_took(whole):
    report = whole.solver
    assert report.solved_tokens == len(whole.tokens)  # <eos> first; the last one predicts nothing
    assert report.nfe_per_token == pytest.approx(report.token_evaluations / report.solved_tokens)
    assert report.converged
    assert report.status == common_pb2.SOLVER_STATUS_CONVERGED
    assert 0 < report.residual_mean <= report.residual_max < TIGHT.tol
    assert (report.tol, report.max_nfe) == (TIGHT.tol, TIGHT.max_nfe)
    assert all(token.converged and token.nfe > 0 for token in whole.tokens)


def test_ids_score_as_the_text_does(stubs, whole):
    answer = stubs.score([token.token_id for token in whole.tokens], solver=TIGHT)
    assert logprobs(answer.tokens) == pytest.approx(logprobs(whole.tokens), abs=TOLERANCE)
    assert not answer.tokens[0].HasField("byte_begin")


def test_tokens_may_be_left_out(stubs, whole):
    answer = stubs.score(TEXT, solver=TIGHT, include_tokens=False, candidates=[to_input("a")])
    assert not answer.tokens
    assert not answer.candidates[0].tokens
    assert answer.call.logprob_sum == pytest.approx(whole.call.logprob_sum, abs=TOLERANCE)


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, len(TEXT)), max_size=5), flush=st.booleans())
def test_a_stream_cut_anywhere_equals_one_call(live_server, whole, cuts, flush):
    stubs = Stubs(live_server.channel)
    pieces, begin = [], 0
    for end in [*sorted(cuts), len(TEXT)]:
        pieces.append(TEXT[begin:end])
        begin = end
    responses = list(stubs.stream([*pieces, FLUSH] if flush else pieces, solver=TIGHT, top_k=3))
    tokens = [token for response in responses for token in response.tokens]
    for ours, theirs in zip(tokens, whole.tokens, strict=True):
        assert (ours.token_id, ours.byte_begin, ours.byte_end) == (
            theirs.token_id,
            theirs.byte_begin,
            theirs.byte_end,
        )
        assert ours.logprob == pytest.approx(theirs.logprob, abs=TOLERANCE)
    last = responses[-1]
    assert [response.final for response in responses] == [False] * (len(responses) - 1) + [True]
    assert last.committed_position == len(tokens)
    assert last.committed_bytes == len(TEXT.encode())
    assert last.call.perplexity == pytest.approx(whole.call.perplexity, rel=TOLERANCE)
    assert last.session == last.call
    assert not last.HasField("session_id")


def test_pieces_on_a_session_equal_one_call(stubs, whole):
    session = stubs.create(solver=TIGHT)
    ids = [token.token_id for token in whole.tokens]
    got, begin = [], 0
    for end in (1, 4, 5, len(ids)):
        answer = stubs.score(ids[begin:end], session_id=session)
        got += logprobs(answer.tokens)
        assert (answer.position, answer.session.scored_tokens) == (end, end)
        begin = end
    assert got == pytest.approx(logprobs(whole.tokens), abs=TOLERANCE)
    assert answer.solver.tol == TIGHT.tol, "unset solver options are the session's"
    stubs.delete(session)


def test_candidates_do_not_change_the_session(stubs, session):
    before = stubs.get(session)
    texts = [" It was", " of of of of", " night"]
    answer = stubs.score(
        " And", session_id=session, candidates=[to_input(text) for text in texts], solver=TIGHT
    )
    view = stubs.get(session)
    assert (view.position, view.totals) == (before.position, before.totals)
    assert answer.position == before.position
    for text, candidate in zip(texts, answer.candidates, strict=True):
        fork = stubs.fork(session).session_id
        stubs.score(" And", session_id=fork, solver=TIGHT)
        alone = stubs.score(text, session_id=fork, solver=TIGHT)
        assert candidate.totals.scored_tokens == alone.call.scored_tokens
        assert logprobs(candidate.tokens) == pytest.approx(logprobs(alone.tokens), abs=TOLERANCE)
        assert candidate.tokens[0].byte_begin == 0
        stubs.delete(fork)


def test_candidates_alone_are_scored_each_by_itself(stubs, whole):
    answer = stubs.score(candidates=[to_input(TEXT), to_input("It was")], solver=TIGHT)
    assert (answer.position, answer.call.perplexity) == (0, 1)
    assert logprobs(answer.candidates[0].tokens) == pytest.approx(
        logprobs(whole.tokens), abs=TOLERANCE
    )
    assert answer.candidates[1].totals.scored_tokens == 2


def test_answers_do_not_depend_on_who_else_asks(live_server, whole):
    stubs = Stubs(live_server.channel)
    texts = [TEXT, TEXT[7:], TEXT[20:50], "Rain."] * 3
    alone = {text: logprobs(stubs.score(text, solver=TIGHT).tokens) for text in set(texts)}
    with ThreadPoolExecutor(len(texts)) as pool:
        answers = pool.map(lambda text: stubs.score(text, solver=TIGHT), texts)
        for text, answer in zip(texts, answers, strict=True):
            assert logprobs(answer.tokens) == pytest.approx(alone[text], abs=TOLERANCE)


def test_unset_limits_and_zero_differ(stubs):
    assert not stubs.score("It was", top_k=0).tokens[0].alternatives
    assert stubs.score("It was", include_tokens=False).call.scored_tokens == 2


def test_words_have_their_own_offsets_and_unknowns(stubs):
    answer = stubs.score("the zebra\n of", model="words")
    assert [(t.text, t.byte_begin, t.byte_end, t.is_unknown) for t in answer.tokens] == [
        ("the", 0, 3, False),
        ("<unk>", 4, 9, True),
        ("\n", 9, 10, False),
        ("of", 11, 13, False),
    ]
    assert (answer.model, answer.unknown_tokens) == ("words", 1)


class TestStreams:
    def test_nothing_sent_ends_with_one_response(self, stubs):
        (only,) = stubs.stream([])
        assert only.final
        assert (only.committed_position, only.call.perplexity) == (0, 1)
        assert only.solver.status == common_pb2.SOLVER_STATUS_UNSPECIFIED

    def test_every_flush_is_answered(self, stubs):
        responses = list(stubs.stream([FLUSH, "It", FLUSH, FLUSH]))
        assert len(responses) >= 4
        assert responses[-1].committed_position == 1

    def test_ids_come_after_the_text_before_them(self, stubs):
        responses = list(stubs.stream(["It wa", [5, 6], "s"], solver=TIGHT))
        tokens = [token for response in responses for token in response.tokens]
        assert next(t.text for t in tokens if t.HasField("byte_begin")) == "It"
        assert b"".join(t.raw for t in tokens if t.HasField("byte_begin")) == b"It was"
        place = [t.HasField("byte_begin") for t in tokens]
        assert place.count(False) == 2
        assert place[-1]

    def test_a_word_is_scored_when_no_text_can_change_it(self, stubs):
        heard = threading.Event()

        def messages():
            yield "the o"
            heard.wait(60)
            yield "f"

        responses = stubs.stream(messages(), model="words")
        first = next(responses)
        assert [token.text for token in first.tokens] == ["the"]
        assert (first.committed_position, first.committed_bytes) == (1, 3)
        heard.set()
        rest = [token.text for response in responses for token in response.tokens]
        assert rest == ["of"]

    def test_a_session_goes_on_where_it_was(self, stubs, session):
        before = stubs.get(session)
        *_, last = stubs.stream([" It was"], session_id=session)
        assert last.session_id == session
        assert last.committed_position == before.position + 2
        assert last.session.scored_tokens == before.totals.scored_tokens + 2
        assert last.call.scored_tokens == 2
        view = stubs.get(session)
        assert (view.position, view.busy) == (last.committed_position, False)

    def test_pieces_that_wait_are_scored_together(self, live_server, stubs):
        name = 'deqlm_request_prompt_tokens_count{model="pieces"}'
        before = live_server.metrics()[name]
        responses = list(stubs.stream([" night"] * 200))
        batches = live_server.metrics()[name] - before
        assert responses[-1].committed_position == 200
        assert batches < 150

    def test_a_private_session_is_nobodys_and_goes_with_the_stream(self, live_server, stubs):
        may_end = threading.Event()
        known = len(stubs.list().sessions)
        held = live_server.engine().snapshot().sessions

        def messages():
            yield "It was "
            yield FLUSH
            may_end.wait(60)

        responses = stubs.stream(messages())
        next(responses)
        assert live_server.engine().snapshot().sessions == held + 1
        assert len(stubs.list().sessions) == known
        may_end.set()
        list(responses)
        assert live_server.engine().snapshot().sessions == held
