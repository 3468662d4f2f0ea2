"""The command `generate`, run in this process against a scripted server."""

import io
import json
import re

from deqlm.v1 import common_pb2
from tests.client.fake_server import generated


def test_generate_sends_bounds_and_priority(deqlm, fake):
    flags = ["--max-time-s", "2", "--max-calls", "9", "--priority", "high"]
    assert deqlm("generate", "It", *flags)[0] == 0
    request = fake.calls[0].request
    assert (request.budget.max_time_s, request.budget.max_calls) == (2.0, 9)
    assert request.priority == common_pb2.PRIORITY_HIGH


def test_generate_prints_text_and_a_footer(deqlm):
    code, out, err = deqlm("generate", "It was")
    assert (code, out) == (0, "The end.\n")
    assert re.fullmatch(r"\[length\] 2 tokens, [\d.]+ tokens/s, 4\.00 nfe per token, seed 7\n", err)


def test_generate_writes_each_piece_as_it_comes(deqlm, monkeypatch):
    class Recorder(io.StringIO):
        def __init__(self):
            super().__init__()
            self.flushed = []

        def flush(self):
            self.flushed.append(self.getvalue())

    recorder = Recorder()
    monkeypatch.setattr("sys.stdout", recorder)
    deqlm("generate", "It was")
    assert recorder.flushed[:3] == ["The", "The end", "The end."]


def test_generate_sends_every_option(deqlm, fake):
    flags = (
        "--temperature 0 --top-k 5 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --seed 3 "
        "--stop END --stop . --stop-id 0 --max-tokens 8 --min-tokens 2 --ignore-eos --logprobs 2 "
        "--session s1 --tol 0.1"
    )
    deqlm("generate", "prompt", *flags.split())
    request = fake.calls[0].request
    sampling, stop = request.sampling, request.stop
    assert request.prompt.text == "prompt"
    assert sampling.HasField("temperature") and sampling.temperature == 0
    assert (sampling.top_k, sampling.top_p, sampling.min_p) == (5, 0.9, 0.1)
    assert (sampling.repetition_penalty, sampling.seed) == (1.2, 3)
    assert (list(stop.stop_strings), list(stop.stop_ids)) == (["END", "."], [0])
    assert (stop.max_tokens, stop.min_tokens, stop.ignore_eos) == (8, 2, True)
    assert (request.logprobs, request.session_id, request.solver.tol) == (2, "s1", 0.1)


def test_generate_leaves_unset_what_is_not_given(deqlm, fake):
    deqlm("generate")
    request = fake.calls[0].request
    assert not request.HasField("prompt")
    assert not request.HasField("solver")
    assert request.sampling.ListFields() == request.stop.ListFields() == []


def test_generate_takes_token_ids(deqlm, fake):
    deqlm("generate", "--token-ids", "4", "2")
    assert list(fake.calls[0].request.prompt.token_ids.ids) == [4, 2]
    code, _, err = deqlm("generate", "text", "--token-ids", "4")
    assert code == 2
    assert "give PROMPT or --token-ids, not both" in err


def test_generate_shows_alternatives(deqlm, fake):
    events = generated("The")
    events[1].token.alternatives.add(token_id=3, text="A", logprob=-1.5)
    fake.queue("Generate", lambda *_: events)
    _, out, err = deqlm("generate", "--logprobs", "1")
    assert out == "The\n"
    assert "A -1.500" in err


def test_generate_json_is_a_line_for_each_event(deqlm):
    lines = [json.loads(line) for line in deqlm("generate", "It", "--json")[1].splitlines()]
    assert [line["event"] for line in lines] == ["started", "token", "token", "finished"]
    assert "".join(line.get("text", "") for line in lines) == "The end."
