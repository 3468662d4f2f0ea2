"""Attention by the kernel of a CPU against the one by torch's operations."""

from collections import deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deq_model.inference import InferenceFunction
from server.engine.layout import Layout
from server.engine.packing import Packing
from server.engine.rings import Rings, can_run
from server.engine.scheduler import Sequence
from server.engine.slab import Slab
from tests.kernels import needs_kernels
from tests.server.engine.helpers import small_model

pytestmark = needs_kernels
ROWS, WINDOW = 7, 6
CPU = torch.device("cpu")


def slab_of(f: InferenceFunction, dtype: torch.dtype = torch.float32) -> Slab:
    return Slab(f.config, rows=ROWS, slots=0, window=WINDOW, device=CPU, dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(
    layout=st.dictionaries(
        st.integers(0, ROWS - 1), st.tuples(st.integers(0, 40), st.integers(1, WINDOW)), min_size=1
    ),
    seed=st.integers(0, 99),
    local_size=st.sampled_from([0, 3]),
    d_head=st.sampled_from([2, 8, 16, 23, 32]),
)
def test_the_kernel_does_what_the_operations_do(
    layout: dict[int, tuple[int, int]], seed: int, local_size: int, d_head: int
) -> None:
    model = small_model(seed=seed, local_size=local_size, d_model=2 * d_head, d_head=d_head)
    f = InferenceFunction(model.float().f.fold().detach(), "float32", distances=model.config.klen)
    source = torch.Generator().manual_seed(seed)
    sequences, free = [], 0
    for slot, (length, width) in sorted(layout.items()):
        rows = deque(range(free, free + width))
        sequences.append(
            Sequence(slot=slot, start=length, inputs=[0] * width, rows=rows, granted=width)
        )
        free += width
    ours, theirs = slab_of(f), slab_of(f)
    for tensor, other in ((ours.key, theirs.key), (ours.value, theirs.value)):
        other.copy_(tensor.normal_(generator=source))
    channels = torch.randn(free, 3, 2, d_head, generator=source).unbind(1)
    made = Layout.of(sequences)
    kernel, plain = Rings(f, ours).lay(made), Packing(made, theirs, f.hidden)
    for name in ("rows", "work_rows", "entries"):
        assert torch.equal(getattr(kernel, name), getattr(plain, name))
    torch.testing.assert_close(kernel.attend(f, *channels), plain.attend(f, *channels))
    assert torch.equal(ours.key, theirs.key)
    assert torch.equal(ours.value, theirs.value)


def test_a_row_that_is_not_finite_spoils_itself_alone() -> None:
    model = small_model(seed=1).float()
    f = InferenceFunction(model.f.fold().detach(), "float32", distances=model.config.klen)
    sequences = [
        Sequence(slot=slot, start=9, inputs=[0], rows=deque([slot]), granted=1) for slot in range(3)
    ]
    rings = Rings(f, slab_of(f)).lay(Layout.of(sequences))
    shape = (3, 3, f.config.n_head, f.config.d_head)
    channels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    clean = rings.attend(f, *channels.unbind(1))
    for part in range(3):
        broken = channels.clone()
        broken[1, part, 0, 0] = torch.nan
        mixed = rings.attend(f, *broken.unbind(1))
        assert not mixed[1].isfinite().all()
        assert torch.equal(mixed[[0, 2]], clean[[0, 2]])


def test_what_is_not_float32_is_for_torch() -> None:
    model = small_model(seed=1)
    f = InferenceFunction(model.f.fold().detach(), "float64", distances=model.config.klen)
    assert not can_run(slab_of(f, torch.float64))
