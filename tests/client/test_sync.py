"""The synchronous client against a scripted server."""

import threading

import grpc
import pytest

from client.errors import Aborted, Cancelled, DeadlineExceeded, Internal, NotFound
from client.options import FLUSH, SamplingOptions, SolverOptions, StopOptions
from client.resources import HealthStatus
from client.results import FinishReason
from client.sync import Client
from deqlm.v1 import generation_pb2, session_pb2
from tests.client.fake_server import SESSION, Failure, generated

GIVE_UP_S = 20.0


def test_a_score_is_typed(client):
    score = client.score("It was night")
    assert [token.text for token in score.tokens] == ["It", "was", "night"]
    assert [(token.byte_begin, token.byte_end) for token in score.tokens] == [
        (0, 2),
        (3, 6),
        (7, 12),
    ]
    assert (score.call.scored_tokens, score.call.logprob_sum) == (3, -3.0)
    assert (score.session_id, score.session) == (None, None)


def test_a_call_carries_owner_deadline_and_options(fake, client):
    client.score(
        [1, 2], model="tiny", top_k=0, solver=SolverOptions(tol=0.5), candidates=["a", [3]]
    )
    call = fake.calls[0]
    assert call.metadata["deqlm-owner"] == "ann"
    assert 50 < call.time_remaining_s < 70
    assert list(call.request.input.token_ids.ids) == [1, 2]
    assert call.request.HasField("top_k")
    assert call.request.solver.tol == 0.5
    assert [item.WhichOneof("kind") for item in call.request.candidates] == ["text", "token_ids"]


def test_nobodys_calls_name_no_owner(fake):
    with Client(fake.address) as client:
        client.model()
    assert "deqlm-owner" not in fake.calls[0].metadata


def test_a_call_may_take_less_time_than_the_default(fake, client):
    release = threading.Event()
    fake.queue("Score", lambda *_: release.wait(GIVE_UP_S))
    with pytest.raises(DeadlineExceeded):
        client.score("a", timeout_s=0.05)
    release.set()


def test_text_may_be_cut_anywhere_in_a_stream(client):
    answers = list(client.score_stream(["It w", "as ni", FLUSH, "ght"]))
    assert [[token.text for token in answer.tokens] for answer in answers] == [
        ["It"],
        ["was"],
        ["ni"],
        [],
        ["ght"],
    ]
    assert [token.byte_begin for answer in answers for token in answer.tokens] == [0, 3, 7, 9]
    assert [answer.final for answer in answers] == [False, False, False, False, True]
    assert [answer.committed_position for answer in answers] == [1, 2, 3, 3, 4]


def test_answers_come_while_text_is_still_being_written(client):
    asked = threading.Semaphore(1)

    def pieces():
        for word in ("one ", "two ", "three "):
            assert asked.acquire(timeout=GIVE_UP_S)
            yield word

    seen = []
    for answer in client.score_stream(pieces()):
        seen.extend(token.text for token in answer.tokens)
        asked.release()
    assert seen == ["one", "two", "three"]


def test_what_the_pieces_raise_reaches_the_reader(fake, client):
    answered = threading.Event()

    def pieces():
        yield "one "
        assert answered.wait(GIVE_UP_S)
        raise OSError("the file is gone")

    answers = client.score_stream(pieces())
    assert next(answers).tokens[0].text == "one"
    answered.set()
    with pytest.raises(OSError, match="the file is gone"):
        next(answers)
    assert fake.cancelled.wait(GIVE_UP_S)


def test_pieces_that_raise_at_once_raise_in_the_reader(client):
    def pieces():
        raise OSError("no such file")
        yield

    with pytest.raises(OSError, match="no such file"):
        list(client.score_stream(pieces()))


def test_a_broken_stream_raises_its_status(fake, client):
    fake.queue("ScoreStream", Failure(code=grpc.StatusCode.ABORTED))
    with pytest.raises(Aborted, match="scripted"):
        list(client.score_stream(["a"]))


def test_closing_a_score_stream_cancels_the_call(fake, client):
    more = threading.Event()

    def pieces():
        yield "one "
        more.wait(GIVE_UP_S)

    answers = client.score_stream(pieces())
    assert next(answers).tokens[0].text == "one"
    answers.close()
    assert fake.cancelled.wait(GIVE_UP_S)
    more.set()


def test_tokens_of_a_generation(client):
    generation = client.generate("It was")
    assert [token.text for token in generation] == ["The", " end"]
    assert generation.started.seed == 7
    assert generation.finished.reason is FinishReason.LENGTH
    assert generation.finished.text == "."


def test_texts_join_to_the_whole_with_what_was_held_back(fake, client):
    fake.queue("Generate", lambda *_: generated("The", "", " end", held_back="."))
    assert list(client.generate("It was").texts()) == ["The", " end", "."]


def test_the_result_of_a_generation(client):
    result = client.generate("It was").result()
    assert result.text == "The end."
    assert len(result.tokens) == result.finished.generated_tokens == 2


def test_options_of_a_generation_are_sent(fake, client):
    client.generate(
        sampling=SamplingOptions(temperature=0.0),
        stop=StopOptions(max_tokens=5),
        logprobs=2,
        session="s1",
        timeout_s=9.0,
    ).result()
    request = fake.calls[0].request
    assert request.sampling.HasField("temperature")
    assert not request.HasField("prompt")
    assert (request.stop.max_tokens, request.logprobs, request.session_id) == (5, 2, "s1")
    assert 0 < fake.calls[0].time_remaining_s < 10.0


def test_a_stream_has_no_deadline_unless_given_one(fake, client):
    client.generate("a").result()
    assert fake.calls[0].time_remaining_s is None or fake.calls[0].time_remaining_s > 1e6


def endless(_request, context):
    token = generation_pb2.GeneratedToken(text="x")
    while context.is_active():
        yield generation_pb2.GenerateResponse(token=token)


def test_leaving_a_generation_cancels_the_call(fake, client):
    fake.queue("Generate", endless)
    with client.generate("a") as generation:
        assert next(iter(generation)).text == "x"
    assert fake.cancelled.wait(GIVE_UP_S)


def test_a_generation_cancelled_from_elsewhere_says_so(fake, client):
    fake.queue("Generate", endless)
    generation = client.generate("a")
    with pytest.raises(Cancelled):
        for _ in generation:
            generation.close()


def test_a_generation_without_its_last_event_is_an_error(fake, client):
    fake.queue("Generate", lambda *_: generated("a")[:-1])
    with pytest.raises(Internal, match="without its first or last event"):
        client.generate("a").result()


def test_a_session_is_deleted_at_the_end(fake, client):
    with client.session(model="tiny", ttl_s=5.0) as session:
        assert session.score("a b").session.scored_tokens == 2
        assert session.generate().result().text == "The end."
        assert list(session.score_stream(["a"]))[-1].final
        assert session.fork().session_id == "s2"
        assert session.refresh().position == 3
    assert fake.calls[0].request.ttl_s == 5.0
    assert fake.calls[1].request.session_id == "s1"
    assert fake.methods()[-1] == "DeleteSession"
    assert fake.calls[-1].request.session_id == "s1"


def test_a_session_that_is_gone_at_the_end_is_no_error(fake, client):
    fake.queue("DeleteSession", Failure(code=grpc.StatusCode.NOT_FOUND))
    with client.session():
        pass


def test_a_failing_delete_does_not_hide_what_the_body_raised(fake, client):
    fake.queue("DeleteSession", Failure(code=grpc.StatusCode.INTERNAL))
    with pytest.raises(KeyError, match="body"), client.session():
        raise KeyError("body")


def test_a_failing_delete_is_raised_otherwise(fake, client):
    fake.queue("DeleteSession", Failure(code=grpc.StatusCode.INTERNAL))
    with pytest.raises(Internal, match="scripted"), client.session():
        pass


def test_an_old_session_can_be_taken_up(fake, client):
    session = client.open_session("s1")
    session.delete()
    assert fake.methods() == ["GetSession", "DeleteSession"]
    fake.queue("GetSession", Failure(code=grpc.StatusCode.NOT_FOUND))
    with pytest.raises(NotFound, match="scripted"):
        client.open_session("other")


def test_all_pages_of_sessions_are_read(fake, client):
    first = session_pb2.ListSessionsResponse(sessions=[SESSION], next_page_token="2")
    fake.queue("ListSessions", first)
    assert [info.session_id for info in client.list_sessions(model="tiny")] == ["s1", "s1"]
    assert fake.calls[1].request.page_token == "2"
    assert fake.calls[1].request.model == "tiny"


def test_tokenizing_there_and_back(client):
    assert [token.token_id for token in client.tokenize("a bc").tokens] == [1, 2]
    assert client.detokenize([4, 5]).text == "4 5"


def test_models(client):
    assert [model.name for model in client.models()] == ["tiny"]
    assert client.model("tiny").default_solver == SolverOptions(tol=1e-3, max_nfe=30)


def test_health(fake, client):
    assert client.health() is HealthStatus.SERVING
    fake.set_ready("some.Service")
    assert client.health("some.Service") is HealthStatus.SERVING
    with pytest.raises(NotFound):
        client.health("other.Service")


def test_waiting_until_the_server_is_ready(fake, client):
    with pytest.raises(DeadlineExceeded):
        client.wait_ready(timeout_s=0.1)
    setter = threading.Timer(0.05, fake.set_ready, ["deqlm.v1.ScoringService"])
    setter.start()
    client.wait_ready(timeout_s=GIVE_UP_S)
    setter.join()
