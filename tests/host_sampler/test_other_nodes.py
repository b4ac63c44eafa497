"""CLoRA beside the host's own nodes, and what it refuses."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ldm.modules.attention
import comfy.ops
import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_easycache as easycache
import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_nag as nag
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_sag as sag
import comfy_extras.nodes_slg as slg
import nodes
import pytest
import torch
from host_sampler.sampling import PLAIN, assert_same, clora, compose, encode, maps, plain, sample, sample_guided
from loraclr.loraclr_core.host.sampler.evaluation import KEY


def _pag(model):
    return pag.PerturbedAttentionGuidance.execute(model, 3.0).args[0]


def _sag(model):
    return sag.SelfAttentionGuidance.execute(model, 0.5, 2.0).args[0]


def _nag(model):
    return nag.NAGuidance.execute(model, 5.0, 0.5, 1.5).args[0]


def _hypertile(model):
    return hypertile.HyperTile.execute(model, 32, 1, 0, False)[0]  # no random tiles


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


@pytest.mark.parametrize("patch", [_pag, _sag, _nag, _hypertile, _attn2_patch, _attn2_replace])
def test_other_patches_compose(demo, idle, concepts, latent, patch):
    """With idle concepts exactly as without CLoRA, whichever was patched first; and with updates it runs."""
    expected = sample(
        patch(demo.model), encode(demo.clip, "a photo of cat and dog in a park"), encode(demo.clip, "blurry"), latent
    )
    assert (expected["samples"] - plain(demo, latent)["samples"]).abs().max() > 0.01
    before = compose(demo._replace(model=patch(demo.model)), idle, **PLAIN)
    assert_same(sample(*before, latent), expected, 1e-4)
    model, positive, negative = clora(demo, idle, **PLAIN)
    assert_same(sample(patch(model), positive, negative, latent), expected, 1e-4)
    model, positive, negative = clora(demo, concepts)
    found = sample(patch(model), positive, negative, latent)
    assert found["samples"].isfinite().all()
    assert maps(model, found)[2]["loss"]


def test_slg_finds_no_difference_where_it_skips_nothing(demo, concepts, latent):
    """A U-Net has none of the layers it skips, so its own call must come out as the sampler's did, masks and moves in it."""
    model, positive, negative = clora(demo, concepts)
    expected = sample(model, positive, negative, latent)
    guided = slg.SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "0", "0").args[0]
    assert_same(sample(guided, positive, negative, latent), expected, 1e-4)


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
    assert (1, 0) * 2 in seen  # both concepts' branches at once where nothing looks


def test_guidance_that_calls_the_model_again_does_not_move_the_latent_again(demo, concepts, latent):
    model, positive, negative = clora(demo, concepts)
    moves = []

    def note(module, args):
        if torch.is_grad_enabled():
            moves.append(module)

    handle = demo.model.model.diffusion_model.register_forward_pre_hook(note)
    sample(_sag(_pag(model)), positive, negative, latent, steps=3)
    handle.remove()
    assert len(moves) == 3


def test_dual_cfg(double, idle, concepts, latent):
    model, positive, negative = clora(double, idle, **PLAIN)
    texts = [encode(double.clip, text) for text in ("a photo of cat and dog in a park", "blurry", "blurry")]
    expected, _ = sample_guided(
        custom_sampler.DualCFGGuider.execute(double.model, *texts, 5.0, 3.0, "regular").args[0], latent
    )
    guider = custom_sampler.DualCFGGuider.execute(model, positive, negative, negative, 5.0, 3.0, "regular").args[0]
    found, _ = sample_guided(guider, latent)
    assert_same(found, expected, 1e-5)
    with pytest.raises(ValueError, match="middle conditioning is not from the CLoRA"):
        sample_guided(
            custom_sampler.DualCFGGuider.execute(model, positive, texts[1], negative, 5.0, 3.0, "regular").args[0],
            latent,
        )


def test_perp_neg_with_its_own_empty_prompt(double, idle, latent):
    model, positive, negative = clora(double, idle, **PLAIN)
    texts = [encode(double.clip, text) for text in ("a photo of cat and dog in a park", "blurry", "")]
    expected, _ = sample_guided(perpneg.PerpNegGuider.execute(double.model, *texts, 5.0, 1.0).args[0], latent)
    found, _ = sample_guided(
        perpneg.PerpNegGuider.execute(model, positive, negative, texts[2], 5.0, 1.0).args[0], latent
    )
    assert_same(found, expected, 1e-5)


def test_the_preview_and_the_denoised_output_are_where_the_latent_is(demo, concepts, latent):
    model, positive, negative = clora(demo, concepts)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(5.0)
    output, denoised = sample_guided(guider, latent)
    assert_same(denoised, output, 1e-5)


def test_upstream_weight_hooks_compose(double, idle, latent):
    """A LoRA scheduled by hooks on the conditioning works in every branch, with gradients too."""
    state = comfy.utils.load_torch_file(nodes.folder_paths.get_full_path("loras", "loraclr_random_bird.safetensors"))
    hooks = comfy.hooks.create_hook_lora(lora=state, strength_model=1.0, strength_clip=0.0)

    def hooked(cond):
        return [[c, {**extra, "hooks": hooks}] for c, extra in cond]

    def plainly(model, positive, negative):
        return sample(model, hooked(positive), hooked(negative), latent)

    expected = plainly(
        double.model, encode(double.clip, "a photo of cat and dog in a park"), encode(double.clip, "blurry")
    )
    assert (expected["samples"] - plain(double, latent)["samples"]).abs().max() > 0.1
    assert_same(plainly(*clora(double, idle, **PLAIN)), expected, 1e-5)
    assert plainly(*clora(double, idle))["samples"].isfinite().all()


def test_a_schedule_of_hooks_starts_anew_for_the_second_take(double, idle, latent):
    """The host's keyframes go forward only: the picture with the concepts must see them from the first one again."""
    state = comfy.utils.load_torch_file(nodes.folder_paths.get_full_path("loras", "loraclr_random_bird.safetensors"))
    hooks = comfy.hooks.create_hook_lora(lora=state, strength_model=1.0, strength_clip=0.0)
    keyframes = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.0, 0.4)):
        keyframes.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hooks.set_keyframes_on_hooks(keyframes)

    def plainly(model, positive, negative):
        hooked = ([[c, {**extra, "hooks": hooks}] for c, extra in cond] for cond in (positive, negative))
        return sample(model, *hooked, latent, steps=4)

    expected = plainly(
        double.model, encode(double.clip, "a photo of cat and dog in a park"), encode(double.clip, "blurry")
    )
    assert (expected["samples"] - plain(double, latent, steps=4)["samples"]).abs().max() > 0.1
    assert_same(plainly(*clora(double, idle, update_strength=0.0)), expected, 1e-5)


def _lazy(model):
    return easycache.LazyCacheNode.execute(model, 0.5, 0.1, 0.95, False).args[0]


@pytest.mark.parametrize("where", ["upstream", "behind"])
def test_lazy_cache_sees_each_take_as_a_whole_run(demo, idle, where):
    """Its memory of a run must not reach into the next, which it cannot tell from the first on which side of CLoRA it stands."""
    latent = {"samples": torch.zeros(1, 4, 4, 6)}
    texts = encode(demo.clip, "a photo of cat and dog in a park"), encode(demo.clip, "blurry")
    expected = sample(_lazy(demo.model), *texts, latent, steps=6)
    assert (expected["samples"] - plain(demo, latent, steps=6)["samples"]).abs().max() > 0.1  # or it skipped nothing
    if where == "upstream":
        model, positive, negative = compose(demo._replace(model=_lazy(demo.model)), idle, **PLAIN)
    else:
        model, positive, negative = clora(demo, idle, **PLAIN)
        model = _lazy(model)
    assert_same(sample(model, positive, negative, latent, steps=6), expected, 1e-4)


def test_a_cache_that_keeps_the_model_from_running_is_named(demo, concepts, latent):
    model, positive, negative = clora(demo, concepts, update_strength=0.0)
    cached = easycache.EasyCacheNode.execute(model, 3.0, 0.1, 0.95, False).args[0]
    with pytest.raises(
        ValueError, match=r"“easycache_forward_wrapper” of comfy_extras.nodes_easycache\) may have kept"
    ):
        sample(cached, positive, negative, latent, steps=6)


OUTER_SAMPLE = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE


@pytest.mark.parametrize("where", ["upstream", "behind"])
@pytest.mark.parametrize("kept", ["with the model", "in its options"])
def test_both_takes_are_whole_runs_to_wrappers_and_progress_bars(demo, idle, where, kept):
    latent, seen = {"samples": torch.zeros(1, 4, 4, 6)}, []

    def wrapper(executor, *args, **kwargs):
        *before, callback, disable_pbar, seed = args
        seen.append("begin")

        def count(step, denoised, x, total):
            seen.append((step, total))
            callback(step, denoised, x, total)

        output = executor(*before, count, disable_pbar, seed, **kwargs)
        seen.append("end")
        return output

    def wrap(model):
        model = model.clone()
        if kept == "with the model":
            model.add_wrapper(OUTER_SAMPLE, wrapper)
        else:
            comfy.patcher_extension.add_wrapper(OUTER_SAMPLE, wrapper, model.model_options, is_model_options=True)
        return model

    model = wrap(demo.model) if where == "upstream" else demo.model
    model, positive, negative = compose(demo._replace(model=model), idle, **PLAIN)
    sample(wrap(model) if where == "behind" else model, positive, negative, latent)
    assert seen == ["begin", (0, 2), (1, 2), "end"] * 2


def test_a_wrapper_around_both_takes_is_named(demo, idle, latent):
    """One that is put in front of all others would take both takes for one run; a single take is one."""

    def around(executor, *args, **kwargs):
        return executor(*args, **kwargs)

    for surroundings in ("plain", "composed (paper)"):
        model, positive, negative = clora(demo, idle, **PLAIN, surroundings=surroundings)
        wrappers = model.model_options["transformer_options"]["wrappers"]
        wrappers[OUTER_SAMPLE] = {"first": [around], **wrappers[OUTER_SAMPLE]}
        if surroundings == "plain":
            with pytest.raises(
                ValueError, match=r"around” of .*test_other_nodes\) runs around CLoRA.*Put that node before"
            ):
                sample(model, positive, negative, latent)
        else:
            assert_same(sample(model, positive, negative, latent), plain(demo, latent), 1e-4)


def test_a_mask_on_the_conditioning(double, idle, latent):
    mask = torch.zeros(1, 64, 96)
    mask[..., :48] = 1

    def masked(cond):
        return nodes.ConditioningSetMask().append(cond, mask, "default", 0.7)[0]

    model, positive, negative = clora(double, idle, **PLAIN)
    expected = sample(
        double.model,
        masked(encode(double.clip, "a photo of cat and dog in a park")),
        encode(double.clip, "blurry"),
        latent,
    )
    assert_same(sample(model, masked(positive), negative, latent), expected, 1e-5)


def test_controlnet(demo, idle, concepts, latent, control):
    """One ControlNet for all branches, applied by the stock node; a constant to gradients."""
    hint = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))

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
    assert len(model.get_attachment(KEY).records.of(found["samples"]).updated) == 2


def test_foreign_conditioning_says_what_to_connect(demo, patched, concepts, latent):
    model, positive, negative = patched
    text = encode(demo.clip, "a dog")
    _, foreign, _ = compose(demo, concepts)
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
        compose(demo._replace(model=patched[0]), concepts)


def test_maps_of_another_model_say_what_to_connect(demo, latent):
    with pytest.raises(ValueError, match="connect that node's MODEL output"):
        maps(demo.model, latent)


def test_a_negative_that_names_a_concept_says_what_to_write(demo, concepts, caplog):
    with pytest.raises(ValueError, match=r"names \{cat\}.*write plain words"):
        compose(demo, concepts, negative="blurry {cat}")
    compose(demo, concepts[:1], prompt="a {cat}", negative="{dog|wolf}")
    assert "{dog|wolf}, which is taken as it stands" in caplog.text
