"""One call of f at a time: what is reported of a token that spends its budget."""

import pytest
import torch

from deq_model.function import EquilibriumWeights
from deq_model.model import BlockFunction, DEQLanguageModel
from server.engine.batch import Accepted, Batch
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.solve import Solve
from tests.server.engine.helpers import small_model

PAIRS = ((1, 2), (3, 30), (39, 5), (12, 0))


@pytest.mark.parametrize(
    ("seed", "scale", "budget", "tol"),
    [(9, 16.0, 4, 1e-13), (3, 16.0, 4, 1e-13), (0, 8.0, 5, 1e-13), (22, 30.0, 5, 0.15)],
)
def test_the_residual_reported_is_that_of_the_state(
    seed: int, scale: float, budget: int, tol: float
) -> None:
    """Also behind a token that was accepted at another state than the one last seen."""
    model = small_model(seed=seed).eval()
    with torch.inference_mode():
        for parameter in model.f.parameters():
            parameter.mul_(scale)
        weights = model.f.fold().detach()
        for pair in PAIRS:
            accepted = solved_one_call_apart(model, weights, pair, Solve(tol=tol, max_nfe=budget))
            f = BlockFunction(weights, model.empty_memory(1), model.inject(torch.tensor([pair])))
            z = torch.stack([token.z_star for token in accepted])
            f_z = f(z[None])[0]
            true = ((f_z - z).norm(dim=1) / f_z.norm(dim=1)).tolist()
            for token, residual in zip(accepted, true, strict=True):
                if token.solved.status == "converged":  # the state went one step further
                    assert residual < token.solved.residual <= tol
                else:
                    assert token.solved.residual == pytest.approx(residual, rel=1e-4)
            assert all(token.solved.nfe <= budget for token in accepted)


def solved_one_call_apart(
    model: DEQLanguageModel, weights: EquilibriumWeights, pair: tuple[int, int], solve: Solve
) -> list[Accepted]:
    """The second token enters one call after the first, so it outlives it by one."""
    device = torch.device("cpu")
    slab = Slab(model.config, rows=1, slots=0, window=2, device=device, dtype=torch.float64)
    batch = Batch(model, weights, slab, max_rows=2, form="float64")
    scheduler = Scheduler(max_batch_tokens=2, max_running=1, window=2)
    sequence = Sequence(slot=0, start=0, inputs=[pair[0]])
    scheduler.add(sequence)
    accepted: list[Accepted] = []
    while len(accepted) < 2:
        batch.enter(scheduler.enter())
        accepted += batch.step(scheduler, {sequence: solve})
        if len(sequence.inputs) < 2:
            sequence.inputs.append(pair[1])
    return accepted
