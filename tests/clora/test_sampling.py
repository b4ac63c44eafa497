"""CLoRA in the host's own samplers and beside the host's own nodes."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_differential_diffusion as differential_diffusion
import comfy_extras.nodes_nag as nag
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_sag as sag
import demo_assets
import nodes
import pytest
import torch
from clora.sampling import CLORA, PLAIN, assert_same, clora, concept, encode, maps, plain, sample
from loraclr.loraclr_core.host.evaluation import KEY

SAME_AS_CLASS = {"strength_model": 0.0, "strength_clip": 0.0}


@pytest.fixture(scope="module")
def idle(demo):
    """Concepts that do nothing: strengths 0, triggers equal to the class words."""
    with torch.inference_mode():
        cat = concept("cat", trigger="cat", **SAME_AS_CLASS)
        return concept("dog", cat, trigger="dog", **SAME_AS_CLASS)


@pytest.fixture(scope="module")
def patched(demo, concepts):
    """MODEL, positive, negative with updates in every step."""
    with torch.inference_mode():
        return clora(demo, concepts)


# --- the same as plain sampling where nothing is asked for -----------------------------------------------------------


# heun divides the rounding of a larger batch by the last, small sigma.
@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [("euler", 1e-5), ("dpmpp_2m_sde", 1e-5), ("uni_pc", 1e-5), ("euler_ancestral_cfg_pp", 1e-5), ("heun", 1e-4)],
)
def test_idle_concepts_give_the_plain_picture(demo, idle, latent, sampler, tolerance):
    found = sample(*clora(demo, idle, **PLAIN), latent, sampler=sampler)
    assert_same(found, plain(demo, latent, sampler=sampler), tolerance)


def test_idle_concepts_with_masks_give_the_plain_picture(demo, idle, latent):
    found = sample(*clora(demo, idle, update_strength=0.0), latent)
    assert_same(found, plain(demo, latent), 1e-5)


def test_a_style_loaded_upstream_acts_in_every_branch(demo, idle, latent):
    style = nodes.LoraLoader().load_lora(demo.model, demo.clip, "loraclr_demo_bird.safetensors", 1.0, 1.0)
    styled = demo._replace(model=style[0], clip=style[1])
    expected = plain(styled, latent)
    assert_same(sample(*clora(styled, idle, **PLAIN), latent), expected, 1e-5)
    assert (expected["samples"] - plain(demo, latent)["samples"]).abs().max() > 0.1


# --- samplers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_runs_and_leaves_the_model_as_it_was(demo, patched, sampler):
    """Finite, recorded, and updated at most once in each step."""
    model = patched[0]
    found = sample(*patched, {"samples": torch.zeros(1, 4, 4, 6)}, sampler=sampler, steps=3)
    record = model.get_attachment(KEY).record_of(found["samples"])
    assert found["samples"].isfinite().all()
    assert len(record.updated) == len(set(record.updated)) >= 1
    assert sorted(record.losses) == sorted(set(record.losses))
    assert model.get_attachment(KEY).run is None
    assert not any(module._forward_hooks for module in demo.model.model.modules())


def test_an_update_moves_every_sampler_alike(demo, idle, latent, monkeypatch):
    """A known move o before a run must come out as plain sampling from the latent moved by o, whatever the sampler keeps."""
    model, positive, negative = clora(demo, idle, **PLAIN | {"update_strength": 1e-9, "update_end": 0.01})
    method = model.get_attachment(KEY)
    move = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr(method, "gradient", lambda evaluation, z: torch.zeros_like(z))
    monkeypatch.setattr(method, "_update", lambda gradient, sigma, model: move)
    moved = {"samples": demo.model.model.process_latent_out(move.clone())}
    for sampler in ("euler", "uni_pc", "sa_solver", "dpm_2", "dpmpp_sde", "lcm", "er_sde", "res_multistep_cfg_pp"):
        # An image of `move` is what puts noise + move into the sampler.
        expected = _unscaled(demo, moved, sampler)
        assert_same(sample(model, positive, negative, latent, sampler=sampler, steps=3), expected, 2e-4)


def _unscaled(demo, latent, sampler):
    """Plain sampling from noise + latent, at the sigmas a full denoise takes."""
    model_sampling = demo.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.KSampler(demo.model, 3, "cpu", sampler, "normal", 1.0).sigmas
    assert model_sampling is not None
    guider = comfy.samplers.CFGGuider(demo.model)
    guider.set_conds(encode(demo.clip, "a photo of cat and dog in a park"), encode(demo.clip, "blurry"))
    guider.set_cfg(5.0)
    noise = comfy.sample.prepare_noise(latent["samples"], 3)
    # Full noise is scaled by √(1 + σ²), noise onto an image by σ; make them the same.
    scale = torch.sqrt(1 + sigmas[0] ** 2)
    found = guider.sample(
        *(noise + demo.model.model.process_latent_in(latent["samples"]) / scale, torch.zeros_like(noise)),
        *(comfy.samplers.sampler_object(sampler), sigmas),
        seed=3,
        disable_pbar=True,
    )
    return {"samples": found}


def test_updates_lower_the_loss(demo, concepts, latent):
    losses = []
    for strength in (0.0, 0.02, 0.1):
        model, positive, negative = clora(demo, concepts, update_strength=strength)
        _, _, loss = maps(model, sample(model, positive, negative, latent, steps=3))
        losses.append(sum(loss["loss"]))
    assert losses[0] > losses[1] > losses[2]


def test_no_gradient_outside_the_range(demo, concepts, latent, monkeypatch):
    model, positive, negative = clora(demo, concepts, update_start=0.3, update_end=0.7)
    method = model.get_attachment(KEY)
    seen = []
    gradient = method.gradient
    monkeypatch.setattr(
        method, "gradient", lambda evaluation, z: seen.append(float(evaluation.sigma[0])) or gradient(evaluation, z)
    )
    sample(model, positive, negative, latent, steps=10)
    to_sigma = demo.model.get_model_object("model_sampling").percent_to_sigma
    assert len(seen) == 4
    assert all(to_sigma(0.3) >= sigma > to_sigma(0.7) for sigma in seen)


def test_a_batch_is_its_pictures_one_by_one(demo, patched):
    noise = torch.zeros(3, 4, 8, 8)
    found = sample(*patched, {"samples": noise})["samples"]
    for i in range(3):
        alone = sample(*patched, {"samples": noise[:1], "batch_index": [i]})["samples"]
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-3 * float(alone.abs().max()))


@pytest.mark.parametrize("size", [(12, 8), (9, 13)])
def test_other_sizes(patched, size):
    found = sample(*patched, {"samples": torch.zeros(1, 4, *size)})
    masks, heat, _ = maps(patched[0], found)
    assert masks.shape == (2, *size)
    assert heat.shape == (2, 8 * size[0], 8 * size[1], 3)


def test_cfg_1_and_image_to_image_and_a_second_pass(patched, latent):
    first = sample(*patched, latent, cfg=1.0)
    again = sample(*patched, {"samples": first["samples"]}, denoise=0.5, steps=4)
    larger = nodes.LatentUpscale().upscale(again, "nearest-exact", 128, 96, "disabled")[0]
    second = sample(*patched, larger, denoise=0.5, steps=4)
    for found in (first, again, second):
        assert found["samples"].isfinite().all()
        maps(patched[0], found)


def test_an_inpaint_mask_keeps_the_rest(patched, latent):
    picture = torch.randn(latent["samples"].shape)
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., 48:] = 1
    for sampler in ("euler", "ddim"):
        found = sample(*patched, {"samples": picture, "noise_mask": mask}, sampler=sampler, steps=3)
        torch.testing.assert_close(found["samples"][..., :6], picture[..., :6], rtol=0, atol=1e-4)
        moved = patched[0].get_attachment(KEY).record_of(found["samples"]).updated
        assert len(moved) >= 1


def test_differential_diffusion(demo, concepts, latent):
    model, positive, negative = clora(demo, concepts)
    model = differential_diffusion.DifferentialDiffusion.execute(model).args[0]
    picture = torch.randn(latent["samples"].shape)
    mask = torch.linspace(0, 1, 96).expand(1, 1, 64, 96)
    found = sample(model, positive, negative, {"samples": picture, "noise_mask": mask}, steps=3)
    assert found["samples"].isfinite().all()


def test_two_samplers_on_one_model_keep_their_records_apart(patched, latent):
    one, other = sample(*patched, latent, seed=1), sample(*patched, latent, seed=2)
    losses = [maps(patched[0], found)[2]["loss"] for found in (one, other)]
    assert losses[0] != losses[1]
    assert maps(patched[0], one)[2]["loss"] == losses[0]


def test_an_unknown_latent_is_an_error_and_old_records_go(patched, latent):
    with pytest.raises(ValueError, match="No record of this latent"):
        maps(patched[0], {"samples": torch.randn(1, 4, 8, 8)})
    small = {"samples": torch.zeros(1, 4, 4, 4)}
    first = sample(*patched, small, seed=0, steps=1)
    for seed in range(1, 9):
        sample(*patched, small, seed=seed, steps=1)
    with pytest.raises(ValueError, match="No record of this latent"):
        maps(patched[0], first)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_other_numbers_of_concepts(demo, count):
    chain = None
    for i in range(count):
        chain = concept(
            ("cat", "dog", "bird")[i % 3], chain, name=f"c{i}", trigger=f"sks thing{i}", class_word=f"thing{i}"
        )
    prompt = "a photo of " + " and ".join(f"{{c{i}}}" for i in range(count))
    model, positive, negative = clora(demo, chain, prompt=prompt)
    found = sample(model, positive, negative, {"samples": torch.zeros(1, 4, 8, 8)})
    masks, _, loss = maps(model, found)
    assert len(masks) == count
    assert (loss["loss"][0] == 0) == (count == 1)
    assert found["samples"].isfinite().all()


# --- masks given by the user -----------------------------------------------------------------------------------------


def test_a_given_mask_is_used_as_given_and_shown(demo, latent):
    left = torch.zeros(1, 64, 96)
    left[..., :48] = 1
    chain = concept("dog", concept("cat", mask=left), mask=1 - left)
    model, positive, negative = clora(demo, chain, update_strength=0.0)
    found = sample(model, positive, negative, latent, steps=1, cfg=1.0)
    masks, _, _ = maps(model, found)
    assert masks[0].tolist() == [[1.0] * 6 + [0.0] * 6] * 8
    assert masks[1].tolist() == [[0.0] * 6 + [1.0] * 6] * 8
    # One Euler step is the prediction itself: each half is that of the concept's own branch.
    for i, half in ((0, slice(0, 6)), (1, slice(6, 12))):
        text = f"a photo of {'sks cat' if i == 0 else 'cat'} and {'zwx dog' if i == 1 else 'dog'} in a park"
        own = nodes.LoraLoader().load_lora(demo.model, demo.clip, chain[i].lora_name, 1.0, 1.0)
        alone = sample(own[0], encode(own[1], text), encode(own[1], "blurry"), latent, steps=1, cfg=1.0)
        torch.testing.assert_close(
            found["samples"][..., half],
            alone["samples"][..., half],
            rtol=0,
            atol=1e-4 * float(alone["samples"].abs().max()),
        )


# --- other nodes -----------------------------------------------------------------------------------------------------


def _pag(model):
    return pag.PerturbedAttentionGuidance.execute(model, 3.0).args[0]


def _sag(model):
    return sag.SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0]


def _nag(model):
    return nag.NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0]


def _attn2_patch(model):
    model = model.clone()
    model.set_model_attn2_patch(lambda q, k, v, options: (q, 1.5 * k, v))
    return model


def _attn2_replace(model):
    def replace(q, k, v, options):
        return 0.5 * comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])

    model = model.clone()
    for block in (("input", 1), ("middle", 0), ("output", 0), ("output", 1)):
        model.set_model_attn2_replace(replace, *block)
    return model


@pytest.mark.parametrize("patch", [_pag, _sag, _nag, _attn2_patch, _attn2_replace])
def test_other_patches_compose(demo, idle, concepts, latent, patch):
    """With idle concepts exactly as without CLoRA, whichever was patched first; and with updates it runs."""
    expected = sample(
        patch(demo.model), encode(demo.clip, "a photo of cat and dog in a park"), encode(demo.clip, "blurry"), latent
    )
    assert (expected["samples"] - plain(demo, latent)["samples"]).abs().max() > 0.01
    before = clora(demo._replace(model=patch(demo.model)), idle, **PLAIN)
    assert_same(sample(*before, latent), expected, 1e-4)
    model, positive, negative = clora(demo, idle, **PLAIN)
    assert_same(sample(patch(model), positive, negative, latent), expected, 1e-4)
    model, positive, negative = clora(demo, concepts)
    found = sample(patch(model), positive, negative, latent)
    assert found["samples"].isfinite().all()
    assert maps(model, found)[2]["loss"]


def test_other_nodes_see_cond_and_uncond_as_0_and_1(demo, concepts, latent):
    seen = []

    def see(output, options):
        seen.append(tuple(options["cond_or_uncond"]))
        return output

    def wrapper(apply_model, args):
        seen.append(tuple(args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    for patch in ("set_model_attn1_output_patch", "set_model_unet_function_wrapper"):
        model, positive, negative = clora(demo, concepts)
        getattr(model, patch)(see if "attn1" in patch else wrapper)
        sample(model, positive, negative, latent)
    assert {index for indices in seen for index in indices} == {0, 1}
    assert (1, 0) in seen  # one pair for a patch that counts on it
    assert (1, 0) * 3 in seen  # all branches at once where nothing looks


def test_guidance_that_calls_the_model_again_does_not_move_the_latent_again(demo, concepts, latent, monkeypatch):
    model, positive, negative = clora(demo, concepts)
    method = model.get_attachment(KEY)
    seen = []
    gradient = method.gradient
    monkeypatch.setattr(method, "gradient", lambda *at: seen.append(1) or gradient(*at))
    sample(_sag(_pag(model)), positive, negative, latent, steps=3)
    assert len(seen) == 3


def _guided(guider, latent, steps=2):
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    sampler = comfy.samplers.sampler_object("euler")
    noise = custom_sampler.Noise_RandomNoise(3)
    return custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args


def test_dual_cfg(demo, idle, concepts, latent):
    model, positive, negative = clora(demo, idle, **PLAIN)
    texts = [encode(demo.clip, text) for text in ("a photo of cat and dog in a park", "blurry", "blurry")]
    expected, _ = _guided(custom_sampler.DualCFGGuider.execute(demo.model, *texts, 5.0, 3.0, "regular").args[0], latent)
    guider = custom_sampler.DualCFGGuider.execute(model, positive, negative, negative, 5.0, 3.0, "regular").args[0]
    found, _ = _guided(guider, latent)
    assert_same(found, expected, 1e-5)
    with pytest.raises(ValueError, match="middle conditioning is not from the CLoRA"):
        _guided(
            custom_sampler.DualCFGGuider.execute(model, positive, texts[1], negative, 5.0, 3.0, "regular").args[0],
            latent,
        )


def test_perp_neg_with_its_own_empty_prompt(demo, idle, latent):
    model, positive, negative = clora(demo, idle, **PLAIN)
    texts = [encode(demo.clip, text) for text in ("a photo of cat and dog in a park", "blurry", "")]
    expected, _ = _guided(perpneg.PerpNegGuider.execute(demo.model, *texts, 5.0, 1.0).args[0], latent)
    found, _ = _guided(perpneg.PerpNegGuider.execute(model, positive, negative, texts[2], 5.0, 1.0).args[0], latent)
    assert_same(found, expected, 1e-5)


def test_the_preview_and_the_denoised_output_are_where_the_latent_is(demo, concepts, latent):
    model, positive, negative = clora(demo, concepts)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(5.0)
    output, denoised = _guided(guider, latent)
    assert_same(denoised, output, 1e-5)


def test_upstream_weight_hooks_compose(demo, idle, latent):
    """A LoRA scheduled by hooks on the conditioning works in every branch, with gradients too."""
    state = comfy.utils.load_torch_file(nodes.folder_paths.get_full_path("loras", "loraclr_demo_bird.safetensors"))
    hooks = comfy.hooks.create_hook_lora(lora=state, strength_model=1.0, strength_clip=0.0)

    def hooked(cond):
        return [[c, {**extra, "hooks": hooks}] for c, extra in cond]

    def plainly(model, positive, negative):
        return sample(model, hooked(positive), hooked(negative), latent)

    expected = plainly(demo.model, encode(demo.clip, "a photo of cat and dog in a park"), encode(demo.clip, "blurry"))
    assert (expected["samples"] - plain(demo, latent)["samples"]).abs().max() > 0.1
    assert_same(plainly(*clora(demo, idle, **PLAIN)), expected, 1e-5)
    assert plainly(*clora(demo, idle))["samples"].isfinite().all()


def test_a_mask_on_the_conditioning(demo, idle, latent):
    mask = torch.zeros(1, 64, 96)
    mask[..., :48] = 1

    def masked(cond):
        return nodes.ConditioningSetMask().append(cond, mask, "default", 0.7)[0]

    model, positive, negative = clora(demo, idle, **PLAIN)
    expected = sample(
        demo.model, masked(encode(demo.clip, "a photo of cat and dog in a park")), encode(demo.clip, "blurry"), latent
    )
    assert_same(sample(model, masked(positive), negative, latent), expected, 1e-5)


def test_controlnet(demo, idle, concepts, latent):
    """One ControlNet for all branches, applied by the stock node; a constant to gradients."""
    shape = {
        key: value for key, value in demo_assets.UNET.items() if key not in ("out_channels", "transformer_depth_output")
    }
    network = comfy.cldm.cldm.ControlNet(
        **shape, hint_channels=3, operations=comfy.ops.manual_cast, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.03, generator=generator)
    control = comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))
    hint = torch.rand(1, 64, 96, 3, generator=generator)

    def controlled(positive, negative):
        return nodes.ControlNetApplyAdvanced().apply_controlnet(positive, negative, control, hint, 1.0, 0.0, 1.0)

    expected = sample(
        demo.model,
        *controlled(encode(demo.clip, "a photo of cat and dog in a park"), encode(demo.clip, "blurry")),
        latent,
    )
    assert (expected["samples"] - plain(demo, latent)["samples"]).abs().max() > 0.01
    model, positive, negative = clora(demo, idle, **PLAIN)
    assert_same(sample(model, *controlled(positive, negative), latent), expected, 1e-4)
    model, positive, negative = clora(demo, concepts)
    found = sample(model, *controlled(positive, negative), latent)
    assert found["samples"].isfinite().all()
    assert len(model.get_attachment(KEY).record_of(found["samples"]).updated) == 2


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_foreign_conditioning_says_what_to_connect(demo, patched, concepts, latent):
    model, positive, negative = patched
    text = encode(demo.clip, "a dog")
    _, foreign, _ = clora(demo, concepts)
    for wrong in ((text, negative), (positive, text), (foreign, negative), (positive + text, negative)):
        with pytest.raises(ValueError, match="Connect that node's positive and negative outputs"):
            sample(model, *wrong, latent)
    with pytest.raises(ValueError, match="lacks 1 of 3 branches"):
        sample(model, positive[:2], negative, latent)
    area = nodes.ConditioningSetArea().append(positive, 32, 32, 0, 0, 1.0)[0]
    with pytest.raises(ValueError, match="Use a mask instead"):
        sample(model, area, negative, latent)


def test_a_model_patched_twice_is_an_error(demo, patched, concepts):
    with pytest.raises(ValueError, match="Connect the model from before it"):
        clora(demo._replace(model=patched[0]), concepts)


def test_maps_of_another_model_say_what_to_connect(demo, latent):
    with pytest.raises(ValueError, match="connect that node's MODEL output"):
        maps(demo.model, latent)


# --- cancelled or failed in the middle -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["gradient", "predict"])
@pytest.mark.parametrize("error", [comfy.model_management.InterruptProcessingException, RuntimeError])
def test_a_run_that_stops_in_the_middle_leaves_no_trace(demo, concepts, latent, where, error):
    expected = plain(demo, latent)
    model, positive, negative = clora(demo, concepts, gradient_memory="one branch at a time")
    calls = []

    def fail(q, k, v, options):
        calls.append(torch.is_grad_enabled())
        if (where == "gradient") == calls[-1] and len(calls) > 3:
            raise error
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])

    broken = model.clone()
    broken.set_model_attn2_replace(fail, "input", 1)
    with pytest.raises(error):
        sample(broken, positive, negative, latent, steps=3)
    assert len(calls) > 3
    assert torch.equal(plain(demo, latent)["samples"], expected["samples"])
    assert model.get_attachment(KEY).run is None
    assert not any(module._forward_hooks for module in demo.model.model.modules())
    assert sample(model, positive, negative, latent)["samples"].isfinite().all()


def test_little_memory_splits_the_batch_and_changes_nothing(demo, concepts, latent, monkeypatch):
    expected = sample(*clora(demo, concepts), latent)
    model, positive, negative = clora(demo, concepts)
    monkeypatch.setattr(type(demo.model), "get_free_memory", lambda self, device: 0)
    assert_same(sample(model, positive, negative, latent), expected, 1e-4)


def test_both_gradient_memories_are_the_same(demo, concepts, latent):
    one = sample(*clora(demo, concepts, gradient_memory="one branch at a time"), latent)
    assert_same(one, sample(*clora(demo, concepts, gradient_memory="all at once"), latent), 1e-4)


def test_prompts_of_different_length(demo, concepts, latent):
    """A branch whose prompt takes another chunk still gives maps of its own tokens."""
    filler = "one two three four five six seven eight nine ten " * 7
    prompt = CLORA["prompt"] + " with " + filler
    model, positive, negative = clora(demo, concepts, prompt=prompt)
    assert len({entry[0].shape[1] for entry in positive + negative}) == 2
    assert sample(model, positive, negative, latent)["samples"].isfinite().all()
