"""When a job's tokens were solved, in few pieces."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.solve import SolveStats
from server.engine.timeline import Piece, Pieces, Timeline

TOKEN = SolveStats(token_evaluations=5, solved_tokens=1, residual_sum=1e-3, residual_max=1e-3)


def solved(timeline, calls):
    """A token accepted after each of these numbers of calls of f, a second for each call."""
    total = 0
    for more in calls:
        total += more
        timeline.accept(float(total), TOKEN, calls=total)
    return total


@given(st.lists(st.integers(0, 3), max_size=2000))
def test_pieces_are_few_and_have_everything(calls):
    timeline = Timeline()
    timeline.start(0.0)
    total = solved(timeline, calls)
    pieces = list(timeline.prefill)
    assert len(pieces) <= 32
    assert sum(piece.stats.solved_tokens for piece in pieces) == len(calls)
    assert sum(piece.stats.nfe_total for piece in pieces) == total
    assert sum(piece.stats.token_evaluations for piece in pieces) == 5 * len(calls)
    assert [p.begun for p in pieces[1:]] == [p.ended for p in pieces[:-1]], "without gaps"
    if pieces:
        assert (pieces[0].begun, pieces[-1].ended) == (0.0, float(total))


def test_few_calls_are_a_piece_each():
    timeline = Timeline()
    timeline.start(0.0)
    solved(timeline, [3, 0, 0, 2, 1])
    assert [piece.stats.nfe_total for piece in timeline.prefill] == [3, 2, 1]
    assert [piece.stats.solved_tokens for piece in timeline.prefill] == [3, 1, 1]


def test_pieces_stay_of_about_one_size():
    pieces = Pieces(8)
    for i in range(1000):
        pieces.add(Piece(i, i + 1, SolveStats(nfe_total=1, solved_tokens=1)))
    sizes = [piece.stats.nfe_total for piece in pieces]
    assert 4 <= len(sizes) <= 8
    assert set(sizes[:-1]) == {128}


def test_what_is_drawn_is_apart_from_what_was_given():
    timeline = Timeline()
    timeline.start(1.0)
    timeline.accept(2.0, TOKEN, calls=4)
    timeline.solve_prompt(3.0)
    timeline.accept(5.0, TOKEN, calls=6)
    (given_piece,), (drawn,) = timeline.prefill, timeline.decode
    assert (given_piece.begun, given_piece.ended, given_piece.stats.nfe_total) == (1.0, 2.0, 4)
    assert (drawn.begun, drawn.ended, drawn.stats.nfe_total) == (3.0, 5.0, 2)
