"""What many jobs share fails: whose fault it is ends, and the others never hear of it."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from server.engine.blame import LEAST_PARTS, PATIENCE_S, Blame
from server.engine.requests import ScoreJob
from server.engine.work import Work


class Ends:
    """Ends jobs, and writes down which."""

    def __init__(self):
        self.ended = {}
        self.made_room = 0

    def break_off(self, works, error):
        for work in works:
            work.finished = True
            self.ended[int(work.job.job_id)] = error

    def make_room(self):
        self.made_room += 1


def works_of(owners):
    jobs = [
        ScoreJob(job_id=str(i), tokens=(1,), sink=print, owner=owner)
        for i, owner in enumerate(owners)
    ]
    return [Work(job, 0.0) for job in jobs]


@given(st.data(), st.lists(st.sampled_from("abc"), min_size=1, max_size=70))
def test_those_whose_fault_it_is_are_found(data, owners):
    """However many they are: what fails twice for a job alone ends it, and nothing else does."""
    works, ends, done, tries = works_of(owners), Ends(), [], itertools.count()
    guilty = data.draw(st.sets(st.sampled_from(range(len(works)))))

    def act(some):
        next(tries)
        ids = {int(work.job.job_id) for work in some}
        if ids & guilty:
            raise RuntimeError("lost")
        done.extend(ids)

    Blame(ends).share(works, act)
    assert set(ends.ended) == guilty
    assert sorted(done) == sorted(set(range(len(works))) - guilty)
    found = 2 + 2 * (1 + len(guilty)) * (1 + len(works).bit_length())
    assert next(tries) <= min(found, 1 + 2 * len(works)) + len(guilty)


@given(st.integers(1, 200))
def test_a_fault_of_everybody_ends_all_in_a_while(count):
    """Also on a device that takes long to fail: there only a few parts are looked at."""
    works, ends, tries = works_of(["a"] * count), Ends(), itertools.count()

    def act(some):
        next(tries)
        raise RuntimeError("lost")

    Blame(ends, clock=lambda: next(tries) * PATIENCE_S).share(works, act)
    assert set(ends.ended) == set(range(count))
    assert next(tries) <= 7 * LEAST_PARTS


def test_bad_luck_that_follows_a_job_until_it_is_alone_ends_nobody():
    works, ends, tries, done = works_of("aabb"), Ends(), itertools.count(1), []

    def act(some):
        if works[2] in some and next(tries) <= 3:
            raise RuntimeError("lost")
        done.extend(some)

    Blame(ends).share(works, act)
    assert ends.ended == {}
    assert set(done) == set(works)
    assert len(done) == len(works)


def test_one_owners_many_bad_jobs_do_not_end_anothers():
    works, ends = works_of("abababababababababababababababab"), Ends()

    def act(some):
        if any(work.job.owner == "a" for work in some):
            raise RuntimeError("lost")

    Blame(ends).share(works, act)
    assert {int(i) % 2 for i in ends.ended} == {0}
