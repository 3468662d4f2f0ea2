"""Which rows of a call are computed exactly, where the feed-forward is one of 8-bit differences.

A difference is off by a share of how far a row has moved from its anchor
(``deq_model/int8_feed_forward.py``). What it is off by may be a third of the tolerance where a
token is accepted, and before that a sixth of the residual.
"""

SHARE = 1 / 3
AHEAD = 0.5
"""Of the residual: a row that is computed exactly goes on to half of it in the next call or two."""


def wants_exact(*, error: float, residual: float, tol: float) -> bool:
    """Whether a row should be computed exactly in its next call.

    Args:
        error: relative, of f by the difference, as it was in the last call.
        residual: relative, in the last call.
        tol: relative residual at which the token is accepted.
    """
    return error > SHARE * max(tol, AHEAD * residual)


def is_exact_enough(*, error: float, tol: float) -> bool:
    """Whether a token may be accepted for a residual that a call with such an error measured."""
    return error <= SHARE * tol
