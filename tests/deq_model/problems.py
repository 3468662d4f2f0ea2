"""Fixed-point problems whose answers are known or easily found."""

from collections.abc import Callable

import torch
from torch import Tensor

from deq_model.solvers.options import Method
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
