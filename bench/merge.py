"""Speed, objective and memory of the merge, on SD1.5's full layer shapes.

Solvers: one layer of each shape of the UNet's attention, feed-forward and proj_in/out and of the text encoder, weighted
by how many there are; 1,024 tokens per concept, the same ones for both solvers.

    time_ratio            seconds of the published optimiser / seconds of the exact solver, moments included
    objective_exact       Σ over layers of 1/n Σ_i [ d_p,i² + max(0, m − d_n,i)² ] + λ_mse MSE, over all tokens
    objective_adamw       the same of the published optimiser
    worst_layer_ratio     the largest exact / adamw of one layer

Capture: a real merge on a full-size UNet and text encoder with random weights.

    capture_ratio         capture seconds / seconds of as many UNet evaluations without hooks, taken in alternation
    extra_memory_mib      peak of the process's own memory beyond the loaded model after a bare run; pages of mapped
                          files, which the system may drop, are not counted
"""

import ctypes
import gc
import math
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import comfy.model_detection
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import psutil
import safetensors.torch
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_base import BaseModel
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.sd1_clip import SD1ClipModel
from comfy.supported_models import SD15
from loraclr.loraclr_core import adamw, exact, lowrank
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.gram import Gram
from loraclr.loraclr_core.host import lora_file, merging
from loraclr.loraclr_core.host.capture import SAMPLES, CaptureSettings
from loraclr.loraclr_core.host.lora_keys import Names
from loraclr.loraclr_core.host.merging import MergeSettings
from loraclr.loraclr_core.lowrank import LowRank
from loraclr.loraclr_core.moments import ConceptStatistics, LayerMoments
from loraclr.loraclr_core.objective import Margin, negative_distances
from torch import Tensor, nn

CONCEPTS = (2, 12)
RANK = 16
# ‖ΔW‖ / ‖W‖ of a trained LoRA.
STRENGTHS = (0.05, 0.10)
RIDGE = 0.01  # the node's default
OTHER_RIDGES = (1e-4, 1e-1)
MARGIN = Margin(0.5)

TOKENS = 1024
TOKENS_PER_CALL = 128
EXACT_RUNS = 3
# Above so many multiplications the published optimiser is timed over a few of its iterations, which are all alike.
FULL_RUN = 2e11
TIMED_ITERATIONS = 2

LATENT = (4, 32, 32)
STEPS = 4
# Concepts captured at least per figure: a few are soon captured, and one run of them is at the mercy of the machine.
CAPTURED = 12
PROMPT = "photo of a {trigger}"

# SD1.5's UNet as the host's detection describes it to `model_config_from_unet_config`.
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}
UNET_PARAMETERS = 859_520_964


def run() -> dict:
    shapes = layer_shapes()
    solved = {n: measure_solvers(n, shapes) for n in CONCEPTS}
    captured = measure_captures(CONCEPTS)
    return {"merge": {str(n): solved[n] | captured[n] for n in CONCEPTS}}


def say(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr, flush=True)


# --- the model -------------------------------------------------------------------------------------------------------


def sd15(device: str) -> tuple[BaseModel, SD15]:
    """SD1.5's diffusion model in float32, its weights not set."""
    config = comfy.model_detection.model_config_from_unet_config(UNET_CONFIG, {})
    assert isinstance(config, SD15)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device=device)
    found = sum(p.numel() for p in model.diffusion_model.parameters())
    if found != UNET_PARAMETERS:
        raise RuntimeError(f"this is not SD1.5's UNet: it has {found} parameters instead of {UNET_PARAMETERS}")
    return model, config


def lora_layers(model: nn.Module, text_encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that LoRA trainers train, by their names in the host."""
    for name, block in model.named_modules():
        if isinstance(block, SpatialTransformer):
            yield from ((f"{name}.{inner}", m) for inner, m in block.named_modules() if is_matrix(m))
    yield from ((name, m) for name, m in text_encoder.named_modules() if ".layers." in name and is_matrix(m))


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def layer_shapes() -> Counter[tuple[int, int]]:
    """(in, out) -> how many layers of SD1.5 have that shape."""
    layers = lora_layers(sd15("meta")[0], SD1ClipModel(device="meta"))
    return Counter((module.weight.shape[1], module.weight.shape[0]) for _, module in layers)


# --- solvers ---------------------------------------------------------------------------------------------------------


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
        own = normal(TOKENS, 8) @ normal(8, in_width) / 8**0.5
        x = 0.30**0.5 * common_mean + 0.05**0.5 * normal(in_width) + 0.10**0.5 * own + 0.55**0.5 * noise
        initial, learnt = normal(RANK, in_width), normal(RANK, TOKENS) @ x
        down = initial / initial.norm() + learnt / learnt.norm()
        inputs.append(x)
        deltas.append(of_strength(LowRank(normal(out_width, RANK), down), weight, generator))
    return Layer(weight, inputs, deltas)


def of_strength(delta: LowRank, weight: Tensor, generator: torch.Generator) -> LowRank:
    low, high = STRENGTHS
    strength = low + (high - low) * float(torch.rand((), generator=generator))
    return delta.scaled(float(strength * weight.norm() / delta.norm()))


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

        of_adamw, of_exact, *of_others = objectives(
            layer, [published, runs[0][0], *(solve_exactly(layer, ridge, device)[0] for ridge in OTHER_RIDGES)], device
        )
        print(
            f"{in_width:5} {out_width:6} {count:6} {of_adamw:10.5g} {of_exact:10.5g} {of_exact / of_adamw:7.4f} ",
            end="",
        )
        print(*(f"{other / of_adamw:8.4f}" for other in of_others), end=" ")
        print(
            f"{'~' if is_estimate else ' '}{adamw_time:9.3f} {exact_time:8.3f} {adamw_time / exact_time:6.1f}",
            flush=True,
        )
        seconds_exact += count * exact_time
        seconds_adamw += count * adamw_time
        objective_exact += count * of_exact
        objective_adamw += count * of_adamw
        worst = max(worst, of_exact / of_adamw)
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


# --- capture ---------------------------------------------------------------------------------------------------------


def measure_captures(counts: tuple[int, ...]) -> dict[int, dict]:
    say("building SD1.5 with random weights")
    model, clip = random_sd15(seed=0)
    with tempfile.TemporaryDirectory(prefix="loraclr-bench-") as folder:
        concepts = [random_concept(model, clip, Path(folder), index) for index in range(max(counts))]
        bare = BareRun(model, clip)
        bare.seconds()  # the first run loads
        return {count: measure_merges(model, clip, concepts[:count], bare) for count in counts}


def measure_merges(model: ModelPatcher, clip, concepts: list[Concept], bare_run: "BareRun") -> dict:
    """The same merge until CAPTURED concepts have been captured: seconds of all of them, memory of the largest."""
    capture_seconds, bare, peak = 0.0, [], 0.0
    for _ in range(math.ceil(CAPTURED / len(concepts))):
        seconds, found, memory = merged_once(model, clip, concepts, bare_run)
        capture_seconds, peak = capture_seconds + seconds, max(peak, memory)
        bare += found
    ratio = capture_seconds / (statistics.median(bare) * len(bare))
    print(f"{len(concepts)} concepts: capture / bare evaluations {ratio:.3f}, peak beyond the model {peak:.0f} MiB")
    return {"capture_ratio": round(ratio, 3), "extra_memory_mib": round(peak)}


def merged_once(
    model: ModelPatcher, clip, concepts: list[Concept], bare_run: "BareRun"
) -> tuple[float, list[float], float]:
    """Seconds of the captures, seconds of every bare run between them, and MiB beyond the model."""
    capture = CaptureSettings(prompts=(PROMPT,), steps=STEPS, seed=0, latent_shape=LATENT)
    settings = MergeSettings("exact", MARGIN, RIDGE, 0.0, capture, True)
    # A fresh clone: captures are kept per model, and this run is to make its own.
    model = model.clone()
    bare: list[float] = []

    def progress(phase: str, done: float) -> None:
        say(f"{len(concepts)} concepts, {phase}")
        # Before every concept's capture, the same evaluations without hooks.
        if phase.startswith("capturing ") and "evaluation" not in phase:
            bare.append(bare_run.seconds())

    with peak_memory() as memory:
        result = merging.merge(model, clip, concepts, settings, progress)
    capture_seconds = result.seconds["capture"] - sum(bare)
    print(
        f"\nmerge of {len(concepts)} concepts on SD1.5, latent {LATENT}, {STEPS} steps, {result.evaluations} evaluations"
    )
    print(f"  capture {capture_seconds:.1f} s, bare evaluations {sum(bare):.1f} s")
    print("  seconds:", ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items()), flush=True)
    return capture_seconds, bare, memory[0]


class BareRun:
    """One concept's UNet evaluations through the host's sampler, without hooks; the prompt is encoded beforehand."""

    def __init__(self, model: ModelPatcher, clip):
        self.guider = comfy.samplers.CFGGuider(model)
        self.guider.inner_set_conds({"positive": clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))})
        self.latent = torch.zeros(1, *LATENT)
        self.noise = comfy.sample.prepare_noise(self.latent, 0)
        sampling = model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)

    def seconds(self) -> float:
        sampler = comfy.samplers.sampler_object("euler")
        start = time.perf_counter()
        self.guider.sample(self.noise, self.latent, sampler, self.sigmas, disable_pbar=True, seed=0)
        return time.perf_counter() - start


def random_sd15(seed: int) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """SD1.5's diffusion model and text encoder, built by the host, with seeded weights that keep what passes finite."""
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model, config = sd15("cpu")
    patcher = CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    clip = comfy.sd.CLIP(config.clip_target())
    generator = torch.Generator().manual_seed(seed)
    for module in (model.diffusion_model, clip.cond_stage_model):
        for name, weight in module.named_parameters():
            if weight.ndim <= 1:
                weight.data.fill_(float(name.endswith("weight")))
            else:
                weight.data.normal_(0.0, 0.5 * weight[0].numel() ** -0.5, generator=generator)
    return patcher, clip


def random_concept(model: ModelPatcher, clip, folder: Path, index: int) -> Concept:
    """A LoRA of random factors on every layer that trainers train, as a kohya file in half precision."""
    generator = torch.Generator().manual_seed(100 + index)
    names = Names(model, clip)
    tensors: dict[str, Tensor] = {}
    for name, module in lora_layers(model.model, clip.cond_stage_model):
        weight = module.weight.flatten(1)
        up, down = (torch.randn(*s, generator=generator) for s in ((weight.shape[0], RANK), (RANK, weight.shape[1])))
        delta = of_strength(LowRank(up, down / weight.shape[1] ** 0.5), weight, generator)
        tensors |= names.factors(f"{name}.weight", delta, module.weight.shape)
    path = folder / f"concept{index}.safetensors"
    safetensors.torch.save_file({key: tensor.half() for key, tensor in tensors.items()}, path)
    return Concept(f"c{index}", f"sks{index}", "thing", path.name, path, lora_file.sha256(path), 1.0, 1.0)


@contextmanager
def peak_memory(interval: float = 0.01) -> Iterator[list[float]]:
    """A list whose one number is, afterwards, how much this process grew at most, in MiB, device memory included."""
    cuda = torch.cuda.is_available()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory freed before is not the baseline's
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before, device_before = own_memory(), torch.cuda.memory_allocated() if cuda else 0
    highest, stop, result = before, threading.Event(), [0.0]

    def watch() -> None:
        nonlocal highest
        while not stop.wait(interval):
            highest = max(highest, own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield result
    finally:
        stop.set()
        watcher.join()
        device = torch.cuda.max_memory_allocated() - device_before if cuda else 0
        result[0] = (highest - before + device) / 2**20


def own_memory() -> int:
    """Resident bytes of this process that are backed by no file."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)
