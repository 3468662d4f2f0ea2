"""The feed-forward of 8-bit differences against one in float64."""

import pytest
import torch
from torch import Tensor

from deq_model.feed_forward import PreparedFeedForward
from deq_model.function import EquilibriumWeights
from deq_model.int8_feed_forward import Int8FeedForward, has_int8
from tests.kernels import needs_int8
from tests.server.engine.helpers import small_model

ROWS = 150


def folded(d_model: int = 64, d_inner: int = 512) -> EquilibriumWeights:
    """Of a model wide enough for roundings to average out."""
    model = small_model(seed=2, d_model=d_model, n_head=2, d_head=d_model // 2, d_inner=d_inner)
    return model.f.fold().detach()


def inputs(rows: int, d_model: int = 64) -> Tensor:
    x = torch.randn(rows, d_model, generator=torch.Generator().manual_seed(rows))
    return torch.nn.functional.layer_norm(x, (d_model,))


def exactly(feed_forward: Int8FeedForward, x: Tensor) -> Tensor:
    """Rows that become their own anchors."""
    feed_forward.set_rows(torch.arange(len(x)), torch.ones(len(x), dtype=torch.bool))
    return feed_forward(x)


def differently(feed_forward: Int8FeedForward, x: Tensor, anchors: Tensor | None = None) -> Tensor:
    """Differences from anchors, or from zero."""
    if anchors is None:
        anchors = torch.full((len(x),), feed_forward.zero)
    feed_forward.set_rows(anchors, torch.zeros(len(x), dtype=torch.bool))
    return feed_forward(x)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@needs_int8
@pytest.mark.parametrize(("d_model", "d_inner"), [(64, 512), (66, 1100), (30, 64), (70, 40)])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 48, 49, ROWS])
def test_exact_rows_are_near_and_differences_the_nearer_the_shorter(
    d_model: int, d_inner: int, rows: int
) -> None:
    weights = folded(d_model, d_inner)
    ours, true = Int8FeedForward(weights, rows=ROWS), PreparedFeedForward(weights, "float64")
    x, step = inputs(rows, d_model), inputs(rows + 1, d_model)[1:]
    assert relative(exactly(ours, x), true(x)) < 2e-4
    assert ours.moved.count_nonzero() == 0
    assert relative(differently(ours, x), true(x)) < 0.03
    for length in (0.1, 0.01, 0.001):
        near = x + length * step
        error = relative(differently(ours, near, torch.arange(rows)), true(near))
        assert error < 2e-4 + 0.03 * length
        assert ours.moved == pytest.approx(torch.full((rows,), length), rel=0.1), (
            "inputs and steps are of one length"
        )


@needs_int8
def test_the_error_that_is_told_is_the_one_there_is() -> None:
    weights = folded()
    ours, true = Int8FeedForward(weights, rows=ROWS), PreparedFeedForward(weights, "float64")
    x = inputs(ROWS)
    exactly(ours, x)
    near = x + 0.1 * inputs(ROWS + 1)[1:]
    out = differently(ours, near, torch.arange(ROWS))
    found = (out - true(near)).norm(dim=1) / (true(near) + near).norm(dim=1)
    told = torch.tensor(ours.error_by_row())
    assert 0.7 < float(found.mean() / told.mean()) < 1.4
    assert 1e-4 < ours.error < 0.03


@needs_int8
def test_rows_do_not_depend_on_their_neighbours() -> None:
    ours, x = Int8FeedForward(folded(), rows=ROWS), inputs(50)
    exact = torch.arange(50) % 3 == 0
    anchors = torch.where(exact, torch.arange(50), ours.zero)
    ours.set_rows(anchors, exact)
    together = ours(x)
    for row in range(0, 50, 7):
        ours.set_rows(anchors[row : row + 1], exact[row : row + 1])
        assert torch.equal(ours(x[row : row + 1])[0], together[row])
    ours.set_rows(anchors, exact)
    assert torch.equal(ours(x), together)


@needs_int8
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("exact", [False, True])
def test_a_row_that_is_not_finite_spoils_itself_alone(value: float, exact: bool) -> None:
    ours, x = Int8FeedForward(folded(), rows=ROWS), inputs(9)
    compute = exactly if exact else differently
    clean = compute(ours, x)
    broken = x.clone()
    broken[4, 2] = value
    out = compute(ours, broken)
    assert out[4].isnan().all()
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    assert torch.equal(out[others], clean[others])


@needs_int8
def test_inputs_of_any_size() -> None:
    weights = folded()
    ours, true = Int8FeedForward(weights, rows=ROWS), PreparedFeedForward(weights, "float64")
    for scale in (1e-20, 1e-3, 1.0, 1e4):
        x = scale * inputs(4)
        assert relative(exactly(ours, x), true(x)) < 2e-4
        assert relative(differently(ours, x), true(x)) < 0.03
    zero = torch.zeros(2, 64)
    assert relative(differently(ours, zero), true(zero)) < 2e-4


def test_no_device_but_a_cpu_has_8_bits() -> None:
    assert not has_int8("cuda")
