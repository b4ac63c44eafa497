"""A whole run against an independent, literal restatement of the published loop."""

import comfy.sample
import comfy.samplers
import pytest
import torch
from host_sampler import restated
from host_sampler.sampling import assert_same, clora, maps, sample

STEPS = 3
CFG = 5.0
ALPHA = 40.0


@pytest.fixture(scope="module")
def branches(demo, concepts):
    prompts = [
        "a photo of cat and dog in a park",
        "a photo of sks cat and dog in a park",
        "a photo of cat and zwx dog in a park",
    ]
    tokens = [[[4], [6]], [[4, 5], [7]], [[4], [6, 7, 8]]]
    with torch.inference_mode():
        return [
            restated.Branch(demo, concept, prompt, "blurry", own)
            for concept, prompt, own in zip([None, *concepts], prompts, tokens, strict=True)
        ]


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize("gradient_memory", ["all at once", "one branch at a time"])
def test_it_is_the_published_loop(demo, concepts, branches, latent, sampler, gradient_memory):
    settings = {"update_strength": ALPHA, "update_unit": "absolute (paper)", "update_end": 0.5}
    settings |= {"refine_steps": "1", "refine_repeats": 1, "mask_threshold": 0.95}
    settings |= {"mask_morphology": "none", "mask_overlap": "average (paper)"}
    settings |= {"surroundings": "composed (paper)", "gradient_memory": gradient_memory}
    patched = clora(demo, concepts, **settings)
    found = sample(*patched, latent, sampler=sampler, scheduler="simple", steps=STEPS, cfg=CFG)

    sigmas = comfy.samplers.calculate_sigmas(demo.model.model.model_sampling, "simple", STEPS).tolist()
    noise = comfy.sample.prepare_noise(latent["samples"], 3)
    expected, losses, masks = restated.run(demo, branches, noise, sigmas, CFG, ALPHA, [1, 2, 0], 0.95)
    assert_same(found, {"samples": expected}, 1e-4)

    used, _, loss = maps(patched[0], found)
    assert loss["loss"] == pytest.approx(losses, rel=1e-5)
    assert torch.equal(used, masks)
    assert 0 < masks.mean() < 1  # or the masks would not be tried
    unmoved, _, _ = restated.run(demo, branches, noise, sigmas, CFG, 0.0, [0, 0, 0], 0.95)
    assert (unmoved - expected).abs().max() > 0.01 * expected.abs().max()  # or the updates would not be
