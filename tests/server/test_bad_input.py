"""Bad input over a real channel: a clear status, and the session as it was."""

import math

import pytest

from deqlm.v1 import common_pb2, generation_pb2, scoring_pb2, session_pb2, tokenizer_pb2
from tests.server.calls import FLUSH, TIMEOUT_S, as_it_was, fails, to_input

NAN = math.nan
N_TOKEN = 4096
TEXT = to_input("It was")
Solver, Budget = common_pb2.SolverOptions, common_pb2.Budget


SCORES = [
    ({}, "input", "must be set when there are no candidates"),
    ({"input": common_pb2.Input()}, "input", "must be text or token_ids, got neither"),
    ({"input": to_input("")}, "input.text", "must be non-empty text, got ''"),
    ({"input": to_input([])}, "input.token_ids.ids", "must be at least one id, got none"),
    (
        {"input": to_input("a" * 10_000_000)},
        "input.text",
        "must be at most 1048576 bytes long, got 10000000 bytes",
    ),
    (
        {"input": to_input("é" * 524_289)},
        "input.text",
        "must be at most 1048576 bytes long, got 1048578 bytes",
    ),
    (
        {"input": to_input([5, 4096])},
        "input.token_ids.ids[1]",
        "must be in [0, 4096), got 4096",
    ),
    (
        {"input": to_input([1] * 100_001)},
        "input.token_ids.ids",
        "must be at most 100000 ids, got 100001",
    ),
    ({"input": TEXT, "top_k": 101}, "top_k", "must be in [0, 100], got 101"),
    ({"input": TEXT, "solver": Solver(tol=0)}, "solver.tol", "must be in (0, 1), got 0.0"),
    ({"input": TEXT, "solver": Solver(tol=NAN)}, "solver.tol", "must be in (0, 1), got nan"),
    ({"input": TEXT, "solver": Solver(tol=1)}, "solver.tol", "must be in (0, 1), got 1.0"),
    (
        {"input": TEXT, "solver": Solver(max_nfe=0)},
        "solver.max_nfe",
        "must be in [1, 1000], got 0",
    ),
    (
        {"input": TEXT, "solver": Solver(max_nfe=1001)},
        "solver.max_nfe",
        "must be in [1, 1000], got 1001",
    ),
    (
        {"input": TEXT, "solver": Solver(policy=9)},
        "solver.policy",
        "must be a BudgetPolicy, got 9",
    ),
    *(
        (
            {"input": TEXT, "budget": Budget(max_time_s=value)},
            "budget.max_time_s",
            f"must be finite and above 0, got {value}",
        )
        for value in (0.0, -1.5, NAN, math.inf)
    ),
    (
        {"input": TEXT, "budget": Budget(max_calls=0)},
        "budget.max_calls",
        "must be at least 1, got 0",
    ),
    ({"input": TEXT, "priority": 7}, "priority", "must be a Priority, got 7"),
    ({"candidates": [TEXT, to_input("")]}, "candidates[1].text", "must be non-empty text, got ''"),
    ({"candidates": [TEXT] * 257}, "candidates", "must be at most 256, got 257"),
    (
        {"input": to_input([1] * 60_000), "candidates": [to_input([1] * 60_000)]},
        "input and candidates",
        "must be at most 100000 tokens, got 120000",
    ),
]


@pytest.mark.parametrize(("fields", "field", "problem"), SCORES, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("in_session", [False, True])
def test_score(stubs, session, fields, field, problem, in_session):
    before = as_it_was(stubs, session)
    if in_session:
        fields = {**fields, "session_id": session}
    told = fails(lambda: stubs.score(**fields))
    assert (told.code, told.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert told.fields == (field,)
    assert told.message == f"{field} {problem}"
    assert as_it_was(stubs, session) == before


def test_every_violation_is_told(stubs):
    told = fails(lambda: stubs.score("", top_k=101, solver=Solver(tol=0, max_nfe=0)))
    assert told.fields == ("input.text", "top_k", "solver.tol", "solver.max_nfe")


def test_long_values_and_many_violations_are_cut_short(stubs):
    """A status that does not fit into a client's limit of headers would never reach it."""
    told = fails(lambda: stubs.score(candidates=[common_pb2.Input()] * 256))
    assert len(told.fields) == 8
    assert told.message.endswith("; and 248 more")
    long = "☃" * 100_000
    for call, code in (
        (lambda: stubs.score("It", model=long), "NOT_FOUND"),
        (lambda: stubs.score("It", session_id=long), "NOT_FOUND"),
        (lambda: stubs.list(page_token=long), "INVALID_ARGUMENT"),
    ):
        told = fails(call)
        assert told.code == code
        assert " … " in told.message


Sampling, Stop = generation_pb2.SamplingOptions, generation_pb2.StopOptions
GENERATIONS = [
    ({"prompt": to_input("")}, "prompt.text", "must be non-empty text, got ''"),
    (
        {"sampling": Sampling(temperature=NAN)},
        "sampling.temperature",
        "must be finite and at least 0, got nan",
    ),
    (
        {"sampling": Sampling(temperature=-1)},
        "sampling.temperature",
        "must be finite and at least 0, got -1.0",
    ),
    (
        {"sampling": Sampling(temperature=math.inf)},
        "sampling.temperature",
        "must be finite and at least 0, got inf",
    ),
    ({"sampling": Sampling(top_k=0)}, "sampling.top_k", "must be at least 1, got 0"),
    ({"sampling": Sampling(top_p=0)}, "sampling.top_p", "must be in (0, 1], got 0.0"),
    ({"sampling": Sampling(top_p=1.5)}, "sampling.top_p", "must be in (0, 1], got 1.5"),
    ({"sampling": Sampling(top_p=NAN)}, "sampling.top_p", "must be in (0, 1], got nan"),
    ({"sampling": Sampling(min_p=-0.1)}, "sampling.min_p", "must be in [0, 1], got -0.1"),
    ({"sampling": Sampling(min_p=1.1)}, "sampling.min_p", "must be in [0, 1], got 1.1"),
    (
        {"sampling": Sampling(repetition_penalty=0)},
        "sampling.repetition_penalty",
        "must be finite and above 0, got 0.0",
    ),
    ({"stop": Stop(max_tokens=0)}, "stop.max_tokens", "must be in [1, 4096], got 0"),
    ({"stop": Stop(max_tokens=4097)}, "stop.max_tokens", "must be in [1, 4096], got 4097"),
    (
        {"stop": Stop(max_tokens=4, min_tokens=5)},
        "stop.min_tokens",
        "must be at most max_tokens = 4, got 5",
    ),
    (
        {"stop": Stop(stop_strings=["a", ""])},
        "stop.stop_strings[1]",
        "must be 1 to 256 bytes long, got 0 bytes",
    ),
    (
        {"stop": Stop(stop_strings=["é" * 129])},
        "stop.stop_strings[0]",
        "must be 1 to 256 bytes long, got 258 bytes",
    ),
    ({"stop": Stop(stop_strings=["a"] * 17)}, "stop.stop_strings", "must be at most 16, got 17"),
    (
        {"stop": Stop(stop_ids=[1, 4096])},
        "stop.stop_ids[1]",
        "must be in [0, 4096), got 4096",
    ),
    (
        {"stop": Stop(stop_ids=[7] * 4097)},
        "stop.stop_ids",
        "must be at most 4096 ids, got 4097",
    ),
    (
        {"stop": Stop(stop_ids=range(4096), min_tokens=1, ignore_eos=True)},
        "stop.min_tokens",
        "must be 0 when every token ends the generation, got 1",
    ),
    ({"logprobs": 101}, "logprobs", "must be in [0, 100], got 101"),
    ({"solver": Solver(tol=-1)}, "solver.tol", "must be in (0, 1), got -1.0"),
    ({"budget": Budget(max_calls=0)}, "budget.max_calls", "must be at least 1, got 0"),
    ({"priority": 9}, "priority", "must be a Priority, got 9"),
]


@pytest.mark.parametrize(("fields", "field", "problem"), GENERATIONS, ids=lambda v: str(v)[:40])
def test_generate(stubs, session, fields, field, problem):
    before = as_it_was(stubs, session)
    request = generation_pb2.GenerateRequest(session_id=session, **fields)
    told = fails(lambda: list(stubs.generate(request)))
    assert (told.code, told.reason) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert told.fields == (field,)
    assert told.message == f"{field} {problem}"
    assert as_it_was(stubs, session) == before


class TestUnknownText:
    def test_alone_it_is_refused(self, stubs):
        told = fails(lambda: stubs.score("zebras zigzag", model="words"))
        assert (told.code, told.reason) == ("INVALID_ARGUMENT", "UNKNOWN_TEXT")
        assert told.fields == ("input.text",)
        assert "got 2 unknown ones alone" in told.message
        request = generation_pb2.GenerateRequest(model="words", prompt=to_input("zebras"))
        told = fails(lambda: list(stubs.generate(request)))
        assert (told.reason, told.fields) == ("UNKNOWN_TEXT", ("prompt.text",))

    def test_in_a_session_and_in_a_stream_it_is_scored(self, stubs):
        session_id = stubs.create(model="words")
        answer = stubs.score("zebras zigzag", session_id=session_id)
        assert (answer.unknown_tokens, answer.position) == (2, 2)
        assert all(token.is_unknown and token.text == "<unk>" for token in answer.tokens)
        stubs.delete(session_id)
        last = list(stubs.stream(["zebras"], model="words"))[-1]
        assert (last.unknown_tokens, last.committed_position) == (1, 1)

    def test_after_a_prefix_a_candidate_may_be_unknown(self, stubs):
        candidates = [to_input("zebras"), to_input("cat")]
        answer = stubs.score("the", model="words", candidates=candidates)
        assert [c.unknown_tokens for c in answer.candidates] == [1, 1]
        told = fails(lambda: stubs.score(model="words", candidates=candidates))
        assert (told.reason, told.fields) == ("UNKNOWN_TEXT", ("candidates[0].text",))


def test_white_space_alone_is_no_text_to_a_word_vocabulary(stubs):
    told = fails(lambda: stubs.score(" \t ", model="words"))
    assert told.message == "input.text must hold a token, got white space"


class TestSessions:
    def test_unknown_deleted_and_foreign_ones_look_alike(self, stubs, other, session):
        gone = stubs.create()
        stubs.delete(gone)
        before = as_it_was(stubs, session)
        for who, session_id in [(stubs, "no-such-id"), (stubs, gone), (other, session)]:
            request = generation_pb2.GenerateRequest(session_id=session_id)
            for call in (
                lambda w=who, s=session_id: w.score("It", session_id=s),
                lambda w=who, s=session_id: list(w.stream(["It"], session_id=s)),
                lambda w=who, r=request: list(w.generate(r)),
                lambda w=who, s=session_id: w.get(s),
                lambda w=who, s=session_id: w.fork(s),
                lambda w=who, s=session_id: w.delete(s),
            ):
                told = fails(call)
                assert (told.code, told.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")
                assert told.resource == session_id
                assert told.message == f"session_id {session_id!r} is unknown, deleted or expired"
        assert as_it_was(stubs, session) == before

    def test_an_empty_id_is_none(self, stubs):
        for call in (
            lambda: stubs.score("It", session_id=""),
            lambda: stubs.get(""),
            lambda: stubs.delete(""),
            lambda: stubs.fork(""),
        ):
            told = fails(call)
            assert (told.code, told.fields) == ("INVALID_ARGUMENT", ("session_id",))

    @pytest.mark.parametrize("ttl_s", [0.0, -1.0, NAN, 86400.5])
    def test_time_to_live(self, stubs, session, ttl_s):
        for call in (lambda: stubs.create(ttl_s=ttl_s), lambda: stubs.fork(session, ttl_s=ttl_s)):
            told = fails(call)
            assert told.message == f"ttl_s must be in (0, 86400], got {ttl_s}"

    def test_solver_of_a_session(self, stubs):
        told = fails(lambda: stubs.create(solver=Solver(max_nfe=0)))
        assert told.message == "solver.max_nfe must be in [1, 1000], got 0"

    def test_another_models_session(self, stubs, session):
        told = fails(lambda: stubs.score("the", session_id=session, model="words"))
        assert told.message == "model must be 'pieces', the session's, or empty, got 'words'"
        told = fails(lambda: list(stubs.stream(["the"], session_id=session, model="words")))
        assert told.fields == ("config.model",)

    def test_pages(self, stubs):
        assert fails(lambda: stubs.list(page_size=1001)).fields == ("page_size",)
        for token in ("!", "bm8=", "\u00e9"):
            assert fails(lambda t=token: stubs.list(page_token=t)).fields == ("page_token",)


def test_unknown_models(stubs):
    request = session_pb2.CreateSessionRequest(model="no")
    for call in (
        lambda: stubs.score("the", model="no"),
        lambda: list(stubs.stream(["the"], model="no")),
        lambda: stubs.sessions.CreateSession(request, timeout=TIMEOUT_S),
        lambda: stubs.list(model="no"),
        lambda: stubs.tokenizer.Tokenize(
            tokenizer_pb2.TokenizeRequest(model="no"), timeout=TIMEOUT_S
        ),
    ):
        told = fails(call)
        assert (told.code, told.reason, told.resource) == ("NOT_FOUND", "MODEL_NOT_FOUND", "no")
        assert told.message == "model must be one of pieces, words, got 'no'"


def test_tokenizer(stubs):
    request = tokenizer_pb2.TokenizeRequest(text="a" * 2_000_000)
    told = fails(lambda: stubs.tokenizer.Tokenize(request, timeout=TIMEOUT_S))
    assert told.message == "text must be at most 1048576 bytes long, got 2000000 bytes"
    ids = tokenizer_pb2.DetokenizeRequest(token_ids=common_pb2.TokenIds(ids=[N_TOKEN]))
    told = fails(lambda: stubs.tokenizer.Detokenize(ids, timeout=TIMEOUT_S))
    assert told.message == "token_ids.ids[0] must be in [0, 4096), got 4096"


class TestStreams:
    def test_the_first_message_must_be_a_config(self, stubs):
        for first, got in [("flush", "flush"), ("text", "text"), (None, "nothing")]:
            message = scoring_pb2.ScoreStreamRequest()
            if first == "flush":
                message.flush.SetInParent()
            elif first == "text":
                message.text = "It"
            call = stubs.scoring.ScoreStream(iter([message]), timeout=TIMEOUT_S)
            told = fails(lambda c=call: list(c))
            assert told.message == f"config must be the first message, got {got}"
        call = stubs.scoring.ScoreStream(iter([]), timeout=TIMEOUT_S)
        assert "got nothing" in fails(lambda: list(call)).message

    @pytest.mark.parametrize(
        ("bad", "problem"),
        [
            (
                scoring_pb2.ScoreStreamRequest(config=scoring_pb2.ScoreStreamConfig()),
                "config must be the first message only, got another one",
            ),
            (
                scoring_pb2.ScoreStreamRequest(),
                "kind must be text, token_ids or flush, got nothing",
            ),
            ([7, 9999], "token_ids.ids[1] must be in [0, 4096), got 9999"),
            ("a" * 1_048_577, "text must be at most 1048576 bytes long, got 1048577 bytes"),
            ("\n" * 100_001, "text must be at most 100000 tokens, got 100001"),
        ],
        ids=["config", "nothing", "ids", "text", "tokens"],
    )
    def test_what_came_before_a_bad_message_is_committed(self, stubs, session, bad, problem):
        before = stubs.get(session).position
        responses = []

        def read():
            for response in stubs.stream(["It was", FLUSH, [5, 6], bad, "no"], session_id=session):
                responses.append(response)

        assert fails(read).message == problem
        assert responses[-1].committed_position == before + 4
        view = stubs.get(session)
        assert (view.position, view.busy) == (before + 4, False)

    def test_options(self, stubs):
        bad = {"solver": Solver(tol=0), "budget": Budget(max_time_s=0), "priority": 8}
        told = fails(lambda: list(stubs.stream([], top_k=101, **bad)))
        assert told.fields == (
            "config.top_k",
            "config.solver.tol",
            "config.budget.max_time_s",
            "config.priority",
        )


def test_a_token_that_does_not_converge_fails_the_call_if_asked_to(stubs, session):
    before = as_it_was(stubs, session)
    solver = Solver(tol=1e-30, max_nfe=2, policy=common_pb2.BUDGET_POLICY_ERROR)
    told = fails(lambda: stubs.score("It was a dark", session_id=session, solver=solver))
    assert (told.code, told.reason) == ("FAILED_PRECONDITION", "UNCONVERGED")
    assert as_it_was(stubs, session) == before
    solver.policy = common_pb2.BUDGET_POLICY_BEST_EFFORT
    report = stubs.score("It was a dark", session_id=session, solver=solver).solver
    assert not report.converged
    assert report.status == common_pb2.SOLVER_STATUS_MAX_NFE
    assert report.max_nfe == 2
