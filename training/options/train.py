"""All options of a training run."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

from cli.values import plain
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
        self._check_cutoffs()
        self._check_lengths()

    def _check_cutoffs(self) -> None:
        """Raises where the vocabulary to be made is known to end before the last cluster."""
        data, cutoffs = self.data, self.model.cutoffs
        if data.train is None or data.tokenizer is not None or not data.vocab_size or not cutoffs:
            return
        if cutoffs[-1] >= data.vocab_size:
            raise OptionsError(
                f"model.cutoffs must be below data.vocab_size = {data.vocab_size}, "
                f"got {cutoffs[-1]}"
            )

    def _check_lengths(self) -> None:
        """Raises where varying lengths would leave no block about as long as ``tgt_len``."""
        if self.data.tgt_len_std > self.model.tgt_len:
            raise OptionsError(
                f"data.tgt_len_std must be at most model.tgt_len = {self.model.tgt_len}, "
                f"got {self.data.tgt_len_std}"
            )
        if self.data.tgt_len_std and self.data.tgt_len_min > self.model.tgt_len:
            raise OptionsError(
                f"data.tgt_len_min must be at most model.tgt_len = {self.model.tgt_len}, "
                f"got {self.data.tgt_len_min}"
            )

    @classmethod
    def groups(cls) -> dict[str, type]:
        """The option classes by the prefix of their flags."""
        return {field.name: cast(type, field.type) for field in dataclasses.fields(cls)}

    def to_dict(self) -> dict[str, Any]:
        """Nested JSON-ready values."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values
