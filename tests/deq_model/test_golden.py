"""The published implementation's numbers, in float64."""

import math
from collections import defaultdict

import pytest
import torch

from deq_model.jacobian import frobenius_estimate, spectral_radius
from deq_model.memory import Memory
from deq_model.model import BlockFunction
from deq_model.published import layout
from deq_model.solvers.options import SolverOptions
from tests.deq_model.golden import CASES, PROBES, Golden, load_golden

# f rounds its scores to float32 and so is a staircase with steps of some 1e-10. Plain iteration,
# with which the reference was made, settles on one step; the quasi-Newton methods see the noise.
EXACT = SolverOptions(method="picard", tol=1e-10, max_nfe=2000)
LINEAR = SolverOptions(tol=1e-10, max_nfe=600, depth=40)


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_embedding_injection_and_one_call_of_f(golden: Golden) -> None:
    memory = golden.model.empty_memory(2)
    for i in range(len(golden.segments)):
        tokens, _ = golden.tokens(i)
        close(golden.model.embedding(tokens), golden.arrays[f"s{i}.embedding"], 1e-10)
        injection = golden.model.inject(tokens)
        close(injection, golden.rows(f"s{i}.u_now"), 1e-10)
        f = BlockFunction(golden.model.f.fold(), memory, injection)
        close(f(golden.rows(f"s{i}.z_probe")), golden.rows(f"s{i}.f_of_z_probe"), 1e-10)
        memory = Memory(golden.rows(f"s{i}.z_hist_after"), golden.rows(f"s{i}.u_hist_after"))


@pytest.mark.parametrize("name", PROBES)
def test_variants_of_f(name: str) -> None:
    golden = load_golden(name)
    memory = Memory(golden.rows("z_hist"), golden.rows("u_hist"))
    f = BlockFunction(golden.model.f.fold(), memory, golden.rows("u_now"))
    close(f(golden.rows("z_probe")), golden.rows("f_of_z_probe"), 1e-10)


def test_likelihoods_and_memories(golden: Golden) -> None:
    memory = golden.model.empty_memory(2)
    for i in range(len(golden.segments)):
        tokens, targets = golden.tokens(i)
        block = golden.model.solve_block(tokens, memory, EXACT)
        assert block.solution.converged
        close(golden.model.nll(block.hidden, targets), golden.arrays[f"s{i}.nll"], 1e-8)
        memory = block.memory
        close(memory.z_hist, golden.rows(f"s{i}.z_hist_after"), 1e-8)
        close(memory.u_hist, golden.rows(f"s{i}.u_hist_after"), 1e-8)
    logprob = golden.model.softmax.log_prob(block.hidden[:, -1])
    close(logprob, golden.arrays["next_token_logprobs"], 1e-8)
    close(logprob.exp().sum(1), torch.ones(2, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize(("method", "depth"), [("broyden", 30), ("anderson", 4)])
@pytest.mark.parametrize("name", ["post_ln", "flat_vocab"])  # div4 has a second fixed point
def test_quasi_newton_methods_agree(name: str, method: str, depth: int) -> None:
    golden = load_golden(name)
    memory = golden.model.empty_memory(2)
    options = SolverOptions(method=method, tol=1e-7, max_nfe=600, depth=depth)
    for i in range(len(golden.segments)):
        tokens, targets = golden.tokens(i)
        block = golden.model.solve_block(tokens, memory, options)
        assert block.solution.converged
        close(golden.model.nll(block.hidden, targets), golden.arrays[f"s{i}.nll"], 1e-5)
        memory = block.memory


def test_published_whole_block_solve_agrees(golden: Golden) -> None:
    options = SolverOptions(tol=1e-8, max_nfe=300, depth=300, restart=math.inf)
    tokens, targets = golden.tokens(0)
    block = golden.model.solve_block(
        tokens, golden.model.empty_memory(2), options, whole_block=True
    )
    assert block.solution.converged
    close(golden.model.nll(block.hidden, targets), golden.arrays["s0.nll"], 1e-6)


def test_implicit_gradients(golden: Golden) -> None:
    tokens, targets = golden.tokens(0)
    result = golden.model.train_block(
        tokens, targets, golden.model.empty_memory(2), forward=EXACT, backward=LINEAR
    )
    close(result.nll, golden.arrays["train_loss"], 1e-8)
    result.nll.mean().backward()
    assert result.gradient.solution is not None
    assert result.gradient.solution.converged
    expected: dict[str, torch.Tensor] = {}
    published = defaultdict(list)
    for entry in layout(golden.model.config):
        published[entry.native].append(entry)
    for native, entries in published.items():
        # The reference lists a tied projection under both names; a shared table under one.
        parts = [golden.arrays.get(f"grad.{entry.published}") for entry in entries]
        total = sum(part for part in parts if part is not None)
        expected[native] = total.reshape(golden.model.get_parameter(native).shape)
    for name, parameter in golden.model.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm().clamp(min=1e-12)
        assert error < 1e-6, f"{name}: relative error {error:.2e}"


def at_fixed_point(golden: Golden) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, _ = golden.tokens(0)
    memory = golden.model.empty_memory(2)
    z = golden.model.solve_block(tokens, memory, EXACT).hidden.requires_grad_()
    injection = golden.model.inject(tokens).detach()
    return BlockFunction(golden.model.f.fold().detach(), memory, injection)(z), z


def full_jacobian(f_z: torch.Tensor, z: torch.Tensor, sample: int) -> torch.Tensor:
    rows = [
        torch.autograd.grad(channel, z, retain_graph=True)[0][sample].flatten()
        for channel in f_z[sample].flatten()
    ]
    return torch.stack(rows)


def test_hutchinson_averages_to_the_frobenius_norm(golden: Golden) -> None:
    f_z, z = at_fixed_point(golden)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [frobenius_estimate(f_z, z, generator=generator).detach() for _ in range(600)]
    )
    standard_error = draws.std() / len(draws) ** 0.5
    exact = golden.arrays["jacobian_fro_sq_mean"]
    assert (draws.mean() - exact).abs() < 3 * standard_error
    assert standard_error < 0.05 * exact


def test_spectral_radius(golden: Golden) -> None:
    f_z, z = at_fixed_point(golden)
    estimate = spectral_radius(f_z, z, steps=400, generator=torch.Generator().manual_seed(0))
    for sample in range(2):
        eigenvalues = torch.linalg.eigvals(full_jacobian(f_z, z, sample)).abs()
        expected = golden.arrays["spectral_radius"][sample]
        close(eigenvalues.max(), expected, 1e-3)
        # The power method's mean growth: exact to O(1/steps) also for a complex pair.
        close(estimate[sample], expected, 2e-2)
