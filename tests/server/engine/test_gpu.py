"""The engine on a GPU; run with ``pytest -m gpu``."""

import pytest
import torch

from server.engine.requests import Sampling
from tests.server.engine.helpers import drawn_ids, running_engine, small_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TEXT = tuple(range(1, 30))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gpu_and_cpu_agree(dtype: torch.dtype) -> None:
    model = small_model(seed=5).eval()
    results = []
    for device in ("cpu", "cuda"):
        with running_engine(model.to(dtype), dtype=dtype, device=device) as caller:
            event = caller.scored(caller.score(TEXT))
            results.append([token.logprob for token in event.tokens])
    assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_seeds_reproduce_on_the_gpu() -> None:
    with running_engine(small_model(seed=5).eval(), device="cuda") as caller:
        jobs = [caller.generate((1, 2), 12, sampling=Sampling(seed=3)) for _ in range(2)]
        first, second = (drawn_ids(caller.events(job)) for job in jobs)
    assert first == second
