"""Files: checkpoints, tokenizers, prepared data, states of a run, options, who may call."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
import trustme

from cli.options import options_of
from cli.sources import from_file
from deq_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load_checkpoint
from deq_model.config import ModelConfig
from deq_model.errors import CheckpointError, ConfigError
from deq_model.memory import Memory
from deq_model.tokenizers.errors import TokenizerError
from deq_model.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
from deq_model.tokenizers.train import train_sentencepiece
from deq_model.tokenizers.word import WordTokenizer
from deq_model.warm_start import WARM_START_FILE, WarmStart, load_warm_start, save_warm_start
from server.config import ServerConfig, ServerConfigError
from server.options import parse_config
from server.security.auth_file import AuthFileError, read_auth_file
from server.security.options import SecurityOptions
from server.security.tls import TlsError, read_certificates
from tests.fuzz.target import Target, as_file, workspace
from tests.server.tiny import WORDS, save_words
from training.convert import convert_to_pth, read_pth
from training.errors import DataError, ResumeError
from training.prepare.manifest import MANIFEST_FILE, Manifest, Source, SplitInfo
from training.prepare.opened import ids_path, open_ids
from training.state import Point, Progress, RunState, load_state, save_state


@cache
def _checkpoint() -> Path:
    """A whole checkpoint, of which one file at a time is replaced."""
    return save_words(workspace() / "checkpoint")


def _file(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_checkpoint() / name).read_bytes()]


def _config(path: Path) -> None:
    config = ModelConfig.load(path)
    assert ModelConfig.from_dict(config.to_dict()) == config


def _weights(data: bytes) -> None:
    folder = workspace() / "damaged"
    if not folder.exists():
        shutil.copytree(_checkpoint(), folder)
    (folder / WEIGHTS_FILE).write_bytes(data)
    load_checkpoint(folder, device="cpu")


def _warm_start_seeds() -> list[bytes]:
    folder = workspace() / "warm"
    folder.mkdir(exist_ok=True)
    found = []
    for out in (None, torch.ones(4, 6)):
        width = 4 if out is None else 6
        fitted = WarmStart(
            from_injection=torch.ones(width, 12),
            from_previous=torch.ones(width, 4),
            bias=torch.ones(width),
            out=out,
            out_bias=None if out is None else torch.ones(4),
        )
        save_warm_start(folder, fitted, fingerprint="test", figures={"a": 1})
        found.append((folder / WARM_START_FILE).read_bytes())
    return found


def _warm_start(path: Path) -> object:
    return load_warm_start(path.parent, d_model=4, fingerprint="test")


def _pth_seeds() -> list[bytes]:
    path, old = workspace() / "seed.pth", workspace() / "old.pth"
    convert_to_pth(_checkpoint(), path)
    state = {name: torch.ones(2, 2) for name in "ab"}
    torch.save(state, old, _use_new_zipfile_serialization=False)
    small = workspace() / "small.pth"
    torch.save(state, small)
    return [path.read_bytes(), old.read_bytes(), small.read_bytes()]


def _state_seeds() -> list[bytes]:
    state = RunState(
        point=Point(
            progress=Progress(step=3, position=3, epoch=1, seconds=2.5),
            memory=Memory(torch.ones(1, 2, 4), torch.ones(1, 2, 12)),
            schedule={"best": 1.0},
            guard={"mean": 2.0},
            generator=torch.Generator().get_state()[:8],
            reports=({"loss": 1.5},),
            best_nll=float("inf"),
        ),
        model={"weight": torch.ones(2, 5)},
        optimiser={"state": {}, "param_groups": [{"lr": 0.1}]},
        options={"seed": 1},
        vocabulary="0123456789abcdef",
    )
    return [save_state(workspace() / "states", state, keep=1).read_bytes()]


def _vocabulary_seeds() -> list[bytes]:
    words = ("<eos>", "<unk>", *WORDS)
    return ["\n".join(words).encode() + b"\n", "<eos>\n\u00e4\n\u4e2d".encode()]


def _vocabulary(path: Path) -> None:
    tokenizer = WordTokenizer.from_file(path)
    ids = tokenizer.encode("the of\n the").ids if tokenizer.unk_id is not None else (0,)
    tokenizer.decode(ids)
    for token_id in range(tokenizer.n_token):
        assert tokenizer.token_bytes(token_id)


def _pieces_seeds() -> list[bytes]:
    text = workspace() / "text.txt"
    text.write_text("a night and a day, it was the best of times\n" * 40, encoding="utf-8")
    model = workspace() / "trained.model"
    train_sentencepiece(text, model, vocab_size=278)
    return [model.read_bytes()]


def _pieces(path: Path) -> None:
    tokenizer = SentencePieceTokenizer.from_file(path)
    for text in ("a night\n", "\u4e2d x"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


MANIFEST = Manifest(
    tokenizer="0123456789abcdef",
    n_token=22,
    settings={"kind": "word"},
    splits={
        "train": SplitInfo(
            source=Source(name="a.txt", size=9, mtime_ns=5, sha256="00"), tokens=5, unknown=1
        )
    },
)


def _manifest_seeds() -> list[bytes]:
    MANIFEST.save(workspace())
    return [(workspace() / MANIFEST_FILE).read_bytes()]


def _ids_seeds() -> list[bytes]:
    found = io.BytesIO()
    np.save(found, np.array([1, 2, 3, 4, 21], dtype=np.uint16))
    return [found.getvalue()]


def _ids(path: Path) -> None:
    ids = open_ids(path.parent, "train", MANIFEST)
    assert len(ids) == 5
    assert int(ids.max()) < 22


SERVE = {option.key: option for option in options_of("", ServerConfig)}
YAML = b"""# a server
model: [a=models/x, b=y]
port: 50051
grace_s: 2.5
window: 8
tol: 1.0e-3
threads: 0
"""


def _yaml(path: Path) -> None:
    ServerConfig(**{"model": ("a=b",), **from_file(path, "a file", SERVE)})


class Usage(Exception):
    """The process would end with code 2."""


def _flags(data: bytes) -> None:
    """Arguments, as the system gives them: between zero bytes, undecodable ones as surrogates."""
    argv = data.decode("utf-8", errors="surrogateescape").split("\0")
    told = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            parse_config([part for part in argv if not part.startswith("--config")], "deqlm serve")
    except SystemExit as end:
        assert end.code in (0, 2), end.code
        told.flush()
        raise Usage(told.buffer.getvalue().decode("utf-8") or "nothing") from None  # type: ignore[attr-defined]


AUTH = b"""principals:
  ann:
    rights: [score, generate]
    tokens:
      - {sha256: "%s", expires: 2027-06-01, note: laptop}
    identities: ["dns:ann.example.org", "cn:Ann"]
    quotas: {requests_per_minute: 600, max_sessions: 20}
  bob: {rights: [admin], identities: ["uri:x"]}
""" % (b"0a" * 32)

FLAGS = (
    b"--port\x0050051\0--model=a=b\0--grace-s\x002.5",
    b"--window=8\0--dtype\0bfloat16\0--host\x00127.0.0.1",
)


@cache
def _certificate() -> tuple[Path, Path]:
    """A certificate and its key."""
    issued = trustme.CA().issue_cert("localhost")
    chain, key = workspace() / "whole.crt", workspace() / "whole.key"
    issued.cert_chain_pems[0].write_to_path(chain)
    issued.private_key_pem.write_to_path(key)
    return chain, key


def _tls_certificate(path: Path) -> None:
    read_certificates(SecurityOptions(tls_cert=path, tls_key=_certificate()[1]))


def _tls_key(path: Path) -> None:
    read_certificates(SecurityOptions(tls_cert=_certificate()[0], tls_key=path))


_JSON = [json.dumps({"n_token": 9}).encode()]

TARGETS = (
    Target(
        "checkpoint config.json",
        lambda: _file(CONFIG_FILE)() + _JSON,
        as_file("config/config.json", _config),
        (ConfigError,),
    ),
    Target(
        "checkpoint safetensors",
        _file(WEIGHTS_FILE),
        _weights,
        (CheckpointError,),
        5,
    ),
    Target(
        "checkpoint warm start",
        _warm_start_seeds,
        as_file(f"warm/{WARM_START_FILE}", _warm_start),
        (CheckpointError,),
        5,
    ),
    Target("checkpoint .pth", _pth_seeds, as_file("fuzzed.pth", read_pth), (CheckpointError,), 5),
    Target(
        "state of a run",
        _state_seeds,
        as_file("fuzzed.pt", lambda path: load_state(path, device=torch.device("cpu"))),
        (ResumeError,),
        5,
    ),
    Target(
        "vocabulary", _vocabulary_seeds, as_file("words/vocab.txt", _vocabulary), (TokenizerError,)
    ),
    Target(
        "sentencepiece model",
        _pieces_seeds,
        as_file("pieces/tokenizer.model", _pieces),
        (TokenizerError,),
        5,
    ),
    Target(
        "prepared manifest",
        _manifest_seeds,
        as_file(f"prepared/{MANIFEST_FILE}", lambda path: Manifest.load(path.parent)),
        (DataError,),
    ),
    Target(
        "prepared tokens",
        _ids_seeds,
        as_file(str(ids_path(Path("prepared"), "train")), _ids),
        (DataError,),
    ),
    Target(
        "YAML options",
        lambda: [YAML],
        as_file("options.yaml", _yaml),
        (ValueError,),
        3,
    ),
    Target("flags", lambda: list(FLAGS), _flags, (Usage, ServerConfigError), 1),
    Target(
        "TLS certificate",
        lambda: [_certificate()[0].read_bytes()],
        as_file("fuzzed.crt", _tls_certificate),
        (TlsError,),
        5,
    ),
    Target(
        "TLS key",
        lambda: [_certificate()[1].read_bytes()],
        as_file("fuzzed.key", _tls_key),
        (TlsError,),
        5,
    ),
    Target("auth file", lambda: [AUTH], as_file("auth.yaml", read_auth_file), (AuthFileError,), 3),
)
