"""Who is let in when: turns between owners, priorities, jobs and candidates, and memory enough."""

import queue
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.admission import Admission, Places
from server.engine.errors import InvalidRequest, QueueFull
from server.engine.limits import EngineLimits
from server.engine.observer import Unobserved
from server.engine.requests import ScoreJob
from server.engine.results import Failed, Scored
from server.engine.work import Work
from tests.server.engine.helpers import MODEL, running_engine


class Counting(Unobserved):
    """Notes how many sequences shared each call of f."""

    def __init__(self) -> None:
        self.sequences: list[int] = []
        self.many = threading.Event()

    def step(self, *, rows: int, sequences: int, seconds: float) -> None:
        self.sequences.append(sequences)
        if sequences >= 2:
            self.many.set()


def waiting(owner: str = "", priority: int = 1, size: int = 1) -> Work:
    job = ScoreJob(
        job_id="", tokens=(1,) * size, sink=lambda _: None, owner=owner, priority=priority
    )
    return Work(job, submitted=0.0)


def queue_of(*works: Work) -> Admission:
    found = Admission(max_queue=100, max_queue_tokens=10_000)
    for work in works:
        found.put(work)
    return found


def taken(admission: Admission, count: int | None = None) -> list[Work]:
    return [
        work
        for _ in range(len(admission) if count is None else count)
        if (work := admission.take(lambda _: True)) is not None
    ]


def test_jobs_of_one_owner_and_priority_keep_their_order() -> None:
    works = [waiting() for _ in range(5)]
    assert taken(queue_of(*works)) == works


def test_owners_take_turns_however_much_each_has() -> None:
    works = [waiting("many") for _ in range(9)] + [waiting("few") for _ in range(3)]
    owners = [work.job.owner for work in taken(queue_of(*works), 6)]
    assert Counter(owners) == {"many": 3, "few": 3}


def test_who_sends_one_at_a_time_has_its_turns_too() -> None:
    admission = queue_of(*(waiting("many") for _ in range(20)))
    owners = []
    for _ in range(12):
        if all(work.job.owner == "many" for work in admission):
            admission.put(waiting("one"))
        owners += [work.job.owner for work in taken(admission, 1)]
    assert 5 <= owners.count("one") <= 7


@pytest.mark.parametrize("by_owner", [False, True])
def test_priorities_go_by_their_weights(by_owner: bool) -> None:
    owners = "lnh" if by_owner else "ooo"
    works = [waiting(owners[p], p) for p in (0, 1, 2) for _ in range(30)]
    found = Counter(work.job.priority for work in taken(queue_of(*works), 21))
    assert found[2] in (15, 16, 17)
    assert found[1] in (3, 4, 5)
    assert found[0] in (1, 2)


def test_low_priority_waits_but_not_for_ever() -> None:
    admission = queue_of(waiting("patient", 0))
    for i in range(60):
        admission.put(waiting(f"new {i}", 2))
        if taken(admission, 1)[0].job.priority == 0:
            return
    pytest.fail("it was never let in")


def test_an_owner_without_room_is_passed_over() -> None:
    admission = queue_of(waiting("full"), waiting("other"))
    assert taken(queue_of()) == []
    found = admission.take(lambda owner: owner != "full")
    assert found is not None
    assert found.job.owner == "other"
    assert admission.take(lambda owner: owner != "full") is None
    assert [work.job.owner for work in admission] == ["full"]


def test_what_ended_while_it_waited_is_forgotten() -> None:
    works = [waiting(owner, size=3) for owner in "aab"]
    admission = queue_of(*works)
    works[0].finished = works[2].finished = True
    admission.drop_finished()
    assert (len(admission), admission.tokens) == (1, 3)
    assert taken(admission) == [works[1]]
    assert (len(admission), admission.tokens) == (0, 0)


def test_bounds_of_the_queue() -> None:
    admission = Admission(max_queue=2, max_queue_tokens=5)
    admission.put(waiting(size=9))  # alone it may be as long as it likes
    with pytest.raises(QueueFull, match="waiting tokens must be at most 5, got 9 and 1 more"):
        admission.put(waiting())
    taken(admission)
    admission.put(waiting("a"))
    admission.put(waiting("b"))
    with pytest.raises(QueueFull, match="requests must be at most 2, and that many are") as full:
        admission.put(waiting("c"))
    assert full.value.retry_after_s > 0
    for priority in (-1, 3):
        with pytest.raises(InvalidRequest, match=rf"in \[0, 2\], got {priority}"):
            queue_of(waiting(priority=priority))


@given(st.integers(1, 200))
def test_one_owner_leaves_places_to_others(total: int) -> None:
    places = Places(total)
    taken: Counter[str] = Counter()
    while places.open_to("greedy", taken):
        taken["greedy"] += 1
    assert taken["greedy"] == total - total // 4 >= 1
    assert 1 <= places.for_candidates <= total
    others = 0
    while places.open_to(f"other {others}", taken):
        taken[f"other {others}"] += 1
        others += 1
    assert others == total // 4
    assert taken.total() == total


def test_all_that_wait_join_the_next_call() -> None:
    seen = Counting()
    with running_engine(MODEL) as caller:
        with caller.held():
            caller.engine._runner.observer = seen
            jobs = [caller.score((i, i), owner=str(i)) for i in range(4)]
        for job in jobs:
            caller.result(job)
    assert seen.sequences[0] == 4


def test_jobs_with_candidates_never_outgrow_the_slots() -> None:
    limits = EngineLimits(max_batch_tokens=4, max_running=1, window=2, max_sessions=1)
    with running_engine(MODEL, limits) as caller:
        with caller.held():
            jobs = [caller.score((i,), candidates=((1,), (2,), (3,))) for i in range(6)]
        assert all(isinstance(caller.result(job), Scored) for job in jobs)


@pytest.mark.parametrize("max_running", [1, 2])
def test_neither_jobs_nor_candidates_starve(max_running: int) -> None:
    limits = EngineLimits(max_batch_tokens=8, max_running=max_running, window=2)
    order = queue.SimpleQueue[str]()
    with running_engine(MODEL, limits) as caller:
        with caller.held():
            caller.score((1,), candidates=((1, 2),) * 20, sink=lambda _: order.put("many"))
            caller.score((1,), candidates=((1, 2),) * 3, sink=lambda _: order.put("few"))
            for _ in range(40):
                caller.score((1,), sink=lambda _: order.put("plain"))
        ended = [order.get(timeout=60) for _ in range(42)]
    assert ended.index("many") < 30, "candidates wait for as long as there are other jobs"
    if max_running > 1:
        assert ended.index("plain") < ended.index("many"), "jobs wait for all candidates"


def test_candidates_leave_room_for_others() -> None:
    """However long candidates take, a request that comes later is solved beside them."""
    limits = EngineLimits(max_batch_tokens=16, max_running=4, window=2)
    with running_engine(MODEL, limits) as caller:
        caller.engine._runner.observer = seen = Counting()
        many = caller.score((), candidates=((1,) * 50_000,) * 8)
        assert seen.many.wait(60)
        assert isinstance(caller.result(caller.score((1, 2))), Scored)
        caller.engine.cancel(many)
        assert isinstance(caller.result(many), Failed)


def test_long_requests_of_one_owner_leave_room_for_another() -> None:
    limits = EngineLimits(max_batch_tokens=16, max_running=4, window=2)
    with running_engine(MODEL, limits) as caller:
        caller.engine._runner.observer = seen = Counting()
        many = [caller.score((1,) * 50_000, owner="many") for _ in range(9)]
        assert seen.many.wait(60)
        assert isinstance(caller.result(caller.score((1, 2), owner="few")), Scored)
        assert caller.engine.snapshot().waiting_jobs >= 6
        for job in many:
            caller.engine.cancel(job)
            assert isinstance(caller.result(job), Failed)
