"""What can go wrong with a tokenizer.

TokenizerError (ValueError)
├── TokenizerFileError      a vocabulary or model file is missing, broken or of the wrong size
├── TokenizerTrainingError  a tokenizer cannot be trained as asked
├── InvalidTextError        a string that UTF-8 cannot carry
├── InvalidTokenIdError     a token id outside the vocabulary
└── UnknownWordError        a word outside a vocabulary that has no <unk>
"""


class TokenizerError(ValueError):
    """Root of every error that a tokenizer raises on bad input."""


class TokenizerFileError(TokenizerError):
    """A tokenizer's files are missing, ambiguous, broken or of the wrong size."""


class TokenizerTrainingError(TokenizerError):
    """A tokenizer cannot be trained on this text with these options."""


class InvalidTextError(TokenizerError):
    """The text holds a lone surrogate, which is no character."""


class InvalidTokenIdError(TokenizerError):
    """A token id lies outside the vocabulary."""


class UnknownWordError(TokenizerError):
    """A word is not in the vocabulary, and the vocabulary has no ``<unk>``."""

    def __init__(self, word: str) -> None:
        super().__init__(f"word {word!r} is not in the vocabulary, which has no <unk>")
        self.word = word
