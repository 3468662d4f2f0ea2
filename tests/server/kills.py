"""Kills a server again and again while clients use it, and looks for what is lost."""

import random
import time
from dataclasses import dataclass
from pathlib import Path

from tests.server.kill_clients import Client
from tests.server.killed import Killed

RESIDENT_BYTES = 2 * 3 * (16 + 16) * 16 * 4
"""Two sessions of the tests' models: keys, values and states of 32 tokens of 16 channels.

There are more, so that they go to the store and come back.
"""


@dataclass(frozen=True)
class Outcome:
    """What came of it: of the server, of its clients together, and of the sessions at the end."""

    kills: int
    calls: int
    repeats: int
    same_answers: int
    deleted: int
    sessions: int
    tokens: int
    evictions: int
    returns: int


def kill_often(
    folder: Path, model: Path, *, kills: int, seed: int = 0, clients: int = 3, store: str = ""
) -> Outcome:
    """Kills a server that is in use at random moments.

    Raises:
        AssertionError: anything is lost, or there that should not be.
    """
    moments = random.Random(seed)
    server = Killed(folder, model, "--resident-bytes", str(RESIDENT_BYTES), store=store)
    users = [Client(number, server.port, seed + number) for number in range(clients)]
    evictions = returns = 0
    try:
        server.wait_ready()
        for user in users:
            user.thread.start()
        for _ in range(kills):
            # Most kills come while calls run, some while the server starts.
            if moments.random() < 0.8:
                server.wait_ready()
                time.sleep(moments.expovariate(4.0))
                evictions += server.counted("deqlm_session_evictions_total")
                returns += server.counted("deqlm_session_returns_total")
                time.sleep(moments.expovariate(10.0))
            else:
                time.sleep(moments.uniform(0.0, 4.0))
            server.kill()
            server.start()
            if any(user.error is not None for user in users):
                break
        server.wait_ready()
        _finish(users)
        assert server.end() == 0
    except BaseException:
        server.kill()
        raise
    return Outcome(
        kills=kills,
        calls=sum(user.calls for user in users),
        repeats=sum(user.repeats for user in users),
        same_answers=sum(user.same for user in users),
        deleted=sum(len(user.deleted) for user in users),
        sessions=sum(len(user.histories) for user in users),
        tokens=sum(len(h.tokens) for user in users for h in user.histories),
        evictions=evictions,
        returns=returns,
    )


def _finish(users: list[Client]) -> None:
    """Has the clients end, and looks at what they have."""
    for user in users:
        user.stop.set()
    for user in users:
        user.thread.join(timeout=120)
        assert not user.thread.is_alive(), f"{user.name} waits for ever"
    for user in users:
        if user.error is not None:
            raise user.error
        user.check_contents()
