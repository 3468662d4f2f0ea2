"""Text on a terminal, shaded by surprise; needs rich."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console
from rich.style import Style
from rich.text import Text

from client.results import TokenScore

SCALE: Final[tuple[tuple[float, str], ...]] = (
    (1.0, ""),
    (3.0, "black on #fff3c4"),
    (6.0, "black on #ffd98a"),
    (9.0, "black on #ffb05c"),
    (13.0, "black on #f4743b"),
    (math.inf, "white on #c1121f"),
)
"""Upper bound in bits of each shade, and its style."""


def surprise_bits(logprob: float) -> float:
    """Surprise of a token in bits."""
    return -logprob / math.log(2)


def style_of(logprob: float) -> str:
    """Shade of a token; what is no number gets the darkest."""
    bits = surprise_bits(logprob)
    return next((style for bound, style in SCALE if bits <= bound), SCALE[-1][1])


def print_shaded(tokens: Sequence[TokenScore], text: str | None) -> None:
    """Print tokens shaded by surprise, with a legend; `text` gives what lies between them."""
    console = Console(file=sys.stdout, force_terminal=True, no_color=False, highlight=False)
    console.print(Text.assemble(*_spans(tokens, text)), soft_wrap=True)
    console.print(_legend(), soft_wrap=True)


def _spans(tokens: Sequence[TokenScore], text: str | None) -> Iterator[tuple[str, str | Style]]:
    raw = None if text is None else text.encode()
    shown_to = 0
    for token in tokens:
        style = style_of(token.logprob)
        if raw is None or token.byte_begin is None or token.byte_end is None:
            yield _with_line_ends(token.text), style
            continue
        # Bytes of one character can belong to two tokens: the first of them shows it.
        begin = _character_end(raw, max(token.byte_begin, shown_to))
        end = _character_end(raw, max(token.byte_end, begin))
        yield raw[shown_to:begin].decode(errors="replace"), ""
        yield _with_line_ends(raw[begin:end].decode(errors="replace")), style
        shown_to = end


def _character_end(raw: bytes, index: int) -> int:
    while index < len(raw) and raw[index] & 0xC0 == 0x80:
        index += 1
    return index


def _with_line_ends(text: str) -> str:
    return text.replace("\n", "↵\n")


def _legend() -> Text:
    legend = Text("surprise in bits: ")
    lower = 0.0
    for upper, style in SCALE:
        label = f"over {lower:g}" if math.isinf(upper) else f"{lower:g} to {upper:g}"
        legend.append(f" {label} ", style)
        lower = upper
    return legend
