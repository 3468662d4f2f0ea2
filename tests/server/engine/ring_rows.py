"""The attention kernel against ``Packing``. As a program: in Triton's interpreter, on a CPU.

Run it with ``TRITON_INTERPRET=1`` there.
"""

from collections import deque

import torch

from deq_model.inference import InferenceFunction
from server.engine.layout import Layout
from server.engine.packing import Packing
from server.engine.ring_attention import attend
from server.engine.scheduler import Sequence
from server.engine.slab import Slab
from tests.server.engine.helpers import small_model

LENGTHS = (0, 1, 5, 11, 77, 200, 431)


def agree(device: torch.device) -> None:
    """Rows at many lengths, with rings that are empty, part full, and wrapped."""
    for local_size in (0, 40):
        model = small_model(tgt_len=60, mem_len=50, local_size=local_size).to(device)
        config = model.config
        rows = len(LENGTHS)
        slab = Slab(config, rows=rows, slots=0, window=5, device=device, dtype=torch.float64)
        source = torch.Generator().manual_seed(local_size)
        f = InferenceFunction(model.f.fold().detach(), "float64", distances=config.klen)

        def drawn(*shape: int, source: torch.Generator = source) -> torch.Tensor:
            return torch.randn(shape, generator=source, dtype=torch.float64).to(device)

        slab.key.copy_(drawn(*slab.key.shape))
        slab.value.copy_(drawn(*slab.value.shape))
        sequences = [
            Sequence(slot=slot, start=length, inputs=[0], rows=deque([slot]), granted=1)
            for slot, length in enumerate(LENGTHS)
        ]
        packing = Packing(Layout.of(sequences), slab, f.hidden)
        shape = (rows, 3, config.n_head, config.d_head)
        query, key, value = drawn(*shape).unbind(1)
        wanted = packing.attend(f, query, key, value)
        order = torch.tensor([3, 0, 6, 5, 1, 2, 4], device=device)  # wherever the rows are
        at = torch.tensor(LENGTHS, device=device)
        reach = (at % config.tgt_len + config.mem_len).clamp(max=config.attention_span - 1)
        own = query[order].reshape(rows, -1)
        apart = torch.cat([own, own], dim=1)[:, : own.shape[1]].view(rows, *query.shape[1:])
        found = attend(
            apart,
            f.by_distance(apart),
            slab.key,
            slab.value,
            work=order,
            entries=at[order] % slab.ring,
            reach=torch.minimum(reach, at)[order],
        )
        torch.testing.assert_close(found, wanted[order], rtol=1e-9, atol=1e-9)


if __name__ == "__main__":
    with torch.no_grad():
        agree(torch.device("cpu"))
