"""Clients of a server that is killed: they know what must be there when it is back.

Each has sessions of its own and knows, for each, the tokens that the server has acknowledged and
the one call that it has not: a call that failed is sent again with its key. So after any number of
kills a session must hold exactly the acknowledged tokens, or those and the open call's.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from deqlm.v1 import common_pb2, generation_pb2
from tests.server.calls import FLUSH, TIGHT, TIMEOUT_S, Stubs, to_input
from tests.server.killed import BACK_OFF_S, OPTIONS, is_retried

NEAR = 2e-3
N_TOKEN = 22
MOST_SESSIONS = 5
"""Of a client."""
ACTIONS = ["score"] * 3 + ["generate", "stream", "fork", "delete", "again", "again"]


@dataclass
class History:
    """A session, by what its server has acknowledged.

    Attributes:
        session_id: its id.
        tokens: acknowledged.
        again: sends the last acknowledged call with a key once more.
        answer: what that was answered, all of it, as bytes.
    """

    session_id: str
    tokens: list[int] = field(default_factory=list)
    again: Callable[[], bytes] | None = None
    answer: bytes = b""


class Client:
    """Uses sessions until told to stop; ``error`` is what it found wrong."""

    def __init__(self, number: int, port: int, seed: int) -> None:
        self.name = f"client-{number}"
        self.thread = threading.Thread(target=self._run, daemon=True)
        self._random = random.Random(seed)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        self._stubs = Stubs(self._channel, owner=self.name)
        self.stop = threading.Event()
        self.histories: list[History] = []
        self.deleted: list[str] = []
        self.error: BaseException | None = None
        self.calls = self.repeats = self.same = 0
        self._keys = 0

    def _run(self) -> None:
        """Calls, one after another."""
        try:
            self._create()
            while not self.stop.is_set():
                kind = self._random.choice(ACTIONS)
                if kind == "delete" and len(self.histories) == MOST_SESSIONS:
                    self._delete(self._random.choice(self.histories))
                elif len(self.histories) == 1:
                    self._create()
                elif kind != "delete":
                    getattr(self, f"_{kind}")(self._random.choice(self.histories))
        except BaseException as error:
            self.error = error

    def _create(self) -> None:
        key = self._key()
        made = self._until_answered(lambda: self._stubs.create(idempotency_key=key, solver=TIGHT))
        self.histories.append(History(made))

    def _fork(self, history: History) -> None:
        if len(self.histories) == MOST_SESSIONS:
            return
        key = self._key()
        copy = self._until_answered(
            lambda: self._stubs.fork(history.session_id, idempotency_key=key)
        )
        assert copy.position == len(history.tokens)
        self.histories.append(History(copy.session_id, list(history.tokens)))
        self.calls += 1

    def _delete(self, history: History) -> None:
        try:
            self._until_answered(lambda: self._stubs.delete(history.session_id))
        except grpc.RpcError as error:  # it was done, and nobody was told
            assert error.code() is grpc.StatusCode.NOT_FOUND, error
        self.histories.remove(history)
        self.deleted.append(history.session_id)
        self.calls += 1

    def _score(self, history: History) -> None:
        """Now and then by two calls at once, of which the session must notice one."""
        tokens, key = self._tokens(), self._key()
        fields = {"session_id": history.session_id, "idempotency_key": key}

        def twice() -> list[Any]:
            both = [self._stubs.begin_score(tokens, **fields) for _ in range(2)]
            return [call.result(timeout=2 * TIMEOUT_S) for call in both]

        def once() -> list[Any]:
            return [self._stubs.score(tokens, **fields)]

        answers = self._until_answered(self._random.choice((once, once, twice)))
        assert all(answer == answers[0] for answer in answers)
        self._note(history, tokens, answers[0].position, answers[0].kept)
        self._keep(history, once, answers[:1])

    def _generate(self, history: History) -> None:
        prompt = self._tokens()
        request = generation_pb2.GenerateRequest(
            session_id=history.session_id,
            prompt=to_input(prompt),
            stop=generation_pb2.StopOptions(max_tokens=4, ignore_eos=True),
            idempotency_key=self._key(),
        )

        def generate() -> list[Any]:
            return list(self._stubs.generate(request))

        responses = self._until_answered(generate)
        drawn = [r.token.token_id for r in responses if r.HasField("token")]
        assert len(drawn) == 4, responses
        finished = responses[-1].finished
        self._note(history, prompt + drawn, finished.position, finished.kept)
        self._keep(history, generate, responses)

    def _stream(self, history: History) -> None:
        """Each answer is a commit; a stream has no key, but tells what was committed.

        Now and then it is left at any moment, perhaps between a commit and its way to the store.
        """
        pieces = [self._tokens(), self._tokens()]
        known, sent = len(history.tokens), pieces[0] + pieces[1]
        messages = [pieces[0], FLUSH, pieces[1], FLUSH]
        call = self._stubs.stream(messages, session_id=history.session_id)
        if self._random.random() < 0.5:
            threading.Timer(self._random.expovariate(20.0), call.cancel).start()
        try:
            for answer in call:
                history.tokens[known:] = sent[: answer.committed_position - known]
                assert answer.kept in (common_pb2.KEPT_IN_STORE, common_pb2.KEPT_UNSPECIFIED)
        except grpc.RpcError as error:
            assert is_retried(error), error
            # What was committed without an answer can be asked for, and is all or nothing.
            position, done = self._free(history).position, len(history.tokens)
            ends = {known, known + len(pieces[0]), known + len(sent)}
            assert position in ends, (position, ends)
            assert position >= done, f"{done} tokens were acknowledged, {position} are there"
            history.tokens[known:] = sent[: position - known]
        self.calls += 1

    def _again(self, history: History) -> None:
        """What was answered once is answered the same, and done no second time."""
        if history.again is None:
            return
        assert self._until_answered(history.again) == history.answer
        assert self._free(history).position == len(history.tokens)
        self.same += 1

    def _free(self, history: History) -> Any:
        """The session, once no call that was given up holds it any more."""
        while (view := self._until_answered(lambda: self._stubs.get(history.session_id))).busy:
            time.sleep(BACK_OFF_S)
        return view

    def _note(self, history: History, tokens: list[int], position: int, kept: int) -> None:
        expected = len(history.tokens) + len(tokens)
        assert position == expected, f"{expected} tokens expected, the session has {position}"
        assert kept == common_pb2.KEPT_IN_STORE
        history.tokens += tokens
        self.calls += 1

    def _keep(self, history: History, send: Callable[[], list[Any]], answers: list[Any]) -> None:
        history.again, history.answer = lambda: _bytes(send()), _bytes(answers)

    def _until_answered(self, call: Callable[[], Any]) -> Any:
        """Sends a call until it is answered."""
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if not is_retried(error):
                    raise
                self.repeats += 1
                time.sleep(BACK_OFF_S)

    def _tokens(self) -> list[int]:
        return [self._random.randrange(2, N_TOKEN) for _ in range(self._random.randint(1, 6))]

    def _key(self) -> str:
        self._keys += 1
        return f"{self.name} {self._keys}"

    def check_contents(self) -> None:
        """Compares what sessions go on from with sessions that hold the same without a kill."""
        there = {view.session_id for view in self._stubs.list(page_size=100).sessions}
        assert there == {history.session_id for history in self.histories}
        assert not there & set(self.deleted)
        candidates = [to_input(ids) for ids in ([5], [7, 3])]
        for history in self.histories:
            view = self._stubs.get(history.session_id)
            assert view.position == view.totals.scored_tokens == len(history.tokens)
            found = self._stubs.score(session_id=history.session_id, candidates=candidates)
            fresh = self._stubs.create(solver=TIGHT)
            if history.tokens:
                self._stubs.score(history.tokens, session_id=fresh, include_tokens=False)
            expected = self._stubs.score(session_id=fresh, candidates=candidates)
            self._stubs.delete(fresh)
            for one, other in zip(found.candidates, expected.candidates, strict=True):
                assert one.totals.logprob_sum == pytest.approx(other.totals.logprob_sum, abs=NEAR)


def _bytes(answers: list[Any]) -> bytes:
    return b"|".join(answer.SerializeToString(deterministic=True) for answer in answers)
