"""The protocols of ``deqlm eval``: what the server answers, and what the command refuses."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deq_model.checkpoint import load_checkpoint
from server.config import ServerConfig
from server.engine.solve import Solve
from tests.server.engine.helpers import logprobs, running_engine
from tests.server.tiny import WORDS, save_words
from training.cli import eval_main
from training.data import read_text
from training.evaluating.progress import EvalProgress
from training.evaluating.statistics import batch_means
from training.options.evaluation import EvalRun
from training.scoring import measure

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "models" / "shakespeare-ift-jr"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint ``model`` (blocks of 16) and ``text.txt`` of 100 tokens."""
    folder = tmp_path_factory.mktemp("words")
    save_words(folder / "model")
    draw = torch.randint(0, len(WORDS), (90,), generator=torch.Generator().manual_seed(2)).tolist()
    lines = [" ".join(WORDS[i] for i in draw[at : at + 9]) for at in range(0, 90, 9)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def flags(words: Path, *more: str) -> list[str]:
    return ["--model", str(words / "model"), "--data", str(words / "text.txt"), *more]


def figures(words: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert eval_main(flags(words, "--json", *more), "deqlm eval") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(words: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line on standard error, whether the flags or the work was refused."""
    try:
        code = eval_main(flags(words, *more), "deqlm eval")
    except SystemExit as ended:
        code = ended.code
    assert code in (1, 2)
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    return told.err


class TestAsServed:
    @pytest.mark.parametrize("sessions", [1, 3])
    def test_the_engine_answers_the_same(self, words: Path, sessions: int) -> None:
        run = EvalRun(
            model=words / "model",
            data=words / "text.txt",
            protocol="chunk-invariant",
            batch_size=sessions,
            tol=1e-7,
            window=5,
        )
        found = measure(run).result
        loaded = load_checkpoint(words / "model", device="cpu", dtype=torch.float64)
        assert loaded.tokenizer is not None
        ids = loaded.tokenizer.encode(read_text(words / "text.txt")).ids
        each = len(ids) // sessions
        assert found.nll.shape == (sessions, each)
        with running_engine(loaded.model) as caller:
            for session in range(sessions):
                part = ids[session * each : (session + 1) * each]
                answer = logprobs(caller.result(caller.score(part)))
                expected = torch.tensor(answer, dtype=torch.float64)
                assert torch.allclose(-found.nll[session], expected, atol=1e-5)

    def test_the_bundled_model_at_the_defaults(self, tmp_path: Path) -> None:
        text = read_text(ROOT / "data" / "corpus" / "test.txt.xz")[:900]
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        run = EvalRun(model=BUNDLED, data=tmp_path / "text.txt", protocol="chunk-invariant")
        report = measure(run)
        loaded = load_checkpoint(BUNDLED, device="cpu")
        assert loaded.tokenizer is not None
        ids = loaded.tokenizer.encode(read_text(tmp_path / "text.txt")).ids
        assert report.result.scored_tokens == len(ids) > 200
        limits = ServerConfig().engine_limits
        with running_engine(loaded.model, limits, dtype=torch.float32) as caller:
            answer = caller.result(caller.score(ids, solve=Solve()))
        difference = (report.result.nll[0] + torch.tensor(logprobs(answer))).abs()
        # What a tolerance of 1e-3 leaves to the path of the solver; see docs/accuracy.md.
        assert float(difference.median()) <= 1e-3
        assert float((difference > 0.05).double().mean()) <= 0.01
        assert abs(report.result.mean_nll + sum(logprobs(answer)) / len(ids)) <= 1e-3
        assert report.options.solver.tol == Solve().tol
        assert report.options.solver.max_nfe == Solve().max_nfe
        assert report.options.window == limits.window

    def test_every_token_is_scored(self, words: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = figures(words, capsys, "--protocol", "chunk-invariant")
        assert found["scored_tokens"] == found["text_tokens"] == 100
        assert found["scored_bytes"] == len(read_text(words / "text.txt").encode())
        bits = found["mean_nll"] * 100 / math.log(2) / found["scored_bytes"]
        assert found["bits_per_byte"] == pytest.approx(bits)


class TestOutput:
    def test_figures(self, words: Path, capsys: pytest.CaptureFixture[str]) -> None:
        found = figures(words, capsys, "--batch-size", "2", "--radius-blocks", "2")
        assert next(iter(found)) == "perplexity"
        assert found["scored_tokens"] == 98
        assert found["perplexity"] == pytest.approx(math.exp(found["mean_nll"]))
        assert found["perplexity_error"] > 0
        assert len(found["spectral_radius"]["samples"]) == 4
        assert found["evaluations"] >= 1
        # Bytes of both first tokens are left out: "the " and what follows it.
        assert found["scored_bytes"] < len(read_text(words / "text.txt").encode())

    def test_a_table_for_people(self, words: Path, capsys: pytest.CaptureFixture[str]) -> None:
        more = ("--batch-size", "2", "--max-nfe-curve", "2,4", "--mem-len-curve", "0,8")
        assert eval_main(flags(words, *more), "deqlm eval") == 0
        told = capsys.readouterr()
        lines = told.out.splitlines()
        assert lines[0].startswith("perplexity")
        assert "±" in lines[0]
        assert max(map(len, lines)) <= 80
        assert "\x1b" not in told.out
        assert all(line == line.rstrip() for line in lines)
        assert told.err == ""
        for heading in ("max_nfe", "mem_len"):
            assert any(line.lstrip().startswith(f"{heading}  ") for line in lines)

    def test_files(self, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "a" / "b"
        more = ("--batch-size", "2", "--max-nfe-curve", "8,2,2", "--out", str(out))
        found = figures(words, capsys, *more)
        assert {path.name for path in out.iterdir()} == {
            "evaluation.json",
            "curves.svg",
            "curves.png",
            "per-token.npz",
        }
        assert json.loads((out / "evaluation.json").read_text()) == found
        with np.load(io.BytesIO((out / "per-token.npz").read_bytes())) as file:
            assert set(file) == {"nll", "residual", "status", "bytes"}
            assert {file[name].shape for name in file} == {(2, 49)}
            assert file["bytes"].sum() == found["scored_bytes"]
        few, many = found["max_nfe_curve"]
        assert (few["value"], many["value"]) == (2, 8)
        assert few["nfe"] == 2
        assert few["unconverged_share"] == 1.0
        assert few["mean_residual"] > many["mean_residual"]

    def test_the_memory_curve_holds_the_evaluation_itself(
        self, words: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        found = figures(words, capsys, "--batch-size", "2", "--mem-len-curve", "0,16")
        none, own = found["mem_len_curve"]
        assert own["perplexity"] == found["perplexity"]
        assert none["perplexity"] != found["perplexity"]


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--protocol", "chunk_invariant"], "published or chunk-invariant"),
            (["--batch-size", "7"], "batch_size must be at most 5 for a text of 100 tokens"),
            (["--tgt-len", "100"], "tgt_len must be at most 99 for a text of 100 tokens"),
            (["--max-nfe-curve", "4,0,-2"], "max_nfe_curve must be whole numbers of at least 1"),
            (["--max-nfe-curve", "4,0,-2"], "got 0, -2"),
            (["--max-nfe-curve", "4,x"], "max-nfe-curve"),
            (["--mem-len-curve", "0,-8"], "mem_len_curve must be whole numbers of at least 0"),
            (["--window", "4"], "window must be left unset with protocol published, got 4"),
            (["--radius-blocks", "-1"], "radius_blocks must be at least 0, got -1"),
            (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
            (["--tol", "0"], "tol must be a finite number above 0, got 0"),
            (["--device", "tpu"], "device"),
            (["--device", "cuda:77"], "device"),
        ],
    )
    def test_as_published(
        self,
        words: Path,
        capsys: pytest.CaptureFixture[str],
        more: list[str],
        message: str,
    ) -> None:
        assert message in refusal(words, capsys, *more)

    @pytest.mark.parametrize(
        "more",
        [["--whole-block", "true"], ["--retries", "1"], ["--method", "anderson"], ["--depth", "3"]],
    )
    def test_chunk_invariant(
        self, words: Path, capsys: pytest.CaptureFixture[str], more: list[str]
    ) -> None:
        name = more[0][2:].replace("-", "_")
        told = refusal(words, capsys, "--protocol", "chunk-invariant", *more)
        assert f"{name} must be left unset with protocol chunk-invariant" in told

    def test_more_sessions_than_tokens(
        self, words: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        told = refusal(words, capsys, "--protocol", "chunk-invariant", "--batch-size", "101")
        assert "batch_size must be at most 100" in told

    def test_a_folder_that_cannot_be_written(
        self, words: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        told = refusal(words, capsys, "--out", str(words / "text.txt" / "out"))
        assert "out must be a folder that can be made and written to" in told

    def test_a_file_in_place_of_the_folder(
        self, words: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        told = refusal(words, capsys, "--out", str(words / "text.txt"))
        assert "out must be a folder that can be made and written to" in told

    def test_a_text_that_the_tokenizer_cannot_encode(
        self, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model = tmp_path / "model"
        save_words(model)
        vocabulary = (model / "vocab.txt").read_text().replace("<unk>", "other")
        (model / "vocab.txt").write_text(vocabulary)
        (tmp_path / "text.txt").write_text("the zebra\n")
        told = refusal(tmp_path, capsys)
        assert "text.txt cannot be encoded by the checkpoint's tokenizer" in told
        assert "'zebra'" in told

    def test_a_checkpoint_without_a_tokenizer(
        self, words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save_words(tmp_path / "model")
        (tmp_path / "model" / "vocab.txt").unlink()
        (tmp_path / "text.txt").write_text("the of\n")
        assert "has no tokenizer" in refusal(tmp_path, capsys)


class TestProgress:
    def test_lines_every_half_minute_where_there_is_no_terminal(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")
        now = 0.0
        with EvalProgress(2, clock=lambda: now) as progress:
            advance = progress.stage("evaluation")
            for done in range(1, 11):
                now += 10.0
                advance(done, 10)
            advance = progress.stage("max_nfe 4")
            now += 10.0
            advance(5, 10)
        told = [record.getMessage() for record in caplog.records]
        assert told == [
            "evaluation (1/2): 30 %, 30 s so far, about 170 s left",
            "evaluation (1/2): 60 %, 60 s so far, about 140 s left",
            "evaluation (1/2): 90 %, 90 s so far, about 110 s left",
        ]


def test_the_error_is_that_of_the_losses_on_disk(
    words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = figures(words, capsys, "--batch-size", "2", "--per-token", str(tmp_path / "x.npz"))
    nll = torch.from_numpy(np.load(tmp_path / "x.npz")["nll"])
    error = batch_means(nll, at_least=16).error
    assert found["mean_nll_error"] == pytest.approx(error)
    assert found["perplexity_error"] == pytest.approx(error * found["perplexity"])
