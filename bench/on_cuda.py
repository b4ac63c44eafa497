"""Both methods and the training on a CUDA device, in each of ComfyUI's ways to share its memory (vram.py).

SD1.5 and SDXL at their real sizes and Flux at its real width, with random weights, in half precision and in fp8. ComfyUI
settles its way when it starts, so each runs in a process of its own. Every picture is also made at a small size, and
compared with the CPU's, which computes in float32 on the same weights: the difference is ‖a − b‖ / ‖b‖ of the latents, and
of the losses of a training. Half precision alone makes one: on small models with random weights 0.001 in float16, and 0.1 to
0.4 in bfloat16, the same for ComfyUI's plain picture and ours. So the bound is twice the plain picture's.

    card            its name
    rows            model, way, work, seconds per picture, merge or training step, GiB of the device at most, difference, error
    beyond_bound    how many differ by more than twice as much as the plain picture, and by more than 0.01
    failed          how many works ended in an error
"""

# The file is not called cuda.py, which would hide a package of that name.

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import comfy.model_detection
import comfy.model_management
import comfy.sd
import nodes
import pack
import safetensors.torch
import torch
import vram
from capture import own_memory, watching
from comfy.model_patcher import ModelPatcher
from loraclr.loraclr_core.concept import Concept
from sd15 import UNET_CONFIG, fill, random_concept, say
from sdxl import encoded, loras_in
from torch import Tensor
from training import SDXL_CONFIG, make_trainee, on_loaded

# Bounds of a difference: times the plain picture's, and what is small enough anyway.
FACTOR, SMALL = 2.0, 0.01
PLAIN = "plain picture"
T = TypeVar("T")
CONCEPTS = 2
PROMPT = "a photo of {c0} and {c1} in a park"
FP8 = torch.float8_e4m3fn
# Flux.1's transformer, as the host's detection describes it, with 6 of its 19 double blocks and 12 of its 38 single ones.
FLUX_CONFIG = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "hidden_size": 3072,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "mlp_ratio": 4.0,
    "depth": 6,
    "depth_single_blocks": 12,
    "context_in_dim": 4096,
    "vec_in_dim": 768,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


class Size(NamedTuple):
    """latent: its shape. steps: of a picture, a capture or a training."""

    latent: tuple[int, ...]
    steps: int


class Form(NamedTuple):
    """A model whose weights are random. text: the host's options of its text encoders."""

    name: str
    unet: dict
    half: torch.dtype
    timed: Size
    compared: Size
    text: dict = {}


FORMS = [
    Form("SD1.5", UNET_CONFIG, torch.float16, Size((1, 4, 64, 64), 20), Size((1, 4, 32, 32), 2)),
    Form("SDXL", SDXL_CONFIG, torch.float16, Size((1, 4, 128, 128), 20), Size((1, 4, 64, 64), 2)),
    Form(
        "Flux, a third of its blocks",
        FLUX_CONFIG,
        torch.bfloat16,
        Size((1, 16, 128, 128), 20),
        Size((1, 16, 64, 64), 2),
        {"t5xxl_model_config": {"num_layers": 2}},
    ),
]


class Loaded(NamedTuple):
    """A model as ComfyUI's loaders give it, and two concepts for it."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    concepts: list[Concept]


class Case(NamedTuple):
    """A model in one precision."""

    name: str
    load: Callable[[], Loaded]
    timed: Size
    compared: Size


class Row(NamedTuple):
    """What a work took on the device; without figures where it ended in an error."""

    case: str
    way: str
    work: str
    seconds: float | None = None
    gib: float | None = None
    difference: float | None = None
    error: str = ""


def run() -> dict:
    if not torch.cuda.is_available():
        sys.exit("bench: cuda measures on a CUDA device, and torch finds none here. Run it on a machine that has one.")
    card = torch.cuda.get_device_name()
    print(f"CUDA device: {card}", flush=True)
    with tempfile.TemporaryDirectory(prefix="loraclr-bench-") as name:
        for form in FORMS:
            say(f"writing {form.name} with random weights")
            with torch.inference_mode():
                write(form, Path(name))
        rows = [row for way in vram.WAYS for row in run_apart(way, Path(name))]
    print(f"\n{card}: seconds per picture, merge or training step; GiB of the device; difference from the CPU")
    for row in rows:
        print(f"  {line(row)}{'  beyond the bound' if row in beyond(rows) else ''}")
    return {"cuda": {"card": card} | summary(rows)}


def run_apart(way: str, folder: Path) -> list[Row]:
    """Return what a process of its own measures in one way. folder: the models, and what the CPU made."""
    say(f"{way}: starting")
    command = [sys.executable, str(Path(__file__).parent), "cuda", str(folder)]
    code = subprocess.run(command, env={**os.environ, vram.VARIABLE: way}).returncode
    if code and way == "cpu":
        sys.exit("bench: the CPU's own pictures failed, see above; there is nothing to compare with")
    rows = json.loads(rows_of(way, folder).read_text("utf-8")) if rows_of(way, folder).exists() else []
    ended = [Row("", way, "", error=f"the process ended with {code}, see above")] if code else []
    return [*(Row(**row) for row in rows), *ended]


def main(names: list[str]) -> None:
    """Measure everything and print RESULT; or, given a folder of models, measure in the way that is settled."""
    if not names:
        print("RESULT", json.dumps(run()))
        return
    (name,) = names
    with torch.inference_mode():  # as ComfyUI runs nodes
        run_settled(os.environ[vram.VARIABLE], Path(name))


def run_settled(way: str, folder: Path) -> None:
    """Write what this way takes; on the CPU, what others are compared with."""
    cases = [case for form in FORMS for case in cases_of(form, folder)]
    made = folder / "cpu.safetensors"
    if way == "cpu":
        safetensors.torch.save_file(references(cases), made)
        return
    rows = []
    for row in measured(cases, way, safetensors.torch.load_file(made)):
        say(line(row))
        rows.append(row._asdict())
        rows_of(way, folder).write_text(json.dumps(rows), "utf-8")  # at once: the process may end within the next


def rows_of(way: str, folder: Path) -> Path:
    return folder / f"{way}.json"


def line(row: Row) -> str:
    title = f"{row.case:34} {row.way:10} {row.work:22}"
    if row.error:
        return f"{title} {row.error}"
    return f"{title} {row.seconds:8.2f} s {row.gib:6.2f} GiB  {row.difference:.4f}"


def beyond(rows: list[Row]) -> list[Row]:
    """Return the rows that differ by more than their bound, or by what is no number."""
    plain = {(row.case, row.way): row.difference for row in rows if row.work == PLAIN}
    bounds = [max(SMALL, FACTOR * (plain.get((row.case, row.way)) or 0.0)) for row in rows]
    return [
        row
        for row, bound in zip(rows, bounds, strict=True)
        if row.difference is not None and not row.difference <= bound
    ]


def summary(rows: list[Row]) -> dict:
    return {
        "beyond_bound": len(beyond(rows)),
        "failed": sum(bool(row.error) for row in rows),
        "rows": [row._asdict() for row in rows],
    }


# --- models ----------------------------------------------------------------------------------------------------------


def write(form: Form, folder: Path) -> None:
    """Write a form's weights, and LoRAs for it, to a folder of its name."""
    place = folder / form.name
    place.mkdir()
    config = comfy.model_detection.model_config_from_unet_config(form.unet, {})
    assert config is not None
    config.set_inference_dtype(form.half, None)
    model = ModelPatcher(config.get_model({}, device="cpu"), torch.device("cpu"), torch.device("cpu"))
    fill(0, model.model.diffusion_model)
    safetensors.torch.save_file(model.model.diffusion_model.state_dict(), place / "model.safetensors")
    clip, loras = text_encoder(form), place / "loras"
    loras.mkdir()
    for index in range(CONCEPTS):
        random_concept(model, clip, loras, index)


def text_encoder(form: Form) -> comfy.sd.CLIP:
    config = comfy.model_detection.model_config_from_unet_config(form.unet, {})
    assert config is not None
    options = {"dtype": torch.float16, "initial_device": torch.device("cpu"), **form.text}
    clip = comfy.sd.CLIP(config.clip_target({}), model_options=options)
    fill(1, clip.cond_stage_model)
    return clip


def cases_of(form: Form, folder: Path) -> Iterator[Case]:
    for title, dtype in (("half precision", form.half), ("fp8", FP8)):
        yield Case(f"{form.name}, {title}", lambda dtype=dtype: load(form, dtype, folder), form.timed, form.compared)


def load(form: Form, dtype: torch.dtype, folder: Path) -> Loaded:
    """Return a form by the stock loader, with the concepts each in a half of the picture."""
    place = folder / form.name
    model = comfy.sd.load_diffusion_model(str(place / "model.safetensors"), {"dtype": dtype})
    with loras_in(place / "loras"):
        return Loaded(model, text_encoder(form), chain([f"concept{index}.safetensors" for index in range(CONCEPTS)]))


def chain(files: list[str]) -> list[Concept]:
    """Return the concepts of LoRA files. Given areas: where random weights look may hang on the last bit of a number."""
    concepts = None
    for index, file in enumerate(files):
        area = torch.zeros(1, 8, 8)
        area[..., index * 8 // len(files) : (index + 1) * 8 // len(files)] = 1
        values = {"trigger": f"sks{index}", "class_word": "thing", "name": f"c{index}", "mask": area}
        concepts = pack.run("LoRACLR_LoadConceptLoRA", lora_name=file, concepts=concepts, **values)[0]
    assert concepts is not None
    return concepts


# --- works -----------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """seconds: of a picture, a merge or a training step. show: makes what is compared."""

    seconds: float
    show: Callable[[], Tensor]


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a work takes, and what it returns."""
    start = time.perf_counter()
    result = work()
    if not comfy.model_management.cpu_mode():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def sampled(model: ModelPatcher, positive: list, negative: list, size: Size) -> Tensor:
    """Return the latent by the stock sampler."""
    latent = {"samples": torch.zeros(size.latent)}
    values = (0, size.steps, 1.0, "euler", "simple", positive, negative, latent)
    return nodes.common_ksampler(model, *values)[0]["samples"]


def plain(loaded: Loaded, size: Size) -> Outcome:
    prompts = encoded(loaded.clip, "a photo of a thing in a park"), encoded(loaded.clip, "")
    seconds, latent = timed(lambda: sampled(loaded.model, *prompts, size))
    return Outcome(seconds, lambda: latent)


def composed(loaded: Loaded, size: Size, update_strength: float = 0.0) -> Outcome:
    values = {"model": loaded.model, "clip": loaded.clip, "concepts": loaded.concepts, "prompt": PROMPT}
    how = {"update_strength": update_strength, "update_end": 1.0, "live_view": False}
    model, positive, negative = pack.run("LoRACLR_CLoRASampler", **values, **how)
    seconds, latent = timed(lambda: sampled(model, positive, negative, size))
    return Outcome(seconds, lambda: latent)


def updated(loaded: Loaded, size: Size) -> Outcome:
    return composed(loaded, size, update_strength=0.02)


def merged(loaded: Loaded, size: Size) -> Outcome:
    # A fresh clone: captures are kept for a model.
    values = {"model": loaded.model.clone(), "clip": loaded.clip, "concepts": loaded.concepts}
    values |= {"latent": {"samples": torch.zeros(size.latent)}, "capture_steps": size.steps}
    seconds, (model, clip, *_) = timed(lambda: pack.run("LoRACLR_Merge", **values))
    return Outcome(seconds, lambda: sampled(model, encoded(clip, "a photo of sks0 and sks1"), encoded(clip, ""), size))


def trained(loaded: Loaded, size: Size) -> Outcome:
    """Train as the node does with its defaults; the first step, which loads, is not timed."""
    trainee = make_trainee(loaded.model.clone(disable_dynamic=True), loaded.clip, size.latent, ["preserved"])
    seconds: list[float] = []

    def work(take_step: Callable[[str], None], device: torch.device) -> None:
        for _ in range(1 + size.steps):
            seconds.append(timed(lambda: take_step("preserved"))[0])

    on_loaded(trainee, work)
    losses = trainee.learners["preserved"].losses
    values = [value for step in losses for value in step if value is not None]
    return Outcome(sum(seconds[1:]) / size.steps, lambda: torch.tensor(values))


WORKS: dict[str, Callable[[Loaded, Size], Outcome]] = {
    PLAIN: plain,
    "sampler": composed,
    "sampler with updates": updated,
    "merge": merged,
    "training step": trained,
}


def references(cases: list[Case]) -> dict[str, Tensor]:
    """Return what each work of each case makes at the compared size."""
    made = {}
    for case in cases:
        loaded = case.load()
        for name, work in WORKS.items():
            say(f"{case.name}, {name}: to compare with")
            made[f"{case.name}, {name}"] = work(loaded, case.compared).show().contiguous()
        comfy.model_management.unload_all_models()
    return made


def measured(cases: list[Case], way: str, compared_with: dict[str, Tensor]) -> Iterator[Row]:
    """Yield what each work of each case takes. compared_with: what `references` returned."""
    for case in cases:
        start = used_memory()
        try:
            loaded = case.load()
        except Exception as error:
            yield Row(case.name, way, "loading", error=first_line(error))
            continue
        for name, work in WORKS.items():
            try:
                made = work(loaded, case.compared).show()
                comfy.model_management.soft_empty_cache()
                with watching(used_memory) as peak:
                    seconds = work(loaded, case.timed).seconds
            except Exception as error:  # another work, or another case, may have the memory that this one lacked
                yield Row(case.name, way, name, error=first_line(error))
                comfy.model_management.soft_empty_cache()
                continue
            apart = difference(made, compared_with[f"{case.name}, {name}"])
            yield Row(case.name, way, name, seconds, (peak[0] - start) / 2**30, apart)
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()


def first_line(error: Exception) -> str:
    """Return what an error says, in a line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def difference(made: Tensor, reference: Tensor) -> float:
    made, reference = made.double().cpu(), reference.double().cpu()
    return float((made - reference).norm() / reference.norm())


def used_memory() -> int:
    """Return the bytes of the device that are taken: streamed weights are not in torch's own account."""
    if comfy.model_management.cpu_mode():
        return own_memory()
    free, total = torch.cuda.mem_get_info()
    return total - free
