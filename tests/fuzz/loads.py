"""What a load test reads: traces, what runs left, a page of metrics; and what calls bring along."""

import json
from functools import cache
from pathlib import Path

from client.metrics_page import PageError, Place, parse
from loadtest.objectives import Objectives
from loadtest.options import Load, Mix, Run, Size
from loadtest.records import Record, RecordError
from loadtest.results import Result
from loadtest.settings import Settings
from loadtest.stages import Planned, Stage
from loadtest.traces import read_trace, to_line
from server import request_ids, tracecontext
from tests.fuzz.target import Target, as_file, workspace


class Unknown(Exception):
    """Metadata that tell nothing: it is not an error, but nothing was taken."""


def _plan(number: int, at_s: float) -> Planned:
    return Planned(number=number, at_s=at_s, kind="score", words=5)


def _trace_seeds() -> list[bytes]:
    return ["".join(to_line(_plan(index, 0.5 * index)) for index in range(3)).encode()]


def _trace(path: Path) -> None:
    for plan in read_trace(path):
        assert json.loads(to_line(plan))["words"] == plan.words


def _records() -> bytes:
    made = [
        Record(
            stage=0, process=0, plan=_plan(index, 0.1), sent_s=0.1, done_s=0.2, calls=[("S", "OK")]
        )
        for index in range(2)
    ]
    return "".join(record.to_line() for record in made).encode()


def _stages() -> bytes:
    stage = Stage(
        number=0, label="1/s", pattern="poisson", rate=1.0, seconds=9.0, warmup_s=0.0, seed=1
    )
    told = {name: getattr(stage, name) for name in Stage.__dataclass_fields__}
    more = {"run_s": 0.0, "ended_early": None, "workers": [], "counts": None}
    return (json.dumps(told | more) + "\n").encode()


def _about() -> bytes:
    settings = Settings(run=Run(), load=Load(), mix=Mix(), size=Size(), objective=Objectives())
    return json.dumps({"settings": settings.to_json()}).encode()


FILES = {"requests-0.jsonl": _records, "stages.jsonl": _stages, "run.json": _about}


@cache
def _run(name: str) -> Path:
    """A whole run, of which the file ``name`` is to be replaced."""
    folder = workspace() / f"run without {name}"
    folder.mkdir()
    for other, data in FILES.items():
        (folder / other).write_bytes(data())
    return folder


def _read_run(path: Path) -> None:
    result = Result.read(path.parent)
    for stage in result.stages:
        assert len(stage.counted) <= len(stage.records)


def _run_target(name: str) -> Target:
    def decode(data: bytes) -> None:
        path = _run(name) / name
        path.write_bytes(data)
        _read_run(path)

    return Target(f"load test's {name}", lambda: [FILES[name]()], decode, (RecordError,), 3)


PAGE = b"""# HELP deqlm_num_requests_running Requests
# TYPE deqlm_num_requests_running gauge
deqlm_num_requests_running{model="a"} 2.0
# TYPE deqlm_f_calls_total counter
deqlm_f_calls_total{model="a"} 1e+03
"""


def _page(data: bytes) -> None:
    parse(data, Place(host="a", port=1, is_encrypted=False, path="/"))


PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\0a=1,b=2\0id-1"


def _metadata(data: bytes) -> None:
    """Values as gRPC gives them: text of printable ASCII."""
    parts = data.decode("latin-1").split("\0")
    keys = (tracecontext.PARENT_KEY, tracecontext.STATE_KEY, request_ids.KEY)
    metadata = tuple(zip(keys, parts, strict=False))
    request_id = request_ids.read_metadata(metadata)
    assert request_id.isascii() and request_id.isprintable() and 0 < len(request_id) <= 128
    found = tracecontext.read_metadata(metadata)
    if found is None:
        raise Unknown("no trace")
    assert len(bytes.fromhex(found.trace_id)) == 16
    assert len(bytes.fromhex(found.span_id)) == 8


TARGETS = (
    Target("load test's trace", _trace_seeds, as_file("trace.jsonl", _trace), (RecordError,), 5),
    *(_run_target(name) for name in FILES),
    Target("page of metrics", lambda: [PAGE], _page, (PageError,), 3),
    Target("metadata of a call", lambda: [PARENT], _metadata, (Unknown,), 5),
)
