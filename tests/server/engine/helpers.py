"""Engines on small models, driven as the edge drives them."""

import itertools
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from deq_model.checkpoint import LoadedCheckpoint
from deq_model.config import ModelConfig
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import SolverOptions
from deq_model.tokenizers.word import WordTokenizer
from deq_model.warm_start import WarmStart
from server.engine.costs import CostCurve
from server.engine.engine import Engine
from server.engine.limits import EngineLimits
from server.engine.requests import GenerateJob, Lease, Piece, Sampling, ScoreJob, Stop
from server.engine.results import TERMINAL, Drawn, Event, Generated, Scored
from server.engine.solve import Solve

TIGHT = Solve(tol=1e-7, max_nfe=200)
EXACT = SolverOptions(tol=1e-8, max_nfe=500, depth=30)
NEAR = 2e-5
"""What tolerances of 1e-7 may do to a log-probability of these models."""
_ids = itertools.count()


def small_model(
    *, seed: int = 0, n_token: int = 40, cutoffs: tuple[int, ...] = (10, 24), **changes: object
) -> DEQLanguageModel:
    """A random model in float64 whose f contracts: it converges in about a dozen calls."""
    values: dict[str, object] = {
        "n_token": n_token,
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 24,
        "cutoffs": cutoffs,
        "div_val": 2 if cutoffs else 1,
        "tgt_len": 6,
        "mem_len": 5,
    }
    config = ModelConfig(**{**values, **changes})  # type: ignore[arg-type]
    model = DEQLanguageModel(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.25, generator=generator)
    return model


def reference(
    model: DEQLanguageModel, tokens: tuple[int, ...], options: SolverOptions = EXACT
) -> list[float]:
    """Log-probabilities of ``tokens`` after <eos>, segment by segment, as in evaluation."""
    stream = torch.tensor([[0, *tokens]])
    memory, found = model.empty_memory(1), []
    tgt_len = model.config.tgt_len
    for begin in range(0, len(tokens), tgt_len):
        block = model.solve_block(stream[:, begin : begin + tgt_len], memory, options)
        assert block.solution.converged
        memory = block.memory
        targets = stream[:, begin + 1 : begin + tgt_len + 1]
        found += (-model.nll(block.hidden[:, : targets.shape[1]], targets))[0].tolist()
    return found


MODEL = small_model().eval()
"""The model of most tests."""
TEXT = tuple(torch.randint(0, 40, (29,), generator=torch.Generator().manual_seed(1)).tolist())
"""Words of it."""


def logprobs(event: Event) -> list[float]:
    """Of the tokens of a score."""
    assert isinstance(event, Scored), event
    return [token.logprob for token in event.tokens]


def generated(event: Event) -> Generated:
    """The event as the end of a generation."""
    assert isinstance(event, Generated), event
    return event


def drawn_ids(events: list[Event]) -> list[int]:
    """Ids of the tokens drawn."""
    return [event.token.token_id for event in events if isinstance(event, Drawn)]


class PlainText:
    """A text sink that writes ids."""

    def feed(self, token_id: int) -> Piece:
        """The id and a space."""
        return Piece(f"{token_id} ")

    def finish(self) -> str:
        """Nothing is held back."""
        return ""


@dataclass
class Caller:
    """Submits jobs to an engine and waits for their events."""

    engine: Engine
    timeout_s: float = 60.0
    open: dict[str, "queue.Queue[Event]"] = field(default_factory=dict, repr=False)

    def score(self, tokens: tuple[int, ...], **options: object) -> str:
        """Submits a score; returns the job's id."""
        return self._submit(ScoreJob, tokens=tokens, **options)

    def generate(self, prompt: tuple[int, ...], max_tokens: int, **options: object) -> str:
        """Submits a generation; returns the job's id."""
        options.setdefault("stop", Stop(max_tokens=max_tokens))
        options.setdefault("sampling", Sampling())
        options.setdefault("text", PlainText())
        return self._submit(GenerateJob, prompt=prompt, **options)

    def _submit(self, kind: type, **fields: object) -> str:
        job_id = f"job-{next(_ids)}"
        fields.setdefault("solve", TIGHT)
        events: queue.Queue[Event] = queue.Queue()
        self.open[job_id] = events
        fields.setdefault("sink", events.put)
        self.engine.submit(kind(job_id=job_id, **fields))
        return job_id

    def events(self, job_id: str) -> list[Event]:
        """All events of a job, the last of which is terminal."""
        seen: list[Event] = []
        while not seen or not isinstance(seen[-1], TERMINAL):
            seen.append(self.open[job_id].get(timeout=self.timeout_s))
        assert self.open[job_id].empty(), "an event came after the terminal one"
        return seen

    def result(self, job_id: str) -> Event:
        """The terminal event of a job."""
        return self.events(job_id)[-1]

    def scored(self, job_id: str) -> Scored:
        """The answer of a score."""
        event = self.result(job_id)
        assert isinstance(event, Scored), event
        return event

    @contextmanager
    def held(self, owner: str = "") -> Iterator[None]:
        """Holds the engine: jobs submitted inside begin in one turn, as far as there is room."""
        reached, opened = threading.Event(), threading.Event()

        def gate(event: Event) -> None:
            reached.set()
            assert opened.wait(60)

        self.score((1,), sink=gate, owner=owner)
        assert reached.wait(60)
        try:
            yield
        finally:
            opened.set()

    @contextmanager
    def session(self, owner: str = "") -> Iterator[Lease]:
        """A new session, leased."""
        view = self.engine.sessions.create(owner=owner, ttl_s=60, solve=Solve())
        lease = self.engine.sessions.acquire(view.session_id, owner)
        try:
            yield lease
        finally:
            self.engine.sessions.release(lease)
            self.engine.sessions.delete(view.session_id, owner)


@contextmanager
def running_engine(
    model: DEQLanguageModel,
    limits: EngineLimits | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    warm_start: WarmStart | None = None,
    early_int8: bool = False,
    measured: bool = False,
    costs: CostCurve | None = None,
) -> Iterator[Caller]:
    """An engine on a copy of a model; at its end every slot is a session's or free.

    Unless its calls are ``measured`` they are filled whatever time they take, so that who gets
    which rows does not depend on the machine.
    """
    copy = DEQLanguageModel(model.config).to(model.dtype)
    copy.load_state_dict(model.state_dict())
    words = ["<eos>", *(f"w{i}" for i in range(1, model.config.n_token))]
    checkpoint = LoadedCheckpoint(
        model=copy, config=model.config, tokenizer=WordTokenizer(words), fingerprint="test"
    )
    engine = Engine(
        checkpoint,
        name="test",
        device=torch.device(device),
        dtype=dtype,
        limits=limits or EngineLimits(max_batch_tokens=24, max_running=4, window=5),
        warm_start=warm_start,
        early_int8=early_int8,
        costs=costs,
    )
    if measured:
        engine.measure_calls()
    engine.start()
    try:
        yield Caller(engine)
        assert engine.check().result(60) == []
        assert engine.snapshot().slots_used == engine.sessions.holding()
    finally:
        engine.stop(grace_s=5)
    assert len(engine._scheduler._free_rows) == engine.limits.max_batch_tokens
