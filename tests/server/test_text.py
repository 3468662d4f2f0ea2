"""Text of drawn tokens and its stop strings."""

from hypothesis import example, given
from hypothesis import strategies as st

from server.text import StopStringText
from tests.server.tiny import word_tokenizer

WORDS = word_tokenizer()


class Letters:
    """A decoder whose token is an index into some texts."""

    def __init__(self, texts: list[str], rest: str = "") -> None:
        self._texts = texts
        self._rest = rest

    def feed(self, token_id: int) -> str:
        return self._texts[token_id]

    def flush(self) -> str:
        return self._rest


def run(sink: StopStringText, n: int) -> tuple[str, str | None, list[str]]:
    """Feeds tokens until one ends it; the joined text, what ended it, and the single texts."""
    pieces = []
    for token_id in range(n):
        piece = sink.feed(token_id)
        pieces.append(piece.text)
        if piece.stop_string is not None:
            return "".join(pieces), piece.stop_string, pieces
    pieces.append(sink.finish())
    return "".join(pieces), None, pieces


def cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The same by definition: the first character that completes a stop string decides."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


texts = st.lists(st.text(alphabet="abc", max_size=4), max_size=12)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(texts=texts, stops=stops)
@example(texts=["abab", "abc"], stops=["ababc"])
@example(texts=["abc"], stops=["abc", "b"])
def test_the_text_ends_before_the_first_stop_string(texts, stops):
    text, stop, _ = run(StopStringText(Letters(texts), stops), len(texts))
    assert (text, stop) == cut("".join(texts), stops)


@given(ids=st.lists(st.integers(0, WORDS.n_token - 1), max_size=12), stops=stops)
def test_without_a_match_the_text_is_the_decoders(ids, stops):
    never = [stop + "\0" for stop in stops]
    sink = StopStringText(WORDS.stream_decoder(), never)
    pieces = [sink.feed(token_id).text for token_id in ids]
    assert "".join(pieces) + sink.finish() == WORDS.decode(ids)


def test_text_is_held_back_only_while_it_may_begin_a_stop_string():
    sink = StopStringText(Letters(["one st", "op", "ping"]), ["stop it"])
    assert [sink.feed(i).text for i in range(3)] == ["one ", "", "stopping"]


def test_a_stop_string_among_the_first_tokens_is_not_heeded():
    texts = ["x.", "y.", "z."]
    text, stop, pieces = run(StopStringText(Letters(texts), ["."], min_tokens=3), 3)
    assert (text, stop) == ("x.y.z", ".")
    assert pieces == ["x.", "y.", "z"]


def test_what_the_decoder_held_back_comes_at_the_end():
    assert run(StopStringText(Letters(["a"], rest="\ufffd"), ["ab"]), 1)[0] == "a\ufffd"
    assert run(StopStringText(Letters(["a"], rest="\ufffd"), ["\ufffd"]), 1)[0] == "a"
