"""``python -m training.bundle RUN OUT``: a run's best model as a small folder with a full card.

Parameters are stored in float16, and what the card says is measured on what was stored. One pass
over the whole text by the published protocol; what costs more, the exact solution and the solver
that serves, on the first blocks of every stream, and the card says on how many tokens.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deq_model.checkpoint import CARD_FILE, WEIGHTS_FILE, load_checkpoint, save_checkpoint
from deq_model.files import write_whole
from training.bundle_card import Measured, card_text, history
from training.cli import EXIT_OK, reported
from training.options.evaluation import EvalRun
from training.scoring import measure
from training.trainer import MODEL_FOLDER

PART_BLOCKS = 16
"""Blocks of every stream that the costlier settings are measured on."""
_RADIUS_BLOCKS = 8
_EXACT_TOL = 1e-6
_EXACT_MAX_NFE = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRun:
    """What a bundle is made of.

    Attributes:
        run: folder that ``deqlm train`` wrote.
        out: checkpoint folder to write.
        text: held-out text to measure on.
        command: how the run was started, for the card.
        note: more about it, for the card; empty for nothing.
        hardware: what it ran on, for the card; empty for nothing.
        part_blocks: blocks of every stream for the costlier settings.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.
    """

    run: Path
    out: Path
    text: Path
    command: str
    note: str = ""
    hardware: str = ""
    part_blocks: int = PART_BLOCKS
    threads: int = 0


def bundle(options: BundleRun) -> None:
    """Writes ``out``: the best model of ``run`` in float16, its tokenizer, its card.

    Raises:
        CheckpointError: the run has no usable model or log.
        DataError: the text is unusable.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    source = options.run / MODEL_FOLDER
    loaded = load_checkpoint(source, device="cpu")
    past = history(options.run / "log.jsonl", hardware=options.hardware)
    save_checkpoint(options.out, loaded.model, loaded.tokenizer, dtype=torch.float16)
    config, measured = loaded.config, _measure(options, source)
    size = (options.out / WEIGHTS_FILE).stat().st_size / 1e6
    facts = {
        "Parameters": f"{loaded.model.n_parameters():,}, stored in float16, {size:.1f} MB",
        "Vocabulary": f"{config.n_token:,} tokens",
        "Shape": f"d_model {config.d_model}, d_inner {config.d_inner}, {config.n_head} heads, "
        f"tgt_len {config.tgt_len}, mem_len {config.mem_len}",
        **past.facts,
    }
    card = card_text(
        name=options.out.name,
        regularised=past.regularised,
        command=options.command,
        note=options.note,
        facts=facts,
        measured=measured,
        text=options.text.name,
    )
    write_whole(options.out / CARD_FILE, lambda path: path.write_text(card, encoding="utf-8"))


def _measure(options: BundleRun, source: Path) -> Mapping[str, Measured]:
    """The rows of the card's table, by their names."""
    part = options.part_blocks

    def run(
        model: Path, *, blocks: int, radius: int = 0, tol: float = 1e-3, max_nfe: int = 35
    ) -> Measured:
        asked = EvalRun(
            model=model,
            data=options.text,
            tol=tol,
            max_nfe=max_nfe,
            max_blocks=blocks,
            radius_blocks=radius,
        )
        return Measured.of(measure(asked))

    served = EvalRun(
        model=options.out,
        data=options.text,
        protocol="chunk-invariant",
        batch_size=16,
        max_blocks=part,
        radius_blocks=0,
    )
    whole = run(options.out, blocks=0, radius=_RADIUS_BLOCKS)
    return {
        "published": whole,
        "published, first blocks": whole.first(part),
        "the same from float32 weights": run(source, blocks=part),
        "the same, exact": run(options.out, blocks=part, tol=_EXACT_TOL, max_nfe=_EXACT_MAX_NFE),
        "chunk-invariant, as served": Measured.of(measure(served)),
    }


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="training.bundle", description=__doc__)
    parser.add_argument("run", type=Path, help="folder that deqlm train wrote")
    parser.add_argument("out", type=Path, help="checkpoint folder to write")
    parser.add_argument("--text", type=Path, required=True, help="held-out text to measure on")
    parser.add_argument("--command", required=True, help="how the run was started, for the card")
    parser.add_argument("--note", default="", help="more about the run, for the card")
    parser.add_argument("--hardware", default="", help="what the run ran on, for the card")
    parser.add_argument(
        "--part-blocks",
        type=int,
        default=PART_BLOCKS,
        help="blocks of every stream to measure the costlier settings on, 0 for all",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all")
    options = BundleRun(**vars(parser.parse_args(argv)))

    def make() -> int:
        bundle(options)
        return EXIT_OK

    return reported("training.bundle", make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
