"""``python -m training.bundle RUN OUT``: a run's best model as a small folder with a full card.

Parameters are stored in float16, and everything the card says is measured on what was stored.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deq_model.checkpoint import (
    CARD_FILE,
    WEIGHTS_FILE,
    load_checkpoint,
    save_checkpoint,
    write_whole,
)
from deq_model.errors import CheckpointError
from training.data import read_text
from training.options.evaluation import EvalRun
from training.scoring import score_file
from training.trainer import MODEL_FOLDER


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A way of measuring that the card has a row for."""

    name: str
    tol: float
    max_nfe: int
    whole_block: bool


SETTINGS = (
    Setting(name="published solver", tol=1e-3, max_nfe=35, whole_block=True),
    Setting(name="published solver, exact", tol=1e-6, max_nfe=150, whole_block=True),
    Setting(name="token by token, as served", tol=1e-3, max_nfe=100, whole_block=False),
)


def bundle(run: Path, out: Path, *, text: Path, command: str, note: str, threads: int) -> None:
    """Writes ``out``: the best model of ``run`` in float16, its tokenizer, its card.

    Args:
        run: folder that ``deqlm train`` wrote.
        out: checkpoint folder to write.
        text: held-out text to measure on.
        command: how the run was started, for the card.
        note: more about it, for the card; empty for nothing.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.

    Raises:
        CheckpointError: the run has no usable model or log.
    """
    loaded = load_checkpoint(run / MODEL_FOLDER, device="cpu")
    save_checkpoint(out, loaded.model, loaded.tokenizer, dtype=torch.float16)
    full = _score(run / MODEL_FOLDER, text, SETTINGS[0], threads)
    measured = {s.name: _score(out, text, s, threads) for s in SETTINGS}
    facts = {
        "Parameters": f"{loaded.model.n_parameters():,}",
        "Vocabulary": f"{loaded.config.n_token:,} sentencepiece tokens",
        "Shape": f"d_model {loaded.config.d_model}, d_inner {loaded.config.d_inner}, "
        f"{loaded.config.n_head} heads, tgt_len {loaded.config.tgt_len}, "
        f"mem_len {loaded.config.mem_len}",
        "Weights": f"float16, {(out / WEIGHTS_FILE).stat().st_size / 1e6:.1f} MB; float32 gives "
        f"perplexity {full['perplexity']:.3f} where these give "
        f"{measured[SETTINGS[0].name]['perplexity']:.3f}",
        **_history(run),
    }
    size = len(read_text(text).encode("utf-8"))
    card = _card(out.name, command, note, facts, measured, text=text.name, size=size)
    write_whole(out / CARD_FILE, lambda path: path.write_text(card, encoding="utf-8"))


def _score(model: Path, text: Path, setting: Setting, threads: int) -> Mapping[str, Any]:
    return score_file(
        EvalRun(
            model=model,
            data=text,
            tol=setting.tol,
            max_nfe=setting.max_nfe,
            whole_block=setting.whole_block,
            threads=threads,
        )
    )


def _history(run: Path) -> dict[str, str]:
    """What the run's log says about its length."""
    path = run / "log.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the log {path}: {error}") from None
    steps = [line for line in lines if line["event"] == "step"]
    valid = [line for line in lines if line["event"] == "valid"]
    if not steps or not valid:
        raise CheckpointError(f"the log {path} has no finished measurement")
    best = min(valid, key=lambda line: float(line["mean_nll"]))
    return {
        "Training": f"{steps[-1]['step']:,} steps, {steps[-1]['seconds'] / 60:.0f} minutes on one "
        f"core ({platform.machine()}, shared with other work)",
        "Validation": f"best at step {best['step']:,}, perplexity {best['perplexity']:.2f} on the "
        f"first {best['scored_tokens']:,} tokens of `valid.txt`",
    }


def _card(
    name: str,
    command: str,
    note: str,
    facts: Mapping[str, str],
    measured: Mapping[str, Mapping[str, Any]],
    *,
    text: str,
    size: int,
) -> str:
    some = next(iter(measured.values()))
    return "\n".join(
        [
            f"# {name}",
            "",
            "A small deep-equilibrium language model of sixteenth- and seventeenth-century "
            "English (Shakespeare, Milton, the King James Bible), trained with implicit "
            "differentiation and Jacobian regularisation.",
            "",
            "```",
            command,
            "```",
            "",
            *([note, ""] if note else []),
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            f"## On held-out text (`{text}`, {some['scored_tokens']:,} scored tokens)",
            "",
            "| solver | dtype | tol | perplexity per token | bits per byte "
            "| calls of f per block | tokens not converged |",
            "|---|---|---|---|---|---|---|",
            *(_row(key, report, size) for key, report in measured.items()),
            "",
            f"By `deqlm eval` in {some['batch_size']} streams, blocks of {some['tgt_len']}, "
            f"memory {some['mem_len']}.",
            "",
            "## Licence",
            "",
            "The texts are in the public domain; `data/README.md` lists them.",
            "",
        ]
    )


def _row(name: str, report: Mapping[str, Any], size: int) -> str:
    bits = report["mean_nll"] / math.log(2) * report["scored_tokens"] / size
    return (
        f"| {name} | {report['dtype']} | {report['tol']:g} | {report['perplexity']:.3f} "
        f"| {bits:.3f} | {report['nfe']:.1f} | {report['unconverged']} |"
    )


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="training.bundle", description=__doc__)
    parser.add_argument("run", type=Path, help="folder that deqlm train wrote")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--text", type=Path, required=True, help="held-out text to measure on")
    parser.add_argument("--command", required=True, help="how the run was started, for the card")
    parser.add_argument("--note", default="", help="more about the run, for the card")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all")
    given = parser.parse_args(argv)
    bundle(
        given.run,
        given.out,
        text=given.text,
        command=given.command,
        note=given.note,
        threads=given.threads,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
