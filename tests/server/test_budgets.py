"""Calls with a budget, under overload, with a priority: what their answers say."""

import itertools
import threading

import pytest

from deqlm.v1 import common_pb2, generation_pb2, model_pb2
from tests.server.calls import ENDLESS, FLUSH, TIGHT, Stubs, to_input
from tests.server.test_contention import wait_for, wait_until_running

Budget = common_pb2.Budget
CALLS, TIME = common_pb2.STOPPED_BY_CALLS, common_pb2.STOPPED_BY_TIME
TEXT = "It was a dark and stormy night; the rain fell in torrents."


class TestScore:
    def test_an_answer_within_its_calls(self, stubs, session):
        before = stubs.get(session)
        whole = stubs.score(TEXT, solver=TIGHT)
        assert whole.stopped_by == common_pb2.STOPPED_BY_UNSPECIFIED
        answer = stubs.score(TEXT, session_id=session, solver=TIGHT, budget=Budget(max_calls=20))
        count = len(answer.tokens)
        assert answer.stopped_by == CALLS
        assert answer.solver.nfe_total <= 20
        assert 0 < count < len(whole.tokens)
        assert [t.token_id for t in answer.tokens] == [t.token_id for t in whole.tokens[:count]]
        assert not answer.tokens[-1].converged
        assert answer.solver.status == common_pb2.SOLVER_STATUS_MAX_NFE
        assert answer.call.scored_tokens == count
        assert answer.position == before.position + count == stubs.get(session).position
        assert answer.session == stubs.get(session).totals

    def test_an_answer_in_time(self, stubs, session):
        budget = Budget(max_time_s=0.2)
        answer = stubs.score([7] * 3000, session_id=session, solver=ENDLESS, budget=budget)
        assert answer.stopped_by == TIME
        assert answer.timing.queue_s + answer.timing.compute_s < 10
        assert len(answer.tokens) < 3000

    def test_under_the_strict_policy_nothing_is_accepted_early(self, stubs):
        solver = common_pb2.SolverOptions(policy=common_pb2.BUDGET_POLICY_ERROR)
        solver.MergeFrom(TIGHT)
        answer = stubs.score(TEXT, solver=solver, budget=Budget(max_calls=20))
        assert answer.stopped_by == CALLS
        assert answer.solver.converged
        assert 0 < len(answer.tokens)

    def test_unknown_words_are_counted_as_far_as_it_came(self, stubs):
        text = "the of " * 20 + "zebra"
        answer = stubs.score(text, model="words", solver=TIGHT, budget=Budget(max_calls=3))
        assert (answer.stopped_by, answer.unknown_tokens) == (CALLS, 0)

    def test_candidates(self, stubs):
        candidates = [to_input([5]), to_input([7] * 200)]
        budget = Budget(max_calls=30)
        answer = stubs.score(candidates=candidates, solver=TIGHT, budget=budget)
        assert answer.stopped_by == CALLS
        assert [c.stopped_by for c in answer.candidates] == [0, CALLS]
        assert answer.candidates[0].totals.scored_tokens == 1
        assert 0 < answer.candidates[1].totals.scored_tokens < 200


class TestStream:
    def test_what_one_response_leaves_out_comes_first_in_the_next(self, stubs, session):
        before = stubs.get(session).position
        whole = stubs.score(TEXT)
        heard = [threading.Event() for _ in range(40)]

        def messages():
            yield TEXT
            for event in heard:
                yield FLUSH
                event.wait(60)

        budget = Budget(max_calls=12)
        responses = stubs.stream(messages(), session_id=session, solver=TIGHT, budget=budget)
        tokens, bytes_, event = [], [], iter(heard)
        for response in responses:
            tokens += response.tokens
            bytes_.append(response.committed_bytes)
            assert response.committed_position == before + len(tokens)
            assert response.committed_bytes == (
                len(TEXT.encode()) if len(tokens) == len(whole.tokens) else tokens[-1].byte_end
            )
            is_whole = len(tokens) == len(whole.tokens)
            assert (response.stopped_by == CALLS) or is_whole
            next(event, threading.Event()).set()
        assert response.final
        assert len(bytes_) > 3
        assert [t.token_id for t in tokens] == [t.token_id for t in whole.tokens]
        assert [t.byte_begin for t in tokens] == [t.byte_begin for t in whole.tokens]
        assert all(a <= b for a, b in itertools.pairwise(bytes_))

    def test_the_last_response_tells_that_text_is_left(self, stubs):
        *_, last = stubs.stream([TEXT], solver=TIGHT, budget=Budget(max_calls=3))
        assert last.final
        assert last.stopped_by == CALLS
        assert 0 < last.committed_bytes < len(TEXT)
        assert last.call.scored_tokens == last.committed_position


class TestGenerate:
    def run(self, stubs, prompt, **fields):
        stop = generation_pb2.StopOptions(max_tokens=4000, ignore_eos=True)
        request = generation_pb2.GenerateRequest(prompt=to_input(prompt), stop=stop, **fields)
        first, *tokens, last = stubs.generate(request)
        return first.started, [response.token for response in tokens], last.finished

    def test_calls(self, stubs, session):
        before = stubs.get(session).position
        budget = Budget(max_calls=60)
        started, tokens, finished = self.run(stubs, "It was", session_id=session, budget=budget)
        assert started.prompt_tokens == started.prompt.scored_tokens == 2
        assert finished.reason == generation_pb2.FINISH_REASON_CALLS
        assert finished.solver.nfe_total <= 60
        assert finished.generated_tokens == len(tokens) > 0
        view = stubs.get(session)
        assert view.position == finished.position == before + 2 + len(tokens)

    def test_time_that_ends_within_the_prompt(self, stubs):
        budget = Budget(max_time_s=0.2)
        started, tokens, finished = self.run(stubs, [7] * 3000, solver=ENDLESS, budget=budget)
        assert finished.reason == generation_pb2.FINISH_REASON_TIME
        assert (started.prompt_tokens, tokens) == (3000, [])
        assert started.prompt.scored_tokens == finished.position < 3000


class TestOverload:
    @pytest.fixture
    def server(self, make_server):
        return make_server(max_running=1, overload_tol=0.1, overload_queue=1)

    def test_an_overloaded_server_loosens_and_says_so(self, server):
        stubs = Stubs(server.channel)
        loosening = 'deqlm_loosening{model="pieces"}'
        name = 'deqlm_loosened_tokens_total{model="pieces"}'
        assert server.metrics()[loosening] == server.metrics()[name] == 0
        (model, _) = stubs.models.ListModels(model_pb2.ListModelsRequest()).models
        assert model.limits.overload_tol == pytest.approx(0.1)
        endless = common_pb2.SolverOptions(keep_tol=True)
        endless.MergeFrom(ENDLESS)
        busy = stubs.begin_score([7] * 3000, solver=endless)
        wait_until_running(server)
        waiting = [stubs.begin_score(TEXT, solver=TIGHT) for _ in range(3)]
        wait_for(lambda: server.engine().snapshot().waiting_jobs == 3)
        assert server.metrics()[loosening] == 1
        busy.cancel()
        reports = [future.result().solver for future in waiting]
        loose = [report for report in reports if report.loosened_tokens]
        assert loose
        for report in loose:
            assert report.tol < report.residual_max <= report.applied_tol == 0.1
            assert report.status == common_pb2.SOLVER_STATUS_LOOSENED
            assert not report.converged
        assert server.metrics()[name] == sum(report.loosened_tokens for report in reports)
        assert server.metrics()[loosening] == 0
        report = stubs.score(TEXT, solver=TIGHT).solver
        assert (report.loosened_tokens, report.applied_tol) == (0, TIGHT.tol)

    def test_a_session_may_ask_for_its_tolerance(self, stubs):
        solver = common_pb2.SolverOptions(keep_tol=True)
        session = stubs.create(solver=solver)
        assert stubs.get(session).solver.keep_tol
        stubs.delete(session)


def test_priority_and_owner_reach_the_engine(make_server):
    server = make_server()
    jobs, engine = [], server.engine()
    submit = engine.submit
    engine.submit = lambda job: (jobs.append(job), submit(job))
    ann, nobody = Stubs(server.channel, owner="ann"), Stubs(server.channel)
    ann.score("It", priority=common_pb2.PRIORITY_LOW)
    nobody.score("It")
    list(nobody.stream(["It"], priority=common_pb2.PRIORITY_HIGH))
    list(ann.generate(generation_pb2.GenerateRequest(stop={"max_tokens": 1}, priority=2)))
    assert [job.priority for job in jobs] == [0, 1, 2, 1]
    assert [job.owner for job in jobs] == [
        "owner ann",
        "peer ipv4:127.0.0.1",
        "peer ipv4:127.0.0.1",
        "owner ann",
    ]


class TestSharing:
    def test_the_same_beginning_is_solved_once(self, make_server):
        server = make_server(prefix_cache=1000)
        ann = Stubs(server.channel, owner="ann")
        first = ann.score(TEXT, solver=TIGHT, top_k=2)
        shared, kept = (
            f'deqlm_{name}{{model="pieces"}}' for name in ("shared_tokens_total", "prefix_tokens")
        )
        before = server.metrics()
        again = ann.score(TEXT + " And", solver=TIGHT, top_k=2)
        after = server.metrics()
        count = len(first.tokens)
        assert first.solver.shared_tokens == 0
        assert again.solver.shared_tokens == count
        assert again.solver.solved_tokens == len(again.tokens) - count
        assert [t.logprob for t in again.tokens[:count]] == pytest.approx(
            [t.logprob for t in first.tokens], abs=1e-5
        )
        assert after[shared] - before[shared] == count
        assert after[kept] > before[kept] >= count
        assert Stubs(server.channel, owner="bob").score(TEXT).solver.shared_tokens == 0
        assert Stubs(server.channel).score(TEXT).solver.shared_tokens == 0

    def test_also_where_a_stream_or_a_generation_begins(self, make_server):
        server = make_server(prefix_cache=1000)
        stubs = Stubs(server.channel)
        count = len(stubs.score(TEXT, solver=TIGHT).tokens)
        request = generation_pb2.GenerateRequest(
            prompt=to_input(TEXT), stop={"max_tokens": 1}, solver=TIGHT
        )
        *_, last = stubs.generate(request)
        report = last.finished.solver
        # Behind the last token of a score nothing came: it is solved now.
        assert (report.shared_tokens, report.solved_tokens) == (count, 1)
        *_, last = stubs.stream([TEXT, FLUSH, " And"], solver=TIGHT)
        assert last.solver.shared_tokens > 1
        assert last.solver.shared_tokens + last.solver.solved_tokens == count + 2
        assert last.committed_position == count + 1
