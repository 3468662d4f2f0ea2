"""What a server has: models, sessions, tokenizers, health; dataclasses like those of results."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from client.options import SolverOptions
from client.results import Totals


class TokenizerKind(StrEnum):
    """How a model's tokenizer cuts text."""

    UNSPECIFIED = "unspecified"
    WORD = "word"
    SENTENCEPIECE = "sentencepiece"


class HealthStatus(StrEnum):
    """Answer of grpc.health.v1."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as the server sees it; times are UTC."""

    session_id: str
    """Its id."""
    model: str
    """Model it belongs to."""
    owner: str
    """Its owner."""
    position: int
    """Tokens it holds."""
    totals: Totals
    """Sums over them."""
    create_time: datetime
    """When it was made."""
    last_used_time: datetime
    """When a call last used it."""
    expire_time: datetime
    """When it will be dropped unless used."""
    memory_bytes: int
    """Memory it occupies."""
    busy: bool
    """Whether a call holds it now."""
    ttl_s: float
    """Time to live after the last use."""
    solver: SolverOptions
    """Solver options of calls that name none."""
    repairs: int = 0
    """How often its memory held no numbers and was solved again from its tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of a text."""

    token_id: int
    """The token."""
    text: str
    """Its text in the vocabulary."""
    raw: bytes
    """Its exact bytes."""
    byte_begin: int
    """Begin in the UTF-8 text."""
    byte_end: int
    """End, exclusive, in the UTF-8 text."""
    is_unknown: bool
    """Whether the text here is outside the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """The tokens of a text."""

    model: str
    """Model whose tokenizer was used."""
    tokens: tuple[Token, ...]
    """The tokens, in order."""
    unknown_tokens: int
    """How many are outside the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detokenized:
    """The text of token ids."""

    model: str
    """Model whose tokenizer was used."""
    text: str
    """The text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The numbers that define a model's shape; deqlm/v1/model.proto describes them."""

    d_model: int
    d_embed: int
    n_head: int
    d_head: int
    d_inner: int
    n_token: int
    cutoffs: tuple[int, ...]
    div_val: int
    local_size: int
    pre_lnorm: bool
    weight_norm: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds the server sets to requests; deqlm/v1/model.proto describes them."""

    max_text_bytes: int
    max_score_tokens: int
    max_tokens: int
    default_max_tokens: int
    max_candidates: int
    max_top_k: int
    max_stop_strings: int
    max_stop_string_bytes: int
    max_nfe: int
    max_ttl_s: float
    default_ttl_s: float
    overload_tol: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a server's look at itself has found: nothing, where all is well."""

    problems: tuple[str, ...]
    """What does not add up, one sentence each."""
    calls: int
    """Calls that were being answered, that of the look included."""
    leases: int
    """Sessions that a call worked on."""
    streams: int
    """Open streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile that a server has written to a folder of its own machine."""

    model: str
    """Model whose engine it is of."""
    folder: str
    """Where it is, on the server's machine."""
    files: tuple[str, ...]
    """Names of the files in it."""
    steps: int
    """Steps of the engine that it has; fewer than asked for where there was too little to do."""
    seconds: float
    """Seconds that it covers."""
    stack_samples: int
    """How often stacks were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A loaded model; deqlm/v1/model.proto describes the fields."""

    name: str
    is_default: bool
    architecture: Architecture
    n_parameters: int
    tokenizer: TokenizerKind
    vocab_size: int
    eos_id: int
    dtype: str
    device: str
    mem_len: int
    tgt_len: int
    context: int
    default_solver: SolverOptions
    solver: str
    limits: Limits
    fingerprint: str
    server_version: str
    server_revision: str
    torch_version: str
