"""A recorder passes on every call as it is, and keeps when it came and how long it was."""

import asyncio

import pytest

from client.aio import AsyncClient
from client.errors import NotFound
from client.options import FLUSH, StopOptions
from loadtest.recorder import Recording, record
from loadtest.traces import read_trace


def recording(tmp_path, server, **more):
    given = {"address": server.address, "out": tmp_path / "trace.jsonl", "listen": "127.0.0.1:0"}
    return Recording(**given | more)


async def started(options):
    """The recorder's address, and what ends it."""
    told: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.ensure_future(record(options, told.put_nowait))
    line = await asyncio.wait_for(told.get(), 60)
    address = line.partition("recording at ")[2].partition(",")[0]

    async def end():
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return told.get_nowait()

    return address, end


async def test_calls_go_through_and_are_kept(live_server, tmp_path):
    options = recording(tmp_path, live_server)
    address, end = await started(options)
    async with AsyncClient(live_server.address) as direct, AsyncClient(address) as client:
        text = "Three words more."
        there, here = await direct.score(text), await client.score(text)
        assert here.call == there.call
        assert [token.logprob for token in here.tokens] == [t.logprob for t in there.tokens]
        answers = [a async for a in client.score_stream(["One two ", FLUSH, "three. ", FLUSH])]
        assert answers[-1].final
        generated = await client.generate("To be", stop=StopOptions(max_tokens=3)).result()
        assert len(generated.tokens) == 3
        async with client.session() as session:
            await session.score("One two three four.")
            async with await session.fork() as copy:
                await copy.score("And five.")
        with pytest.raises(NotFound, match="nobody") as refused:
            await client.score("x", model="nobody")
        assert refused.value.resource == "nobody"
    assert await end() == f"recorded 6 arrivals in {options.out}"
    found = read_trace(options.out)
    assert [(one.kind, one.words) for one in found] == [
        ("score", 3),
        ("stream", 3),
        ("generate", 2),
        ("session", 4),
        ("fork", 2),
        ("score", 1),
    ]
    assert found[0].at_s == 0 and found[1].piece == 2 and found[2].max_tokens == 3
    assert "Three" not in options.out.read_text()


async def test_a_call_that_its_client_cancels_is_cancelled_there_too(live_server, tmp_path):
    options = recording(tmp_path, live_server)
    address, end = await started(options)
    async with AsyncClient(address) as client, AsyncClient(live_server.address) as direct:
        stop = StopOptions(max_tokens=4000, ignore_eos=True)
        async for _ in (generation := client.generate("To be", stop=stop)):
            generation.close()
            break
        for _ in range(600):
            # The call of the look is one itself.
            if (await direct.check()).calls == 1 and options.out.stat().st_size:
                break
            await asyncio.sleep(0.1)
        assert (await direct.check()).calls == 1
    await end()
    (cancelled,) = read_trace(options.out)
    assert (cancelled.kind, cancelled.max_tokens) == ("cancel", 4000)
    assert cancelled.cancel_s > 0


def test_it_ends_by_itself(loadtest, live_server, tmp_path):
    flags = ("--address", live_server.address, "--listen", "127.0.0.1:0", "--seconds", "0.2")
    code, _, told = loadtest("record", *flags, "--out", tmp_path / "trace.jsonl")
    assert code == 0
    assert "recorded 0 arrivals" in told


@pytest.mark.parametrize(
    ("flags", "code", "problem"),
    [
        (["--listen", "0.0.0.0:0"], 2, "listen must be an address of this machine"),
        (["--address", "ann.example:1"], 2, "must not go to ann.example:1 unencrypted"),
        (["--seconds", "0"], 2, "seconds must be a number above 0"),
        ([], 1, "out must be a new file"),
    ],
)
def test_what_cannot_be_recorded(loadtest, tmp_path, flags, code, problem):
    (tmp_path / "trace.jsonl").write_text("x\n")
    given = ("--address", "127.0.0.1:1", "--out", tmp_path / "trace.jsonl", *flags)
    found, _, told = loadtest("record", *given)
    assert problem in told
    assert found == code
    assert (tmp_path / "trace.jsonl").read_text() == "x\n"


def test_a_port_that_is_taken(loadtest, live_server, tmp_path):
    flags = ("--address", live_server.address, "--listen", live_server.address)
    code, _, told = loadtest("record", *flags, "--out", tmp_path / "trace.jsonl", "--seconds", "1")
    assert code == 1
    assert "cannot be listened at" in told
