"""Figures, objectives and counts of records made by hand."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.agreement import compare
from loadtest.figures import figures, is_good
from loadtest.objectives import Objectives
from loadtest.quantiles import Histogram
from loadtest.records import RecordError, from_json, read_lines
from loadtest.summary import client_lines, summary
from loadtest.verdict import problems
from tests.loadtest.made import record, result, stage, stage_result

NONE = Objectives(score_s=None, first_s=None, token_s=None)


@given(st.lists(st.floats(1e-6, 3000.0), min_size=1, max_size=200), st.floats(1.0, 100.0))
def test_percentiles_are_right_to_three_digits(values, percentile):
    ranked = sorted(values)
    exact = ranked[max(0, math.ceil(len(ranked) * percentile / 100 - 1e-9) - 1)]
    assert Histogram(values).at(percentile) == pytest.approx(exact, rel=2e-3, abs=2e-6)


def test_latency_counts_from_when_a_request_was_due():
    late = record(at_s=1.0, seconds=0.5, sent_s=1.4)
    (found,) = figures([stage_result(late)], NONE)
    assert found.timings.every.at(50) == pytest.approx(0.5, rel=1e-3)
    assert found.timings.lag.at(50) == pytest.approx(0.4, rel=1e-3)
    assert found.rates[0].late == 1


def test_the_warm_up_is_not_counted():
    one = stage_result(record(at_s=0.5), record(at_s=1.5), stage=stage(warmup_s=1.0))
    (found,) = figures([one], NONE)
    assert found.rates[0].due == 1
    assert len(found.timings.every) == 1


def test_answers_after_the_end_do_not_make_the_server_quicker():
    """A queue that is worked off after the last arrival is no throughput of the stage."""
    one = stage_result(record(at_s=5.0, seconds=1.0), record(at_s=9.0, seconds=30.0, scored=7))
    (found,) = figures([one], NONE)
    assert found.rates[0].answered_per_s == pytest.approx(0.1)
    assert found.rates[0].tokens_per_s == 0


def test_good_answers_are_among_the_answers():
    """Those of the warm-up's requests that come while the stage lasts are throughput as well."""
    warm, late = record(at_s=0.5, seconds=1.0), record(at_s=9.9, seconds=0.3)
    some = [warm, record(at_s=5.0, seconds=2.0), late]
    one = stage_result(*some, stage=stage(warmup_s=1.0, seconds=9.0))
    (found,) = figures([one], Objectives(score_s=1.5))
    assert found.rates[0].answered_per_s == pytest.approx(2 / 9)
    assert found.rates[0].good_per_s == pytest.approx(1 / 9)
    assert found.rates[0].good_share == pytest.approx(1 / 2), "of those due, whenever answered"


def test_calls_of_f_are_of_the_tokens_that_took_them():
    generated = record("generate", generated=10, times_s=[0.1] * 10, nfe=240.0, solved=40)
    known = record(scored=60, shared=60)
    (found,) = figures([stage_result(generated, known)], NONE)
    assert found.rates[0].nfe == pytest.approx(6.0)
    assert found.rates[0].shared_share == pytest.approx(0.6)
    told = "\n".join(client_lines(result(stage_result(generated, known)), [found]))
    assert "WARNING: 60% of the tokens of 10/s took no call of f" in told


def test_what_no_process_told_is_not_made_up():
    one = stage_result(record(), workers=[], ended_early="the server is gone")
    told = "\n".join(client_lines(result(one), figures([one], NONE)))
    assert "no stage came to its end" in told
    assert "0%" not in told


def test_a_generation_s_times():
    one = record("generate", at_s=2.0, seconds=1.0, times_s=[2.2, 2.3, 2.6], generated=3)
    (found,) = figures([stage_result(one)], NONE)
    assert found.timings.first.at(50) == pytest.approx(0.2, rel=1e-3)
    assert found.timings.token.at(50) == pytest.approx(0.2, rel=1e-3)
    gaps = found.timings.gap
    assert len(gaps) == 2
    assert [gaps.at(1), gaps.at(100)] == pytest.approx([0.1, 0.3], rel=2e-3)
    assert found.rates[0].generated_per_s == pytest.approx(0.3)


def test_perplexity_is_of_all_tokens_together():
    some = [record(scored=10, logprob=-10 * math.log(8)), record(scored=30, logprob=0.0)]
    (found,) = figures([stage_result(*some)], NONE)
    assert found.rates[0].perplexity == pytest.approx(8**0.25)


def test_what_makes_a_request_good():
    objectives = Objectives(score_s=0.5, generate_s=2.0, first_s=0.3, token_s=0.1)
    assert is_good(record(seconds=0.4), objectives)
    assert not is_good(record(seconds=0.6), objectives)
    assert not is_good(record(seconds=0.1, status="RESOURCE_EXHAUSTED"), objectives)
    quick = [0.2, 0.25, 0.3]
    assert is_good(record("generate", seconds=1.0, times_s=quick), objectives)
    assert not is_good(record("generate", seconds=2.5, times_s=quick), objectives)
    assert not is_good(record("generate", seconds=1.0, times_s=[0.4, 0.45]), objectives)
    assert not is_good(record("generate", seconds=1.0, times_s=[0.2, 0.9]), objectives)


def test_what_was_refused_or_dropped_counts_against_the_server():
    some = [
        record(),
        record(status="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", seconds=0.01),
        record(status="DROPPED", sent_s=None, calls=[]),
        record("cancel", status="CANCELLED"),
    ]
    (found,) = figures([stage_result(*some)], Objectives())
    rates = found.rates[0]
    assert rates.good_share == pytest.approx(1 / 3)
    assert rates.failed_share == pytest.approx(2 / 3)
    assert (rates.dropped, rates.cancelled) == (1, 1)
    assert rates.statuses["RESOURCE_EXHAUSTED (QUEUE_FULL)"] == 1
    assert len(found.timings.refused) == 1


def test_repeats_are_told_together_with_their_spread():
    some = [stage_result(record(), record()), stage_result(record(), stage=stage(repeat=1))]
    (found,) = figures(some, NONE)
    assert found.values("answered_per_s") == [pytest.approx(0.2), pytest.approx(0.1)]
    assert len(found.timings.every) == 3
    assert "0.15 (0.1 to 0.2)" in summary(result(*some), [found], NONE)


@pytest.mark.parametrize(
    ("objectives", "problem"),
    [
        ({"share": 0.9}, r"10/s: 50\.00% of the requests were good, objective\.share is 90\.00%"),
        ({"errors": 0.1}, r"10/s: 50\.00% of the requests failed, objective\.errors is 10\.00%"),
        ({"good_per_s": 5.0}, r"at most 0\.1 good requests per second, objective\.good_per_s is 5"),
        ({"tokens_per_s": 5.0}, r"at most 1 tokens per second, objective\.tokens_per_s is 5"),
        ({"perplexity": 2.0}, r"10/s: the perplexity is 4, objective\.perplexity is 2"),
        ({"lag_s": 0.01}, r"10/s: the client sent up to 0\.05 s late \(p99\)"),
        ({"share": 0.9, "up_to": 5.0}, r"objective\.up_to: no stage has a load of at most 5"),
    ],
)
def test_objectives_that_are_missed(objectives, problem):
    answered = record(sent_s=0.05, scored=10, logprob=-10 * math.log(4))
    one = stage_result(answered, record(status="INTERNAL"))
    chosen = Objectives(**objectives)
    found = problems(result(one), figures([one], chosen), chosen)
    assert len(found) == 1
    assert re.search(problem, found[0]), found


def test_objectives_that_are_kept():
    one = stage_result(record(scored=10, logprob=-1.0))
    chosen = Objectives(
        share=1.0, errors=0.0, good_per_s=0.1, tokens_per_s=1.0, perplexity=2.0, lag_s=0.01
    )
    assert problems(result(one), figures([one], chosen), chosen) == []


SUCCESS, ERRORS = "deqlm_request_success_total", "deqlm_errors_total"


def ended(method: str, reason: str) -> tuple:
    return (SUCCESS, (("finished_reason", reason), ("method", method)))


def disagree(records: list, grown: dict) -> list[str]:
    return [str(count) for count in compare(records, grown) if not count.agrees]


def test_counts_that_agree():
    records = [
        record(scored=9),
        record("generate", generated=4, max_tokens=4),
        record(status="RESOURCE_EXHAUSTED"),
    ]
    grown = {
        ended("Score", "scored"): 1,
        ended("Score", "error"): 1,
        ended("Generate", "length"): 1,
        (ERRORS, (("code", "RESOURCE_EXHAUSTED"), ("method", "Score"))): 1,
        ("deqlm_scored_tokens_total", ()): 9,
        ("deqlm_generation_tokens_total", ()): 4,
    }
    assert disagree(records, grown) == []
    for key in grown:
        assert disagree(records, grown | {key: grown[key] + 1}), key
        assert disagree(records, grown | {key: grown[key] - 1}), key


def test_a_call_that_was_given_up_may_have_ended_in_any_way():
    records = [record("cancel", status="CANCELLED", generated=2, max_tokens=10)]
    tokens = ("deqlm_generation_tokens_total", ())
    assert disagree(records, {ended("Generate", "abort"): 1, tokens: 2}) == []
    assert disagree(records, {ended("Generate", "length"): 1, tokens: 10}) == []
    assert disagree(records, {tokens: 2}) == []
    assert disagree(records, {ended("Generate", "length"): 2, tokens: 2})
    assert disagree(records, {tokens: 11}) == [
        "tokens generated: the server counted 11, the client 2 to 10"
    ]


def test_what_grpc_finds_by_itself_the_server_need_not_have_counted():
    told = record(calls=[("Score", "INTERNAL")], status="INTERNAL", reason="ENGINE_FAILED")
    found = record(calls=[("Score", "INTERNAL (untold)")], status="INTERNAL", reason="RST_STREAM")
    assert disagree([found], {}) == disagree([found], {ended("Score", "scored"): 1}) == []
    assert disagree([told], {}) == [
        "Score in all: the server counted 0, the client 1",
        "calls that failed with INTERNAL: the server counted 0, the client 1",
    ]


def test_records_come_back_from_disk(tmp_path):
    one = record("generate", at_s=1.0, times_s=[1.25, 1.5], generated=2, reason="X")
    path = tmp_path / "requests-0.jsonl"
    path.write_text(one.to_line() + one.to_line()[:40])  # killed in the second
    (value,) = read_lines(path)
    assert from_json(value) == one


def test_a_damaged_record_is_told_with_its_line(tmp_path):
    path = tmp_path / "requests-0.jsonl"
    path.write_text(record().to_line() + "{]\n")
    with pytest.raises(RecordError, match=r"requests-0\.jsonl, line 2: is no JSON"):
        list(read_lines(path))
