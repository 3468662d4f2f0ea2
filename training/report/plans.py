"""The charts over steps: which fields of the log, in which axes, with which bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from training.report.reading import RunLog, finite, series

Source = Callable[[RunLog], tuple[list[float], list[float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve of a chart.

    Attributes:
        label: in the legend.
        read: gives steps and values of a run, empty where it has none.
        markers: a dot at each point.
    """

    label: str
    read: Source
    markers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A chart over the steps of a run.

    Attributes:
        title: heading above it.
        note: what is shown, and how to read it.
        y_label: of the axis, with the unit.
        lines: its curves.
        y_scale: linear or log.
        bounds: options, ``group.name``, that bound the values, and short names for them.
        constant_bounds: bounds that hold for every run, likewise.
    """

    title: str
    note: str
    y_label: str
    lines: tuple[Line, ...]
    y_scale: Literal["linear", "log"] = "linear"
    bounds: tuple[tuple[str, str], ...] = ()
    constant_bounds: tuple[tuple[float, str], ...] = ()


def _step(label: str, *names: str) -> Line:
    """Of a field of ``step`` events; several names are those it has had."""
    return Line(label=label, read=lambda run: series(run.steps, *names))


def _valid(label: str, *names: str) -> Line:
    return Line(label=label, read=lambda run: series(run.valid, *names), markers=True)


def _weight_at(run: RunLog, step: float) -> float:
    """Of the Jacobian's term, from the options."""
    every = run.number("equilibrium.jac_loss_every") or 0
    raised = step // every if every else 0
    weight = run.number("equilibrium.jac_loss_weight") or 0
    return weight + raised * (run.number("equilibrium.jac_loss_increment") or 0)


def _weights(run: RunLog) -> tuple[list[float], list[float]]:
    x, _ = series(run.steps, "jac_loss")
    return x, [_weight_at(run, step) for step in x]


def _weighted(run: RunLog) -> tuple[list[float], list[float]]:
    x, y = series(run.steps, "jac_loss")
    return x, [_weight_at(run, step) * term for step, term in zip(x, y, strict=True)]


def _unconverged(run: RunLog) -> tuple[list[float], list[float]]:
    """Share of the validation's tokens: the log has their number."""
    shares = []
    for record in run.valid:
        number, of = finite(record.get("unconverged")), finite(record.get("scored_tokens"))
        if number is not None and of:
            shares.append({"step": record["step"], "share": number / of})
    return series(shares, "share")


QUALITY = (
    Plan(
        title="Loss",
        note="Mean negative log-likelihood of the training text since the line of the log before, "
        "and of the validation text.",
        y_label="nats per token",
        lines=(_step("training", "loss"), _valid("validation", "mean_nll")),
    ),
    Plan(
        title="Validation perplexity",
        note="Per token of the model's vocabulary; the axis is logarithmic.",
        y_label="perplexity",
        lines=(_valid("validation", "perplexity"),),
        y_scale="log",
    ),
)
SOLVING = (
    Plan(
        title="Calls of f",
        note="Mean per block: of f in the forward solve, of its transposed Jacobian in the "
        "backward solve, of f on the validation text. Fine lines mark the budgets.",
        y_label="calls",
        lines=(
            _step("forward", "nfe_forward"),
            _step("backward", "nfe_backward"),
            _valid("validation", "nfe"),
        ),
        bounds=(("forward.max_nfe", "max fwd"), ("backward.max_nfe", "max bwd")),
    ),
    Plan(
        title="Residual at the end of a solve",
        note="Mean over the tokens. Fine lines mark the tolerances.",
        y_label="residual",
        lines=(_step("forward", "residual"), _step("backward", "residual_backward")),
        y_scale="log",
        bounds=(("forward.tol", "tol fwd"), ("backward.tol", "tol bwd")),
    ),
)
STABILITY = (
    Plan(
        title="Tokens above the tolerance",
        note="Share of the tokens whose residual was still above the tolerance when the solve "
        "ended, the calls it may make being used up: 0 means that all came to it. Forward and "
        "backward are of the training text.",
        y_label="share of the tokens",
        lines=(
            _step("forward", "unconverged_forward"),
            _step("backward", "unconverged_backward"),
            Line(label="validation", read=_unconverged, markers=True),
        ),
    ),
    Plan(
        title="Spectral radius",
        note="Of the Jacobian of f at the fixed point. Below 1, plain iteration converges.",
        y_label="spectral radius",
        lines=(_step("spectral radius", "spectral_radius"),),
        constant_bounds=((1.0, "1"),),
    ),
    Plan(
        title="Jacobian term",
        note="The estimate of the Jacobian's squared Frobenius norm, its weight, and the product "
        "of both, which a share of the steps adds to the loss.",
        y_label="term, weight",
        lines=(
            _step("term", "jac_loss"),
            Line(label="weight", read=_weights),
            Line(label="weight × term", read=_weighted),
        ),
        y_scale="log",
    ),
)
OPTIMISATION = (
    Plan(
        title="Learning rate",
        note="Of the last step before each line of the log.",
        y_label="learning rate",
        lines=(_step("learning rate", "lr"),),
    ),
    Plan(
        title="Norm of the gradient",
        note="Before clipping. A fine line marks the bound that longer ones are scaled down to.",
        y_label="norm",
        lines=(_step("norm", "grad_norm"),),
        y_scale="log",
        bounds=(("optimiser.clip", "clip"),),
    ),
    Plan(
        title="Speed",
        note="Tokens trained on per second of the run's time.",
        y_label="tokens per second",
        lines=(_step("speed", "tokens_per_s"),),
    ),
)
