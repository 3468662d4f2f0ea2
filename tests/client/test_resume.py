"""A stream that is cut goes on where its session is: nothing twice, nothing left out."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client._resume import Sent
from client.aio import AsyncClient
from client.errors import InvalidArgument, Unavailable
from client.options import FLUSH, Budget, SolverOptions
from client.resources import Token
from client.sync import Client, RetryPolicy
from tests.server.proxy import Proxy

TEXT = [f"It was a night no. {number}, dark and stor" for number in range(12)]
IDS = [[7, 8, 9], FLUSH, [5], [6, 4], FLUSH, [3] * 5]
TIGHT = SolverOptions(tol=1e-5, max_nfe=400)
RETRY = RetryPolicy(max_attempts=8)


def whole(client, pieces):
    """What a session is that nobody interrupted."""
    with client.session(solver=TIGHT) as session:
        answers = list(session.score_stream(pieces))
        return answers[-1].session, session.refresh().position


def same(info, expected, position):
    assert info.position == position == expected.scored_tokens
    assert info.totals.logprob_sum == pytest.approx(expected.logprob_sum, abs=2e-3)


class Cutting:
    """Yields pieces, and cuts the connection before some of them."""

    def __init__(self, proxy, pieces, before):
        self.proxy, self.items, self.before = proxy, pieces, before
        self.answered = threading.Event()
        self.cuts = 0

    def __iter__(self):
        for index, piece in enumerate(self.items):
            if index in self.before:
                if self.cuts % 2:  # now and then once something has been answered
                    self.answered.wait(5)
                self.proxy.cut()
                self.cuts += 1
            yield piece


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("kind", ["text", "ids"])
def test_cuts(live_server, kind, flushes):
    pieces = IDS if kind == "ids" else TEXT
    if flushes:
        pieces = [item for piece in pieces for item in (piece, FLUSH)]
    with Client(live_server.address) as direct, direct.session(solver=TIGHT) as own:
        expected, position = whole(direct, pieces)
        with Proxy(live_server.address) as proxy, Client(proxy.address, retry=RETRY) as client:
            session = client.open_session(own.session_id)
            cutting = Cutting(proxy, pieces, before={0, 2, 5, len(pieces) - 1})
            answers = []
            for answer in session.score_stream(cutting, resume=True):
                answers.append(answer)
                cutting.answered.set()
            assert answers[-1].final
            assert cutting.cuts == len(cutting.before)
            same(session.refresh(), expected, position)
            assert answers[-1].session.scored_tokens == position


def test_cuts_asyncio(live_server):
    async def run(proxy, session_id):
        async def pieces():
            for index, piece in enumerate(TEXT):
                if index in (0, 3, 7):
                    await asyncio.to_thread(proxy.cut)
                yield piece

        async with AsyncClient(proxy.address, retry=RETRY) as client:
            session = await client.open_session(session_id)
            answers = [one async for one in session.score_stream(pieces(), resume=True)]
            assert answers[-1].final

    with Client(live_server.address) as direct, direct.session(solver=TIGHT) as own:
        expected, position = whole(direct, TEXT)
        with Proxy(live_server.address) as proxy:
            asyncio.run(run(proxy, own.session_id))
        same(own.refresh(), expected, position)


def test_without_it_a_cut_is_an_error(live_server):
    with Client(live_server.address) as direct, direct.session() as own:
        with Proxy(live_server.address) as proxy, Client(proxy.address) as client:
            session = client.open_session(own.session_id)
            with pytest.raises(Unavailable):
                list(session.score_stream(Cutting(proxy, TEXT, before={3})))


def test_what_the_caller_raises_is_raised(live_server):
    def pieces():
        yield "It was"
        raise KeyError("mine")

    with Client(live_server.address) as client, client.session() as session:
        with pytest.raises(KeyError, match="mine"):
            list(session.score_stream(pieces(), resume=True))


def test_what_cannot_be_resumed(live_server):
    with Client(live_server.address) as client, client.session() as session:
        with pytest.raises(InvalidArgument, match="resume must be False with a budget"):
            session.score_stream(TEXT, resume=True, budget=Budget(max_calls=3))
        with pytest.raises(InvalidArgument, match="all text or all token ids"):
            list(session.score_stream(["It", [5]], resume=True))


def tokens_of(text):
    """Words, as tokens; white space belongs to none."""
    found, begin = [], 0
    for word in text.split():
        begin = text.index(word, begin)
        size = len(word.encode())
        at = len(text[:begin].encode())
        found.append(Token(token_id=0, text=word, raw=word.encode(), byte_begin=at,
                           byte_end=at + size, is_unknown=False))  # fmt: skip
        begin += len(word)
    return tuple(found)


WORDS = st.lists(st.sampled_from(["a ", "bé ", "\u4e2d ", "word", " ", FLUSH]), max_size=12)


@given(WORDS, st.integers(0, 12), st.integers(0, 12))
def test_what_is_left_is_what_was_not_committed(pieces, answered, lost):
    """Against plain text: words committed, answered or not, are a beginning of all words."""
    groups, all_words = [""], []
    for piece in pieces:
        groups = [*groups, ""] if piece is FLUSH else [*groups[:-1], groups[-1] + piece]
    for group in groups:
        all_words += group.split()
    answered = min(answered, len(all_words))
    position = min(answered + lost, len(all_words))
    sent = Sent(0)
    for piece in pieces:
        sent.add(piece)
    # Bytes up to the end of the last word that was answered.
    before, count = 0, 0
    for group in groups:
        ends = [token.byte_end for token in tokens_of(group)]
        if answered - count <= len(ends):
            before += ends[answered - count - 1] if answered > count else 0
            break
        count += len(ends)
        before += len(group.encode())
    sent.confirm(position=answered, text_bytes=before)
    sent.begin_anew(before)
    while sent.position != position:
        text = sent.text()
        sent.skip(position, tokens_of(text) if text else ())
    left = [sent.piece(index) for index in range(sent.begin, sent.end)]
    joined = "".join(" " if piece is FLUSH else piece for piece in left)
    assert joined.split() == all_words[position:], left
