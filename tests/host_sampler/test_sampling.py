"""CLoRA in the host's own samplers."""

import comfy.sample
import comfy.samplers
import comfy_extras.nodes_differential_diffusion as differential_diffusion
import nodes
import pytest
import torch
from host_sampler.sampling import CLORA, PLAIN, assert_same, clora, compose, concept, encode, maps, plain, sample
from loraclr.loraclr_core.host.sampler.evaluation import KEY
from loraclr.loraclr_core.host.sampler.settings import SURROUNDINGS


# heun divides its own rounding by the last, small sigma: its first of two steps multiplies it by 250.
@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [("euler", 1e-5), ("dpmpp_2m_sde", 1e-5), ("uni_pc", 1e-5), ("euler_ancestral_cfg_pp", 1e-5), ("heun", 1e-4)],
)
def test_idle_concepts_give_the_plain_picture(double, idle, latent, sampler, tolerance):
    found = sample(*clora(double, idle, **PLAIN), latent, sampler=sampler)
    assert_same(found, plain(double, latent, sampler=sampler), tolerance)


def test_idle_concepts_with_masks_give_the_plain_picture(double, idle, latent):
    found = sample(*clora(double, idle, update_strength=0.0), latent)
    assert_same(found, plain(double, latent), 1e-5)


def test_a_style_loaded_upstream_acts_in_every_branch(double, idle, latent):
    style = nodes.LoraLoader().load_lora(double.model, double.clip, "loraclr_random_bird.safetensors", 1.0, 1.0)
    styled = double._replace(model=style[0], clip=style[1])
    expected = plain(styled, latent)
    assert_same(sample(*compose(styled, idle, **PLAIN), latent), expected, 1e-5)
    assert (expected["samples"] - plain(double, latent)["samples"]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_runs_and_leaves_the_model_as_it_was(demo, patched, sampler):
    """Finite, recorded, and updated at most once in each step."""
    model = patched[0]
    found = sample(*patched, {"samples": torch.zeros(1, 4, 4, 6)}, sampler=sampler, steps=3)
    record = model.get_attachment(KEY).records.of(found["samples"])
    assert found["samples"].isfinite().all()
    assert len(record.updated) == len(set(record.updated)) >= 1
    assert sorted(record.losses) == sorted(set(record.losses))
    assert not any(module._forward_hooks for module in demo.model.model.modules())


def test_updates_lower_the_loss(demo, concepts, latent):
    losses = []
    for strength in (0.0, 0.02, 0.1):
        model, positive, negative = clora(demo, concepts, update_strength=strength)
        _, _, loss = maps(model, sample(model, positive, negative, latent, steps=3))
        losses.append(sum(loss["loss"]))
    assert losses[0] > losses[1] > losses[2]


def test_no_gradient_outside_the_range(demo, concepts, latent):
    sampled = []

    def note(module, args, kwargs):
        if torch.is_grad_enabled():
            sampled.append(float(args[1][0]))

    handle = demo.model.model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    sample(*clora(demo, concepts, update_start=0.3, update_end=0.7), latent, steps=10)
    handle.remove()
    times = sorted(set(sampled))
    assert len(times) == 4
    assert all(299 <= time <= 700 for time in times)  # of 1000, 999 the first noise level


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
        moved = patched[0].get_attachment(KEY).records.of(found["samples"]).updated
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


def columns(start: int, end: int) -> torch.Tensor:
    """A mask of these columns of the latent, in pixels."""
    mask = torch.zeros(1, 64, 96)
    mask[..., 8 * start : 8 * end] = 1
    return mask


@pytest.fixture(scope="module")
def sides():
    """Two concepts with masks that leave the middle of the picture free."""
    return concept("dog", concept("cat", mask=columns(0, 4)), mask=columns(8, 12))


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m_sde", "heun", "uni_pc", "euler_ancestral"])
def test_around_all_concepts_is_the_plain_picture(demo, sides, latent, sampler):
    """The base branch sees nothing of the concepts, so its layout and background do not drift; by whatever sampler."""
    picture = plain(demo, latent, sampler=sampler, steps=4)["samples"]
    tolerance = 1e-5 * float(picture.abs().max())
    of = {
        around: sample(*clora(demo, sides, update_strength=0.0, surroundings=around), latent, sampler=sampler, steps=4)
        for around in SURROUNDINGS
    }
    apart = {around: (found["samples"] - picture).abs() for around, found in of.items()}
    assert apart["plain"][..., 4:8].max() < tolerance
    assert apart["plain"][..., :4].max() > 1000 * tolerance  # or the concepts would not be there
    assert apart["composed (paper)"][..., 4:8].max() > 100 * tolerance


def test_a_concept_changes_nothing_in_another_s_place(demo, latent):
    """A LoRA never sees what another draws, beside which it was not trained."""
    cat = concept("cat", mask=columns(0, 6))
    dogs = [concept("dog", cat, mask=columns(6, 12), strength_model=strength) for strength in (1.0, -1.0)]
    for around in SURROUNDINGS:
        with_dog, with_other = (
            sample(*clora(demo, chain, update_strength=0.0, surroundings=around), latent, steps=4)["samples"]
            for chain in dogs
        )
        change = (with_dog - with_other).abs()
        assert change[..., 6:].max() > 0.01 * with_dog.abs().max()
        assert (change[..., :6].max() < 1e-5 * with_dog.abs().max()) == (around == "plain")


def test_both_takes_together_run_every_branch_once(demo, concepts, latent):
    """The base branch's evaluations for the plain picture serve the picture with the concepts too."""
    rows = {}
    for around in SURROUNDINGS:
        counted = rows[around] = []
        handle = demo.model.model.diffusion_model.register_forward_pre_hook(
            lambda module, args, kwargs, counted=counted: counted.append(len(args[0])), with_kwargs=True
        )
        sample(*clora(demo, concepts, update_strength=0.0, surroundings=around), latent, sampler="heun", steps=3)
        handle.remove()
    assert sum(rows["plain"]) == sum(rows["composed (paper)"]) == 5 * 2 * 3  # evaluations × cond, uncond × branches


def test_concepts_are_drawn_at_different_objects_of_the_plain_picture(demo, concepts, latent):
    model, positive, negative = clora(demo, concepts, mask_threshold=0.5, update_strength=0.0)
    cat, dog = maps(model, sample(model, positive, negative, latent, steps=3))[0]
    assert cat.any()
    assert dog.any()
    assert not (cat * dog).any()


def test_a_given_mask_leaves_the_other_concepts_the_objects_elsewhere(demo, latent):
    chain = concept("dog", concept("cat", mask=columns(0, 6)))
    model, positive, negative = clora(demo, chain, update_strength=0.0, mask_threshold=0.5)
    cat, dog = maps(model, sample(model, positive, negative, latent, steps=2))[0]
    assert cat.tolist() == [[1.0] * 6 + [0.0] * 6] * 8
    assert dog.any()
    assert not (cat * dog).any()


def test_prompts_of_different_length(demo, concepts, latent):
    """A branch whose prompt takes another chunk still gives maps of its own tokens."""
    filler = "one two three four five six seven eight nine ten " * 7
    prompt = CLORA["prompt"] + " with " + filler
    model, positive, negative = clora(demo, concepts, prompt=prompt)
    assert len({entry[0].shape[1] for entry in positive + negative}) == 2
    assert sample(model, positive, negative, latent)["samples"].isfinite().all()
