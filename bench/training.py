"""Speed and memory of **Train Concept LoRA** on a full-size SD1.5 with random weights, beside ComfyUI's own Train LoRA.

One picture of a 32×32 latent in float32, batch 1, LoRAs of rank 16. Rounds alternate over the kinds of steps; a ratio is the
median over the rounds. ComfyUI's node trains convolutions, norms and biases, too; steps on all linear layers are the nearest
to that here. It is measured as its defaults have it, but without checkpointing, and in its bypass mode.

    preserved         a step with preservation / a plain step
    every_second      a step with preservation in every second one, the mean of two / a plain step
    checkpointed      a plain step with checkpointing / one without
    all_linear        a plain step on all linear layers / one on the default layers
    stock             a plain step / a step of Train LoRA
    stock_bypass      the same in its bypass mode
    memory_…          the same of the peak memory beyond the model

On a CUDA device it also prints what 1,000 steps take there: SD1.5 at 512×512 pixels, SDXL at 1024×1024.
"""

import contextlib
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import comfy.model_detection
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.supported_models import SDXL
from comfy_extras.nodes_train import TrainLoraNode
from loraclr.loraclr_core.host import differentiable
from loraclr.loraclr_core.host.loaded import LoadedModel, changes_in_place, encode, with_model
from loraclr.loraclr_core.host.lora.layers import Layers
from loraclr.loraclr_core.host.train.checkpointing import checkpointed
from loraclr.loraclr_core.host.train.data import Dataset, Picture
from loraclr.loraclr_core.host.train.layers import chosen_layers
from loraclr.loraclr_core.host.train.learner import Learner
from loraclr.loraclr_core.host.train.rows import SCALE, Conds, Rows
from loraclr.loraclr_core.host.train.settings import TrainSettings
from loraclr.loraclr_core.train.captions import Caption
from sampling import peak_of
from sd15 import fill, random_sd15, say, sd15
from sdxl import UNET_CONFIG
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity

RANK = 16
LATENT = (1, 4, 32, 32)
CAPTION = Caption("photo of a sks cat", "photo of a cat")
STEPS = 2  # of a kind in a round; even, so that half of them preserve in “every second”
ROUNDS = 3
DEVICE_STEPS = 20  # on a CUDA device

# SDXL's U-Net, as the host's detection describes it.
SDXL_CONFIG = UNET_CONFIG | {
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}


def now() -> float:
    """Return seconds on the clock: of the processor where it does the work, as other jobs then do not count."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class Kind(NamedTuple):
    """A kind of step: settings beside the defaults, and whether blocks are checkpointed."""

    settings: dict
    checkpoints: bool = False


KINDS = {
    "plain": Kind({"preservation": 0.0}),
    "preserved": Kind({}),
    "every second": Kind({"preserve_every": 2}),
    "checkpointed": Kind({"preservation": 0.0}, checkpoints=True),
    "all linear": Kind({"preservation": 0.0, "layers": "all linear"}),
}
# ComfyUI's own node: settings beside those that all have.
STOCK = {"stock": {}, "stock, bypass": {"bypass_mode": True}}
RATIOS = {
    "preserved": ("preserved", "plain"),
    "every_second": ("every second", "plain"),
    "checkpointed": ("checkpointed", "plain"),
    "all_linear": ("all linear", "plain"),
    "stock": ("plain", "stock"),
    "stock_bypass": ("plain", "stock, bypass"),
}


class Trainee(NamedTuple):
    """A model, what a LoRA is trained on, and the learner of each kind."""

    model: ModelPatcher
    data: Dataset
    conds: Conds
    layers: dict[str, Layers]
    learners: dict[str, Learner]


def run() -> dict:
    if torch.cuda.is_available():
        print_device_costs()
    say("building SD1.5 with random weights")
    model, clip = random_sd15(seed=0)
    trainee = make_trainee(model, clip, LATENT)
    say("memory")
    peaks = step_peaks(trainee) | {name: stock_peak(trainee, name) for name in STOCK}
    for name, peak in peaks.items():
        say(f"{name}: {peak / 2**20:.0f} MiB beyond the model")
    seconds: dict[str, list[float]] = {}
    for turn in range(ROUNDS):
        times = step_seconds(trainee) | {name: stock_seconds(trainee, name) for name in STOCK}
        for name in times:
            seconds.setdefault(name, []).append(statistics.mean(times[name]))
            say(f"round {turn + 1} of {ROUNDS}, {name}: {seconds[name][-1]:.2f} s")
    print(f"\nTraining on SD1.5, latent {LATENT}, rank {RANK}, batch 1")
    for name, times in seconds.items():
        print(f"  {name:14} {statistics.median(times):6.2f} s per step, {peaks[name] / 2**20:.0f} MiB beyond the model")
    result = {}
    for title, (name, reference) in RATIOS.items():
        ratios = [one / other for one, other in zip(seconds[name], seconds[reference], strict=True)]
        result[title] = round(statistics.median(ratios), 3)
        result[f"memory_{title}"] = round(peaks[name] / peaks[reference], 3)
    return {"training": result}


def make_trainee(
    model: ModelPatcher, clip: comfy.sd.CLIP, shape: tuple[int, ...], kinds: Iterable[str] = KINDS
) -> Trainee:
    """Return a model with one picture of noise, and learners of these kinds that have taken no step."""
    with torch.inference_mode(False), torch.no_grad():
        conds = {text: encode(clip, text) for text in (*CAPTION, "")}
        latent = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        layers = {name: chosen_layers(model, settings_of(name).layers) for name in kinds}
        learners = {name: Learner(layers[name], settings_of(name)) for name in kinds}
    return Trainee(model, Dataset([Picture(latent, CAPTION, None)], [], []), conds, layers, learners)


def settings_of(name: str) -> TrainSettings:
    return TrainSettings(trigger="sks cat", class_word="cat", rank=RANK, **KINDS[name].settings)


# --- steps -----------------------------------------------------------------------------------------------------------


def on_loaded(trainee: Trainee, work: Callable[[Callable[[str], None], torch.device], None]) -> None:
    """Call `work(take_step, device)` on the loaded model; `take_step` takes one of a kind."""
    latent = torch.zeros_like(trainee.data.pictures[0].latent)

    def on(loaded: LoadedModel) -> None:
        def take_step(name: str) -> None:
            model, learner = loaded._replace(layers=trainee.layers[name]), trainee.learners[name]
            learner.to(loaded.noise.device)
            rows = Rows(model, trainee.data, trainee.conds, learner.settings)
            unet = model.inner.diffusion_model
            with checkpointed(unet, model.in_place) if KINDS[name].checkpoints else contextlib.nullcontext():
                losses = rows.add_gradients(learner.deltas, learner.step)
            learner.descend(losses, SCALE)

        work(take_step, loaded.noise.device)

    inner, layers = trainee.model.model, next(iter(trainee.layers.values()))
    with differentiable.gradients(changes_in_place(inner), "", [inner]), torch.no_grad():
        conds, sigmas = list(trainee.conds.values()), torch.tensor([1.0, 0.0])
        with_model(trainee.model, layers, conds, latent, sigmas, on)


def step_seconds(trainee: Trainee) -> dict[str, list[float]]:
    """Return the seconds of STEPS steps of each kind."""
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}

    def work(take_step: Callable[[str], None], device: torch.device) -> None:
        for name in [*KINDS] * STEPS:
            start = now()
            take_step(name)
            seconds[name].append(now() - start)

    on_loaded(trainee, work)
    return seconds


def step_peaks(trainee: Trainee) -> dict[str, int]:
    """Return the most that a training of each kind holds beyond the model, in bytes."""
    peaks: dict[str, int] = {}

    def work(take_step: Callable[[str], None], device: torch.device) -> None:
        for name, learner in trainee.learners.items():
            if name == "every second" and learner.step % 2:
                take_step(name)  # the next one preserves
            with peak_memory() as peak:
                take_step(name)
            peaks[name] = peak[0] + held_bytes(learner.optimizer) + sum(average.nbytes for average in learner.averages)

    on_loaded(trainee, work)
    return peaks


@contextlib.contextmanager
def peak_memory() -> Iterator[list[int]]:
    """A list whose one number is, afterwards, the most that tensors grew by, in bytes, by torch's own account."""
    peak = [0]
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield peak
    peak[0] = peak_of(profiler)


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the size of what is trained, and of what the optimiser keeps of it."""
    trained = [factor for group in optimizer.param_groups for factor in group["params"]]
    return sum(tensor.nbytes for factor in trained for tensor in (factor, *optimizer.state[factor].values()))


# --- ComfyUI's own node ----------------------------------------------------------------------------------------------


def train_by_stock(trainee: Trainee, name: str, steps: int, step_done: Callable[[torch.optim.Optimizer], None]) -> None:
    """Train by ComfyUI's own node without checkpointing, and drop its copy of the model.

    step_done: called after each step.
    """
    inputs = TrainLoraNode.define_schema().inputs
    defaults = {schema.id: schema.default for schema in inputs if hasattr(schema, "default")}
    values = {
        "steps": steps,
        "rank": RANK,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "gradient_checkpointing": False,
        "existing_lora": "[None]",
        "model": copyable(trainee.model),
        "latents": {"samples": trainee.data.pictures[0].latent},
        "positive": trainee.conds[CAPTION.concept],
    }
    given = defaults | values | STOCK[name]
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: step_done(optimizer))
    try:
        TrainLoraNode.execute(**{key: [value] for key, value in given.items()})
    finally:
        hook.remove()
        comfy.model_management.unload_all_models()
        gc.collect()


def copyable(model: ModelPatcher) -> ModelPatcher:
    """Return a model that can be read again, as from a checkpoint: the node trains on a copy, here with the same weights."""

    def read_again(disable_dynamic: bool) -> ModelPatcher:
        copy, _ = sd15("cpu")
        copy.load_state_dict(model.model.state_dict(), assign=True)
        return ModelPatcher(copy, model.load_device, model.offload_device)

    model = model.clone()
    model.cached_patcher_init = (read_again, ())
    return model


def stock_seconds(trainee: Trainee, name: str) -> list[float]:
    """Return the seconds of a second step."""
    times: list[float] = []
    train_by_stock(trainee, name, 2, lambda _: times.append(now()))
    return [after - before for before, after in itertools.pairwise(times)]


def stock_peak(trainee: Trainee, name: str) -> int:
    """Return the most that a second step holds beyond the model, in bytes."""
    peaks: list[int] = []
    with contextlib.ExitStack() as measuring:
        peak = [0]

        def step_done(optimizer: torch.optim.Optimizer) -> None:
            nonlocal peak
            measuring.close()
            peaks.append(peak[0] + held_bytes(optimizer))
            peak = measuring.enter_context(peak_memory())

        train_by_stock(trainee, name, 2, step_done)
    return peaks[-1]


# --- on a device -----------------------------------------------------------------------------------------------------


def print_device_costs() -> None:
    """Print seconds and GiB of 1,000 steps on a CUDA device, in bfloat16."""
    print(f"\nTraining on {torch.cuda.get_device_name()}, bfloat16, rank {RANK}, batch 1: 1,000 steps")
    print_costs("SD1.5, 512×512", make_trainee(*random_sd15(0, torch.bfloat16), (1, 4, 64, 64)))
    comfy.model_management.unload_all_models()
    print_costs("SDXL, 1024×1024", make_trainee(*random_sdxl(0), (1, 4, 128, 128)))
    comfy.model_management.unload_all_models()


def print_costs(title: str, trainee: Trainee) -> None:
    """Print the figures of each kind, from DEVICE_STEPS steps each."""

    def work(take_step: Callable[[str], None], device: torch.device) -> None:
        for name in KINDS:
            take_step(name)
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            start = time.perf_counter()
            for _ in range(DEVICE_STEPS):
                take_step(name)
            torch.cuda.synchronize(device)
            seconds = (time.perf_counter() - start) / DEVICE_STEPS * 1000
            memory = torch.cuda.max_memory_allocated(device) / 2**30
            print(f"  {title}, {name:14} {seconds:7.0f} s, {memory:.1f} GiB with the model", flush=True)
            trainee.learners[name].to(torch.device("cpu"))

    on_loaded(trainee, work)


def random_sdxl(seed: int) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """SDXL's diffusion model and text encoders in bfloat16, built by the host."""
    config = comfy.model_detection.model_config_from_unet_config(SDXL_CONFIG, {})
    assert isinstance(config, SDXL)
    config.set_inference_dtype(torch.bfloat16, None)
    model = config.get_model({}, device="cpu")
    clip = comfy.sd.CLIP(config.clip_target())
    fill(seed, model.diffusion_model, clip.cond_stage_model)
    device = comfy.model_management.get_torch_device()
    return CoreModelPatcher(model, device, comfy.model_management.unet_offload_device()), clip
