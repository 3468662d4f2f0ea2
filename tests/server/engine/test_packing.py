"""Rows of many sequences in one call: each sees its own history, wherever the rows lie."""

import random
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deq_model.inference import InferenceFunction
from server.engine.layout import Layout
from server.engine.packing import Packing
from server.engine.scheduler import Sequence
from server.engine.slab import Slab
from server.engine.solve import Solved
from tests.server.engine.helpers import small_model

ROWS, WINDOW = 9, 5
DEVICE = torch.device("cpu")


def sequence(slot: int, start: int, width: int, first_row: int) -> Sequence:
    rows = deque(range(first_row, first_row + width))
    return Sequence(slot=slot, start=start, inputs=[0] * width, rows=rows, granted=width)


@settings(max_examples=60, deadline=None)
@given(
    layout=st.dictionaries(
        st.integers(0, ROWS - 1), st.tuples(st.integers(0, 40), st.integers(1, WINDOW)), min_size=1
    ),
    seed=st.integers(0, 99),
    local_size=st.sampled_from([0, 3]),
)
def test_each_row_attends_to_its_own_context(
    layout: dict[int, tuple[int, int]], seed: int, local_size: int
) -> None:
    """Against attention written out for one query at a time, over a list of all tokens."""
    model = small_model(seed=seed, local_size=local_size)
    config = model.config
    source = torch.Generator().manual_seed(seed)
    slab = Slab(config, rows=ROWS, slots=0, window=WINDOW, device=DEVICE, dtype=torch.float64)
    slab.key.fill_(7.0)  # what others left there
    slab.value.fill_(-7.0)
    f = InferenceFunction(model.f.fold().detach(), "float64", distances=config.klen)
    sequences, histories, free = [], [], 0
    for slot, (length, width) in sorted(layout.items()):
        sequences.append(sequence(slot, length, width, free))
        free += width
        shape = (2, length + width, config.n_head, config.d_head)
        past = torch.randn(shape, generator=source, dtype=torch.float64)
        histories.append(past)
        at = torch.arange(max(0, length - config.klen), length)
        slab.write_keys(torch.full_like(at, slot), at % slab.ring, past[0, at], past[1, at])
    layout = Layout.of(sequences)
    packing = Packing(layout, slab, f.hidden)
    query = torch.randn(free, config.n_head, config.d_head, generator=source, dtype=torch.float64)
    now = [h[:, s.start :] for h, s in zip(histories, sequences, strict=True)]
    key, value = torch.cat(now, dim=1)
    mixed = packing.attend(f, query, key, value)

    by_distance = f.by_distance(query)
    row = 0
    for each, past in zip(sequences, histories, strict=True):
        for position in range(each.start, each.start + each.granted):
            first = position - position % config.tgt_len - config.mem_len
            first = max(0, first, position - config.attention_span + 1)
            seen = torch.arange(first, position + 1)
            scores = torch.einsum("hd,khd->hk", query[row], past[0, seen])
            scores = scores + by_distance[:, row, position - seen]
            wanted = torch.einsum("hk,khd->hd", scores.softmax(-1), past[1, seen]).flatten()
            torch.testing.assert_close(mixed[row], wanted)
            row += 1
    assert row == free == len(layout.row_ids)


@pytest.mark.parametrize("window", [1, 5])
def test_what_is_kept_and_loaded_again_is_the_context(window: int) -> None:
    config = small_model().config
    slab = Slab(config, rows=2, slots=1, window=window, device=DEVICE, dtype=torch.float64)
    shape = (config.n_head, config.d_head)
    generator = random.Random(window)
    tokens = []
    for position in range(3 * config.klen + generator.randrange(config.klen)):
        at = torch.tensor([position % slab.ring])
        key, value = torch.randn(2, 1, *shape, dtype=torch.float64)
        z = torch.randn(1, config.d_model, dtype=torch.float64)
        slab.write_keys(torch.tensor([0]), at, key, value)
        slab.write_states(torch.tensor([0]), at, z)
        slab.advance(0, position + 1, Solved(position, 0.0, "converged"))
        tokens.append((key[0], value[0], z[0]))
    slab.key[1].fill_(torch.nan)
    slab.value[1].fill_(torch.nan)
    slab.save(0, 0)
    slab.load(0, 1)
    assert slab.length(1) == len(tokens)
    last, solved = slab.last(1)
    assert solved.nfe == len(tokens) - 1
    assert torch.equal(last, tokens[-1][2])
    for position in range(len(tokens) - config.klen, len(tokens)):
        entry = position % slab.ring
        assert torch.equal(slab.key[1, :, entry], tokens[position][0])
        assert torch.equal(slab.value[1, :, entry], tokens[position][1])
    assert slab.value[1].isfinite().all(), "hidden entries have weight 0, and 0 · NaN is NaN"
