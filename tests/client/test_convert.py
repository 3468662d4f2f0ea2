"""Protobuf to and from the client's types."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import _decode, _encode, options, resources, results
from client.errors import InvalidArgument
from deqlm.v1 import (
    common_pb2,
    generation_pb2,
    model_pb2,
    scoring_pb2,
    session_pb2,
    tokenizer_pb2,
)

PAIRS = [
    (options.SolverOptions, common_pb2.SolverOptions),
    (options.Budget, common_pb2.Budget),
    (options.SamplingOptions, generation_pb2.SamplingOptions),
    (options.StopOptions, generation_pb2.StopOptions),
    (results.SolverReport, common_pb2.SolverReport),
    (results.Totals, common_pb2.Totals),
    (results.Timing, common_pb2.Timing),
    (results.TokenAlternative, common_pb2.TokenAlternative),
    (results.TokenScore, scoring_pb2.TokenScore),
    (results.CandidateScore, scoring_pb2.CandidateScore),
    (results.Score, scoring_pb2.ScoreResponse),
    (results.StreamedScore, scoring_pb2.ScoreStreamResponse),
    (results.GenerationStarted, generation_pb2.GenerationStarted),
    (results.GeneratedToken, generation_pb2.GeneratedToken),
    (results.GenerationFinished, generation_pb2.GenerationFinished),
    (resources.SessionInfo, session_pb2.Session),
    (resources.Token, tokenizer_pb2.Token),
    (resources.Tokenized, tokenizer_pb2.TokenizeResponse),
    (resources.Detokenized, tokenizer_pb2.DetokenizeResponse),
    (resources.Architecture, model_pb2.Architecture),
    (resources.Limits, model_pb2.Limits),
    (resources.ModelInfo, model_pb2.ModelInfo),
]

ENUMS = [
    (results.SolverStatus, common_pb2.SolverStatus, "SOLVER_STATUS_"),
    (results.StoppedBy, common_pb2.StoppedBy, "STOPPED_BY_"),
    (results.FinishReason, generation_pb2.FinishReason, "FINISH_REASON_"),
    (resources.TokenizerKind, model_pb2.TokenizerKind, "TOKENIZER_KIND_"),
]


@pytest.mark.parametrize(("cls", "message"), PAIRS, ids=lambda value: value.__name__)
def test_a_type_has_every_field_of_its_message(cls, message):
    names = {item.name for item in dataclasses.fields(cls)}
    assert names == set(message.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(("enum", "pb", "prefix"), ENUMS, ids=lambda value: str(value))
def test_an_enum_has_every_value_of_the_contract(enum, pb, prefix):
    assert {f"{prefix}{member.upper()}" for member in enum} == set(pb.keys())


def test_every_budget_policy_can_be_sent_and_read():
    for policy in options.BudgetPolicy:
        sent = _encode.solver_to_pb(options.SolverOptions(policy=policy))
        assert common_pb2.BudgetPolicy.Name(sent.policy) == f"BUDGET_POLICY_{policy.upper()}"
        assert _decode.solver_options(sent).policy is policy
    assert len(options.BudgetPolicy) == len(common_pb2.BudgetPolicy.keys()) - 1


def test_every_priority_can_be_sent():
    for priority in options.Priority:
        number = _encode.priority_to_pb(priority)
        assert common_pb2.Priority.Name(number) == f"PRIORITY_{priority.upper()}"
    assert _encode.priority_to_pb(None) == common_pb2.PRIORITY_UNSPECIFIED
    assert len(options.Priority) == len(common_pb2.Priority.keys()) - 1


@pytest.mark.parametrize("number", common_pb2.StoppedBy.values())
def test_an_answer_is_complete_unless_something_stopped_it(number):
    answer = scoring_pb2.ScoreResponse(stopped_by=number)
    answer.candidates.add(stopped_by=number)
    score = _decode.score(answer)
    is_complete = number == common_pb2.STOPPED_BY_UNSPECIFIED
    assert score.complete is score.candidates[0].complete is is_complete
    streamed = _decode.streamed_score(scoring_pb2.ScoreStreamResponse(stopped_by=number))
    assert streamed.stopped_by is score.stopped_by


def test_an_offset_of_zero_is_told_from_no_offset():
    zero = _decode.token_score(scoring_pb2.TokenScore(byte_begin=0, byte_end=0))
    none = _decode.token_score(scoring_pb2.TokenScore())
    assert (zero.byte_begin, zero.byte_end) == (0, 0)
    assert (none.byte_begin, none.byte_end) == (None, None)


def test_an_enum_value_newer_than_the_client_reads_unspecified():
    report = _decode.solver_report(common_pb2.SolverReport(status=99, policy=99))
    assert report.status is results.SolverStatus.UNSPECIFIED
    assert report.policy is None


def test_an_event_newer_than_the_client_is_none():
    assert _decode.generation_event(generation_pb2.GenerateResponse()) is None


def test_what_ended_a_generation_is_told():
    finished = generation_pb2.GenerationFinished(
        reason=generation_pb2.FINISH_REASON_STOP_ID, stop_id=0
    )
    event = _decode.generation_event(generation_pb2.GenerateResponse(finished=finished))
    assert event.reason is results.FinishReason.STOP_ID
    assert (event.stop_id, event.stop_string, event.session) == (0, None, None)


def test_times_are_utc():
    session = session_pb2.Session()
    session.create_time.FromJsonString("2001-02-03T04:05:06Z")
    assert _decode.session(session).create_time.isoformat() == "2001-02-03T04:05:06+00:00"


optional_count = st.none() | st.integers(0, 2**32 - 1)


@given(
    tol=st.none() | st.floats(allow_nan=False),
    max_nfe=optional_count,
    policy=st.none() | st.sampled_from(options.BudgetPolicy),
    keep_tol=st.none() | st.booleans(),
)
def test_solver_options_survive_the_way_there_and_back(tol, max_nfe, policy, keep_tol):
    given_options = options.SolverOptions(
        tol=tol, max_nfe=max_nfe, policy=policy, keep_tol=keep_tol
    )
    assert _decode.solver_options(_encode.solver_to_pb(given_options)) == given_options


@given(top_k=optional_count, session_id=st.none() | st.text(max_size=5))
def test_what_is_none_is_not_sent(top_k, session_id):
    request = _encode.score_request(
        input="text",
        session_id=session_id,
        model="",
        top_k=top_k,
        solver=None,
        include_tokens=False,
        candidates=(),
        budget=None,
        priority=None,
    )
    assert not request.HasField("budget")
    assert request.HasField("top_k") == (top_k is not None)
    assert request.HasField("session_id") == (session_id is not None)
    assert request.HasField("include_tokens")
    assert not request.HasField("solver")


@given(
    st.builds(
        options.SamplingOptions,
        temperature=st.none() | st.floats(),
        top_k=optional_count,
        seed=st.none() | st.integers(0, 2**64 - 1),
    )
)
def test_sampling_options_are_sent_as_given(sampling):
    request = _generate_request(sampling=sampling)
    for item in dataclasses.fields(sampling):
        value = getattr(sampling, item.name)
        assert request.sampling.HasField(item.name) == (value is not None)
        if value is not None:
            assert str(getattr(request.sampling, item.name)) == str(value)


def test_stop_options_are_sent_as_given():
    stop = options.StopOptions(
        stop_strings=("\n", "end"), stop_ids=(3,), max_tokens=0, ignore_eos=False
    )
    sent = _generate_request(stop=stop).stop
    assert list(sent.stop_strings) == ["\n", "end"]
    assert list(sent.stop_ids) == [3]
    assert sent.HasField("max_tokens") and sent.max_tokens == 0
    assert sent.HasField("ignore_eos") and not sent.HasField("min_tokens")


def test_a_budget_is_sent_as_given():
    budget = options.Budget(max_time_s=0.0, max_calls=2**40)
    sent = _generate_request(budget=budget, priority=options.Priority.HIGH)
    assert (sent.budget.max_time_s, sent.budget.max_calls) == (0.0, 2**40)
    assert sent.budget.HasField("max_time_s")
    assert sent.priority == common_pb2.PRIORITY_HIGH
    assert not _encode.budget_to_pb(options.Budget()).HasField("max_calls")


@pytest.mark.parametrize("piece", ["text", [1, 2], (), options.FLUSH])
def test_a_piece_of_a_stream_sets_its_own_field(piece):
    message = _encode.stream_piece(piece)
    expected = {str: "text", options.Flush: "flush"}.get(type(piece), "token_ids")
    assert message.WhichOneof("kind") == expected


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _encode.input_to_pb([5, -1]), r"token_ids must be in \[0, 4294967295\], got -1"),
        (
            lambda: _generate_request(sampling=options.SamplingOptions(seed=2**64)),
            r"seed must be in \[0, 18446744073709551615\], got 18446744073709551616",
        ),
        (
            lambda: _encode.solver_to_pb(options.SolverOptions(max_nfe=-1)),
            r"max_nfe must be in \[0, 4294967295\], got -1",
        ),
    ],
)
def test_what_the_wire_cannot_carry_is_refused(make, message):
    with pytest.raises(InvalidArgument, match=message) as caught:
        make()
    assert caught.value.violations[0].description.startswith("must be in")


def _generate_request(**given_options):
    defaults = dict(
        prompt=None,
        session_id=None,
        model="",
        sampling=None,
        stop=None,
        logprobs=None,
        solver=None,
        budget=None,
        priority=None,
    )
    return _encode.generate_request(**(defaults | given_options))
