"""A long text on a terminal is sent so that answers come often, and whole whatever comes."""

import dataclasses
import itertools
import threading

import pytest

from client.commands import _progress
from client.commands._progress import PORTION_CHARS, Paced
from client.sync import Client
from tests.server.live import LiveServer

PATIENCE_S = 60.0


@dataclasses.dataclass
class Answer:
    committed_bytes: int


def test_it_is_sent_as_it_is_answered():
    paced, got, more = Paced(), [], threading.Semaphore(0)

    def send():
        for portion in paced.pieces(["ä" * 3 * PORTION_CHARS, "x"]):
            got.append(portion)
            more.release()

    sending = threading.Thread(target=send)
    sending.start()
    for count in range(1, 5):
        assert more.acquire(timeout=PATIENCE_S)
        assert len(got) == count, "the next one waits for an answer"
        paced.answered(Answer(sum(len(one.encode()) for one in got)))
    sending.join(PATIENCE_S)
    assert "".join(got) == "ä" * 3 * PORTION_CHARS + "x"


def test_without_answers_all_of_it_goes(monkeypatch):
    monkeypatch.setattr(_progress, "_PATIENCE_S", 0.05)
    text = "x" * 40 * PORTION_CHARS
    assert "".join(Paced().pieces([text])) == text


def test_it_holds_nothing_back_once_it_is_over():
    paced, text = Paced(), "x" * 40 * PORTION_CHARS
    portions = paced.pieces([text])
    next(portions)
    paced.end()
    assert sum(map(len, portions)) == len(text) - PORTION_CHARS


@pytest.mark.parametrize("is_one_word", [False, True])
def test_a_real_server_answers_each_portion(tiny_models, monkeypatch, is_one_word):
    """Also where no portion has the end of a word, so that nothing is answered until the end."""
    monkeypatch.setattr(_progress, "_PATIENCE_S", 0.2 if is_one_word else PATIENCE_S)
    text = ("the" if is_one_word else "the ") * 5_000
    paced, committed = Paced(), [0]
    server = LiveServer(tiny_models)
    try:
        with Client(server.address) as client:
            for answer in client.score_stream(paced.pieces([text])):
                paced.answered(answer)
                committed.append(answer.committed_bytes)
    finally:
        server.close()
    assert answer.final
    assert answer.call.scored_tokens >= 1
    if not is_one_word:
        steps = [after - before for before, after in itertools.pairwise(committed)]
        assert max(steps) <= 3 * PORTION_CHARS, "what may be under way at once"
