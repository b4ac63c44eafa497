"""The sampler reads the words that it means, wherever a model's text stands: with the host's own text encoders, small.

Which rows of its text a model gets for a word is seen from outside: they are those that change with the word. Text encoders
are causal, so the first to change is the word's own; what changes with the sign behind it stands behind it.
"""

import math

import architectures
import lora_files
import nodes
import pytest
import torch
from architectures import PICTURES, Model
from comfy_extras.nodes_edit_model import ReferenceLatent
from host_sampler.sampling import compose, encode, sample
from loraclr.loraclr_core.host.sampler.evaluation import KEY
from running import load, write_lora
from torch import Tensor, nn

PROMPT = "a photo of {cat}. a red ball and a park"

# By T5 or an adapter, every word changes every row a little.
ALL_CHANGE = ["Flux", "Chroma", "Anima"]


def concept(name: str, model: Model, word: str = "cat", **inputs) -> list:
    """One with a LoRA that does nothing, on a layer of this model."""
    path, module = next((path, m) for path, m in model.model.model.named_modules() if isinstance(m, nn.Linear))
    file = write_lora(f"{name} idle.safetensors", lora_files.lora(path, tuple(module.weight.shape)))
    nothing = {"strength_model": 0.0, "strength_clip": 0.0}
    return load(file, **({"trigger": word, "class_word": word, "name": "cat"} | nothing | inputs))[0]


def empty(model: Model) -> dict:
    return {"samples": torch.zeros(1, *model.latent)}


def joined(model: Model, conditioning: list, more: str) -> list:
    """With more text behind it, or a picture beside it, by the host's nodes."""
    if more == "text":
        return nodes.ConditioningConcat().concat(conditioning, encode(model.clip, "blue water"))[0]
    if more == "picture":
        return ReferenceLatent.execute(conditioning, {"samples": torch.ones(1, *model.latent)})[0]
    return conditioning


def seen(model: Model, text: str, more: str) -> Tensor:
    """The text as the model gets it in a plain picture, (tokens, width)."""
    found = []
    handle = model.model.model.diffusion_model.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(kwargs["context"][0]), with_kwargs=True
    )
    cond = joined(model, encode(model.clip, text), more)
    sample(model.model, cond, cond, empty(model), steps=1, cfg=1.0)
    handle.remove()
    return found[0]


def rows_of_the_word(name: str, model: Model, more: str) -> tuple[int, list[int]]:
    """How many rows the text has in the model, and which of them are the word's."""
    text, other, behind = (
        seen(model, PROMPT.replace(*change), more)
        for change in (("{cat}", "cat"), ("{cat}", "dog"), ("{cat}.", "cat,"))
    )
    apart = (text - other).abs().sum(dim=-1)
    if name in ALL_CHANGE:
        return len(text), [int(apart.argmax())]
    first, end = (int((text - changed).any(dim=-1).nonzero()[0]) for changed in (other, behind))
    return len(text), list(range(first, end))


MORE = [("SD1.5", "text"), ("Flux.2-dev", "text"), ("Flux", "picture"), ("Qwen-Image", "picture")]


@pytest.mark.parametrize(("name", "more"), [*((name, "") for name in PICTURES), *MORE])
def test_attention_is_read_at_the_rows_that_change_with_the_word(name, more):
    model = architectures.build(name)
    text, truth = rows_of_the_word(name, model, more)
    patched, positive, negative = compose(model, concept(name, model), prompt=PROMPT, negative="", update_strength=0.0)
    positive = joined(model, positive, more)
    network, (height, width) = model.model.model.diffusion_model, model.latent[-2:]
    patch = getattr(network, "patch_size", 2)  # or the level of the small U-Nets that is read
    size = height // patch, width // patch
    multiple = getattr(network, "pad_tokens_multiple", None) or 1
    image, joint = math.prod(size), sum(math.ceil(n / multiple) * multiple for n in (text, math.prod(size)))
    joint += image * (more == "picture")
    whole = []

    def watching(function, q, k, v, heads, *args, **kwargs):
        split = [t if kwargs.get("skip_reshape") else t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k)]
        found = (split[0] @ split[1].transpose(-1, -2) * split[0].shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
        if found.shape[-2:] in {(image, text), (joint, joint)}:
            start = {image: 0, joint: math.ceil(text / multiple) * multiple}[found.shape[-2]]
            whole.extend(row[start : start + image, truth].mean(dim=-1) for row in found)
        return function(q, k, v, heads, *args, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = watching
    found = sample(patched, positive, negative, empty(model), steps=1, cfg=1.0)
    # The plain picture comes first, by the base alone.
    direct = torch.stack(whole[len(whole) // 2 :]).mean(dim=0).unflatten(0, size)
    heat = patched.get_attachment(KEY).records.of(found["samples"]).heat[0, 0]
    torch.testing.assert_close(heat, (direct - direct.min()) / (direct.max() - direct.min()), rtol=0, atol=1e-3)


def test_a_model_whose_text_nothing_explains_is_refused(monkeypatch):
    """One that makes something else of the conditioning, and more of it."""
    model = architectures.build("Lumina 2")
    own = model.model.model.extra_conds

    def longer(**kwargs):
        return own(**(kwargs | {"cross_attn": 2 * torch.cat([kwargs["cross_attn"]] * 2, dim=1)}))

    monkeypatch.setattr(model.model.model, "extra_conds", longer)
    patched, positive, negative = compose(model, concept("Lumina 2", model), prompt=PROMPT, negative="")
    with pytest.raises(
        ValueError, match=r"has (\d+) text tokens, of which the model \(Lumina2\) gets .* LoRACLR Merge"
    ):
        sample(patched, positive, negative, empty(model), steps=1, cfg=1.0)
