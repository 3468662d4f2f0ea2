"""Kills a server again and again while clients use it, and looks for what is lost.

Each client has sessions of its own and knows, for each, the tokens that the server has acknowledged
and the one call that it has not: a call that failed is sent again with its key. So after any number
of kills a session must hold exactly the acknowledged tokens, or those and the open call's.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from deqlm.v1 import common_pb2, generation_pb2
from tests.server.calls import FLUSH, TIGHT, Stubs, to_input

ROOT = Path(__file__).resolve().parents[2]
NEAR = 2e-3
N_TOKEN = 22
BACK_OFF_S = 0.05
"""As any client waits before it tries again: calls that spin would starve the server's start."""
_RETRIED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,  # the call that the client gave up still holds the session
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,  # what gRPC makes of a connection that is cut in a message
)
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Killed:
    """A server process on a port that stays, and a store that stays."""

    def __init__(self, folder: Path, model: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._arguments = [
            *("-m", "server", "--model", f"tiny={model}", "--port", str(self.port)),
            *("--metrics-port", "-1", "--threads", "1", "--early-dtype", "none"),
            *("--max-batch-tokens", "16", "--max-running", "4", "--window", "4"),
            *("--session-store", f"sqlite:{folder / 'sessions.db'}", *options),
        ]
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])
        }
        self.log_path = folder / "server.log"
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        """Starts it, and does not wait."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self._arguments], cwd=ROOT, env=self._environment, stderr=log
            )

    def wait_ready(self) -> None:
        """Waits until it answers."""
        with self.channel() as channel:
            while True:
                assert self.process.poll() is None, self.log_path.read_text()[-3000:]
                try:
                    return Stubs(channel).list(page_size=1) and None
                except grpc.RpcError as error:
                    assert error.code() in _RETRIED, error
                    time.sleep(BACK_OFF_S)

    def channel(self) -> grpc.Channel:
        """To it, whichever process it is now."""
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", options=OPTIONS)

    def kill(self) -> None:
        """Kills it as a machine would that has no memory left."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def end(self) -> int:
        """Stops it in an orderly way; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@dataclass
class History:
    """A session, by what its server has acknowledged.

    Attributes:
        session_id: its id.
        tokens: acknowledged.
        created: whether the call that made it was.
    """

    session_id: str
    tokens: list[int] = field(default_factory=list)


class Client(threading.Thread):
    """Uses sessions until told to stop; ``error`` is what it found wrong."""

    def __init__(self, number: int, port: int, seed: int) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self._random = random.Random(seed)
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
        self._stubs = Stubs(self._channel, owner=f"client-{number}")
        self.stop = threading.Event()
        self.histories: list[History] = []
        self.error: BaseException | None = None
        self.calls = self.repeats = 0
        self._keys = 0

    def run(self) -> None:
        """Calls, one after another."""
        try:
            self.histories = [self._create() for _ in range(2)]
            while not self.stop.is_set():
                self._act(self._random.choice(self.histories))
        except BaseException as error:
            self.error = error

    def _create(self) -> History:
        key = self._key()
        return History(self._again(lambda: self._stubs.create(idempotency_key=key, solver=TIGHT)))

    def _act(self, history: History) -> None:
        kind = self._random.choice(["score", "score", "generate", "stream", "fork"])
        if kind == "fork" and len(self.histories) < 5:
            key = self._key()
            copy = self._again(
                lambda: self._stubs.fork(history.session_id, idempotency_key=key)
            ).session_id
            self.histories.append(History(copy, list(history.tokens)))
        elif kind == "generate":
            self._generate(history)
        elif kind == "stream":
            self._stream(history)
        else:
            self._score(history)

    def _score(self, history: History) -> None:
        tokens, key = self._tokens(), self._key()
        answer = self._again(
            lambda: self._stubs.score(tokens, session_id=history.session_id, idempotency_key=key)
        )
        self._note(history, tokens, answer.position, answer.kept)

    def _generate(self, history: History) -> None:
        prompt = self._tokens()
        request = generation_pb2.GenerateRequest(
            session_id=history.session_id,
            prompt=to_input(prompt),
            stop=generation_pb2.StopOptions(max_tokens=4, ignore_eos=True),
            idempotency_key=self._key(),
        )
        responses = self._again(lambda: list(self._stubs.generate(request)))
        drawn = [r.token.token_id for r in responses if r.HasField("token")]
        assert len(drawn) == 4, responses
        finished = responses[-1].finished
        self._note(history, prompt + drawn, finished.position, finished.kept)

    def _stream(self, history: History) -> None:
        """Each answer is a commit; a stream has no key, but tells what was committed."""
        pieces = [self._tokens(), self._tokens()]
        known = len(history.tokens)

        def messages() -> Any:
            for piece in pieces:
                yield piece
                yield FLUSH

        try:
            for answer in self._stubs.stream(messages(), session_id=history.session_id):
                sent = pieces[0] + pieces[1]
                history.tokens[known:] = sent[: answer.committed_position - known]
                assert answer.kept in (common_pb2.KEPT_IN_STORE, common_pb2.KEPT_UNSPECIFIED)
        except grpc.RpcError as error:
            assert error.code() in _RETRIED, error
            # What was committed without an answer can be asked for, and is all or nothing.
            view = self._again(lambda: self._free(history))
            position, done = view.position, len(history.tokens)
            ends = {known, known + len(pieces[0]), known + len(pieces[0] + pieces[1])}
            assert position in ends, (position, ends)
            assert position >= done, f"{done} tokens were acknowledged, {position} are there"
            history.tokens[known:] = (pieces[0] + pieces[1])[: position - known]
        self.calls += 1

    def _free(self, history: History) -> Any:
        """The session, once no call that was given up holds it any more."""
        while (view := self._stubs.get(history.session_id)).busy:
            pass
        return view

    def _note(self, history: History, tokens: list[int], position: int, kept: int) -> None:
        expected = len(history.tokens) + len(tokens)
        assert position == expected, f"{expected} tokens expected, the session has {position}"
        assert kept == common_pb2.KEPT_IN_STORE
        history.tokens += tokens
        self.calls += 1

    def _again(self, call: Any) -> Any:
        """Sends a call until it is answered."""
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() not in _RETRIED:
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
        probe = [[5], [7, 3]]
        for history in self.histories:
            candidates = [to_input(ids) for ids in probe]
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


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    kills: int
    calls: int
    repeats: int
    sessions: int
    tokens: int


def kill_often(
    folder: Path, model: Path, *, kills: int, seed: int = 0, clients: int = 3
) -> Outcome:
    """Kills a server that is in use at random moments.

    Raises:
        AssertionError: anything is lost, or there that should not be.
    """
    moments = random.Random(seed)
    server = Killed(folder, model)
    users = [Client(number, server.port, seed + number) for number in range(clients)]
    try:
        server.wait_ready()
        for user in users:
            user.start()
        for _ in range(kills):
            # Most kills come while calls run, some while the server starts.
            if moments.random() < 0.8:
                server.wait_ready()
                time.sleep(moments.expovariate(4.0))
            else:
                time.sleep(moments.uniform(0.0, 4.0))
            server.kill()
            server.start()
            if any(user.error is not None for user in users):
                break
        server.wait_ready()
        for user in users:
            user.stop.set()
        for user in users:
            user.join(timeout=60)
            assert not user.is_alive(), f"{user.name} waits for ever"
        for user in users:
            if user.error is not None:
                raise user.error
            user.check_contents()
        assert server.end() == 0
    except BaseException:
        server.kill()
        raise
    return Outcome(
        kills=kills,
        calls=sum(user.calls for user in users),
        repeats=sum(user.repeats for user in users),
        sessions=sum(len(user.histories) for user in users),
        tokens=sum(len(h.tokens) for user in users for h in user.histories),
    )
