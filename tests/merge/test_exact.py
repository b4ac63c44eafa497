"""The closed form is the minimum of the objective."""

import copy

import pytest
import torch
from loraclr.loraclr_core.merge import exact
from loraclr.loraclr_core.merge.gram import Gram
from loraclr.loraclr_core.merge.objective import Margin
from merge.problems import CPU, Problem, negative, positive, problem

IDLE = Margin(0.0)


def summed(case: Problem) -> torch.Tensor:
    """Plain stacking."""
    return torch.stack([concept.delta.dense() for concept in case.concepts]).sum(dim=0)


def descended(case: Problem, ridge: float, margin: float) -> torch.Tensor:
    """The minimum by a generic optimiser over the whole matrix, from zero."""
    with torch.inference_mode(False), torch.enable_grad():
        case = copy.deepcopy(case)
        mu, total = case.mu(ridge), summed(case)
        delta = torch.zeros_like(case.weight, requires_grad=True)
        optimizer = torch.optim.LBFGS([delta], max_iter=1000, tolerance_change=1e-12, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            hinge = (margin - negative(case, delta)).clamp(min=0).square().sum()
            value = positive(case, delta) + hinge + mu * (delta - total).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return delta.detach()


def objective(case: Problem, delta: torch.Tensor, ridge: float, margin: float) -> float:
    hinge = (margin - negative(case, delta)).clamp(min=0).square().sum()
    return float(positive(case, delta) + hinge + case.mu(ridge) * (delta - summed(case)).square().sum())


def test_matches_a_hand_computed_merge():
    """Two concepts that see one input each keep it, up to the ridge: Δ e_i = ΔW_i e_i."""
    case = problem(concepts=2, in_width=2, out_width=2, rank=2)
    for i, concept in enumerate(case.concepts):
        x = torch.zeros(4, 2)
        x[:, i] = 1.0
        case.features[i] = concept.inputs = x
        concept.response = concept.delta.down @ (x.T @ x)
        concept.outputs = x @ (case.weight + concept.delta.dense()).T
    merged = exact.solve(case.gram, case.concepts, 1e-6, IDLE, CPU).dense()
    expected = torch.stack([case.concepts[i].delta.dense()[:, i] for i in range(2)], dim=1)
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ridge", [1e-4, 1e-1])
def test_closed_form_is_what_a_long_descent_finds(ridge):
    case = problem()
    merged = exact.solve(case.gram, case.concepts, ridge, IDLE, CPU).dense()
    torch.testing.assert_close(merged, descended(case, ridge, 0.0), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("in_width", [12, 200])
def test_active_margin_is_descended_to_the_same_minimum(in_width):
    """With ups that span the whole output, nothing is out of reach of the restricted descent; few tokens or many."""
    case = problem(concepts=3, in_width=in_width, out_width=4, rank=2, tokens=30)
    margin = 1.1 * float(negative(case, torch.zeros_like(case.weight)).max())
    merged = exact.solve(case.gram, case.concepts, 1e-2, Margin(margin), CPU).dense()
    found, reference = (objective(case, d, 1e-2, margin) for d in (merged, descended(case, 1e-2, margin)))
    idle = objective(case, exact.solve(case.gram, case.concepts, 1e-2, IDLE, CPU).dense(), 1e-2, margin)
    assert found < 0.99 * idle
    assert found <= reference * 1.01


def test_an_active_margin_takes_concepts_with_different_numbers_of_samples():
    """As prompts of different length leave them where a capture is short."""
    case = problem()
    margin = 1.1 * float(negative(case, torch.zeros_like(case.weight)).max())
    cut = case.concepts[1]
    cut.inputs, cut.outputs = cut.inputs[:50], cut.outputs[:50]
    merged = exact.solve(case.gram, case.concepts, 1e-2, Margin(margin), CPU)
    assert merged.dense().isfinite().all()
    assert not torch.equal(merged.dense(), exact.solve(case.gram, case.concepts, 1e-2, IDLE, CPU).dense())


def test_an_idle_margin_changes_nothing():
    case = problem()
    with_margin = exact.solve(case.gram, case.concepts, 1e-2, Margin(0.5), CPU)
    assert torch.equal(with_margin.dense(), exact.solve(case.gram, case.concepts, 1e-2, IDLE, CPU).dense())


@pytest.mark.parametrize(("concepts", "rank", "bound"), [(3, 2, 6), (5, 4, 8)])
def test_rank_is_bounded_by_the_concepts_and_the_layer(concepts, rank, bound):
    case = problem(concepts=concepts, rank=rank)
    assert exact.solve(case.gram, case.concepts, 1e-2, IDLE, CPU).rank == bound


@pytest.mark.parametrize(("in_width", "tokens"), [(90, 15), (90, 16), (600, 60), (600, 300)])
def test_few_tokens_and_many_are_solved_alike(in_width, tokens):
    """Up to half of the width the solution is found among the tokens, above it in the moments."""
    case = problem(in_width=in_width, tokens=tokens)
    merged = exact.solve(case.gram, case.concepts, 1e-2, IDLE, CPU).dense()
    features = [x.double() for x in case.features]
    ridge = case.mu(1e-2) * torch.eye(in_width, dtype=torch.float64)
    system = sum(x.T @ x for x in features) + ridge
    target = sum(c.delta.dense().double() @ (x.T @ x + ridge) for c, x in zip(case.concepts, features, strict=True))
    expected = target @ torch.linalg.inv(system)
    assert (merged - expected).norm() < 1e-3 * expected.norm()  # float32; the last digits differ between processors
    assert (case.gram.few_rows() is None) == (3 * tokens > in_width // 2)


def test_what_is_left_on_the_diagonal_counts_among_few_rows_as_in_panels():
    case = problem(concepts=2, in_width=40, tokens=5)
    few = case.gram
    few.diagonal = torch.rand(40)
    assert few.few_rows() is not None
    whole = Gram(40, CPU)
    whole.add(torch.cat([*few.rows, few.diagonal.sqrt().diag()]))
    assert whole.few_rows() is None
    solved = [exact.solve(gram, case.concepts, 0.1, IDLE, CPU).dense() for gram in (few, whole)]
    torch.testing.assert_close(solved[0], solved[1], rtol=1e-4, atol=1e-5)


def test_rank_deficient_inputs_are_solved():
    """Inputs of real layers lie close to a subspace; the merge must stay finite and right on it."""
    case = problem(concepts=2, tokens=8, in_width=40, input_rank=3, rank=1)
    merged = exact.solve(case.gram, case.concepts, 1e-6, IDLE, CPU).dense()
    assert torch.isfinite(merged).all()
    zero = torch.zeros_like(merged)
    assert positive(case, merged) < positive(case, zero)
    assert merged.norm() < 10 * max(c.delta.norm() for c in case.concepts)


def test_inputs_never_seen_get_the_sum():
    """Prompts go beyond what a capture saw; there the LoRAs add up, rather than vanish."""
    case = problem(concepts=2, tokens=8, in_width=40, input_rank=3)
    merged = exact.solve(case.gram, case.concepts, 1e-2, IDLE, CPU).dense()
    seen = torch.linalg.qr(torch.cat(case.features).T)[0][:, :3]
    unseen = torch.randn(5, 40)
    unseen -= unseen @ seen @ seen.T
    torch.testing.assert_close(unseen @ merged.T, unseen @ summed(case).T, rtol=1e-3, atol=1e-3)


def test_inputs_that_are_all_zero_get_the_sum():
    case = problem()
    for concept in case.concepts:
        concept.response = torch.zeros_like(concept.response)
    torch.testing.assert_close(exact.solve(Gram(12, CPU), case.concepts, 1e-2, IDLE, CPU).dense(), summed(case))


def test_an_anchor_holds_the_merge_back_where_it_has_tokens():
    case = problem()
    anchor = Gram(12, CPU)
    anchor.add(30 * torch.eye(12))
    anchored = exact.solve(case.gram.plus(anchor, 1.0), case.concepts, 1e-2, IDLE, CPU)
    assert anchored.norm() < exact.solve(case.gram, case.concepts, 1e-2, IDLE, CPU).norm()


def test_no_ridge_is_refused():
    case = problem()
    with pytest.raises(ValueError, match="ridge"):
        exact.solve(case.gram, case.concepts, 0.0, IDLE, CPU)
