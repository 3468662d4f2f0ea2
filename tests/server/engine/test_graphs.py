"""Calls of fixed shapes answer as those of just the rows there are, and ask the host for nothing.

The graphs themselves need a GPU, see ``test_gpu.py``; what they record runs anywhere.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deq_model.config import PRESETS
from deq_model.model import DEQLanguageModel
from deq_model.solvers import select
from deq_model.solvers.rows import RowSolver
from server.engine import batch as batch_module
from server.engine import graphs, machine
from server.engine.batch import Batch
from server.engine.graphs import SHORT, Outputs, PaddedCall, PaddedCalls, PaddedKeep
from server.engine.layout import Layout
from server.engine.ledger import Ledger
from server.engine.limits import EngineLimits
from server.engine.padded import Shape
from server.engine.requests import Sampling, Stop
from server.engine.results import Generated, Scored
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve
from tests.server.engine.helpers import (
    NEAR,
    Caller,
    drawn_ids,
    logprobs,
    reference,
    running_engine,
    small_model,
)
from tests.server.engine.sides import Job, Side

CPU = torch.device("cpu")
MODEL = small_model(seed=3).eval().requires_grad_(False)
TEXT = tuple(torch.randint(0, 40, (60,), generator=torch.Generator().manual_seed(1)).tolist())


def alike(model: DEQLanguageModel, jobs: list[Job]) -> None:
    with torch.inference_mode():
        ours = Side(model, padded=True).solve(jobs)
        theirs = Side(model, padded=False).solve(jobs)
    assert ours.keys() == theirs.keys()
    for token, other in theirs.items():
        mine = ours[token]
        assert mine.solved.nfe == other.solved.nfe
        assert mine.solved.status == other.solved.status
        assert mine.solved.residual == pytest.approx(other.solved.residual, rel=1e-3, abs=1e-12)
        torch.testing.assert_close(mine.z_star, other.z_star, rtol=1e-9, atol=1e-9)


jobs_strategy = st.lists(
    st.tuples(
        st.integers(1, 40).flatmap(
            lambda n: st.integers(0, 60 - n).map(lambda begin: TEXT[begin : begin + n])
        ),
        st.builds(Solve, tol=st.sampled_from([1e-3, 1e-7]), max_nfe=st.sampled_from([1, 5, 200])),
        st.integers(0, 30),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=8, deadline=None)
@given(jobs=jobs_strategy)
def test_padding_changes_nothing(jobs: list[Job]) -> None:
    """With mates of other lengths that come and go, rings that wrap, and budgets that are spent."""
    alike(MODEL, jobs)


@pytest.mark.parametrize("changes", [{"local_size": 3}, {"tgt_len": 1, "mem_len": 1}])
def test_padding_changes_nothing_of_other_contexts(changes: dict[str, int]) -> None:
    model = small_model(seed=2, **changes).eval()
    solve = Solve(tol=1e-7, max_nfe=200)
    alike(model, [(TEXT[:25], solve, 0), (TEXT[25:30], solve, 2), (TEXT[30:50], solve, 9)])


@pytest.mark.parametrize("depth", [2, 30])
def test_steps_past_the_short_history_are_remembered(depth: int) -> None:
    """Hard tokens take more calls than ``SHORT``, and with little room start their history anew."""
    model = small_model(seed=9).eval()
    with torch.inference_mode():
        for parameter in model.f.parameters():
            parameter.mul_(4.0)
        found = [
            Side(model, padded=padded, depth=depth).solve([(TEXT[:8], Solve(tol=1e-9), 0)])
            for padded in (True, False)
        ]
    assert max(token.solved.nfe for token in found[0].values()) > 2 * SHORT
    for token, other in found[1].items():
        assert found[0][token].solved.nfe == other.solved.nfe
        torch.testing.assert_close(found[0][token].z_star, other.z_star, rtol=1e-7, atol=1e-7)


def attend_plainly(
    query: Tensor, by_distance: Tensor, key: Tensor, value: Tensor, **where: Tensor
) -> Tensor:
    """What the kernel does, in operations."""
    work, ring = where["work"], key.shape[2]
    distance = (where["entries"][:, None] - torch.arange(ring)) % ring
    scores = torch.einsum("nhd,nhkd->hnk", query, key[work])
    scores += by_distance.gather(2, distance.clamp(max=by_distance.shape[2] - 1).expand_as(scores))
    weight = scores.masked_fill(distance > where["reach"][:, None], -torch.inf).softmax(-1)
    return torch.einsum("hnk,nhkd->nhd", weight, value[work]).flatten(1)


def test_streams_read_their_rings_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a kernel; see ``test_ring_attention.py`` for what it computes."""
    queries: list[int] = []

    def counted(query: Tensor, *rest: Tensor, **where: Tensor) -> Tensor:
        queries.append(len(query))
        return attend_plainly(query, *rest, **where)

    monkeypatch.setattr(graphs, "can_attend", lambda device: True)
    monkeypatch.setattr(graphs, "attend", counted)
    solve = Solve(tol=1e-7, max_nfe=200)
    alike(MODEL, [((TEXT[i],), solve, i) for i in range(9)] + [(TEXT[:30], solve, 40)])
    assert {1, 2, 4} <= set(queries)


def test_infinite_words_stay_with_their_sequence() -> None:
    model = small_model(seed=4, tie_weights=False).eval()
    with torch.no_grad():
        model.embedding.tables[0][7].fill_(torch.inf)
    solve = Solve(tol=1e-7, max_nfe=60)
    clean, bad = (3, 4, 5, 6, 8, 9, 10, 11), (1, 7, 2, 7, 3)
    with torch.inference_mode():
        alone = Side(model, padded=True).solve([(clean, solve, 0)])
        mixed = Side(model, padded=True).solve(
            [(bad, solve, 0), (clean, solve, 1), (bad, solve, 2), (clean, solve, 90)]
        )
    assert mixed[0, 1].solved.status == "nonfinite"
    for (_, index), token in alone.items():
        for job in (1, 3):  # the last one works where the infinite keys were
            assert mixed[job, index].solved.status == "converged"
            torch.testing.assert_close(mixed[job, index].z_star, token.z_star, rtol=0, atol=1e-6)


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    """An engine that makes padded calls."""
    monkeypatch.setattr(machine, "Batch", functools.partial(Batch, padded=True))
    with running_engine(MODEL, EngineLimits(max_batch_tokens=24, max_running=4, window=5)) as c:
        assert isinstance(c.engine._batch._calls, PaddedCalls)
        yield c


def test_an_engine_with_padded_calls_gives_the_reference(caller: Caller) -> None:
    texts = [TEXT[:29], TEXT[29:32], TEXT[32:50], TEXT[50:60]]
    jobs = [caller.score(text) for text in texts]
    stream = caller.generate(TEXT[:5], 6, stop=Stop(max_tokens=6, eos_id=None))
    for text, job in zip(texts, jobs, strict=True):
        assert logprobs(caller.result(job)) == pytest.approx(reference(MODEL, text), abs=NEAR)
    assert isinstance(caller.result(stream), Generated)


def test_sessions_and_seeds_with_padded_calls(caller: Caller) -> None:
    expected = reference(MODEL, TEXT)
    with caller.session() as lease:
        found: list[float] = []
        for begin, end in itertools.pairwise((0, 1, 20, 31, 60)):
            found += logprobs(caller.result(caller.score(TEXT[begin:end], lease=lease)))
    assert found == pytest.approx(expected, abs=NEAR)
    seeded = [caller.generate((1, 2), 9, sampling=Sampling(seed=3)) for _ in range(2)]
    ours = [drawn_ids(caller.events(job)) for job in seeded]
    with running_engine(MODEL) as plain:
        theirs = drawn_ids(plain.events(plain.generate((1, 2), 9, sampling=Sampling(seed=3))))
    assert ours == [theirs, theirs]


def test_a_measured_engine_with_padded_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every shape of streams is made before the first request; 8 bits are for CPUs."""
    monkeypatch.setattr(machine, "Batch", functools.partial(Batch, padded=True))
    with running_engine(MODEL.float(), measured=True, early_int8=True) as caller:
        batch = caller.engine._batch
        assert batch._int8 is None
        made = {shape for shape, _ in batch._calls._calls}
        assert {Shape(n, 1, True) for n in (1, 2, 4)} <= made
        event = caller.result(caller.score(TEXT[:9], solve=Solve(tol=1e-5)))
    MODEL.double()
    assert isinstance(event, Scored)


def meta_batch(model: DEQLanguageModel) -> Batch:
    """Of a device that has no numbers: whoever asks for one gets an error."""
    meta = torch.device("meta")
    model = model.to(meta)
    slab = Slab(model.config, rows=4, slots=2, window=5, device=meta, dtype=torch.float32)
    weights = model.f.fold().detach()
    return Batch(model, weights, slab, max_rows=16, form="bfloat16")


@pytest.mark.parametrize("pre_lnorm", [False, True])
@pytest.mark.parametrize("shape", [Shape(4, 1, True), Shape(2, 8, False), Shape(16, 1, False)])
def test_a_call_asks_the_host_for_nothing(shape: Shape, pre_lnorm: bool) -> None:
    with torch.inference_mode():
        # Of one cluster of words: parting them takes the host, once, when the table is made.
        model = small_model(pre_lnorm=pre_lnorm, cutoffs=()).float().eval()
        batch = meta_batch(model)
        assert isinstance(batch._calls, PaddedCalls), "what is no CPU gets padded calls"
        parts = batch._calls._parts
        outputs = Outputs(parts, 64)
        for most in (SHORT, 30):
            call = PaddedCall(parts, shape, outputs, most=most)
            call.lay()
            call.make()
        PaddedKeep(parts, 4, outputs).make()
        scheduler = Scheduler(max_batch_tokens=16, max_running=4, window=5)
        scheduler.add(Sequence(slot=0, start=0, inputs=[1, 2, 3]))
        batch.enter(scheduler.enter())


def test_numbers_go_over_in_one_copy_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """None while nobody moves; one for those that enter, whose turn has come, for a call, and for
    what is done."""
    copies: list[int] = []
    turns: list[int] = []
    relearning = Ledger.relearning

    def noted(ledger: Ledger, layout: Layout) -> list[int]:
        turns[:] = relearning(ledger, layout)
        return turns

    def counted(values: list[int], device: torch.device) -> Tensor:
        copies.append(len(values))
        return torch.tensor(values, device=device)

    with torch.inference_mode():
        side = Side(MODEL, padded=True)
        monkeypatch.setattr(Ledger, "relearning", noted)
        for module in (graphs, batch_module):
            monkeypatch.setattr(module, "sent", counted)
        for again in (False, True):  # buffers that are made on the way cost copies of their own
            sequence = Sequence(slot=0, start=0, inputs=list(TEXT[:12]))
            side.slab.reset(0)
            side.scheduler.add(sequence)
            quiet: list[int] = []
            while not sequence.done:
                entries = side.scheduler.enter()
                copies.clear()
                side.batch.enter(entries)
                assert len(copies) == bool(entries)
                copies.clear()
                accepted = side.batch.step(side.scheduler, {sequence: Solve(tol=1e-6)})
                assert not again or len(copies) <= 1 + bool(accepted) + bool(turns)
                if not entries and not accepted and not turns:
                    quiet.append(len(copies))
            side.scheduler.remove(sequence)
    assert quiet.count(0) > len(quiet) // 2, "as a rule nobody moved"


def test_what_the_caller_knows_of_histories_changes_no_step() -> None:
    source = torch.Generator().manual_seed(0)
    matrix = 0.3 * torch.randn(3, 8, 8, generator=source, dtype=torch.float64)
    shift = torch.randn(3, 8, generator=source, dtype=torch.float64)
    solvers = [
        RowSolver("broyden", capacity=3, dim=8, depth=6, device=CPU, dtype=torch.float64)
        for _ in range(2)
    ]
    rows, states = torch.arange(3), []
    for solver, tells in zip(solvers, (True, False), strict=True):
        solver.start(rows, torch.zeros(3, 8, dtype=torch.float64))
        for call in range(15):
            z = solver.propose(rows)
            f_z = torch.tanh((matrix @ z[..., None]).squeeze(2)) + shift
            solver.observe(rows, f_z, most=call if tells else None)
        states.append(solver.propose(rows))
    torch.testing.assert_close(states[0], states[1], rtol=1e-12, atol=1e-12)


def test_filling_rows_is_assigning_to_them() -> None:
    for rows in (slice(1, 3), torch.tensor([3, 0])):
        ours, theirs = torch.zeros(4, 2), torch.zeros(4, 2)
        select.fill(ours, rows, torch.inf)
        theirs[rows] = torch.inf
        assert torch.equal(ours, theirs)


def test_the_table_of_words_is_their_embedding() -> None:
    embedding = small_model().embedding
    ids = torch.tensor([39, 0, 12, 9, 10, 24])
    table = batch_module._Table(embedding, torch.zeros(1, dtype=torch.float64), "float64")
    torch.testing.assert_close(table(ids), embedding(ids), rtol=1e-12, atol=1e-12)


def test_ten_thousand_sessions_fit_a_gpu_of_139_gib() -> None:
    config = dataclasses.replace(PRESETS["model-ift"], mem_len=480)
    meta = torch.device("meta")
    slab = Slab(config, rows=256, slots=10_257, window=64, device=meta, dtype=torch.float32)
    assert slab.bytes_per_slot == 3 * (480 + 150) * 700 * 4
    assert slab.nbytes < 60 * 2**30, "the rest is for weights, solver and what calls need"
