"""A session whose memory holds NaN: its owner is told, and so is who runs the server."""

import math

import pytest

from client.sync import Client
from tests.server.calls import TIGHT, Stubs
from tests.server.test_persistence import NEAR, TEXT, logprobs, whole

REPAIRS = 'deqlm_session_repairs_total{model="pieces"}'


def test_a_session_that_was_repaired_tells_so(serve, live_server):
    expected = whole(live_server, [TEXT, TEXT])
    server = serve()
    stubs = Stubs(server.channel, owner="ann")
    sick, well = stubs.create(solver=TIGHT), stubs.create(solver=TIGHT)
    first, _ = (stubs.score(TEXT, session_id=session) for session in (sick, well))
    assert stubs.get(sick).repairs == 0
    engine = server.engine()
    slot = engine.sessions.hold(sick)
    engine.perform(lambda: engine._slab._kept_value[slot].fill_(math.nan)).result(60)
    engine._slots.release(slot)

    answers = [stubs.score(TEXT, session_id=session) for session in (sick, well)]
    for answer in answers:
        assert logprobs(answer) == pytest.approx(expected[1], abs=NEAR)
    assert [a.solver.repaired_tokens for a in answers] == [first.position, 0]
    assert [stubs.get(session).repairs for session in (sick, well)] == [1, 0]
    assert server.metrics()[REPAIRS] == 1

    # What was found stays told, also after a restart.
    server = serve()
    stubs = Stubs(server.channel, owner="ann")
    assert [stubs.get(session).repairs for session in (sick, well)] == [1, 0]
    with Client(server.address, owner="ann") as client:
        assert client.get_session(sick).repairs == 1
    assert stubs.get(sick).repairs == 1
