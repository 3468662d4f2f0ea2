"""What is planned before anything is sent: sizes, arrivals, texts, traces."""

import itertools
import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.options import KINDS, Mix, Size
from loadtest.records import RecordError
from loadtest.sizes import LONGEST, Sizes
from loadtest.stages import arrivals, planned, replayed
from loadtest.texts import Texts
from loadtest.traces import read_trace, to_line
from tests.loadtest.made import plan, stage


@pytest.mark.parametrize(
    ("text", "mean", "most"),
    [
        ("fixed:7", 7, 7),
        ("uniform:5:15", 10, 15),
        ("lognormal:20:0.5:1000", 20 * math.exp(0.125), 1000),
        ("geometric:8:1000", 8, 1000),
        ("lognormal:20:0.5:20", None, 20),
    ],
)
def test_sizes_have_their_distribution(text, mean, most):
    by = random.Random(1)
    drawn = [Sizes.of(text).draw(by) for _ in range(20_000)]
    assert min(drawn) >= 1
    assert max(drawn) <= most
    if mean is not None:
        assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "one of fixed:N.*got nothing"),
        ("normal:3:4", "one of fixed:N"),
        ("fixed", "one of fixed:N"),
        ("fixed:x", "with numbers, got fixed:x"),
        ("fixed:nan", "finite"),
        ("fixed:0", r"sizes in \[1, 1000000\]"),
        ("uniform:9:3", "below what it bounds"),
        ("lognormal:5:-1:9", "SIGMA of at least 0"),
        ("geometric:9:3", "below what it bounds"),
    ],
)
def test_sizes_that_cannot_be(text, problem):
    with pytest.raises(ValueError, match=problem):
        Sizes.of(text)


@given(st.integers(1, LONGEST), st.integers(1, LONGEST), st.integers(0, 2**30))
def test_every_size_is_within_its_bounds(a, b, seed):
    least, most = sorted((a, b))
    for text in (f"uniform:{least}:{most}", f"geometric:{least}:{most}"):
        assert 1 <= Sizes.of(text).draw(random.Random(seed)) <= most


def test_poisson_arrivals_have_their_rate_and_their_spread():
    found = list(arrivals(stage(rate=200.0, seconds=50.0)))
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert len(found) == pytest.approx(10_000, rel=0.05)
    # Of an exponential distribution the deviation is the mean.
    assert statistics.pstdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05)
    assert found == sorted(found)
    assert 0 < found[0] and found[-1] < 50.0


def test_constant_arrivals_are_evenly_apart():
    found = list(arrivals(stage(pattern="constant", rate=4.0, seconds=2.0, warmup_s=1.0)))
    assert found == [number / 4 for number in range(12)]


def test_bursts_come_together_and_keep_the_rate():
    found = list(arrivals(stage(pattern="bursts", rate=100.0, burst=20, seconds=100.0)))
    assert len(found) == pytest.approx(10_000, rel=0.15)
    sizes = {len(list(together)) for _, together in itertools.groupby(found)}
    assert sizes == {20}


def test_every_process_plans_the_same_and_seeds_differ():
    mix, size = Mix(), Size()
    first = list(planned(stage(), mix, size))
    assert first == list(planned(stage(), mix, size))
    assert first != list(planned(stage(seed=2), mix, size))
    assert [one.number for one in first] == list(range(len(first)))


def test_kinds_come_as_often_as_they_weigh():
    mix = Mix(score=3, stream=0, generate=1, session=0, fork=0, cancel=0)
    kinds = [one.kind for one in planned(stage(rate=500.0), mix, Size())]
    assert set(kinds) == {"score", "generate"}
    assert kinds.count("score") / len(kinds) == pytest.approx(0.75, abs=0.03)


TEXT = "One  two\nthree four, five six seven eight nine ten eleven.\n"


def test_texts_are_cut_as_they_stand():
    texts = Texts(TEXT)
    assert texts.cut(1, 3) == "two\nthree four, "
    assert texts.pieces(1, 5, 2) == ["two\nthree ", "four, five ", "six "]


@given(st.integers(0, 2**31), st.integers(1, 100), st.integers(1, 20))
def test_a_text_has_its_words_wherever_it_begins(begin, words, piece):
    texts = Texts(TEXT)
    assert len(texts.cut(begin, words).split()) == words
    assert "".join(texts.pieces(begin, words, piece)) == texts.cut(begin, words)


def test_texts_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"text cannot be read from .*absent"):
        Texts.of(tmp_path / "absent.txt")
    (tmp_path / "bad.xz").write_bytes(b"not xz")
    with pytest.raises(ValueError, match=r"bad\.xz is damaged"):
        Texts.of(tmp_path / "bad.xz")
    (tmp_path / "short.txt").write_text("three words only")
    with pytest.raises(ValueError, match="at least 10 words, got 3"):
        Texts.of(tmp_path / "short.txt")


def test_the_text_that_comes_along():
    assert len(Texts.of(None).cut(7, 500).split()) == 500


def test_a_trace_is_replayed_as_it_was_recorded(tmp_path):
    path = tmp_path / "trace.jsonl"
    recorded = [plan(KINDS[i % 6], at_s=i / 10, words=i + 1, max_tokens=3) for i in range(12)]
    path.write_text("".join(map(to_line, reversed(recorded))))
    found = list(replayed(stage(pattern="trace", times=2.0), read_trace(path), Size()))
    assert [one.at_s for one in found] == [one.at_s / 2 for one in recorded]
    told = [(one.kind, one.words, one.max_tokens) for one in recorded]
    assert [(one.kind, one.words, one.max_tokens) for one in found] == told


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("", "has no arrivals"),
        ("x\n", r"line 1: is no JSON"),
        ("[]\n", "line 1: an arrival has at_s, kind, words"),
        ('{"at_s":0,"kind":"score"}\n', "line 1: an arrival has"),
        ('{"at_s":0,"kind":"shout","words":1}\n', "kind must be one of score.*got shout"),
        ('{"at_s":0,"kind":"score","words":0}\n', r"words must be a whole number in \[1, "),
        ('{"at_s":-1,"kind":"score","words":1}\n', "at_s must be a number of seconds from 0"),
        ('{"at_s":0,"kind":"score","words":1,"text":"x"}\n', "line 1: an arrival has"),
    ],
)
def test_traces_that_cannot_be(tmp_path, lines, problem):
    path = tmp_path / "trace.jsonl"
    path.write_text(lines)
    with pytest.raises(RecordError, match=problem):
        read_trace(path)
