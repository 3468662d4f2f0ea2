"""One call of f at a time: what is reported of a token that spends its budget."""

import pytest
import torch

from deq_model.model import BlockFunction
from server.engine.batch import Accepted, Batch
from server.engine.scheduler import Scheduler, Sequence
from server.engine.slab import Slab
from server.engine.types import Solve
from tests.server.engine.helpers import small_model


@pytest.mark.parametrize(("seed", "budget"), [(9, 4), (3, 4), (0, 5)])
def test_a_spent_token_reports_the_residual_at_its_state(seed: int, budget: int) -> None:
    """Also behind a token that was accepted at another state than the one last seen."""
    model = small_model(seed=seed).eval()
    with torch.inference_mode():
        for parameter in model.f.parameters():
            parameter.mul_(16.0 if budget == 4 else 8.0)
        weights = model.f.fold().detach()
        slab = Slab(model.config, slots=1, device=torch.device("cpu"), dtype=torch.float64)
        batch = Batch(model, weights, slab, max_batch_tokens=2)
        scheduler = Scheduler(max_batch_tokens=2, max_running=1, window=2)
        sequence = Sequence(slot=0, start=0, inputs=[1])
        scheduler.add(sequence)
        accepted: list[Accepted] = []
        while len(accepted) < 2:
            batch.enter(scheduler.enter())
            accepted += batch.step(scheduler, {sequence: Solve(tol=1e-13, max_nfe=budget)})
            if len(sequence.inputs) < 2:
                sequence.inputs.append(2)  # one call later, so it outlives the first by one
        f = BlockFunction(weights, model.empty_memory(1), model.inject(torch.tensor([[1, 2]])))
        z = torch.stack([token.z_star for token in accepted])
        f_z = f(z[None])[0]
        true = ((f_z - z).norm(dim=1) / f_z.norm(dim=1)).tolist()
    assert [token.solved.nfe for token in accepted] == [budget, budget]
    assert [token.solved.residual for token in accepted] == pytest.approx(true, rel=1e-4)
