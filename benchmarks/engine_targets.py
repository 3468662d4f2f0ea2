"""What was aimed at, and what each setting of the engine comes to: one table of everything."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

BASELINE = "baseline"
Sections = Mapping[str, Any]
Cell = Callable[[str], str]
"""What a setting comes to; raises KeyError where that was not measured."""


def rows(sections: Sections, settings: list[str]) -> list[tuple[str, ...]]:
    """What, the target, and a cell for each setting; only what was measured."""
    found = []
    for what, target, cell in _targets(sections):
        cells = [_or_nothing(cell, setting) for setting in settings]
        if any(cells):
            found.append((what, target, *cells))
    return found


def _or_nothing(cell: Cell, setting: str) -> str:
    try:
        return cell(setting)
    except KeyError:
        return ""


def _targets(sections: Sections) -> Iterator[tuple[str, str, Cell]]:
    single = "generate-1"
    for name in sections:
        if name.startswith("generate-"):
            what = f"98M, {name.replace('-', ' ')} stream(s), over the baseline's single stream"
            target = "≥ 20" if name == single else "≥ 150"
            yield what, target, _ratio(sections, name, single)
        if name.startswith("score-"):
            _, mem_len, streams = name.split("-")
            what = f"98M, scoring, memory {mem_len}, {streams} stream(s), over the baseline"
            yield what, "≥ 8", _ratio(sections, name, name)
    yield from _trained(sections.get("trained", {}))
    yield from _shared(sections)


def _ratio(sections: Sections, name: str, base: str) -> Cell:
    def cell(setting: str) -> str:
        ours = sections[name]["competitors"][setting]["tokens_per_s"]
        theirs = sections[base]["competitors"][BASELINE]["tokens_per_s"]
        return f"{ours['median'] / theirs['median']:.1f} ({ours['median']:.1f}/s)"

    return cell


def _trained(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Cell]]:
    for model, both in found.items():
        if model == "run":
            continue
        target = "≤ 4" if "regularised" in model else "≤ 8"

        def calls(setting: str, both: Any = both) -> str:
            one = both["generation"][setting]
            return f"{one['calls_per_token']:.1f} (change {one['change_mean']:.0e})"

        def evaluations(setting: str, both: Any = both) -> str:
            one, base = both["scoring"][setting], both["scoring"][BASELINE]
            share = one["evaluations_per_token"] / base["evaluations_per_token"]
            return f"{share:.0%} (change {one['change_mean']:.0e}, {base['change_mean']:.0e})"

        def perplexity(setting: str, both: Any = both) -> str:
            return f"{both['scoring'][setting]['perplexity_change']:+.3%}"

        yield f"{model}: calls of f per generated token", target, calls
        yield f"{model}: evaluations per scored token over the baseline's", "≤ 50%", evaluations
        yield f"{model}: change of perplexity", "≤ 0.1%", perplexity


def _shared(sections: Sections) -> Iterator[tuple[str, str, Cell]]:
    def call(setting: str) -> str:
        one = sections["call"]["engine"][setting]
        return f"{one['over_reading']:.2f} (best {one['over_reading_best']:.2f})"

    def wait(setting: str) -> str:
        return f"{sections['wait'][setting]['calls']['max']:.0f} at most"

    def gap(setting: str) -> str:
        one = sections["gap"][setting]
        return f"{one['beside']['median'] / one['alone']['median']:.2f}"

    def growth(setting: str) -> str:
        medians = [one["median"] for one in sections["growth"][setting].values()]
        return f"{max(medians) / medians[0] - 1:+.1%}"

    def grpc(setting: str) -> str:
        rates = sections["grpc"][setting]["tokens_per_s"]
        return f"{rates['gRPC']['median'] / rates['in process']['median']:.1%}"

    yield "98M: one call of f on one token over reading its weights", "≤ 2", call
    yield "wait before a request's first call of f, in calls", "≤ 1", wait
    yield "gap of a stream's tokens beside a long request, over alone", "≤ 2", gap
    yield "time per token with 1,000 idle sessions over 1", "≤ +5%", growth
    yield "98M, 16 streams through gRPC over in process", "≥ 95%", grpc
