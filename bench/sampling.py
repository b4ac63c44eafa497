"""Speed and memory of CLoRA sampling, on SD1.5's full UNet with random weights.

A 32×32 latent, one picture, rank-16 LoRAs on all attention and feed-forward layers, K concepts; Euler through the host's
sampler, the first step of a run not counted, the fastest of the others. The plain step evaluates the same 2(K+1) rows
as a batch without LoRAs; a step of CLoRA is one of the plain picture and one of the concepts, which have as many together.

    plain_ratio           a step without updates / a plain step; attention is read and predictions are fused in it
    update_ratio          a step with one update, gradients all at once (the default) / a plain step
    update_ratio_one      the same with gradients one branch at a time
    hooks_ratio           a step without updates / the same predictions by the host's LoRA hooks, a group per branch
    hooks_update_ratio    a step with one update / the same by LoRA hooks; its gradient is taken through the whole model
    memory_ratio_one      peak memory of an update step / of a plain step, gradients one branch at a time; what lives
    memory_ratio_all      throughout (weights, LoRAs) is not counted. The other: all at once
    turn_ratio            a step with one concept, in turn / a step without updates, with all concepts
    memory_ratio_turn     peak memory of such a step / of a plain step
    view_ratio            a frame of the live view, made and packed / a step without updates
"""

import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import comfy.hooks
import comfy.samplers
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.model_patcher import ModelPatcher
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.host import differentiable
from loraclr.loraclr_core.host.lora import adapters
from loraclr.loraclr_core.host.lora.adapters import Effect
from loraclr.loraclr_core.host.lora.load import Loaded
from loraclr.loraclr_core.host.lora.match import key_names, match_lora
from loraclr.loraclr_core.host.sampler.attention import Read, Recorder
from loraclr.loraclr_core.host.sampler.branches import BranchAdapters
from loraclr.loraclr_core.host.sampler.clora import CLoRA
from loraclr.loraclr_core.host.sampler.layers import read_layers
from loraclr.loraclr_core.host.sampler.live import LiveView
from loraclr.loraclr_core.host.sampler.notes import Notes
from loraclr.loraclr_core.host.sampler.settings import GradientMemory, Settings, UpdateSettings
from loraclr.loraclr_core.host.sampler.tags import Tags
from loraclr.loraclr_core.host.sampler.take import Composition
from loraclr.loraclr_core.sampler import separation
from loraclr.loraclr_core.sampler.areas import AreaSettings
from loraclr.loraclr_core.sampler.separation import Branch
from sd15 import random_sd15, say
from torch import Tensor
from torch.profiler import ProfilerActivity

CONCEPTS = (2, 4)
RANK = 16
LATENT = (4, 32, 32)
TOKENS = 77
CFG = 7.5
STEPS = 3
ROUNDS = 2


def run() -> dict:
    say("building SD1.5 with random weights")
    model, clip = random_sd15(seed=0)
    return {"sampler": {str(count): measure(model, clip, count) for count in CONCEPTS}}


def measure(model: ModelPatcher, clip, count: int) -> dict:
    loras = [random_lora(model, seed) for seed in range(count)]
    texts = [random_text(seed) for seed in range(2 * (count + 1))]
    plain = comfy.samplers.CFGGuider(model)
    plain.set_conds([[texts[0], {}]], [[texts[1], {}]])
    plain.set_cfg(CFG)
    hooks = ByHooks(model, loras, texts, update=False)
    hooks_update = ByHooks(model, loras, texts, update=True)
    runs: dict[str, Callable[[], comfy.samplers.CFGGuider]] = {
        "plain": lambda: plain,
        "masks only": lambda: ours(model, clip, loras, texts, 0.0, "one branch at a time"),
        "in turn": lambda: ours(model, clip, loras, texts, 0.0, "one branch at a time", concepts_per_step=1),
        "update, one by one": lambda: ours(model, clip, loras, texts, 0.02, "one branch at a time"),
        "hooks": lambda: hooks,
        "hooks, update": lambda: hooks_update,
        "update, all at once": lambda: ours(model, clip, loras, texts, 0.02, "all at once"),
    }
    timed = ["plain", "masks only", "in turn", "update, all at once"]
    seconds: dict[str, list[float]] = {}
    for turn, names in enumerate([*[timed] * ROUNDS, ["plain", "hooks", "hooks, update", "update, one by one"]]):
        for name in names:
            times = step_seconds(runs[name](), pictures(name, count))
            say(f"{count} concepts, {name}, round {turn + 1} of {ROUNDS + 1}: {min(times):.2f} s")
            seconds.setdefault(name, []).extend(times)
    best = {name: min(times) for name, times in seconds.items()}
    peaks = {}
    for name in ("plain", "in turn", "update, one by one", "update, all at once"):
        say(f"{count} concepts, {name}, memory")
        peaks[name] = peak_bytes(runs[name](), pictures(name, count))

    print(f"\nCLoRA sampling of {count} concepts, SD1.5, latent {LATENT}")
    for name, times in seconds.items():
        peak = f", peak {peaks[name] / 2**20:.0f} MiB" if name in peaks else ""
        print(f"  {name:20} {best[name]:6.2f} s per step (median {statistics.median(times):.2f}){peak}", flush=True)
    return ratios(best, peaks) | {"view_ratio": round(frame_seconds(model, count) / best["masks only"], 4)}


def ratios(best: dict[str, float], peaks: dict[str, int]) -> dict[str, float]:
    """Return what the runs' steps take, in seconds and bytes, as ratios."""
    return {
        "plain_ratio": round(best["masks only"] / best["plain"], 3),
        "update_ratio": round(best["update, all at once"] / best["plain"], 3),
        "update_ratio_one": round(best["update, one by one"] / best["plain"], 3),
        "hooks_ratio": round(best["masks only"] / best["hooks"], 3),
        "hooks_update_ratio": round(best["update, all at once"] / best["hooks, update"], 3),
        "memory_ratio_one": round(peaks["update, one by one"] / peaks["plain"], 3),
        "memory_ratio_all": round(peaks["update, all at once"] / peaks["plain"], 3),
        "turn_ratio": round(best["in turn"] / best["masks only"], 3),
        "memory_ratio_turn": round(peaks["in turn"] / peaks["plain"], 3),
    }


def pictures(name: str, count: int) -> int:
    """A plain batch of K + 1 pictures with cond and uncond has the rows of one CLoRA picture."""
    return count + 1 if name == "plain" else 1


# --- what is measured ------------------------------------------------------------------------------------------------


def ours(
    model: ModelPatcher,
    clip,
    loras: list[dict],
    texts: list[Tensor],
    strength: float,
    memory: GradientMemory,
    concepts_per_step: int = 0,
) -> comfy.samplers.CFGGuider:
    names = key_names(model, clip)
    loaded = [loaded_lora(model, f"{number}", lora, names) for number, lora in enumerate(loras)]
    branches, tags = branches_of(len(loras)), Tags(len(loras) + 1)
    updates = UpdateSettings(strength=strength, end=1.0, refine_steps=(), gradient_memory=memory)
    settings = Settings(updates=updates, areas=AreaSettings(morphology="none"), concepts_per_step=concepts_per_step)
    concepts = [concept.concept for concept in loaded]
    composition = Composition(concepts, branches, BranchAdapters(model, loaded), tags, settings)
    guider = comfy.samplers.CFGGuider(CLoRA(composition, None, Notes(say)).patch(model))
    guider.set_conds(
        [[text, tags.of("positive", branch)] for branch, text in enumerate(texts[::2])],
        [[text, tags.of("negative", branch)] for branch, text in enumerate(texts[1::2])],
    )
    guider.set_cfg(CFG)
    return guider


def loaded_lora(model: ModelPatcher, name: str, lora: dict, names: dict) -> Loaded:
    matched = match_lora(name, lora, names)
    concept = Concept(name, "", "", name, Path(), "", 1.0, 1.0)
    return Loaded(concept, matched, adapters.effect(matched, model, 1.0, torch.device("cpu")), Effect())


class ByHooks(comfy.samplers.CFGGuider):
    """The obvious way: a group of LoRA hooks per branch, one branch after another."""

    def __init__(self, model: ModelPatcher, loras: list[dict], texts: list[Tensor], update: bool):
        super().__init__(model.clone())
        self.update = update
        self.branches = branches_of(len(loras))
        groups = [None, *(comfy.hooks.create_hook_lora(lora, 1.0, 0.0) for lora in loras)]
        branches = {}
        for branch, group in enumerate(groups):
            extra = {} if group is None else {"hooks": group}
            branches[f"cond {branch}"] = [[texts[2 * branch], extra]]
            branches[f"uncond {branch}"] = [[texts[2 * branch + 1], extra]]
        self.inner_set_conds(branches)
        self.set_cfg(CFG)
        self.count = len(groups)

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006  (the host's signature)
        if self.update:
            x = x - 1e-3 * self.gradient(x, timestep, model_options)
        lists = [self.conds[f"{role} {branch}"] for branch in range(self.count) for role in ("cond", "uncond")]
        predictions = comfy.samplers.calc_cond_batch(self.inner_model, lists, x, timestep, model_options)
        cond, uncond = (torch.stack(predictions[role::2]).mean(dim=0) for role in (0, 1))
        return uncond + self.cfg * (cond - uncond)

    def gradient(self, x: Tensor, timestep: Tensor, model_options: dict) -> Tensor:
        """Branch by branch, because switching a hook group overwrites weights that another branch's graph needs."""
        with differentiable.gradients(False, "update_strength"):
            z = x.clone().requires_grad_()
            with torch.no_grad():
                maps = {branch: self.maps(branch, z, timestep, model_options) for branch in range(self.count)}
            leaves = {branch: branch_maps.requires_grad_() for branch, branch_maps in maps.items()}
            to_maps = torch.autograd.grad(
                separation.loss(self.branches, leaves, UpdateSettings.temperature).sum(), list(leaves.values())
            )
            gradient = torch.zeros_like(z)
            for branch in range(self.count):
                branch_maps = self.maps(branch, z, timestep, model_options)
                gradient += torch.autograd.grad(branch_maps, z, to_maps[branch])[0]
        return gradient

    def maps(self, branch: int, z: Tensor, timestep: Tensor, model_options: dict) -> Tensor:
        recorder = Recorder(read_layers(self.inner_model.diffusion_model, *z.shape[-2:]), stop=False)

        def apply(apply_model, args):
            differentiable.make_normal(self.inner_model)
            recorder.begin([Read(range(len(z)), branch, TOKENS)], TOKENS, len(z))
            output = apply_model(args["input"], args["timestep"], **args["c"])
            recorder.add(recorder.end())
            return output

        transformer_options = {
            **model_options["transformer_options"],
            "optimized_attention_override": differentiable.attention,
        }
        transformer_options = recorder.options(transformer_options)
        options = {**model_options, "transformer_options": transformer_options, "model_function_wrapper": apply}
        differentiable.make_normal(self.inner_model)
        comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[f"cond {branch}"]], z, timestep, options)
        return recorder.maps()[branch]


def branches_of(count: int) -> list[Branch]:
    """Two tokens per concept and branch, as a prompt might have them."""
    tokens = [[4 + 3 * concept, 5 + 3 * concept] for concept in range(count)]
    return [Branch(None, tokens), *(Branch(concept, tokens) for concept in range(count))]


def random_text(seed: int) -> Tensor:
    return torch.randn(1, TOKENS, 768, generator=torch.Generator().manual_seed(seed))


def random_lora(model: ModelPatcher, seed: int) -> dict[str, Tensor]:
    """All attention and feed-forward layers, by the host's own names for them."""
    generator = torch.Generator().manual_seed(100 + seed)
    state = {}
    for name, block in model.model.named_modules():
        if isinstance(block, BasicTransformerBlock):
            for inner, layer in block.named_modules():
                if isinstance(layer, torch.nn.Linear):
                    up = torch.randn(layer.out_features, RANK, generator=generator)
                    down = torch.randn(RANK, layer.in_features, generator=generator)
                    state[f"{name}.{inner}.lora_up.weight"] = up * 0.02
                    state[f"{name}.{inner}.lora_down.weight"] = down / layer.in_features**0.5
    return state


# --- measuring -------------------------------------------------------------------------------------------------------


def sample(guider: comfy.samplers.CFGGuider, count: int, steps: int, step_done: Callable[[], None]) -> None:
    latent = torch.zeros(count, *LATENT)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    sampler = comfy.samplers.sampler_object("euler")
    guider.sample(noise, latent, sampler, sigmas, callback=lambda *_: step_done(), disable_pbar=True, seed=0)


def step_seconds(guider: comfy.samplers.CFGGuider, count: int) -> list[float]:
    """Of every step but the first, which loads and caches; over all takes."""
    times: list[float] = []
    sample(guider, count, STEPS, lambda: times.append(time.perf_counter()))
    takes = [itertools.pairwise(times[start : start + STEPS]) for start in range(0, len(times), STEPS)]
    return [sum(end - start for start, end in step) for step in zip(*takes, strict=True)]


def frame_seconds(model: ModelPatcher, count: int) -> float:
    """The median of what the live view takes for one frame, its JSON included."""
    view = LiveView([f"{i}" for i in range(count)], lambda frame: json.dumps(frame) and None, lambda: True)
    maps = torch.rand(1, count, *LATENT[1:])
    times = []
    for step in range(20):
        view.due = 0.0
        start = time.perf_counter()
        losses = {earlier: torch.rand(1) for earlier in range(step)}
        view.show(step, 50, model.model.latent_format, torch.randn(1, *LATENT), maps, maps, losses)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes(guider: comfy.samplers.CFGGuider, count: int) -> int:
    """The most a second step, of any take, holds beyond what there is at its start."""
    profilers, running = [], False

    def step_done() -> None:
        nonlocal running
        if running:
            profilers[-1].stop()
        else:
            profilers.append(torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True))
            profilers[-1].start()
        running = not running

    sample(guider, count, 2, step_done)
    return max(map(peak_of, profilers))


def peak_of(profiler: torch.profiler.profile) -> int:
    """By torch's own account of its allocations."""
    level, peak = 0, 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
