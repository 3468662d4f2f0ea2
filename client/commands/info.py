"""`deqlm info`: the models a server has loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from client.commands._common import make_parser, print_json, run, table, to_json
from client.resources import ModelInfo
from client.sync import Client

_HEADER = "model parameters d_model vocabulary context dtype device solver tol max_nfe fingerprint"


def main(argv: list[str], prog: str) -> int:
    """Run the command; returns the exit code."""
    parser = make_parser(
        prog, "Tell what models a server has loaded; with --model, everything about one."
    )
    args = parser.parse_args(argv)

    def action(client: Client) -> None:
        models = (client.model(args.model),) if args.model else client.models()
        if args.json:
            print_json({"address": client.address, "models": models})
        elif args.model:
            print(_details(models[0]))
        else:
            print(_model_table(models))
            print(_server(models, client.address))

    return run(prog, args, action)


def _model_table(models: Sequence[ModelInfo]) -> str:
    rows = [
        [
            model.name + (" (default)" if model.is_default else ""),
            f"{model.n_parameters / 1e6:.2f}M",
            str(model.architecture.d_model),
            f"{model.tokenizer} {model.vocab_size}",
            f"{model.mem_len}+{model.tgt_len}",
            model.dtype,
            model.device,
            model.solver,
            "" if model.default_solver.tol is None else f"{model.default_solver.tol:g}",
            "" if model.default_solver.max_nfe is None else str(model.default_solver.max_nfe),
            model.fingerprint,
        ]
        for model in models
    ]
    return table(_HEADER.split(), rows, left=(0, 3, 5, 6, 7, 10))


def _server(models: Sequence[ModelInfo], address: str) -> str:
    if not models:
        return f"no models at {address}"
    of = models[0]
    revision = of.server_revision or "unknown"  # a server from before it was told
    torch = f", torch {of.torch_version}" if of.torch_version else ""
    return f"deqlm {of.server_version} ({revision}){torch} at {address}"


def _details(model: ModelInfo) -> str:
    flat = dict(_flatten("", to_json(model)))
    width = max(map(len, flat))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in flat.items())


def _flatten(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [
            pair
            for name, item in value.items()
            for pair in _flatten(f"{prefix}.{name}" if prefix else name, item)
        ]
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return [(prefix, shown)]
