"""Whether a run has passed: objectives, counts of both sides, and that it came to its end."""

import math
from collections.abc import Iterator, Sequence

from loadtest.figures import Figures
from loadtest.objectives import Objectives
from loadtest.results import Result


def problems(result: Result, figures: Sequence[Figures], objectives: Objectives) -> list[str]:
    """What is wrong, one sentence each; nothing where the run has passed."""
    found = [f"the run did not come to its end: {result.ended_early}"] if result.ended_early else []
    return [*found, *disagreements(result), *missed(figures, objectives)]


def disagreements(result: Result) -> list[str]:
    """Counts that the server has otherwise than the client; others that use it show here, too."""
    found = []
    for one in result.stages:
        for count in one.counts or ():
            if not count["agrees"]:
                least, most = count["least"], count["most"]
                mine = f"{least:g}" if least == most else f"{least:g} to {most or math.inf:g}"
                found.append(
                    f"{one.stage.label}: {count['name']}: the server counted {count['server']:g}, "
                    f"the client {mine}"
                )
    return found


def missed(figures: Sequence[Figures], objectives: Objectives) -> list[str]:
    """Objectives that are not kept."""
    swept = [one for one in figures if not one.results[0].stage.searches]
    judged = [one for one in swept if objectives.up_to is None or _load(one) <= objectives.up_to]
    if swept and not judged and _judges_stages(objectives):
        return [f"objective.up_to: no stage has a load of at most {objectives.up_to:g}"]
    return [*_of_stages(judged, objectives), *_of_best(swept, objectives)]


def _judges_stages(objectives: Objectives) -> bool:
    judged = (objectives.share, objectives.errors, objectives.lag_s)
    return any(bound is not None for bound in judged)


def _load(one: Figures) -> float:
    return one.results[0].stage.load


def _of_stages(judged: Sequence[Figures], objectives: Objectives) -> Iterator[str]:
    for one in judged:
        share, failed = one.mean("good_share"), one.mean("failed_share")
        lag_s = one.timings.lag.at(99.0)
        if objectives.share is not None and share < objectives.share:
            yield (
                f"{one.label}: {share:.2%} of the requests were good, objective.share is "
                f"{objectives.share:.2%}"
            )
        if objectives.errors is not None and failed > objectives.errors:
            yield (
                f"{one.label}: {failed:.2%} of the requests failed, objective.errors is "
                f"{objectives.errors:.2%}"
            )
        if objectives.lag_s is not None and lag_s > objectives.lag_s:
            yield (
                f"{one.label}: the client sent up to {lag_s:.3g} s late (p99), objective.lag_s is "
                f"{objectives.lag_s:g}"
            )


def _of_best(swept: Sequence[Figures], objectives: Objectives) -> Iterator[str]:
    for name, what in (("good_per_s", "good requests"), ("tokens_per_s", "tokens")):
        bound = getattr(objectives, name)
        best = max((one.mean(name) for one in swept), default=0.0)
        if bound is not None and best < bound:
            yield f"at most {best:.4g} {what} per second, objective.{name} is {bound:g}"
    if objectives.perplexity is not None:
        for one in swept:
            worst = max(one.values("perplexity"))
            if not worst <= objectives.perplexity:
                yield (
                    f"{one.label}: the perplexity is {worst:.4g}, objective.perplexity is "
                    f"{objectives.perplexity:g}"
                )
