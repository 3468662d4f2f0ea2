"""How exactly tokens are solved, and how it went: plain data, no torch."""

from dataclasses import dataclass
from typing import Literal

Policy = Literal["best_effort", "error"]
Status = Literal["converged", "loosened", "max_nfe", "nonfinite"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solve:
    """How exactly each token is solved.

    Attributes:
        tol: relative residual at which a token is accepted.
        max_nfe: most calls of f on one token.
        policy: what happens to a token that spent its budget: accept its best state and mark it,
            or fail the request.
        keep_tol: never loosened, however much work is waiting.
    """

    tol: float = 1e-3
    max_nfe: int = 100
    policy: Policy = "best_effort"
    keep_tol: bool = False


@dataclass(frozen=True, slots=True)
class Solved:
    """How one token was solved: calls of f on it, residual at acceptance, and status."""

    nfe: int
    residual: float
    status: Status


@dataclass(frozen=True, slots=True)
class SolveStats:
    """What solving some tokens took.

    Attributes:
        nfe_total: calls of f with at least one row of the request.
        token_evaluations: rows of f computed for its accepted tokens.
        solved_tokens: tokens accepted, the priming <eos> included.
        residual_sum: of the residuals at acceptance that are finite.
        residual_max: largest residual at acceptance.
        max_nfe_tokens: tokens accepted at their budget, or when the job's was spent.
        nonfinite_tokens: tokens for which f was never finite.
        loosened_tokens: tokens accepted above their tolerance as much work was waiting.
        applied_tol: loosest tolerance applied; 0 before the first token.
        shared_tokens: tokens taken over as others had solved them; not among the solved ones.
        repaired_tokens: tokens of the session to be solved again, as its memory held no numbers.
    """

    nfe_total: int = 0
    token_evaluations: int = 0
    solved_tokens: int = 0
    residual_sum: float = 0.0
    residual_max: float = 0.0
    max_nfe_tokens: int = 0
    nonfinite_tokens: int = 0
    loosened_tokens: int = 0
    applied_tol: float = 0.0
    shared_tokens: int = 0
    repaired_tokens: int = 0

    def __add__(self, other: "SolveStats") -> "SolveStats":
        return SolveStats(
            self.nfe_total + other.nfe_total,
            self.token_evaluations + other.token_evaluations,
            self.solved_tokens + other.solved_tokens,
            self.residual_sum + other.residual_sum,
            max(self.residual_max, other.residual_max),
            self.max_nfe_tokens + other.max_nfe_tokens,
            self.nonfinite_tokens + other.nonfinite_tokens,
            self.loosened_tokens + other.loosened_tokens,
            max(self.applied_tol, other.applied_tol),
            self.shared_tokens + other.shared_tokens,
            self.repaired_tokens + other.repaired_tokens,
        )

    @property
    def unconverged_tokens(self) -> int:
        """Tokens accepted above the tolerance."""
        return self.max_nfe_tokens + self.nonfinite_tokens + self.loosened_tokens

    @property
    def status(self) -> Status:
        """The worst of the tokens' statuses."""
        if self.nonfinite_tokens:
            return "nonfinite"
        if self.max_nfe_tokens:
            return "max_nfe"
        return "loosened" if self.loosened_tokens else "converged"
