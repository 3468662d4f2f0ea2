"""The command ``deqlm prepare``. A second run with nothing to do is over within a second."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cli.parser import usage_error
from training.cli import reported
from training.flags import parse
from training.options.prepare import Corpus as CorpusName
from training.options.prepare import PrepareOptions

if TYPE_CHECKING:
    from training.prepare.folder import Progress
    from training.prepare.manifest import Manifest, Split
    from training.vocabulary import TokenizerPlan

EXIT_OK = 0
EXIT_USAGE = 2
_NAMES: tuple[str, ...] = get_args(CorpusName)
_SOURCE = "source"
_PIECES = 4096
_DESCRIPTION = """\
Make a folder of tokens that training maps into memory: PROG wikitext-103 [PATH] --out DIR, or
ptb [PATH], or text TRAIN [VALID [TEST]]. PATH is a folder with the files of the data set, or its
archive; without it they are downloaded. Texts are UTF-8, plain, .xz or .gz."""


def main(argv: list[str], prog: str) -> int:
    """Prepares; returns the exit code."""
    words = _leading_words(argv)
    options: PrepareOptions = parse(
        argv[len(words) :],
        prog=prog,
        description=_DESCRIPTION.replace("PROG", prog),
        groups={"": PrepareOptions},
        operands="DATASET [PATH ...]",
    )[""]
    problem = _usage_problem(words, options)
    if problem:
        sys.stderr.write(usage_error(prog, problem) + "\n")
        return EXIT_USAGE
    return reported(prog, lambda: _prepare(prog, words, options))


def _leading_words(argv: list[str]) -> list[str]:
    """The data set and the paths come first: after a flag, a word may be the flag's value."""
    flag = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    return argv[:flag]


def _usage_problem(words: list[str], options: PrepareOptions) -> str:
    """What is wrong with the words before the flags; empty for nothing."""
    what = f"the first argument must be one of {', '.join(_NAMES)}"
    if not words:
        return f"{what}, before any flag"
    name, *paths = words
    if name not in _NAMES:
        return f"{what}, got {name}"
    if name != "text":
        if options.valid_share:
            return f"--valid-share must be 0 for {name}, got {options.valid_share}"
        return "" if len(paths) <= 1 else f"{name} takes one PATH at most, got {len(paths)}"
    if options.url is not None or options.download_dir is not None:
        return "--url and --download-dir must be unset for text, which is not downloaded"
    if options.valid_share:
        return "" if len(paths) == 1 else f"--valid-share is for one text, got {len(paths)}"
    if len(paths) == 1:
        if not Path(paths[0]).exists():
            return f"{paths[0]} does not exist"
        return "name a text to validate on after the first, or give --valid-share, such as 0.1"
    return "" if 2 <= len(paths) <= 3 else f"text takes TRAIN VALID [TEST], got {len(paths)} paths"


def _prepare(prog: str, words: list[str], options: PrepareOptions) -> int:
    from training.prepare.folder import prepare_texts
    from training.prepare.progress import bars

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    began = time.monotonic()
    name, *paths = words
    plan = _plan(name, options)
    with bars() as progress:
        outcome = prepare_texts(
            _texts(name, [Path(path) for path in paths], options, prog, progress),
            options.out,
            plan,
            valid_share=options.valid_share,
            remake="always" if options.force else "never",
            progress=progress,
        )
    _tell(outcome.made, options.out, outcome.manifest, time.monotonic() - began)
    return EXIT_OK


def _plan(name: str, options: PrepareOptions) -> "TokenizerPlan":
    """Which tokenizer, with the defaults of the data set."""
    from training.vocabulary import TokenizerPlan

    kind = options.tokenizer_kind or ("sentencepiece" if name == "text" else "word")
    size = options.vocab_size
    return TokenizerPlan(
        tokenizer=options.tokenizer,
        kind=kind,
        vocab_size=(0 if kind == "word" else _PIECES) if size is None else size,
        seed=options.seed,
    )


def _texts(
    name: str, paths: list[Path], options: PrepareOptions, prog: str, progress: "Progress"
) -> "dict[Split, Path]":
    """The file of each split: those named, or the data set's."""
    from training.prepare.corpora import CORPORA, Where, obtain
    from training.prepare.manifest import SPLITS

    if name == "text":
        return dict(zip(SPLITS, paths, strict=False))
    where = Where(
        folder=options.download_dir or options.out / _SOURCE,
        url=options.url,
        sha256=options.sha256,
        timeout_s=options.timeout_s,
        again=f"`{prog} {name} FOLDER --out {options.out}`",
    )
    return obtain(CORPORA[name], paths[0] if paths else None, where, progress)


def _tell(made: bool, out: Path, manifest: "Manifest", seconds: float) -> None:
    head = f"prepared {out} in {seconds:.1f} s" if made else f"{out} is prepared already"
    lines = [f"{head}; {manifest.n_token:,} entries in the vocabulary"]
    lines += [
        f"{split:<6} {info.tokens:>12,} tokens  {info.unknown:,} unknown"
        for split, info in manifest.splits.items()
    ]
    sys.stdout.write("\n".join(lines) + "\n")
