"""What is not finite in a row's past stays out of its later solves, whoever shares the calls."""

import pytest
import torch

from deq_model.solvers.options import Method
from tests.deq_model.problems import contractions, linear_map, make_solver


def solve_again(method: Method, *, poisoned: bool) -> torch.Tensor:
    """States of a second solve in row 0, beside a row that has a longer past."""
    matrices, vectors = contractions(3, 2, 8, norm=0.9)
    f, both = linear_map(matrices, vectors), torch.tensor([0, 1])
    solver = make_solver(method, capacity=2, dim=8)
    solver.start(both, torch.zeros(2, 8, dtype=torch.float64))
    for call in range(4):
        f_z = f(both, solver.propose(both))
        if poisoned and call == 2:
            f_z[0] = torch.nan
        solver.observe(both, f_z)
    solver.start(both[:1], torch.zeros(1, 8, dtype=torch.float64))
    for _ in range(6):
        solver.observe(both, f(both, solver.propose(both)))
    return solver.propose(both[:1])


@pytest.mark.parametrize("method", ["broyden", "anderson"])
def test_a_row_that_saw_no_number_solves_the_next_token_as_ever(method: Method) -> None:
    clean, after = (solve_again(method, poisoned=poisoned) for poisoned in (False, True))
    torch.testing.assert_close(after, clean)
