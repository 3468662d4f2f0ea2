"""Fixed-point problems whose answers are known or easily found."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from deq_model.config import ModelConfig
from deq_model.memory import Memory
from deq_model.model import DEQLanguageModel
from deq_model.solvers.options import Method, SolverOptions
from deq_model.solvers.rows import RowSolver

RowMap = Callable[[Tensor, Tensor], Tensor]
"""``(rows, z) -> f(z)``: the maps of ``rows`` (n,) at ``z`` (n, dim)."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contractions(seed: int, count: int, dim: int, *, norm: float) -> tuple[Tensor, Tensor]:
    """``count`` matrices of spectral norm ``norm``, and as many vectors, in float64."""
    source = generator(seed)
    matrices = torch.randn(count, dim, dim, generator=source, dtype=torch.float64)
    matrices = norm * matrices / torch.linalg.matrix_norm(matrices, ord=2)[:, None, None]
    return matrices, torch.randn(count, dim, generator=source, dtype=torch.float64)


def linear_map(matrices: Tensor, vectors: Tensor) -> RowMap:
    """``A_i z + b_i`` for every row i."""
    return lambda rows, z: torch.einsum("nij,nj->ni", matrices[rows], z) + vectors[rows]


def tanh_map(matrices: Tensor, vectors: Tensor) -> RowMap:
    """``tanh(A_i z + b_i)`` for every row i."""
    inner = linear_map(matrices, vectors)
    return lambda rows, z: inner(rows, z).tanh()


def linear_answer(matrices: Tensor, vectors: Tensor) -> Tensor:
    """The fixed points of ``linear_map``."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype)
    return torch.linalg.solve(identity - matrices, vectors)


def make_solver(
    method: Method, *, capacity: int, dim: int, depth: int = 12, **options: float
) -> RowSolver:
    return RowSolver(
        method,
        capacity=capacity,
        dim=dim,
        depth=depth,
        device=torch.device("cpu"),
        dtype=torch.float64,
        **options,
    )


def block_triangular(seed: int, length: int, dim: int) -> Callable[[Tensor], Tensor]:
    """``(B, length, dim)`` to the same; row i's map takes rows ≤ i, and is a contraction in row i.

    Earlier rows enter strongly, so that a later row's equation changes much while they move.
    """
    own, bias = contractions(seed, length, dim, norm=0.8)
    earlier = torch.randn(length, length, dim, dim, generator=generator(seed + 1)).double()
    mask = torch.ones(length, length).tril(-1).double()
    earlier = 2 * earlier * mask[:, :, None, None] / (dim * max(1, length)) ** 0.5

    def f(z: Tensor) -> Tensor:
        mixed = torch.einsum("ijde,bje->bid", earlier, z)
        return torch.tanh(torch.einsum("ide,bie->bid", own, z) + mixed + bias)

    return f


@st.composite
def configs(draw: st.DrawFn, *, published: bool = False) -> ModelConfig:
    """Small architectures of every variant: clusters, widths, ties, norms.

    ``published`` leaves out what the published layout cannot hold.
    """
    n_token = draw(st.integers(2, 30))
    cutoffs = tuple(sorted(draw(st.sets(st.integers(1, n_token - 1), max_size=3))))
    div_val = draw(st.integers(1, 2))
    d_head = draw(st.sampled_from([2, 4]))
    n_head = draw(st.integers(1, 3))
    norms = ["weight_norm", "none"] + ([] if published else ["spectral_norm"])
    norm = draw(st.sampled_from(norms))
    bounds: dict[str, float] = {}
    if norm != "none" and not published:
        bounds = draw(st.sampled_from([{}, {"norm_clip": 0.5}, {"norm_target": 0.7}]))
    ties = st.lists(st.booleans(), min_size=len(cutoffs) + 1, max_size=len(cutoffs) + 1)
    return ModelConfig(
        n_token=n_token,
        d_model=n_head * d_head,
        n_head=n_head,
        d_head=d_head,
        d_inner=draw(st.integers(1, 12)),
        d_embed=draw(st.sampled_from([0, 8, 11])),
        cutoffs=cutoffs if div_val == 1 or n_head * d_head >= 8 else cutoffs[:1],
        div_val=div_val,
        tgt_len=draw(st.integers(1, 6)),
        mem_len=draw(st.integers(0, 8)),
        local_size=draw(st.integers(0, 5)),
        pre_lnorm=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        tie_weights=draw(st.booleans()),
        tie_projs=tuple(draw(ties)) if div_val == 1 or n_head * d_head >= 8 else (),
        norm=norm,
        **bounds,
    )


CONFIG = ModelConfig(
    n_token=23,
    d_model=8,
    n_head=2,
    d_head=4,
    d_inner=12,
    cutoffs=(6, 13),
    div_val=2,
    tgt_len=4,
    mem_len=5,
    tie_weights=False,
)
"""A small model of three clusters, the one that tests change to their needs."""

EXACT = SolverOptions(tol=1e-13, max_nfe=300, depth=30)
"""Where nothing is masked f is float64 throughout, and so are its fixed points."""

MASKED = SolverOptions(tol=1e-7, max_nfe=300, depth=30)
"""Where keys are masked f rounds its scores to float32."""


def draw_tokens(seed: int, *shape: int) -> Tensor:
    """Tokens of ``CONFIG``'s vocabulary."""
    return torch.randint(CONFIG.n_token, shape, generator=generator(seed))


def draw_memory(seed: int, batch: int, length: int) -> Memory:
    """Memory of ``length`` tokens that nobody solved, of ``CONFIG``'s width."""
    source, d_model = generator(seed), CONFIG.d_model
    z_hist = torch.randn(batch, length, d_model, generator=source, dtype=torch.float64)
    u_hist = torch.randn(batch, length, 3 * d_model, generator=source, dtype=torch.float64)
    return Memory(z_hist, u_hist)


def random_model(config: ModelConfig, seed: int, *, std: float = 0.3) -> DEQLanguageModel:
    """A float64 model in evaluation mode whose parameters, biases too, are N(0, std²)."""
    model = DEQLanguageModel(config).double().eval()
    source = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, std, generator=source)
    return model
