"""The sampler on every model family: with the host's own classes, small, and LoRAs on every layer."""

import asyncio
import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import architectures
import comfy.sd
import host
import lora_files
import nodes
import pytest
import torch
from architectures import ARCHITECTURES, EDITING, PICTURES, Model
from comfy_api.latest import io
from comfy_extras.nodes_edit_model import ReferenceLatent
from comfy_extras.nodes_flux import FluxKontextMultiReferenceLatentMethod
from comfyui_version import __version__ as host_version
from families import Family
from further import ENLARGED, ON, POSED, POSED_ON, PUBLISHED, STYLE_LORA, STYLED
from host_sampler import controls
from host_sampler.sampling import assert_same, compose, encode, maps, sample
from host_sampler.tiles import tiled
from host_train.training import small_models
from pack import run
from running import forget_dead_models, load, write_lora
from torch import Tensor, nn
from workflows import CORE_NODES, FOLDER

PROMPT = "a photo of {cat} in a park"
TRIGGER, CLASS = "sks cat", "cat"
STRENGTH = 0.1
LAYERS = nn.Linear | nn.Conv2d


@functools.cache
def lora(name: str) -> dict:
    """A LoRA on every layer of the model, and of its text encoders where they are what the host loads LoRAs into."""
    model, state = architectures.build(name), {}
    for path, module in model.model.model.named_modules():
        if isinstance(module, LAYERS):
            state |= lora_files.lora(path, tuple(module.weight.shape), scale=STRENGTH)
    return state


def everywhere(name: str, model: Model, **inputs) -> list:
    """The concept, in the whole picture."""
    file = write_lora(f"{name} everywhere.safetensors", lora(name))
    mask = torch.ones(1, *(8 * side for side in model.latent[-2:]))
    return load(file, TRIGGER, name=CLASS, class_word=CLASS, mask=mask, **inputs)[0]


def empty(model: Model, pictures: int = 1) -> dict:
    return {"samples": torch.zeros(pictures, *model.latent)}


@pytest.mark.parametrize("name", PICTURES)
def test_a_concept_in_the_whole_picture_is_the_stock_loader_s_picture(name):
    model = architectures.build(name)
    latent, settings = empty(model, pictures=2), {"steps": 4, "cfg": 3.0}
    patched, positive, negative = compose(
        model, everywhere(name, model), prompt=PROMPT, negative="", update_strength=0.0
    )
    found = sample(patched, positive, negative, latent, **settings)
    stock, clip = comfy.sd.load_lora_for_models(model.model, model.clip, lora(name), 1.0, 1.0)
    prompts = [encode(clip, text) for text in (PROMPT.format(cat=TRIGGER), "")]
    assert_same(found, sample(stock, *prompts, latent, **settings), 2e-4)
    plain = [encode(model.clip, text) for text in (PROMPT.format(cat=TRIGGER), "")]
    with pytest.raises(AssertionError):
        assert_same(found, sample(model.model, *plain, latent, **settings), 2e-3)


@pytest.mark.parametrize("name", PICTURES)
def test_a_turbo_schedule_without_guidance_reads_and_moves_every_step(name):
    model = architectures.build(name)
    concepts = everywhere(name, model, strength_model=0.5)
    other = load(
        write_lora(f"{name} other.safetensors", lora(name)), "zwx dog", concepts, name="dog", class_word="dog"
    )[0]
    losses = []
    for strength in (0.0, 0.05):
        patched, positive, negative = compose(
            model, other, prompt="a photo of {cat} and {dog}", negative="", update_strength=strength, update_end=1.0
        )
        found = sample(patched, positive, negative, empty(model), steps=4, cfg=1.0)
        masks, _, loss = maps(patched, found)
        assert masks.shape == (2, *model.latent[-2:])
        losses.append(loss["loss"])
    assert len(losses[0]) == 4
    assert sum(losses[1]) < sum(losses[0])


@pytest.mark.parametrize("name", EDITING)
def test_a_concept_is_drawn_beside_a_reference_picture(name):
    """As an edit model gets it, from the host's node."""
    model = architectures.build(name)
    reference = {"samples": torch.randn(1, *model.latent, generator=torch.Generator().manual_seed(4))}
    latent, settings = empty(model), {"steps": 2, "cfg": 3.0}

    def beside(conditioning: list) -> list:
        return ReferenceLatent.execute(conditioning, reference)[0]

    patched, positive, negative = compose(
        model, everywhere(name, model), prompt=PROMPT, negative="", update_strength=0.0
    )
    found = sample(patched, beside(positive), negative, latent, **settings)
    stock, clip = comfy.sd.load_lora_for_models(model.model, model.clip, lora(name), 1.0, 1.0)
    prompts = [encode(clip, text) for text in (PROMPT.format(cat=TRIGGER), "")]
    assert_same(found, sample(stock, beside(prompts[0]), prompts[1], latent, **settings), 2e-4)
    *_, loss = maps(patched, found)
    assert all(math.isfinite(value) for value in loss["loss"])
    alone = sample(patched, positive, negative, latent, **settings)
    assert not torch.equal(alone["samples"], found["samples"])


def test_the_time_of_reference_pictures_passes_each_row_s_own_lora():
    """Qwen-Image-Edit 2511 has them at another time than the picture: the times of all of them follow those of all rows."""
    model = architectures.build("Qwen-Image")
    reference = {"samples": torch.randn(1, *model.latent, generator=torch.Generator().manual_seed(4))}
    latent, settings = empty(model), {"steps": 2, "cfg": 3.0}

    def beside(conditioning: list) -> list:
        conditioning = ReferenceLatent.execute(conditioning, reference)[0]
        return FluxKontextMultiReferenceLatentMethod.execute(conditioning, "index_timestep_zero")[0]

    together = {"update_strength": 0.0, "surroundings": "composed (paper)"}  # the base and the concept in one batch
    patched, positive, negative = compose(
        model, everywhere("Qwen-Image", model), prompt=PROMPT, negative="", **together
    )
    found = sample(patched, beside(positive), beside(negative), latent, **settings)
    stock, clip = comfy.sd.load_lora_for_models(model.model, model.clip, lora("Qwen-Image"), 1.0, 1.0)
    positive, negative = (beside(encode(clip, text)) for text in (PROMPT.format(cat=TRIGGER), ""))
    assert_same(found, sample(stock, positive, negative, latent, **settings), 2e-4)


@pytest.mark.parametrize("name", [name for name in PICTURES if len(ARCHITECTURES[name].latent) == 4])
def test_a_picture_that_is_a_video_of_one_frame_runs_in_tiles(name):
    model = architectures.build(name)
    latent, how = empty(model, pictures=2), {"width": 8, "at_once": 2}
    together = {"update_strength": 0.0, "surroundings": "composed (paper)"}
    patched, positive, negative = compose(model, everywhere(name, model), prompt=PROMPT, negative="", **together)
    found = sample(tiled(patched, 0, 8, **how), positive, negative, latent)
    stock, clip = comfy.sd.load_lora_for_models(model.model, model.clip, lora(name), 1.0, 1.0)
    positive, negative = (encode(clip, text) for text in (PROMPT.format(cat=TRIGGER), ""))
    assert_same(found, sample(tiled(stock, 0, 8, **how), positive, negative, latent), 2e-4)


# The template for each family runs on the small model of its form.
MODELS = {"SDXL": "SDXL", "Flux.1": "Flux", "Flux.2 Klein": "Flux.2 Klein", "Z-Image Turbo": "Z-Image"}
MODELS |= {"Krea 2 Turbo": "Krea 2", "Qwen-Image": "Qwen-Image", "Anima": "Anima"}
POSED_MODELS = MODELS | {"SDXL": "SDXL, wide"}


def run_graph(graph: dict[str, dict], results: dict[str, tuple]) -> dict[str, tuple]:
    """Every node's outputs, as the host's own classes give them. results: those of nodes that need not run."""

    def output(wire: list) -> object:
        node, slot = wire
        if node not in results:
            inputs = {name: output(v) if isinstance(v, list) else v for name, v in graph[node]["inputs"].items()}
            results[node] = execute(graph[node]["class_type"], inputs)
        return results[node][slot]

    for node in graph:
        output([node, 0])
    return results


def execute(kind: str, inputs: dict) -> tuple:
    node = nodes.NODE_CLASS_MAPPINGS[kind]
    if issubclass(node, io.ComfyNode):
        return run(kind, **inputs) if kind.startswith("LoRACLR_") else node.execute(**inputs).args
    return getattr(node(), node.FUNCTION)(**inputs)


def outputs(title: str, loaded: dict[str, tuple], file: Callable[[str], str], kind: str = "VAEDecode") -> list:
    """The first output of each node of a class in a template's graph, in few steps.

    loaded: outputs of its loaders, by class. file: a LoRA's name here.
    """
    graph, results = json.loads((FOLDER / "api" / f"{title}.json").read_text("utf-8")), {}
    extras = Path(nodes.__file__).parent / "comfy_extras"
    for module in CORE_NODES:
        asyncio.run(nodes.load_custom_node(str(extras / f"nodes_{module}.py")))
    for node, each in graph.items():
        if each["class_type"] in loaded:
            results[node] = loaded[each["class_type"]]
        small = {"steps": 2, "width": 96, "height": 64, "refine_repeats": 2}
        each["inputs"] |= {name: value for name, value in small.items() if name in each["inputs"]}
        if "lora_name" in each["inputs"]:
            each["inputs"]["lora_name"] = file(each["inputs"]["lora_name"])
    run_graph(graph, results)
    return [results[node][0] for node, each in graph.items() if each["class_type"] == kind]


def small(name: str) -> dict[str, tuple]:
    """The outputs of a template's loaders, by class."""
    models = small_models(name)
    loaded = {"CheckpointLoaderSimple": models, "UNETLoader": (models.model,), "VAELoader": (models.vae,)}
    return loaded | {"CLIPLoader": (models.clip,), "DualCLIPLoader": (models.clip,), "SaveImage": ((),)}


@pytest.mark.parametrize("family", [family for family in ON if MODELS[family.name] in ARCHITECTURES])
def test_the_template_of_a_family_runs_on_its_models(family):
    """With the family's own nodes and settings, but for the number of steps and the size of the picture."""
    name = MODELS[family.name]
    (picture,) = outputs(ON[family], small(name), lambda file: write_lora(f"{name} {file}", lora(name)))
    assert picture.shape[-3:] == (64, 96, 3)
    assert picture.isfinite().all()


# Layers of the model by which Qwen-Image's ControlNet begins. It sees them without the concepts' LoRAs.
SHARED = re.compile(r"img_in|txt_in|time_text_embed")
POSES = torch.rand(2, 1, 64, 96, 3, generator=torch.Generator().manual_seed(6))


def posed(family: Family, poses: Tensor, *composed, kind: str = "KSampler"):
    """What a family's template in poses draws. composed: in place of what its sampler node gives."""
    forget_dead_models()  # a ControlNet that encodes its picture makes the host load again what it has in use
    name = POSED_MODELS[family.name]
    control = (controls.build(name),)
    loaded = small(name) | {"ControlNetLoader": control, "ModelPatchLoader": control, "LoadImage": (poses,)}
    if composed:
        loaded["LoRACLR_CLoRASampler"] = composed
    return outputs(POSED_ON[family], loaded, lambda file: write_lora(f"{name} {file}", lora(name)), kind)[0]


@pytest.mark.parametrize("family", POSED_ON, ids=lambda family: family.name)
def test_the_template_in_poses_follows_their_picture(family):
    one, other = (posed(family, poses, kind="VAEDecode") for poses in POSES)
    assert one.shape[-3:] == (64, 96, 3)
    assert one.isfinite().all()
    assert (one - other).abs().max() > 0.02


@pytest.mark.parametrize("family", POSED_ON, ids=lambda family: family.name)
def test_poses_hold_a_concept_and_the_base(family):
    """A concept in the whole picture is drawn as by the stock loader in these poses; one that does nothing, as the base."""
    name = POSED_MODELS[family.name]
    model, how = architectures.build(name), {"prompt": PROMPT, "negative": "", "update_strength": 0.0}
    state = {key: weight for key, weight in lora(name).items() if name != "Qwen-Image" or not SHARED.search(key)}
    stock, clip = comfy.sd.load_lora_for_models(model.model, model.clip, state, 1.0, 1.0)
    file = write_lora(f"{name} in poses.safetensors", state)
    whole, left = torch.ones(1, 64, 96), torch.zeros(1, 64, 96)
    left[..., :48] = 1

    concept = load(file, TRIGGER, name=CLASS, class_word=CLASS, mask=whole)[0]
    found = posed(family, POSES[0], *compose(model, concept, **how))
    texts = [encode(clip, text) for text in (PROMPT.format(cat=TRIGGER), "")]
    assert_same(found, posed(family, POSES[0], stock, *texts), 2e-4)

    strengths = {"strength_model": 0.0, "strength_clip": 0.0}
    concept = load(file, CLASS, name=CLASS, class_word=CLASS, mask=left, **strengths)[0]
    found = posed(family, POSES[0], *compose(model, concept, **how))
    texts = [encode(model.clip, text) for text in (PROMPT.format(cat=CLASS), "")]
    assert_same(found, posed(family, POSES[0], model.model, *texts), 2e-4)
    with pytest.raises(AssertionError):
        assert_same(found, posed(family, POSES[1], model.model, *texts), 2e-3)


@pytest.mark.parametrize("family", POSED_ON, ids=lambda family: family.name)
def test_updates_move_a_picture_in_poses(family):
    name = POSED_MODELS[family.name]
    model = architectures.build(name)
    file = write_lora(f"{name} other.safetensors", lora(name))
    both = load(file, "zwx dog", everywhere(name, model, strength_model=0.5), name="dog", class_word="dog")[0]

    def drawn(strength: float) -> Tensor:
        how = {"prompt": "a photo of {cat} and {dog}", "negative": "", "update_strength": strength, "update_end": 1.0}
        return posed(family, POSES[0], *compose(model, both, **how))["samples"]

    still = drawn(0.0)
    if name == "Z-Image":  # a patch of the model, whose weights have no gradients
        with pytest.raises(ValueError, match="Set update_strength to 0, or remove that patch"):
            drawn(0.05)
    else:
        moved = drawn(0.05)
        assert moved.isfinite().all()
        assert not torch.equal(moved, still)


@pytest.mark.parametrize("title", [STYLED, POSED, ENLARGED, PUBLISHED])
def test_a_template_that_the_demo_has_no_models_for_runs(demo, control, title):
    loaded = {"CheckpointLoaderSimple": demo, "ControlNetLoader": (control,), "SaveImage": ((),)}
    loaded["LoadImage"] = (torch.rand(1, 64, 96, 3), torch.zeros(1, 64, 96))
    names = {"my_cat_lora.safetensors": "cat", "my_dog_lora.safetensors": "dog", STYLE_LORA: "bird"}
    drawn = outputs(title, loaded, lambda file: f"loraclr_random_{names[file]}.safetensors")
    sizes = [(64, 96, 3), (128, 192, 3)] if title == ENLARGED else [(64, 96, 3)]
    assert [picture.shape[-3:] for picture in drawn] == sizes
    assert all(picture.isfinite().all() for picture in drawn)


@pytest.mark.skipif(host_version != host.DEFAULT_VERSION, reason="older versions of ComfyUI lack some models")
def test_the_page_has_the_table():
    """After a change of the models: put `architectures.support()` between the marks of docs/formats.md."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text()
    assert (
        page.partition("<!-- models: begin -->")[2].partition("<!-- models: end -->")[0].strip()
        == architectures.support()
    )
