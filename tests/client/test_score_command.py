"""The command `score`, run in this process against a scripted server."""

import json
import re
import subprocess
import sys

from deqlm.v1 import common_pb2, scoring_pb2
from tests.client.fake_server import TEXT, score_of, totals, words


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


def test_score_reads_stdin(fake, environment):
    command = [sys.executable, "-m", "cli", "score", "-", "--json", "--address", fake.address]
    done = subprocess.run(
        command, input=TEXT.encode(), capture_output=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["call"]["scored_tokens"] == 7


def test_candidates_must_not_be_empty(deqlm, text_file, tmp_path):
    path = tmp_path / "empty"
    path.write_text("\n\n")
    code, _, err = deqlm("score", text_file, "--candidates", str(path))
    assert code == 2
    assert "holds no candidate" in err


def test_score_tells_what_took_no_call(deqlm, fake, text_file):
    answer = score_of("It was")
    answer.solver.solved_tokens, answer.solver.shared_tokens = 0, 2
    fake.queue("Score", answer)
    _, out, _ = deqlm("score", text_file, "--no-tokens")
    assert "solver        no call of f, 2 tokens taken over from what began alike\n" in out
    (rate,) = re.findall(r"s, ([\d.]+) tokens/s", out)
    assert float(rate) > 0
