"""Speed and objective of the exact solver beside the published optimiser, on SD1.5's full layer shapes.

One layer of each shape of the UNet's attention, feed-forward and proj_in/out and of the text encoder, weighted by how many
there are; 1,024 tokens per concept, the same ones for both solvers.

    time_ratio            seconds of the published optimiser / seconds of the exact solver, moments included
    objective_exact       Σ over layers of 1/n Σ_i [ d_p,i² + max(0, m − d_n,i)² ] + λ_mse MSE, over all tokens
    objective_adamw       the same of the published optimiser
    worst_layer_ratio     the largest exact / adamw of one layer
"""

import statistics
import time
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import comfy.model_management
import pack
import torch
from loraclr.loraclr_core import lowrank
from loraclr.loraclr_core.host.merge.target import SAMPLES
from loraclr.loraclr_core.lowrank import LowRank
from loraclr.loraclr_core.merge import adamw, exact
from loraclr.loraclr_core.merge.gram import Gram
from loraclr.loraclr_core.merge.moments import ConceptStatistics, LayerMoments
from loraclr.loraclr_core.merge.objective import Margin, negative_distances
from sd15 import RANK, layer_shapes, of_strength, say
from torch import Tensor

CONCEPTS = (2, 12)
DEFAULTS = pack.defaults("LoRACLR_Merge")
RIDGE = DEFAULTS["ridge"]
OTHER_RIDGES = (1e-4, 1e-2)
MARGIN = Margin(DEFAULTS["margin"])

TOKENS = 1024
TOKENS_PER_CALL = 128
EXACT_RUNS = 3
# Above so many multiplications the published optimiser is timed over a few of its iterations, which are all alike.
FULL_RUN = 2e11
TIMED_ITERATIONS = 2


def run() -> dict:
    shapes = layer_shapes()
    return {"merge": {str(count): measure_solvers(count, shapes) for count in CONCEPTS}}


class Layer(NamedTuple):
    """weight: (out, in); inputs: one (tokens, in) per concept; deltas: one per concept."""

    weight: Tensor
    inputs: list[Tensor]
    deltas: list[LowRank]

    def outputs(self) -> list[Tensor]:
        """What each concept wants the layer to say, (tokens, out)."""
        return [x @ self.weight.T + delta.apply(x) for x, delta in zip(self.inputs, self.deltas, strict=True)]


def synthetic_layer(in_width: int, out_width: int, concepts: int, seed: int) -> Layer:
    """A layer with the traits of a trained model's that decide how hard it is to merge.

    Inputs have unit mean square. 30 % of it is one mean vector common to all tokens and concepts, 5 % a mean of the
    concept's own, 10 % eight directions of the concept's own, and the rest noise whose variance falls as 1/k over
    directions k that mix all coordinates; half of that noise is the same for all concepts at the same position, as
    captures start from the same latent. A concept's down matrix is half random, as it was initialised, and half made
    of the concept's own inputs, as gradients are; ‖ΔW‖ is 5–10 % of ‖W‖.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weight = normal(out_width, in_width) / in_width**0.5
    spectrum = 1 / torch.arange(1, in_width + 1)
    directions = (spectrum * in_width / spectrum.sum()).sqrt()[:, None] * normal(in_width, in_width) / in_width**0.5
    common_mean, common_noise = normal(in_width), normal(TOKENS, in_width)
    inputs, deltas = [], []
    for _ in range(concepts):
        noise = 0.5**0.5 * (common_noise + normal(TOKENS, in_width)) @ directions
        component = normal(TOKENS, 8) @ normal(8, in_width) / 8**0.5
        x = 0.30**0.5 * common_mean + 0.05**0.5 * normal(in_width) + 0.10**0.5 * component + 0.55**0.5 * noise
        initial, learnt = normal(RANK, in_width), normal(RANK, TOKENS) @ x
        down = initial / initial.norm() + learnt / learnt.norm()
        inputs.append(x)
        deltas.append(of_strength(LowRank(normal(out_width, RANK), down), weight, generator))
    return Layer(weight, inputs, deltas)


def measure_solvers(concepts: int, shapes: Counter[tuple[int, int]]) -> dict:
    device = comfy.model_management.get_torch_device()
    print(f"\n{concepts} concepts, one layer of each shape, {TOKENS} tokens per concept: objective and seconds")
    print(f"{'in':>5} {'out':>6} {'layers':>6} {'adamw':>10} {'exact':>10} {'ratio':>7} ", end="")
    print(*(f"{f'ρ={ridge:g}':>8}" for ridge in OTHER_RIDGES), f"{'adamw s':>10} {'exact s':>8} {'ratio':>6}")
    solve_exactly(synthetic_layer(64, 64, concepts, seed=0), RIDGE, device)  # the first call of a library is slow

    seconds_exact = seconds_adamw = objective_exact = objective_adamw = worst = 0.0
    for seed, ((in_width, out_width), count) in enumerate(sorted(shapes.items())):
        say(f"{concepts} concepts, {in_width} → {out_width}")
        layer = synthetic_layer(in_width, out_width, concepts, seed)
        runs = [solve_exactly(layer, RIDGE, device)]
        published, adamw_time, is_estimate = solve_as_published(layer, device)
        runs += [solve_exactly(layer, RIDGE, device) for _ in range(EXACT_RUNS - 1)]
        exact_time = statistics.median(seconds for _, seconds in runs)

        adamw_objective, exact_objective, *other_objectives = objectives(
            layer, [published, runs[0][0], *(solve_exactly(layer, ridge, device)[0] for ridge in OTHER_RIDGES)], device
        )
        print(
            f"{in_width:5} {out_width:6} {count:6} {adamw_objective:10.5g} {exact_objective:10.5g} {exact_objective / adamw_objective:7.4f} ",
            end="",
        )
        print(*(f"{other / adamw_objective:8.4f}" for other in other_objectives), end=" ")
        print(
            f"{'~' if is_estimate else ' '}{adamw_time:9.3f} {exact_time:8.3f} {adamw_time / exact_time:6.1f}",
            flush=True,
        )
        seconds_exact += count * exact_time
        seconds_adamw += count * adamw_time
        objective_exact += count * exact_objective
        objective_adamw += count * adamw_objective
        worst = max(worst, exact_objective / adamw_objective)
    print(f"all {shapes.total()} layers: {seconds_adamw:.0f} s published, {seconds_exact:.1f} s exact")
    return {
        "time_ratio": round(seconds_adamw / seconds_exact, 2),
        "objective_exact": round(objective_exact, 3),
        "objective_adamw": round(objective_adamw, 3),
        "worst_layer_ratio": round(worst, 4),
    }


def solve_exactly(layer: Layer, ridge: float, device: torch.device) -> tuple[LowRank, float]:
    """The merged Δ and its seconds, from the layer's features on: moments, factorisation, solution."""
    outputs = layer.outputs()
    start = time.perf_counter()
    gram, concepts = Gram(layer.weight.shape[1], device), []
    for x, y, delta in zip(layer.inputs, outputs, layer.deltas, strict=True):
        calls = TOKENS // TOKENS_PER_CALL
        moments = LayerMoments(gram, delta, seed=0, calls=calls, samples=SAMPLES, held_out=0)
        for call_inputs, call_outputs in zip(x.split(TOKENS_PER_CALL), y.split(TOKENS_PER_CALL), strict=True):
            moments.observe(call_inputs, call_outputs)
        concepts.append(moments.finish())
    merged = exact.solve(gram, concepts, ridge, MARGIN, device)
    seconds = time.perf_counter() - start
    if any(concept.tokens != TOKENS for concept in concepts):
        raise RuntimeError(f"the moments count {concepts[0].tokens} tokens instead of {TOKENS}")
    return merged, seconds


def solve_as_published(layer: Layer, device: torch.device) -> tuple[LowRank, float, bool]:
    """The published optimiser's Δ, its seconds, and whether these are an estimate from fewer iterations."""
    outputs = layer.outputs()
    concepts = [
        ConceptStatistics(delta, torch.empty(0), TOKENS, TOKENS, x, y, x[:0])
        for x, y, delta in zip(layer.inputs, outputs, layer.deltas, strict=True)
    ]
    iterations = adamw.PUBLISHED.iterations
    work = 2 * iterations * len(concepts) * TOKENS * layer.weight.numel()  # forward and backward
    if work <= FULL_RUN:
        start = time.perf_counter()
        return adamw.solve(concepts, MARGIN, device), time.perf_counter() - start, False

    seconds = []
    for count in (1, 1 + TIMED_ITERATIONS):
        start = time.perf_counter()
        adamw.solve(concepts, MARGIN, device, replace(adamw.PUBLISHED, iterations=count))
        seconds.append(time.perf_counter() - start)
    first, more = seconds
    delta = published_on_moments(layer, device)
    for reached in (lowrank.zero(*layer.weight.shape), delta):
        if (negative_distances(concepts, reached) < MARGIN.value).any():
            raise RuntimeError("the margin is active, so moments do not tell what the published optimiser does")
    return delta, first + (more - first) * (iterations - 1) / TIMED_ITERATIONS, True


def published_on_moments(layer: Layer, device: torch.device) -> LowRank:
    """The iterates of `adamw.solve` from second moments, for layers where features take minutes.

    Away from the margin the loss is c (Δ S Δᵀ − 2 Δ Tᵀ) + λ_Δ ‖Δ‖ + a constant,
    with S = Σ G_i, T = Σ ΔW_i G_i and c = 1/n + λ_mse/(n · tokens · out).
    """
    settings = adamw.PUBLISHED
    n, (out_width, in_width) = len(layer.inputs), layer.weight.shape
    c = 1 / n + settings.weight_mse / (n * TOKENS * out_width)
    system, target, constant = torch.zeros(in_width, in_width, device=device), 0.0, 0.0
    for x, delta in zip((x.to(device) for x in layer.inputs), (d.to(device) for d in layer.deltas), strict=True):
        system = system + x.T @ x
        target = target + delta.up @ ((x @ delta.down.T).T @ x)
        constant = constant + delta.apply(x).square().sum()
    delta = torch.zeros(out_width, in_width, device=device)
    optimizer = torch.optim.AdamW([delta], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    best, best_loss = delta.clone(), torch.tensor(float("inf"), device=device)
    for _ in range(settings.iterations):
        product, size = delta @ system, delta.norm()
        loss = c * ((delta * (product - 2 * target)).sum() + constant) + settings.weight_delta * size
        best = torch.where(loss < best_loss, delta, best)
        best_loss = torch.minimum(loss, best_loss)
        delta.grad = 2 * c * (product - target) + settings.weight_delta * delta / size.clamp(min=1e-30)
        optimizer.step()
    return lowrank.from_dense(best).to("cpu")


def objectives(layer: Layer, deltas: list[LowRank], device: torch.device) -> list[float]:
    """The published objective of each Δ without its regularisation term, over all tokens."""
    inputs, targets = torch.stack(layer.inputs).to(device), torch.stack(layer.outputs()).to(device)
    base = inputs @ layer.weight.to(device).T
    settings = replace(adamw.PUBLISHED, weight_delta=0.0)
    margin = MARGIN.value
    return [float(adamw.loss(d.dense().to(device), inputs, targets, base, margin, settings)) for d in deltas]
