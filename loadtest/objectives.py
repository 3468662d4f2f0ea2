"""What a server is held to."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What a request must keep to be good, and what a run must keep to pass.

    Attributes:
        score_s: seconds from when a scoring request was due to its answer; none for any
        generate_s: the same for a generation as a whole; none for any
        first_s: seconds to a generation's first token; none for any
        token_s: mean seconds between a generation's tokens; none for any
        share: least share of the requests that must be good; none does not judge
        errors: largest share of the requests that may fail; none does not judge
        good_per_s: least good requests per second in the best stage; none does not judge
        tokens_per_s: least tokens scored and generated per second in the best stage; none does not
            judge
        perplexity: largest perplexity of what is scored; none does not judge
        lag_s: largest p99 of how late the client itself sends; none does not judge
        up_to: largest rate, or number of clients, at which share, errors and lag_s are judged;
            none judges all stages
    """

    score_s: float | None = 1.0
    generate_s: float | None = None
    first_s: float | None = 1.0
    token_s: float | None = 0.2
    share: float | None = None
    errors: float | None = None
    good_per_s: float | None = None
    tokens_per_s: float | None = None
    perplexity: float | None = None
    lag_s: float | None = None
    up_to: float | None = None

    def __post_init__(self) -> None:
        """Check the bounds."""
        for item in fields(self):
            value = getattr(self, item.name)
            most = 1.0 if item.name in ("share", "errors") else float("inf")
            if value is not None and not 0 <= value <= most:
                raise ValueError(f"{item.name} must be in [0, {most:g}], got {value:g}")
