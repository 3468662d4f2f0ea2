"""Generate against the real engine."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deqlm.v1 import generation_pb2
from tests.server.calls import TIGHT, Stubs, to_input
from tests.server.tiny import SPM

Sampling, Stop = generation_pb2.SamplingOptions, generation_pb2.StopOptions
GREEDY = Sampling(temperature=0)


def request(prompt="It was a dark", *, n=12, **fields):
    fields.setdefault("sampling", Sampling(seed=7))
    fields.setdefault("stop", Stop(max_tokens=n, ignore_eos=True))
    fields.setdefault("solver", TIGHT)
    if prompt is not None:
        fields["prompt"] = to_input(prompt)
    return generation_pb2.GenerateRequest(**fields)


class Result:
    """All responses of a call."""

    def __init__(self, responses):
        first, *tokens, last = responses
        self.started, self.finished = first.started, last.finished
        assert first.WhichOneof("event") == "started"
        assert last.WhichOneof("event") == "finished"
        self.tokens = [response.token for response in tokens]
        assert all(response.WhichOneof("event") == "token" for response in tokens)
        self.ids = [token.token_id for token in self.tokens]
        self.text = "".join(token.text for token in self.tokens) + self.finished.text


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceTokenizer.from_file(SPM)


def test_the_stream_tells_what_it_did(stubs, tokenizer):
    result = Result(stubs.generate(request(logprobs=2)))
    assert (result.started.model, result.started.seed) == ("pieces", 7)
    assert result.started.prompt_tokens == result.started.prompt.scored_tokens == 4
    assert result.finished.reason == generation_pb2.FINISH_REASON_LENGTH
    assert result.finished.WhichOneof("matched") is None
    assert len(result.ids) == result.finished.generated_tokens == 12
    assert result.finished.position == 16
    total = math.fsum(token.logprob for token in result.tokens)
    assert result.finished.call.logprob_sum == pytest.approx(total)
    assert result.finished.solver.converged
    assert 0 < result.finished.time_to_first_token_s < 60
    assert result.finished.timing.compute_s > 0
    assert all(len(token.alternatives) == 2 for token in result.tokens)
    assert not result.finished.HasField("session")


def test_the_text_is_that_of_the_tokens(stubs, tokenizer):
    for seed in range(5):
        result = Result(stubs.generate(request(n=40, sampling=Sampling(seed=seed))))
        assert result.text == tokenizer.decode(result.ids)


def test_greedy_takes_the_most_likely(stubs):
    result = Result(stubs.generate(request(sampling=GREEDY, logprobs=1)))
    assert all(token.token_id == token.alternatives[0].token_id for token in result.tokens)


def test_logprobs_are_those_of_scoring(stubs):
    result = Result(stubs.generate(request("It was", sampling=Sampling(seed=3, temperature=1.5))))
    session = stubs.create(solver=TIGHT)
    stubs.score("It was", session_id=session)
    scored = stubs.score(result.ids, session_id=session)
    assert [token.logprob for token in result.tokens] == pytest.approx(
        [token.logprob for token in scored.tokens], abs=5e-3
    )
    stubs.delete(session)


def test_a_seed_gives_the_same_text_whoever_else_asks(live_server):
    stubs = Stubs(live_server.channel)
    alone = [Result(stubs.generate(request(sampling=Sampling(seed=s)))).ids for s in range(4)]
    assert len({tuple(ids) for ids in alone}) == 4
    with ThreadPoolExecutor(8) as pool:
        beside = pool.map(
            lambda seed: Result(stubs.generate(request(sampling=Sampling(seed=seed)))).ids,
            [0, 1, 2, 3] * 2,
        )
        assert list(beside) == alone * 2


def test_a_seed_that_the_server_chose_is_told_and_works(stubs):
    first = Result(stubs.generate(request(sampling=Sampling())))
    again = Result(stubs.generate(request(sampling=Sampling(seed=first.started.seed))))
    other = Result(stubs.generate(request(sampling=Sampling())))
    assert first.ids == again.ids
    assert other.started.seed != first.started.seed


def test_the_largest_seed(stubs):
    seed = 2**64 - 1
    assert Result(stubs.generate(request(sampling=Sampling(seed=seed)))).started.seed == seed


def test_a_stop_string_ends_it_and_is_not_sent(stubs):
    free = Result(stubs.generate(request(n=30)))
    stop = free.text[10:14]
    cut = free.text.index(stop)
    options = Stop(max_tokens=30, ignore_eos=True, stop_strings=["never", stop])
    result = Result(stubs.generate(request(stop=options)))
    assert result.text == free.text[:cut]
    assert result.finished.reason == generation_pb2.FINISH_REASON_STOP_STRING
    assert result.finished.stop_string == stop


def test_before_min_tokens_no_stop_string_is_heeded(stubs):
    free = Result(stubs.generate(request(n=30)))
    stop = free.tokens[2].text
    options = Stop(max_tokens=30, ignore_eos=True, stop_strings=[stop], min_tokens=8)
    result = Result(stubs.generate(request(stop=options)))
    assert len(result.ids) >= 8
    assert result.ids == free.ids[: len(result.ids)]


def test_a_stop_id_ends_it_and_its_text_is_not_sent(stubs, tokenizer):
    free = Result(stubs.generate(request()))
    last = next(i for i in range(4, 12) if free.ids[i] not in free.ids[:i])
    options = Stop(max_tokens=12, ignore_eos=True, stop_ids=[free.ids[last]])
    result = Result(stubs.generate(request(stop=options)))
    assert result.finished.reason == generation_pb2.FINISH_REASON_STOP_ID
    assert result.finished.stop_id == free.ids[last]
    assert result.finished.generated_tokens == last + 1
    assert result.text == tokenizer.decode(free.ids[:last])


def test_without_a_prompt_it_begins_after_eos(stubs):
    result = Result(stubs.generate(request(None)))
    assert (result.started.prompt_tokens, result.started.prompt.perplexity) == (0, 1)
    assert len(result.ids) == 12


def test_a_session_holds_prompt_and_tokens(stubs, session):
    before = stubs.get(session)
    result = Result(stubs.generate(request(" And", session_id=session)))
    assert result.started.session_id == session
    view = stubs.get(session)
    assert view.position == result.finished.position == before.position + 1 + 12
    assert view.totals == result.finished.session
    # The client knows that it is over: the session is free.
    assert Result(stubs.generate(request(None, session_id=session))).ids


def test_continuing_a_session_equals_continuing_its_text(stubs):
    session = stubs.create(solver=TIGHT)
    stubs.score("It was a dark", session_id=session)
    parts = [
        Result(stubs.generate(request(None, n=6, session_id=session, sampling=GREEDY))).ids
        for _ in range(2)
    ]
    whole = Result(stubs.generate(request(sampling=GREEDY)))
    assert parts[0] + parts[1] == whole.ids
    stubs.delete(session)


def test_words_are_joined_to_the_prompt_by_a_space(stubs):
    def text(prompt):
        options = {"sampling": GREEDY, "model": "words"}
        result = Result(stubs.generate(request(prompt, n=1, **options)))
        assert result.tokens[0].token_id > 0, "a word, so that there is something to join"
        return result.text

    assert text("the of").startswith(" ")
    assert not text("the of ").startswith(" ")


def test_words_are_joined_to_what_the_session_holds(stubs):
    session = stubs.create(model="words")
    stubs.score("the of", session_id=session)
    result = Result(stubs.generate(request(None, n=1, session_id=session, sampling=GREEDY)))
    assert result.tokens[0].token_id > 0
    assert result.text.startswith(" ")
    stubs.delete(session)


def test_a_repetition_penalty_makes_repetition_rare(stubs):
    options = {"n": 40, "sampling": Sampling(seed=1, top_k=3, repetition_penalty=8.0)}
    punished = Result(stubs.generate(request(**options)))
    options["sampling"] = Sampling(seed=1, top_k=3)
    free = Result(stubs.generate(request(**options)))
    assert len(set(punished.ids)) > len(set(free.ids))


@settings(max_examples=25)
@given(
    temperature=st.floats(0, 1e308),
    top_k=st.none() | st.integers(1, 2**32 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    penalty=st.floats(0, 1e308, exclude_min=True),
    min_tokens=st.integers(0, 3),
)
@example(temperature=5e-324, top_k=None, top_p=1, min_p=0, penalty=5e-324, min_tokens=0)
@example(temperature=1e308, top_k=None, top_p=5e-324, min_p=1, penalty=1e308, min_tokens=3)
def test_every_allowed_sampling_draws(
    live_server, temperature, top_k, top_p, min_p, penalty, min_tokens
):
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        seed=1,
    )
    stop = Stop(max_tokens=3, min_tokens=min_tokens)
    call = request(sampling=sampling, stop=stop, model="words", solver=None, prompt="the of")
    result = Result(Stubs(live_server.channel).generate(call))
    assert min_tokens <= len(result.ids) <= 3
