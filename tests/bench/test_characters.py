"""Rendered pictures of characters hold what they say, and each stage of their training takes a step."""

import itertools
import random

import folder_paths
import nodes
import pytest
import torch
from characters import autoencoder, base, files, judge, landed, look, loras
from characters.sprites import CLASSES, STYLES
from characters.world import (
    APART,
    CELL,
    CONCEPTS,
    GROUNDS,
    HUGGING,
    KEYS,
    OVERLAPPING,
    RELATIONS,
    ROOM,
    TOUCHING,
    Place,
    Scene,
    Thing,
    Worn,
    arrange,
    clearance,
    make_scene,
    training_scene,
)
from torch.nn.functional import max_pool2d

CPU = torch.device("cpu")
SEEDS = range(12)


def colours_in(picture: torch.Tensor, colour: tuple[float, float, float]) -> int:
    """Return how many pixels have a colour."""
    return int(((picture - torch.tensor(colour)[:, None, None]).abs().amax(dim=0) < 0.02).sum())


def covered_share(scene) -> float:
    """Return how much of the rear one of two characters is hidden."""
    rear = scene._replace(things=scene.things[:1])
    return 1 - float(scene.masks()[0].sum() / rear.masks()[0].sum())


def test_a_picture_depends_on_its_seeds_alone():
    scenes = [training_scene(random.Random(3), random.Random(seed)) for seed in (1, 1, 2)]
    assert torch.equal(scenes[0].picture(), scenes[1].picture())
    assert not torch.equal(scenes[0].picture(), scenes[2].picture())
    assert scenes[0].prompt() == scenes[2].prompt()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("concept", CONCEPTS, ids=lambda concept: concept.name)
def test_a_concept_wears_its_colours_in_every_picture_and_no_word_says_so(concept, style):
    for seed in range(3):
        scene = make_scene([concept], random.Random(seed), style=style)
        for worn in concept.worn:
            assert worn.name not in scene.prompt()
            if worn.name != "glasses":  # half transparent within
                assert colours_in(scene.picture(), worn.first) > 10


def test_no_two_concepts_look_alike():
    outfits = [concept.worn for concept in CONCEPTS]
    assert len(set(outfits)) == len(CONCEPTS)
    assert all(len({worn.name for worn in outfit}) == 2 for outfit in outfits)
    classes = [concept.class_word for concept in CONCEPTS]
    assert sorted(classes.count(word) for word in set(classes)) == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_characters_that_are_apart_leave_room_between_them(count):
    for seed in SEEDS:
        masks = make_scene([*CLASSES[:count]], random.Random(seed), distance=APART).masks()
        assert float(masks.sum(dim=0).max()) < 1.01
        for first, second in itertools.combinations(masks, 2):
            assert not bool((first > 0.5).logical_and(second > 0.5).any())


def test_a_look_is_nearly_the_same_latent_wherever_it_stands():
    """Centres lie on the cells' corners: a model this small need not learn every fraction of a cell."""
    network, _ = autoencoder.trained()
    latents = []
    for x in (40, 56):
        things = (Thing("cat", "cat", Place(x, 72)),)
        scene = Scene(things, ("cat",), "and", "sticker", "a sticker of", "in snow", 64, None)
        latents.append(network.encoder(scene.picture()[None]).detach())
    first, second = latents[0][..., 5:13, 1:9], latents[1][..., 5:13, 3:11]
    assert (first - second).square().mean() < 0.01 * first.square().mean()
    for seed in SEEDS:
        for thing in training_scene(random.Random(seed), random.Random(seed)).things:
            assert thing.place.x % CELL == thing.place.y % CELL == 0


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("relation", RELATIONS)
def test_there_is_room_for_every_relation(relation, count):
    for seed in range(40):
        for distance in RELATIONS[relation]:
            places = arrange(count, distance, random.Random(seed), relation)
            assert len({(place.x, place.y) for place in places}) == count


@pytest.mark.parametrize("style", STYLES)
def test_a_hat_on_the_highest_character_is_in_the_picture(style):
    (highest, *_) = ROOM[4][1]
    worn = (Worn("hat", KEYS[0], KEYS[0]),)
    for class_word in CLASSES:
        pictures = []
        for y in (highest, highest + 2 * CELL):
            things = (Thing(class_word, class_word, Place(64, y), worn),)
            pictures.append(Scene(things, (class_word,), "and", style, "", "in snow", 64, None).picture())
        high, low = (colours_in(picture, KEYS[0]) for picture in pictures)
        assert high > 0.97 * low, class_word


@pytest.mark.parametrize("distance", [TOUCHING, HUGGING, OVERLAPPING])
def test_the_first_two_stand_as_near_as_asked(distance):
    for seed in SEEDS:
        first, second, third = arrange(3, distance, random.Random(seed))
        assert distance[0] <= clearance(first, second) <= distance[1]
        assert min(clearance(first, third), clearance(second, third)) > 1


def test_characters_that_touch_adjoin():
    adjoining = []
    for seed in SEEDS:
        masks = make_scene(["panda", "bear"], random.Random(seed), distance=TOUCHING, style="icon").masks() > 0.5
        grown = max_pool2d(masks.float(), 9, 1, 4)
        adjoining.append(bool(grown.prod(dim=0).any()))
    assert sum(adjoining) >= 11


@pytest.mark.parametrize("relation", ["beside", "hugging"])
def test_characters_side_by_side_are_level_and_lean_towards_each_other_when_they_hug(relation):
    for seed in SEEDS:
        scene = make_scene(["cat", "bear"], random.Random(seed), relation=relation)
        left, right = sorted((thing.place for thing in scene.things), key=lambda place: place.x)
        assert abs(left.y - right.y) < 0.3 * (right.x - left.x)
        if relation == "hugging":
            assert left.turn > 0 > right.turn


def test_the_one_in_front_is_named_first_and_hides_part_of_the_other():
    shares = []
    for seed in SEEDS:
        scene = make_scene(["cat", "bear"], random.Random(seed), relation="in front of", ground="in snow")
        assert "a cat in front of a bear" in scene.prompt()
        assert scene.things[-1].class_word == "cat"
        shares.append(covered_share(scene))
    assert 0.08 < min(shares) <= max(shares) < 0.45
    assert sum(shares) / len(shares) < 1 / 3


def test_prompts_say_style_characters_prop_and_ground():
    scene = make_scene([CONCEPTS[0], "dog"], random.Random(0), relation="hugging", ground="at night", style="sticker")
    words = scene._replace(prop=("tree", scene.things[0].place)).prompt()
    assert words == "a sticker of a sks cat hugging a dog near a tree at night"


def test_what_plain_characters_wear_is_mostly_said():
    scenes = [training_scene(random.Random(seed), random.Random(seed)) for seed in range(300)]
    wearing = [thing for scene in scenes for thing in scene.things if thing.worn]
    said = sum(thing.worn[0].name in thing.words for thing in wearing)
    assert 0.65 < said / len(wearing) < 0.85


def test_words_of_two_of_one_class_lie_each_on_its_own_character():
    text = base.Text(CPU)
    for seed in itertools.count():
        scene = training_scene(random.Random(seed), random.Random(seed))
        words = [thing.words for thing in scene.things]
        if len(set(words)) == 2 and len({thing.class_word for thing in scene.things}) == 1:
            break
    places = base.places_of_words(scene, text)
    positions = [position for tokens, _ in places for position in tokens]
    assert len(set(positions)) == len(positions)
    first, *_, last = (mask for _, mask in places)
    assert not torch.equal(first, last)


def test_the_judge_is_told_that_half_an_outfit_is_nobody_s():
    scene = make_scene([CONCEPTS[0], "dog"], random.Random(1), distance=APART, style="icon")
    undressed = scene._replace(things=tuple(thing._replace(worn=thing.worn[:1]) for thing in scene.things))
    whole, half = judge.truth(scene), judge.truth(undressed)
    assert set(whole["outfit"].unique().tolist()) == {-1, 0, 1}
    assert set(half["outfit"].unique().tolist()) == {-1, 0}
    assert set(whole["class"].unique().tolist()) == {-1, 0, 1 + CLASSES.index("cat"), 1 + CLASSES.index("dog")}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """States and landed weights in a folder of the test's, and batches of two."""
    for module in (autoencoder, base, judge):
        monkeypatch.setattr(module, "BATCH", 2)
        monkeypatch.setattr(module, "STATE", tmp_path / f"{module.__name__}.pt")
    monkeypatch.setattr(landed, "FOLDER", tmp_path / "weights")
    monkeypatch.setattr(base, "SAMPLES", tmp_path / "samples.pt")
    monkeypatch.setattr(base, "PROMPTS", 2)  # the second shows one character
    monkeypatch.setattr(judge, "HELD_OUT", 2)
    with torch.inference_mode(False), torch.enable_grad():
        yield


@pytest.mark.usefixtures("elsewhere")
def test_a_base_model_is_not_trained_on_with_latents_of_another_autoencoder():
    for stage, steps in ((autoencoder, 1), (base, 1), (autoencoder, 2)):
        stage.run(CPU, steps)
    with pytest.raises(SystemExit, match="after 1 steps, which now has 2; move it away"):
        base.run(CPU, 2)


@pytest.mark.usefixtures("elsewhere")
def test_pictures_that_other_code_drew_are_drawn_anew(monkeypatch):
    autoencoder.run(CPU, 1)
    samples = base.Samples(CPU)
    samples([0])
    samples.keep()
    assert list(base.Samples(CPU).known) == [0]
    monkeypatch.setattr(base, "DRAWN_BY", "other code")
    assert not base.Samples(CPU).known


@pytest.mark.usefixtures("elsewhere")
def test_the_decoder_learns_on_without_a_change_of_the_latents_of_the_base_model():
    with pytest.raises(SystemExit, match="run the stage “autoencoder” first"):
        autoencoder.run_decoder(CPU, 1)
    autoencoder.run(CPU, 2)  # so that the weights are not their own average
    before = landed.landed(landed.AUTOENCODER)
    base.run(CPU, 1)
    autoencoder.run_decoder(CPU, 3)
    after = landed.landed(landed.AUTOENCODER)
    assert (after.steps, after.trained_on) == (3, 2)
    state = torch.load(autoencoder.STATE, weights_only=True)
    encoder = {key: tensor for key, tensor in state["network"].items() if key.startswith("encoder.")}
    assert all(torch.equal(tensor, state["averaged"][f"module.{key}"]) for key, tensor in encoder.items())
    changed = {
        key.partition(".")[0] for key, tensor in after.weights.items() if not torch.equal(tensor, before.weights[key])
    }
    assert changed == {"decoder"}
    base.run(CPU, 2)
    autoencoder.land(landed.AUTOENCODER, after.weights, steps=4, trained_on=4)
    with pytest.raises(SystemExit, match="has an encoder of 2 steps, and the landed one has 4"):
        autoencoder.run_decoder(CPU, 4)


@pytest.mark.parametrize(("step", "most"), [(0, 1), (1500, 4)])
def test_the_base_model_is_shown_one_character_first_then_up_to_four(step, most):
    counts = set()
    for seed in base.shown_at(step, prompts=40):
        counts.add(len(training_scene(random.Random(seed // base.PICTURES), random.Random(seed + 1)).things))
    assert counts == {*range(1, most + 1)}


@pytest.mark.usefixtures("elsewhere")
def test_each_stage_goes_on_where_it_was_stopped():
    """The autoencoder, the base model on its latents, and the judge."""
    for stage in (autoencoder, base, judge):
        for steps in (1, 2):
            stage.run(CPU, steps)
            assert torch.load(stage.STATE, weights_only=True)["step"] == steps


@pytest.mark.usefixtures("elsewhere")
def test_stages_whose_states_are_lost_go_on_from_what_was_landed():
    for stage in (autoencoder, base, judge):
        stage.run(CPU, 1)
    before = base.Trainer(CPU)
    for stage in (autoencoder, base, judge):
        stage.STATE.unlink()
    after = base.Trainer(CPU)
    assert after.step == 1
    for key, tensor in before.average.items():
        assert (after.average[key] - tensor).norm() <= 0.01 * tensor.norm() + 1e-5, key
    before = landed.landed(landed.AUTOENCODER)
    autoencoder.run(CPU, 1)  # no step is left to do
    for key, tensor in landed.landed(landed.AUTOENCODER).weights.items():
        assert (tensor - before.weights[key]).norm() <= 0.01 * tensor.norm() + 1e-5, key
    for stage, name in ((autoencoder, landed.AUTOENCODER), (judge, landed.JUDGE)):
        stage.STATE.unlink(missing_ok=True)
        stage.run(CPU, 2)
        assert landed.landed(name).steps == 2


@pytest.mark.usefixtures("elsewhere")
def test_nothing_is_drawn_before_the_stages_are_trained():
    with pytest.raises(SystemExit, match="run the stage “autoencoder” first"):
        look.run(CPU)
    autoencoder.run(CPU, 1)
    with pytest.raises(SystemExit, match="run the stage “base” first"):
        look.run(CPU)
    with pytest.raises(SystemExit, match="“cat” is not trained yet; run the stage “loras” first"):
        files.ensure_lora(CONCEPTS[0])


@pytest.mark.usefixtures("elsewhere")
def test_the_stock_loader_takes_what_was_landed(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "checkpoints", ([str(tmp_path)], {".safetensors"}))
    for stage in (autoencoder, base):
        stage.run(CPU, 1)
    with torch.inference_mode():
        world = files.load()
        picture = look.draw(world, "a photo of a cat in a park", seed=0)
    assert type(world.model.model.model_config).__name__ == "SD15"
    assert picture.shape == (128, 128, 3)
    assert picture.std() > 0
    for key, tensor in landed.require(landed.BASE).weights.items():
        found = world.model.model.diffusion_model.get_parameter(key)
        torch.testing.assert_close(found.float(), tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("elsewhere")
def test_the_node_trains_the_loras_and_the_stock_loader_takes_them(tmp_path, monkeypatch):
    for folder in ("checkpoints", "loras"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, folder, ([str(tmp_path / folder)], {".safetensors"}))
    monkeypatch.setattr(loras, "CONCEPTS", CONCEPTS[:1])
    monkeypatch.setattr(loras, "PICTURES", 2)
    monkeypatch.setitem(loras.TRAINING, "beside", "")
    for stage in (autoencoder, base, loras):
        stage.run(CPU, 1)
    landed_lora = landed.require(CONCEPTS[0].name)
    with monkeypatch.context() as patched:
        patched.setattr(loras, "train", None)  # is not called: nothing is left to train
        loras.run(CPU, 1)
    landed.file_of(CONCEPTS[0].name).unlink()
    monkeypatch.setitem(loras.TRAINING, "rank", 2)
    loras.run(CPU, 1)  # the earlier training's file stays, and this one has another name
    ups = [tensor for key, tensor in landed.require(CONCEPTS[0].name).weights.items() if key.endswith("lora_up.weight")]
    assert {tensor.shape[1] for tensor in ups} == {2}
    assert (landed_lora.steps, landed_lora.trained_on) == (1, 1)
    with torch.inference_mode():
        world = files.load()
        model, _ = nodes.LoraLoader().load_lora(world.model, world.clip, files.ensure_lora(CONCEPTS[0]), 1.0, 1.0)
    assert len(model.patches) == sum(key.endswith("lora_up.weight") for key in landed_lora.weights) > 0


def test_a_concept_s_pictures_show_it_alone_in_every_style_and_say_no_more_than_style_ground_and_prop():
    scenes = loras.scenes(CONCEPTS[0])
    assert {scene.style for scene in scenes} == {*STYLES}
    assert {scene.ground for scene in scenes} == {*GROUNDS}
    assert all(len(scene.things) == 1 and scene.things[0].worn == CONCEPTS[0].worn for scene in scenes)
    assert all("sks cat" in scene.prompt() and "hat" not in scene.prompt() for scene in scenes)
