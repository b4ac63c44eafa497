"""Second moments and kept tokens agree with the features they stand for."""

import pytest
import torch
from loraclr.loraclr_core.lowrank import LowRank, zero
from loraclr.loraclr_core.merge.gram import Gram
from loraclr.loraclr_core.merge.moments import MAX_TOKENS_PER_CALL, LayerMoments, token_order
from symmetric import full

CPU = torch.device("cpu")


def observed(calls: list[torch.Tensor], samples: int = 12, held_out: int = 6, out_width: int = 3, width: int = 700):
    weight = torch.randn(out_width, width)
    delta = LowRank(torch.randn(out_width, 2), torch.randn(2, width))
    gram = Gram(width, CPU)
    moments = LayerMoments(gram, delta, seed=5, calls=len(calls), samples=samples, held_out=held_out)
    for x in calls:
        moments.observe(x, x @ weight.T)
    statistics = moments.finish()
    return full(gram.lower()), statistics, delta, weight


def test_gram_is_that_of_every_token_that_is_not_held_out():
    calls = [torch.randn(20, 700) for _ in range(30)]
    gram, statistics, delta, _ = observed(calls)
    everything = torch.cat(calls)
    expected = everything.T @ everything - statistics.held_out.T @ statistics.held_out
    torch.testing.assert_close(gram, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(statistics.response, delta.down @ expected, rtol=1e-4, atol=1e-2)
    assert (statistics.tokens, statistics.seen, len(statistics.held_out)) == (594, 600, 6)


def test_grams_of_several_concepts_add_up_in_place():
    first, second = torch.randn(40, 8), torch.randn(40, 8)
    gram = Gram(8, CPU)
    for x in (first, second):
        moments = LayerMoments(gram, zero(3, 8), seed=0, calls=1, samples=0, held_out=0)
        moments.observe(x, x[:, :3])
        moments.finish()
    torch.testing.assert_close(full(gram.lower()), first.T @ first + second.T @ second)


def test_samples_pair_inputs_with_their_outputs():
    _, statistics, _, weight = observed([torch.randn(20, 700) for _ in range(3)])
    assert len(statistics.inputs) == 12
    torch.testing.assert_close(statistics.outputs, statistics.inputs @ weight.T)


def test_concepts_are_sampled_at_the_same_positions():
    """Distances between concepts are only meant between the same tokens."""
    calls = [torch.arange(40.0).repeat_interleave(2).view(40, 2) for _ in range(4)]
    _, first, _, _ = observed(calls, width=2)
    _, second, _, _ = observed([x + 100 for x in calls], width=2)
    torch.testing.assert_close(first.inputs + 100, second.inputs)


def test_large_calls_are_thinned_to_a_fixed_number_of_tokens():
    _, statistics, _, _ = observed([torch.randn(1000, 8)] * 2, held_out=0, width=8)
    assert (statistics.tokens, statistics.seen) == (2 * MAX_TOKENS_PER_CALL, 2000)


def test_a_layer_with_one_token_per_call_gives_some_to_the_gram_and_some_to_the_judge():
    _, statistics, _, _ = observed([torch.randn(1, 8) for _ in range(12)], samples=6, held_out=4, width=8)
    assert (statistics.tokens, len(statistics.held_out)) == (8, 4)


def test_no_more_tokens_are_held_out_than_count():
    """With few steps the judge would take every token of a layer of the timestep, and leave its change at nothing."""
    _, statistics, _, _ = observed([torch.randn(1, 8) for _ in range(4)], samples=16, held_out=12, width=8)
    assert (statistics.tokens, len(statistics.held_out)) == (2, 2)
    _, statistics, _, _ = observed([torch.randn(1, 8)], samples=16, held_out=12, width=8)
    assert (statistics.tokens, len(statistics.held_out)) == (1, 0)


def test_token_order_depends_on_the_seed_and_the_call_only():
    assert torch.equal(token_order(50, 1, 2), token_order(50, 1, 2))
    assert not torch.equal(token_order(50, 1, 2), token_order(50, 1, 3))
    assert not torch.equal(token_order(50, 1, 2), token_order(50, 2, 2))


def test_a_layer_that_never_ran_has_seen_nothing():
    statistics = LayerMoments(Gram(4, CPU), zero(3, 4), 0, 1, 1, 1).finish()
    assert (statistics.seen, statistics.tokens) == (0, 0)
    assert (statistics.inputs.shape, statistics.outputs.shape, statistics.held_out.shape) == ((0, 4), (0, 3), (0, 4))


def test_a_layer_that_saw_nan_is_an_error():
    with pytest.raises(ValueError, match="not finite"):
        observed([torch.full((10, 4), float("nan"))], width=4)
