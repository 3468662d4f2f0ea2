"""The commands, run in this process against a scripted server."""

import importlib
import io
import json
import os
import re
import socket
import subprocess
import sys

import grpc
import pytest
from google.rpc import error_details_pb2

from client.commands import _common
from deqlm.v1 import common_pb2, scoring_pb2
from tests.client.fake_server import Failure, generated, score_of, totals, words

TEXT = "It was a dark and stormy night\n"


@pytest.fixture
def deqlm(fake, capsys):
    """Run `deqlm COMMAND ...` and return exit code, stdout and stderr."""

    def run(command: str, *argv: str, address: str = fake.address):
        module = importlib.import_module(f"client.commands.{command}")
        try:
            code = module.main([*argv, "--address", address], f"deqlm {command}")
        except SystemExit as exit_:
            code = exit_.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


@pytest.fixture
def long_file(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("forty thousand ä characters " * 3000)
    return str(path)


# --- score ---


def test_score_prints_a_plain_table_and_a_summary(deqlm, text_file):
    code, out, err = deqlm("score", text_file)
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    header, first = out.splitlines()[:2]
    assert header.split() == ["byte", "id", "logprob", "nfe", "token", "alternatives"]
    assert first.split() == ["0", "2", "-1.0000", "4", "It"]
    assert "perplexity    2.718" in out
    assert "tokens        7, log-probability -7.0000, mean -1.0000, 0 unknown" in out
    assert "4.00 nfe per token" in out


def test_score_shades_tokens_by_surprise_when_forced(deqlm, fake, text_file):
    answer = score_of("It was")
    answer.tokens[1].logprob = -20.0
    fake.queue("Score", answer)
    code, out, _ = deqlm("score", text_file, "--color", "always")
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert plain.startswith("It was\n")
    assert "surprise in bits:" in plain
    assert re.search(r"\x1b\[[0-9;]*m" + "was", out), "the unlikely token has a background"
    assert "byte" not in plain


def test_score_is_plain_where_colour_is_not_wanted(deqlm, monkeypatch, text_file):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b" in deqlm("score", text_file)[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in deqlm("score", text_file)[1]


def test_score_shows_alternatives_and_unknown_words(deqlm, fake, text_file):
    answer = score_of("It was")
    answer.tokens[0].alternatives.add(token_id=9, text=" She", logprob=-0.25)
    answer.tokens[1].is_unknown = True
    answer.tokens[1].text = "<unk>"
    answer.tokens[1].converged = False
    fake.queue("Score", answer)
    _, out, _ = deqlm("score", text_file, "--top-k", "1")
    assert fake.calls[0].request.top_k == 1
    assert "␣She -0.250" in out
    assert "<unk> (was)" in out
    assert "4!" in out


def test_score_in_a_session_tells_its_totals(deqlm, fake, text_file):
    code, out, _ = deqlm("score", text_file, "--session", "s1", "--no-tokens")
    assert code == 0
    assert fake.calls[0].request.session_id == "s1"
    assert not fake.calls[0].request.include_tokens
    assert "session       7, log-probability -7.0000, mean -1.0000, perplexity 2.718" in out


def test_score_sends_solver_options_and_owner(deqlm, fake, text_file):
    flags = ["--tol", "0.01", "--max-nfe", "9", "--policy", "error", "--owner", "ann"]
    deqlm("score", text_file, *flags, "--model", "tiny", "--timeout-s", "5")
    call = fake.calls[0]
    assert call.request.solver.policy == common_pb2.BUDGET_POLICY_ERROR
    assert (call.request.solver.tol, call.request.solver.max_nfe) == (0.01, 9)
    assert (call.request.model, call.metadata["deqlm-owner"]) == ("tiny", "ann")
    assert 0 < call.time_remaining_s < 6


def test_score_sends_bounds_and_priority(deqlm, fake, long_file):
    flags = ["--max-time-s", "0.5", "--max-calls", "40", "--priority", "low", "--keep-tol"]
    answer = score_of("It was")
    answer.stopped_by = common_pb2.STOPPED_BY_TIME
    answer.solver.loosened_tokens, answer.solver.unconverged_tokens = 2, 3
    answer.solver.applied_tol = 0.05
    fake.queue("Score", answer)
    code, out, _ = deqlm("score", long_file, *flags)
    assert code == 0
    (call,) = fake.calls
    assert call.method == "Score", "a budget is of one call, however long the text"
    assert (call.request.budget.max_time_s, call.request.budget.max_calls) == (0.5, 40)
    assert call.request.priority == common_pb2.PRIORITY_LOW
    assert call.request.solver.keep_tol
    assert "cut short     by time, after 2 tokens" in out
    assert "1 tokens not converged, 2 tokens loosened to tol 0.05" in out


def test_score_tells_candidates_that_were_cut_short(deqlm, fake, tmp_path):
    candidates = tmp_path / "candidates.txt"
    candidates.write_text("one two\nthree four\n")
    answer = scoring_pb2.ScoreResponse(model="tiny", stopped_by=common_pb2.STOPPED_BY_CALLS)
    answer.candidates.add(tokens=words("one two"), totals=totals(2))
    answer.candidates.add(
        tokens=words("three"), totals=totals(1), stopped_by=common_pb2.STOPPED_BY_CALLS
    )
    fake.queue("Score", answer)
    _, out, _ = deqlm("score", "--candidates", str(candidates), "--max-calls", "9")
    assert next(line for line in out.splitlines() if "cut short" in line).endswith(
        "three four  (cut short)"
    )


def test_generate_sends_bounds_and_priority(deqlm, fake):
    flags = ["--max-time-s", "2", "--max-calls", "9", "--priority", "high"]
    assert deqlm("generate", "It", *flags)[0] == 0
    request = fake.calls[0].request
    assert (request.budget.max_time_s, request.budget.max_calls) == (2.0, 9)
    assert request.priority == common_pb2.PRIORITY_HIGH


def test_score_ranks_candidates(deqlm, fake, tmp_path, text_file):
    candidates = tmp_path / "candidates.txt"
    candidates.write_text("one two three\n\nfour\n")
    answer = scoring_pb2.ScoreResponse(model="tiny")
    for line in ("one two three", "four"):
        answer.candidates.add(tokens=words(line), totals=totals(len(line.split())))
    fake.queue("Score", answer)
    code, out, _ = deqlm("score", text_file, "--candidates", str(candidates))
    assert code == 0
    assert [item.text for item in fake.calls[0].request.candidates] == ["one two three", "four"]
    rows = [line.split(maxsplit=4) for line in out.splitlines()[1:3]]
    assert [(row[0], row[4]) for row in rows] == [("2", "four"), ("1", "one two three")]


def test_score_json_is_one_document(deqlm, text_file):
    document = json.loads(deqlm("score", text_file, "--json")[1])
    assert document["call"]["scored_tokens"] == 7
    assert document["tokens"][0]["raw"] == "SXQ="
    assert document["session"] is None
    assert document["solver"]["status"] == "converged"


def test_a_long_file_goes_through_the_stream(deqlm, fake, long_file):
    code, out, err = deqlm("score", long_file, "--json")
    assert (code, err) == (0, "")
    assert fake.methods() == ["ScoreStream"]
    document = json.loads(out)
    assert document["call"]["scored_tokens"] == len(document["tokens"]) == 4 * 3000
    last = document["tokens"][-1]
    assert last["text"] == "characters"
    assert last["byte_end"] == len(("forty thousand ä characters " * 3000).rstrip().encode())


def test_a_long_file_shows_progress_on_a_terminal(deqlm, monkeypatch, long_file):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    code, out, err = deqlm("score", long_file, "--no-tokens")
    assert code == 0
    assert "tokens, perplexity" in err
    assert "12000, log-probability" in out


def test_score_reads_stdin(fake):
    command = [sys.executable, "-m", "cli", "score", "-", "--json", "--address", fake.address]
    done = subprocess.run(
        command, input=TEXT.encode(), capture_output=True, env=_environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["call"]["scored_tokens"] == 7


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([".", "proto"])}


# --- generate ---


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


# --- session, info, tokenize ---


def test_session_commands(deqlm, fake):
    assert deqlm("session", "create", "--ttl-s", "60", "--model", "tiny")[:2] == (0, "s1\n")
    assert (fake.calls[-1].request.ttl_s, fake.calls[-1].request.model) == (60, "tiny")
    assert deqlm("session", "fork", "s1")[:2] == (0, "s2\n")
    assert deqlm("session", "delete", "s1", "s2")[:2] == (0, "")
    assert fake.methods()[-2:] == ["DeleteSession"] * 2
    out = deqlm("session", "get", "s1")[1]
    assert out.splitlines()[1].split()[:3] == ["s1", "tiny", "3"]
    assert deqlm("session", "list")[1] == out


def test_session_json(deqlm):
    assert json.loads(deqlm("session", "get", "s1", "--json")[1])["session_id"] == "s1"
    assert json.loads(deqlm("session", "create", "--json")[1])["position"] == 3
    assert len(json.loads(deqlm("session", "list", "--json")[1])["sessions"]) == 1
    assert json.loads(deqlm("session", "delete", "s1", "--json")[1]) == {"deleted": ["s1"]}


def test_info_lists_models_or_details_one(deqlm):
    out = deqlm("info")[1]
    assert "tiny (default)" in out
    assert "12.35M" in out
    assert "word 100" in out
    details = deqlm("info", "--model", "tiny")[1]
    assert re.search(r"^default_solver.tol +0.001$", details, re.MULTILINE)
    assert json.loads(deqlm("info", "--json")[1])["models"][0]["n_parameters"] == 12_345_678


def test_tokenize_takes_text_a_file_or_ids(deqlm, fake, text_file):
    out = deqlm("tokenize", "a bc")[1]
    assert out.splitlines()[1:] == [
        "    0    1   1  a",
        "    2    4   2  bc",
        "2 tokens, 0 unknown",
    ]
    deqlm("tokenize", text_file)
    assert fake.calls[-1].request.text == TEXT
    assert deqlm("tokenize", "--ids", "4", "5")[1] == "4 5\n"
    assert json.loads(deqlm("tokenize", "a", "--json")[1])["tokens"][0]["token_id"] == 1
    assert json.loads(deqlm("tokenize", "--ids", "4", "--json")[1])["text"] == "4"


# --- errors ---


def test_an_error_is_one_line_with_its_status(deqlm, fake, text_file):
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="top_k", description="must be in [0, 50], got 99"
    )
    fake.queue(
        "Score",
        Failure(
            code=grpc.StatusCode.INVALID_ARGUMENT,
            message="the request is invalid",
            details=(error_details_pb2.BadRequest(field_violations=[violation]),),
        ),
    )
    code, out, err = deqlm("score", text_file, "--top-k", "99")
    assert (code, out) == (1, "")
    assert err == (
        "deqlm score: INVALID_ARGUMENT: the request is invalid; top_k: must be in [0, 50], got 99\n"
    )


def test_a_server_that_is_not_there_is_named(deqlm):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        code, _, err = deqlm("info", address=address)
    assert code == 1
    assert err.startswith(f"deqlm info: UNAVAILABLE: no server answers at {address}")
    assert "deqlm serve" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["score", "tokenize"])
def test_a_file_that_is_not_text_is_refused(deqlm, fake, tmp_path, command):
    path = tmp_path / "binary"
    path.write_bytes(b"ab\xff")
    code, _, err = deqlm(command, str(path))
    assert code == 2
    assert err == f"deqlm {command}: {path} is not UTF-8: invalid start byte at byte 2\n"
    assert fake.calls == []


def test_a_file_that_is_missing_is_named(deqlm, tmp_path):
    code, _, err = deqlm("score", str(tmp_path / "none"))
    assert code == 2
    assert err == f"deqlm score: cannot read {tmp_path / 'none'}: No such file or directory\n"


def test_candidates_must_not_be_empty(deqlm, text_file, tmp_path):
    path = tmp_path / "empty"
    path.write_text("\n\n")
    code, _, err = deqlm("score", text_file, "--candidates", str(path))
    assert code == 2
    assert "holds no candidate" in err


@pytest.mark.parametrize("command", ["score", "session", "tokenize"])
def test_a_command_without_its_arguments_is_a_usage_error(deqlm, command):
    assert deqlm(command)[0] == 2


def test_the_address_comes_from_the_environment(fake, monkeypatch, capsys):
    monkeypatch.setenv("DEQLM_ADDRESS", fake.address)
    from client.commands import info

    assert info.main([], "deqlm info") == 0
    assert fake.address in capsys.readouterr().out


def test_json_has_no_numbers_that_json_lacks(capsys):
    _common.print_json({"a": float("inf"), "b": (float("nan"), 1.0)}, indent=None)
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.0]}\n'


# --- start ---


@pytest.mark.parametrize("command", ["score", "generate", "session", "info", "tokenize"])
def test_a_command_starts_light(command):
    code = (
        f"import sys, client.commands.{command}; "
        "heavy = {'torch', 'numpy', 'rich', 'sentencepiece'} & set(sys.modules); "
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env=_environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
