"""The asyncio client against a scripted server."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from client.aio import AsyncClient
from client.errors import Aborted, Cancelled, DeadlineExceeded, Internal
from client.options import FLUSH
from tests.client.fake_server import Failure
from tests.client.test_sync import GIVE_UP_S, endless


@pytest.fixture
async def aclient(fake) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(fake.address, owner="bob") as client:
        yield client


async def _cancelled(fake) -> bool:
    return await asyncio.to_thread(fake.cancelled.wait, GIVE_UP_S)


async def test_a_score_is_typed(fake, aclient):
    score = await aclient.score("It was night")
    assert [token.text for token in score.tokens] == ["It", "was", "night"]
    assert fake.calls[0].metadata["deqlm-owner"] == "bob"


async def test_every_read(fake, aclient):
    assert (await aclient.model()).name == "tiny"
    assert len(await aclient.models()) == 1
    assert len((await aclient.tokenize("a b")).tokens) == 2
    assert (await aclient.detokenize([1])).text == "1"
    assert len(await aclient.list_sessions()) == 1
    assert (await aclient.health()).value == "serving"
    fake.set_ready("deqlm.v1.ScoringService")
    await aclient.wait_ready(timeout_s=GIVE_UP_S)


async def test_waiting_for_readiness_has_an_end(aclient):
    with pytest.raises(DeadlineExceeded):
        await aclient.wait_ready(timeout_s=0.1)


async def _asynchronous(pieces):
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


@pytest.mark.parametrize("source", [list, _asynchronous], ids=["iterable", "async iterable"])
async def test_text_may_be_cut_anywhere_in_a_stream(aclient, source):
    pieces = source(["It w", "as ni", FLUSH, "ght"])
    answers = [answer async for answer in aclient.score_stream(pieces)]
    texts = [token.text for answer in answers for token in answer.tokens]
    assert texts == ["It", "was", "ni", "ght"]
    assert answers[-1].final


async def test_answers_come_while_text_is_still_being_written(aclient):
    asked = asyncio.Semaphore(1)

    async def pieces():
        for word in ("one ", "two ", "three "):
            await asyncio.wait_for(asked.acquire(), GIVE_UP_S)
            yield word

    seen = []
    async for answer in aclient.score_stream(pieces()):
        seen.extend(token.text for token in answer.tokens)
        asked.release()
    assert seen == ["one", "two", "three"]


async def test_what_the_pieces_raise_reaches_the_reader(fake, aclient):
    answered = asyncio.Event()

    async def pieces():
        yield "one "
        await asyncio.wait_for(answered.wait(), GIVE_UP_S)
        raise OSError("the file is gone")

    answers = aclient.score_stream(pieces())
    assert (await anext(answers)).tokens[0].text == "one"
    answered.set()
    with pytest.raises(OSError, match="the file is gone"):
        await anext(answers)
    assert await _cancelled(fake)


async def test_pieces_that_raise_at_once_raise_in_the_reader(aclient):
    async def pieces():
        raise OSError("no such file")
        yield

    with pytest.raises(OSError, match="no such file"):
        await anext(aclient.score_stream(pieces()))


async def test_a_broken_stream_raises_its_status(fake, aclient):
    fake.queue("ScoreStream", Failure(code=grpc.StatusCode.ABORTED))
    with pytest.raises(Aborted, match="scripted"):
        async for _ in aclient.score_stream(["a"]):
            pass


async def test_a_generation(aclient):
    assert [token.text async for token in aclient.generate("a")] == ["The", " end"]
    assert [text async for text in aclient.generate("a").texts()] == ["The", " end", "."]
    assert (await aclient.generate("a").result()).text == "The end."


async def test_leaving_a_generation_cancels_the_call(fake, aclient):
    fake.queue("Generate", endless)
    async with aclient.generate("a") as generation:
        async for token in generation:
            assert token.text == "x"
            break
    assert await _cancelled(fake)


async def test_a_generation_cancelled_from_elsewhere_says_so(fake, aclient):
    fake.queue("Generate", endless)
    generation = aclient.generate("a")
    with pytest.raises(Cancelled, match="cancelled by this client"):
        async for _ in generation:
            generation.close()


async def test_a_cancelled_task_stays_cancelled(fake, aclient):
    fake.queue("Generate", endless)
    begun = asyncio.Event()

    async def read():
        async for _ in aclient.generate("a"):
            begun.set()

    task = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), GIVE_UP_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _cancelled(fake)


async def test_a_session_is_deleted_at_the_end(fake, aclient):
    async with aclient.session() as session:
        assert (await session.score("a b")).session.scored_tokens == 2
        assert (await session.generate().result()).text == "The end."
        assert [answer.final async for answer in session.score_stream(["a"])] == [False, True]
        assert (await session.fork()).session_id == "s2"
        assert (await session.refresh()).position == 3
    assert fake.methods()[-1] == "DeleteSession"


async def test_an_awaited_session_is_left_to_the_caller(fake, aclient):
    session = await aclient.session()
    assert session.session_id == (await aclient.open_session("s1")).session_id
    await session.delete()
    assert fake.methods() == ["CreateSession", "GetSession", "DeleteSession"]


async def test_a_failing_delete_does_not_hide_what_the_body_raised(fake, aclient):
    fake.queue("DeleteSession", Failure(code=grpc.StatusCode.INTERNAL))
    with pytest.raises(KeyError, match="body"):
        async with aclient.session():
            raise KeyError("body")


async def test_a_failing_delete_is_raised_otherwise(fake, aclient):
    fake.queue("DeleteSession", Failure(code=grpc.StatusCode.INTERNAL))
    with pytest.raises(Internal, match="scripted"):
        async with aclient.session():
            pass
