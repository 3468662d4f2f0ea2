"""Which right each method needs: the one table, and a method that is not in it needs ``admin``."""

from collections.abc import Mapping
from typing import Final, Literal

Right = Literal["score", "generate", "metrics", "admin"]
RIGHTS: Final[tuple[Right, ...]] = ("score", "generate", "metrics", "admin")

_SCORE: Final[frozenset[Right]] = frozenset({"score"})
_GENERATE: Final[frozenset[Right]] = frozenset({"generate"})
_EITHER = _SCORE | _GENERATE
_ANY: Final[frozenset[Right]] = frozenset(RIGHTS)
ADMIN: Final[frozenset[Right]] = frozenset({"admin"})
METRICS: Final[frozenset[Right]] = frozenset({"metrics", "admin"})
"""What reading metrics needs: either."""

METHODS: Final[Mapping[str, frozenset[Right]]] = {
    "ScoringService/Score": _SCORE,
    "ScoringService/ScoreStream": _SCORE,
    "GenerationService/Generate": _GENERATE,
    "SessionService/CreateSession": _EITHER,
    "SessionService/GetSession": _EITHER,
    "SessionService/ListSessions": _EITHER,
    "SessionService/ForkSession": _EITHER,
    "SessionService/DeleteSession": _EITHER,
    "SessionService/ExportSession": _EITHER,
    "SessionService/ImportSession": _EITHER,
    "TokenizerService/Tokenize": _EITHER,
    "TokenizerService/Detokenize": _EITHER,
    "ModelService/ListModels": _ANY,
    "ModelService/GetModel": _ANY,
    "AdminService/CheckInvariants": ADMIN,
    "AdminService/Profile": ADMIN,
}
"""Service and method, without the package: rights of which a caller needs one."""


def needed(path: str) -> frozenset[Right]:
    """Rights of which the caller of a method needs one.

    Args:
        path: as gRPC has it, ``/deqlm.v1.ScoringService/Score``.
    """
    return METHODS.get(path.rpartition(".")[2], ADMIN)
