"""All options of a training run."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from deq_model.solvers.options import SolverOptions
from training.errors import OptionsError
from training.options.data import DataOptions
from training.options.equilibrium import EquilibriumOptions
from training.options.model import ModelOptions
from training.options.optimiser import OptimiserOptions
from training.options.run import GuardOptions, RunOptions, ValidationOptions, check_budget


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """A training run.

    Attributes:
        data: what to train on.
        run: how the run goes.
        model: the architecture.
        optimiser: rule and schedule.
        equilibrium: gradient of the fixed point, regularisation, pretraining.
        forward: solver of the fixed point.
        backward: solver of the gradient.
        valid: measurements while training.
        guard: what is done about bad steps.
    """

    data: DataOptions
    run: RunOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    optimiser: OptimiserOptions = field(default_factory=OptimiserOptions)
    equilibrium: EquilibriumOptions = field(default_factory=EquilibriumOptions)
    forward: SolverOptions = field(default_factory=SolverOptions)
    backward: SolverOptions = field(default_factory=SolverOptions)
    valid: ValidationOptions = field(default_factory=ValidationOptions)
    guard: GuardOptions = field(default_factory=GuardOptions)

    def __post_init__(self) -> None:
        check_budget(self.equilibrium.n_states, self.forward)
        if self.optimiser.batch_chunks > self.data.batch_size:
            raise OptionsError(
                "optimiser.batch_chunks must be at most data.batch_size = "
                f"{self.data.batch_size}, got {self.optimiser.batch_chunks}"
            )

    @classmethod
    def groups(cls) -> dict[str, type]:
        """The option classes by the prefix of their flags."""
        return {field.name: cast(type, field.type) for field in dataclasses.fields(cls)}

    def to_dict(self) -> dict[str, Any]:
        """Nested JSON-ready values."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
