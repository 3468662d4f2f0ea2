"""What ``deqlm prepare`` does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.errors import OptionsError
from training.options.checks import MOST_SEED, at_least, seconds, share, within
from training.options.data import TokenizerKind

Corpus = Literal["wikitext-103", "ptb", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """What ``deqlm prepare`` does.

    Attributes:
        out: folder to write the tokens and the tokenizer to.
        tokenizer: file or folder of an existing tokenizer; unset trains or builds one from the
            training text.
        tokenizer_kind: what to make; unset for word with wikitext-103 and ptb, sentencepiece with
            text.
        vocab_size: tokens of a new sentencepiece model (unset for 4096); most words of a new word
            vocabulary (unset or 0 for all).
        seed: chooses the lines that a sentencepiece model is trained on, of a text of more than
            two million.
        valid_share: share of a single text, from its end, to validate on instead of a file for it.
        url: where to download from instead: an archive, or with a / at its end the folder of the
            plain files.
        sha256: of the archive that url names, where it is not the published one.
        download_dir: folder for what is downloaded and unpacked; unset for source in out.
        timeout_s: seconds without an answer after which a download is given up.
        force: prepare again, whatever is in out.
    """

    out: Path
    tokenizer: Path | None = None
    tokenizer_kind: TokenizerKind | None = None
    vocab_size: int | None = None
    seed: int = 0
    valid_share: float = 0.0
    url: str | None = None
    sha256: str | None = None
    download_dir: Path | None = None
    timeout_s: float = 30.0
    force: bool = False

    def __post_init__(self) -> None:
        within(self, 0, MOST_SEED, "seed")
        seconds(self, "timeout_s")
        share(self, "valid_share")
        if self.vocab_size is not None:
            at_least(self, 0, "vocab_size")
        if self.sha256 is not None and self.url is None:
            raise OptionsError(f"sha256 must be given with url, got {self.sha256} alone")
