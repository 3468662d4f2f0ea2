"""Whatever somebody sends to the port: others have their answers, and nothing of it stays."""

import ssl
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import psutil
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.server.calls import Stubs
from tests.server.hostile.attacks import ATTACKS, MAX_MESSAGE_BYTES
from tests.server.hostile.raw import BY_TLS
from tests.server.security.certificates import issue
from tests.server.security.people import people, stubs_of, write
from tests.server.test_process import ROOT, Process

SERVING = health_pb2.HealthCheckResponse.SERVING
SLOWEST_S = 10.0
"""An answer takes a few milliseconds; with others on the machine this is generous."""
BEHIND_OTHERS_S = 50.0
"""One that comes behind thousands of calls which are none, each of which takes its time."""
MORE_BYTES = 128 << 20
"""What memory may be above that of a server that has had no attack."""


class Neighbour:
    """A client that scores, again and again, while somebody else attacks."""

    def __init__(self, channel: grpc.Channel, stubs: Stubs) -> None:
        self._channel, self._stubs = channel, stubs
        self._right = self._stubs.score("the of and a").call.logprob_sum
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._run)
        self._ended = False
        self.answers = 0
        self.slowest_s = 0.0
        self.error: BaseException | None = None

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        self.next_round()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()
        self._channel.close()

    def next_round(self) -> None:
        """Waits for two more answers: the second one began after the call."""
        with self._more:
            seen = self.answers
            assert self._more.wait_for(lambda: self.error or self.answers >= seen + 2, 60)
        if self.error:
            raise self.error

    def _run(self) -> None:
        while not self._ended and self.error is None:
            begun = time.monotonic()
            try:
                answer = self._stubs.score("the of and a")
                assert answer.call.logprob_sum == pytest.approx(self._right, abs=0.05)
            except BaseException as error:
                self.error = error
            with self._more:
                self.answers += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                self._more.notify_all()


def as_neighbour(channel: grpc.Channel) -> Stubs:
    """Somebody with a share of the queue that is not the attackers', who name no owner."""
    return Stubs(channel, owner="neighbour")


class Target:
    """A server process, as seen from outside."""

    def __init__(
        self,
        process: Process,
        connect: Callable[[str], grpc.Channel] = grpc.insecure_channel,
        greet: Callable[[grpc.Channel], Stubs] = as_neighbour,
    ) -> None:
        self.process, self._connect, self._greet = process, connect, greet
        self.address = process.wait_ready()[2]
        self.seen = psutil.Process(process.process.pid)
        with self.neighbour() as neighbour:
            neighbour.next_round()
        self.files = self.seen.num_fds()
        self.bytes = self.seen.memory_info().rss

    def neighbour(self) -> Neighbour:
        """Somebody else who uses it."""
        channel = self._connect(self.address)
        return Neighbour(channel, self._greet(channel))

    def is_serving(self) -> bool:
        """What health says of the whole and of scoring."""
        with self._connect(self.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            asked = [health_pb2.HealthCheckRequest(service=name) for name in SERVICES]
            return all(check(one, timeout=30).status == SERVING for one in asked)


SERVICES = ("", "deqlm.v1.ScoringService")


@pytest.fixture(scope="module")
def process(tiny_models) -> Iterator[Process]:
    """One server for all attacks: what one leaves behind the next one would find."""
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port=0"),
        *("--max-message-bytes", str(MAX_MESSAGE_BYTES), "--handshake-s", "5"),
    )
    yield process
    process.process.terminate()
    assert process.wait() == 0, "".join(process.lines)


@pytest.fixture(scope="module")
def target(process: Process) -> Target:
    """It, before the first attack."""
    return Target(process)


@pytest.fixture(scope="module")
def secured(tiny_models, tmp_path_factory) -> Iterator[Target]:
    """A server that speaks TLS and knows its callers; attackers are none of them."""
    folder, authority = tmp_path_factory.mktemp("secured"), trustme.CA()
    files = issue(folder, "server", authority, "127.0.0.1")
    process = Process(
        *("--model", f"tiny={tiny_models / 'words'}", "--port", "0", "--metrics-port=0"),
        *("--max-message-bytes", str(MAX_MESSAGE_BYTES), "--handshake-s", "5", "--open-health"),
        *("--tls-cert", str(files.cert), "--tls-key", str(files.key)),
        *("--auth-file", str(write(folder / "auth.yaml", people()))),
    )
    credentials = grpc.ssl_channel_credentials(files.ca.read_bytes())
    target = Target(
        process,
        lambda address: grpc.secure_channel(address, credentials),
        lambda channel: stubs_of(channel, "ann"),
    )
    context = ssl.create_default_context(cafile=str(files.ca))
    context.set_alpn_protocols(["h2"])
    BY_TLS[target.address] = context
    yield target
    del BY_TLS[target.address]
    process.process.terminate()
    assert process.wait() == 0, "".join(process.lines)


@pytest.mark.parametrize("name", ATTACKS)
def test_others_have_their_answers(target: Target, name: str) -> None:
    attack(target, name)


@pytest.mark.parametrize("name", ATTACKS)
def test_others_have_their_answers_behind_tls(secured: Target, name: str) -> None:
    attack(secured, name)


def attack(target: Target, name: str) -> None:
    """Attack it beside a neighbour, who must not notice; nothing of it may stay."""
    process = target.process
    lines = len(process.lines)
    with target.neighbour() as neighbour:
        ATTACKS[name](target.address, neighbour.next_round)
        neighbour.next_round()
        # What the attack held is given back while others go on.
        deadline = time.monotonic() + 40
        while target.seen.num_fds() > target.files + 4 and time.monotonic() < deadline:
            neighbour.next_round()
        assert target.seen.num_fds() <= target.files + 4
        assert target.is_serving()
    assert neighbour.error is None
    assert neighbour.slowest_s < (BEHIND_OTHERS_S if name == "rapid resets" else SLOWEST_S)
    assert target.seen.memory_info().rss < target.bytes + MORE_BYTES
    log = "".join(process.lines[lines:])
    # gRPC itself logs calls that are gone when their answer is ready.
    assert f'File "{ROOT / "server"}' not in log, log[-5000:]
