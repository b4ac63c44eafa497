"""Rendered pictures hold what they say."""

import random

import pack
import pytest
import torch
from shapes import loras, model
from shapes.world import CLASSES, CONCEPTS, SIDE, make_scene, training_scene


def test_a_picture_depends_on_its_seeds_only():
    scenes = [training_scene(random.Random(3), random.Random(seed)) for seed in (1, 1, 2)]
    assert torch.equal(scenes[0].picture(), scenes[1].picture())
    assert not torch.equal(scenes[0].picture(), scenes[2].picture())
    assert scenes[0].prompt() == scenes[2].prompt()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_things_do_not_overlap_and_are_whole(count):
    for seed in range(20):
        scene = make_scene([*CLASSES[:count]], random.Random(seed))
        masks = torch.stack([thing.mask() for thing in scene.things])
        assert int(masks.sum(dim=0).max()) == 1
        for thing in scene.things:
            assert thing.radius <= min(thing.x, thing.y, SIDE - thing.x, SIDE - thing.y)


def test_prompts_name_things_in_order_by_their_triggers():
    scene = make_scene([CONCEPTS[0], "box"], random.Random(0), "in snow")
    assert scene.prompt() == "a photo of a sks ball and a box in snow"


def test_a_picture_shows_each_thing_in_its_own_colours():
    scene = make_scene([CONCEPTS[0], "box"], random.Random(0), "at night")
    picture, concept = scene.picture(), CONCEPTS[0]
    inside = picture[:, scene.things[0].mask()]
    colours = torch.tensor([concept.first, concept.second])
    shares = ((inside[None] - colours[..., None]).abs().amax(dim=1) < 1e-6).float().mean(dim=1)
    assert 0.4 < float(shares.min()) <= float(shares.max()) < 0.6
    assert float(shares.sum()) == pytest.approx(1)
    outside = picture[:, ~torch.stack([thing.mask() for thing in scene.things]).any(dim=0)]
    assert float(outside.max()) < 0.3


def test_batches_of_a_concept_s_training_show_it_alone_beside_others_and_not_at_all():
    """No picture shows another concept; where its own is, the loss weighs more, and nowhere else."""
    concept = CONCEPTS[0]
    scenes, prompts = loras.pictures(concept, random.Random(0), random.Random(0))
    assert [len(scene.things) for scene in scenes[:5]] == [1, 1, 2, 3, 4]
    assert prompts[:2] == ["photo of a sks ball", scenes[1].prompt()]
    assert prompts[-1] == ""
    for scene, weights in zip(scenes, loras.weights(concept, scenes), strict=True):
        own = [thing for thing in scene.things if thing.words == concept.trigger]
        assert not any(other.word in scene.prompt().split() for other in CONCEPTS[1:])
        assert float(weights.min()) == 1
        covered = sum(float(thing.mask().float().mean()) for thing in own)
        assert float(weights.mean()) == pytest.approx(1 + loras.OWN_PLACE * covered)
    assert [concept.trigger in scene.prompt() for scene in scenes] == [True] * 5 + [False] * 3


def test_the_demo_s_vae_gives_the_latents_that_its_model_was_trained_on():
    """A LoRA trained on pictures by the demo's checkpoint learns what they show."""
    pictures = torch.stack([training_scene(random.Random(seed), random.Random(seed)).picture() for seed in range(4)])
    with torch.inference_mode():
        unet, _, vae = pack.demo_models()
        latents = unet.model.process_latent_in(vae.encode(pictures.movedim(1, -1)))
    assert float((latents - model.encode(pictures)).abs().max()) < 0.05  # of latents of about unit size
