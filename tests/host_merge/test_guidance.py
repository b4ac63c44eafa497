"""A merge captures without guidance, so the host's guidance nodes before it neither disturb it nor have a part in it."""

import architectures
import comfy_extras.nodes_apg as apg
import comfy_extras.nodes_cfg as cfg
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_easycache as easycache
import comfy_extras.nodes_eps as eps
import comfy_extras.nodes_freelunch as freelunch
import comfy_extras.nodes_fresca as fresca
import comfy_extras.nodes_lumina2 as lumina
import comfy_extras.nodes_mahiro as mahiro
import comfy_extras.nodes_model_advanced as model_advanced
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_sag as sag
import comfy_extras.nodes_slg as slg
import comfy_extras.nodes_tcfg as tcfg
import comfy_extras.nodes_video_model as video
import lora_files
import pytest
import torch
from loraclr.loraclr_core.host.merge import cache as captures
from running import load, merge, write_lora

BLOCK = "diffusion_model.middle_block.1.transformer_blocks.0"
LAYERS = {f"{BLOCK}.attn1.to_q": (128, 128), f"{BLOCK}.attn2.to_k": (128, 32)}
LATENT = {"samples": torch.zeros(1, 4, 8, 8)}
STEPS, CONCEPTS = 2, 2


def _perp_neg(model):
    clip = architectures.build("SD1.5").clip
    return perpneg.PerpNeg.execute(model, clip.encode_from_tokens_scheduled(clip.tokenize("")), 1.0)


GUIDANCE = {
    "SAG": lambda model: sag.SelfAttentionGuidance.execute(model, 0.5, 2.0),
    "PAG": lambda model: pag.PerturbedAttentionGuidance.execute(model, 3.0),
    "SLG": lambda model: slg.SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "0", "0"),
    "SLG, simple": lambda model: slg.SkipLayerGuidanceDiTSimple.execute(model, 0.0, 1.0, "0", "0"),
    "Perp-Neg": _perp_neg,
    "CFG Override": lambda model: custom_sampler.CFGOverride.execute(model, 5.0, 0.0, 1.0),
    "CFG-Zero*": cfg.CFGZeroStar.execute,
    "CFG-Norm": lambda model: cfg.CFGNorm.execute(model, 0.5),
    "APG": lambda model: apg.APG.execute(model, 0.5, 5.0, 0.5),
    "TCFG": tcfg.TCFG.execute,
    "FreSca": lambda model: fresca.FreSca.execute(model, 1.0, 1.5, 2),
    "Mahiro": mahiro.Mahiro.execute,
    "Epsilon scaling": lambda model: eps.EpsilonScaling.execute(model, 1.05),
    "TSR": lambda model: eps.TemporalScoreRescaling.execute(model, 0.9, 1.0),
    "Renorm CFG": lambda model: lumina.RenormCFG.execute(model, 100.0, 0.5),
    "linear CFG": lambda model: video.VideoLinearCFGGuidance().patch(model, 0.5),
    "rescaled CFG": lambda model: model_advanced.RescaleCFG().patch(model, 0.7),
}


@pytest.fixture(scope="module")
def small():
    with torch.inference_mode():
        return architectures.build("SD1.5")


@pytest.fixture(scope="module")
def chain():
    chain = None
    with torch.inference_mode():
        for name, trigger in (("cat", "sks cat"), ("dog", "zwx dog")):
            tensors = {}
            for layer, shape in LAYERS.items():
                tensors |= lora_files.lora(layer, shape)
            chain, *_ = load(write_lora(f"guided {name}.safetensors", tensors), trigger, chain)
    return chain


@pytest.fixture(scope="module")
def plain(small, chain):
    """The merged LoRA without guidance, without and with distillation."""
    with torch.inference_mode():
        return {steps: merged(small, small.model, chain, steps)[0] for steps in (0, 1)}


def merged(small, model, chain, distillation_steps=0, steps=STEPS):
    """The merged LoRA, the report, and how often the diffusion model was evaluated."""
    captures.forget()
    calls = []
    hook = small.model.model.diffusion_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        outputs = merge(
            small._replace(model=model),
            chain,
            latent=LATENT,
            capture_steps=steps,
            distillation_steps=distillation_steps,
        )
    finally:
        hook.remove()
    return outputs[2], outputs[4], len(calls)


def guided(small, name: str):
    found = GUIDANCE[name](small.model)
    return found[0] if isinstance(found, tuple) else found.args[0]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_has_no_part_in_a_capture(small, chain, plain, name):
    lora, report, evaluations = merged(small, guided(small, name), chain)
    assert same(lora, plain[0])
    assert evaluations == STEPS * CONCEPTS
    assert f"; {evaluations} model evaluations in this run." in report


def test_nor_in_a_distillation(small, chain, plain):
    """Up to rounding: SAG also brings an attention of its own, equal to the model's."""
    lora = merged(small, guided(small, "SAG"), chain, distillation_steps=1)[0]
    assert lora.keys() == plain[1].keys()
    for key, tensor in plain[1].items():
        torch.testing.assert_close(lora[key], tensor, rtol=1e-3, atol=1e-5)


def test_the_merged_model_is_guided_as_the_model_was(small, chain):
    model = guided(small, "SAG")
    output = merge(small._replace(model=model), chain, latent=LATENT)[0]
    assert output.model_options["sampler_post_cfg_function"] == model.model_options["sampler_post_cfg_function"]


def test_what_changes_the_model_itself_counts(small, chain, plain):
    """As an IP-Adapter or FreeU do: the merged model has it too."""
    free = freelunch.FreeU_V2.execute(small.model, 1.3, 1.4, 0.9, 0.2).args[0]
    lora, _, evaluations = merged(small, free, chain)
    assert not same(lora, plain[0])
    assert evaluations == STEPS * CONCEPTS


def test_evaluations_that_a_cache_spares_are_not_counted(small, chain):
    lazy = easycache.LazyCacheNode.execute(small.model, 0.9, 0.0, 1.0, False).args[0]
    _, report, evaluations = merged(small, lazy, chain, steps=8)
    assert evaluations < 8 * CONCEPTS
    assert f"; {evaluations} model evaluations in this run." in report
