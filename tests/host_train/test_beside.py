"""The subject beside other things: where it is, where it is put, what is painted around it, and the loss there."""

import random

import comfy.samplers
import pack
import pytest
import torch
import torch.nn.functional as F
from host_train.training import CLASS, QUICK, TRIGGER, on_loaded, picture, small_models, train
from loraclr.loraclr_core.host import differentiable
from loraclr.loraclr_core.host.loaded import encode, with_model
from loraclr.loraclr_core.host.train import beside, data, painting
from loraclr.loraclr_core.host.train import train as training
from loraclr.loraclr_core.host.train.rows import Rows
from loraclr.loraclr_core.host.train.settings import TrainSettings
from loraclr.loraclr_core.train.captions import Caption
from loraclr.loraclr_core.train.draws import draws
from shapes.scores import class_template, concept_template, match
from shapes.world import CONCEPTS, make_scene
from torch import Tensor

WITH = {"beside": "dog, apple", "learning_rate": 1e-3}


def settings(**values) -> TrainSettings:
    return TrainSettings(**{"trigger": TRIGGER, "class_word": CLASS, "beside": "dog, apple"} | values)


def square(top: int, left: int, side: int, cells: tuple[int, int] = (16, 24)) -> Tensor:
    """Cells of which a square is the subject's."""
    mask = torch.zeros(cells)
    mask[top : top + side, left : left + side] = 1
    return mask


class TestWords:
    def test_things_get_their_article_and_the_class_itself_is_another_one(self):
        assert beside.names(settings(beside="dog, apple, cat,")) == ["a dog", "an apple", "another cat"]

    @pytest.mark.parametrize("off", [{"beside": " , "}, {"preservation": 0.0}, {"class_word": ""}])
    def test_nothing_is_shown_beside_where_there_is_nothing_to_preserve_or_to_name(self, off):
        assert beside.names(settings(**off)) == []

    @pytest.mark.parametrize(
        ("number", "concept", "both", "other", "empty"),
        [
            (
                0,
                f"photo of a {TRIGGER} on grass",
                "photo of a {} and a dog on grass",
                "photo of a dog on grass",
                "photo of on grass",
            ),
            (
                1,
                f"photo of a {TRIGGER} on grass",
                "photo of a dog and a {} on grass",
                "photo of a dog on grass",
                "photo of on grass",
            ),
            (0, f"{TRIGGER}, on grass", "{} and a dog, on grass", "a dog, on grass", ", on grass"),
            (1, f"{TRIGGER}, on grass", "a dog and {}, on grass", "a dog, on grass", ", on grass"),
        ],
    )
    def test_captions_name_both_in_either_order_and_what_is_painted_the_other_alone(
        self, number, concept, both, other, empty
    ):
        caption = Caption(concept, concept.replace(TRIGGER, CLASS))
        scene = beside._scene(0, caption, "a dog", number, settings())
        assert scene == beside.Scene(0, Caption(both.format(TRIGGER), both.format(CLASS)), other, empty)


class TestPlace:
    @pytest.mark.parametrize("seed", range(8))
    def test_the_subject_lies_where_the_other_thing_is_not_as_it_was(self, seed):
        pixels, subject, occupied = picture(1, 64, 96).movedim(-1, 1), square(6, 10, 5), torch.zeros(16, 24)
        occupied[:, 12:] = 1
        canvas, known = beside._place(pixels, subject, occupied, random.Random(seed))
        assert known.sum() == 20 * 20
        assert torch.nonzero(known[0, 0].amax(dim=0)).max() < 48 + 4  # a tenth of it may be where the other one is
        assert torch.equal(canvas[:, :, known[0, 0] == 1].flatten(), pixels[:, :, 24:44, 40:60].flatten())
        assert (canvas[:, :, known[0, 0] == 0] == 0.5).all()

    def test_one_that_fills_the_picture_is_made_smaller(self):
        pixels, occupied = picture(1, 64, 96).movedim(-1, 1), torch.zeros(16, 24)
        canvas, known = beside._place(pixels, torch.ones(16, 24), occupied, random.Random(0))
        rows, columns = (torch.nonzero(known[0, 0].amax(dim=axis)).flatten() for axis in (1, 0))
        assert (len(rows), len(columns)) == (35, 52)
        assert canvas.shape == (1, 3, 64, 96)

    def test_without_a_subject_nothing_is_learned(self):
        pixels = picture(1, 96, 64).movedim(-1, 1)
        _, known = beside._place(pixels, torch.zeros(24, 16), torch.zeros(24, 16), random.Random(0))
        assert known.sum() == 0


class TestFinding:
    def test_the_subject_is_found_by_its_class_word_and_put_beside_what_the_base_paints(self):
        """On the demo's model, whose pictures are known exactly."""
        model, clip, vae = pack.demo_models()
        concept, rng = CONCEPTS[0], random.Random(1)
        scenes = [make_scene([concept], rng, background) for background in ("on grass", "in snow", "on sand")]
        images = [scene.picture().movedim(0, -1)[None] for scene in scenes]
        chosen = settings(trigger=concept.trigger, class_word=concept.class_word, beside="box")
        sources = data.check(data.Given(images, [scene.prompt() for scene in scenes], [], [], []), chosen)

        dataset = data.encode(model, vae, sources, 0, quiet)
        painted = beside.scenes(dataset, chosen)[:2]
        found = find(model, clip, dataset, painted, chosen)
        for scene, subject in zip(scenes, found.subjects, strict=True):
            true = F.adaptive_avg_pool2d(scene.things[0].mask().float()[None], 16)[0] > 0.5
            assert (true & (subject == 1)).sum() > 0.9 * true.sum()
            assert subject.sum() < 2.2 * true.sum()  # with the cells around it
        composed = beside.compose(model, vae, sources, painted, found, chosen)
        for picture_, before in zip(composed, found.painted, strict=True):
            pixels = vae.decode(model.model.process_latent_out(picture_.latent)).movedim(-1, 1)
            assert match(pixels, concept_template(concept)).score > 0.5  # the subject is in it
            assert match(pixels, class_template("box")).score > 0.5  # and so is what was painted
            assert torch.equal(picture_.latent[..., picture_.subject == 0], before[..., picture_.subject == 0])


def find(model, clip, dataset, scenes: list[beside.Scene], chosen: TrainSettings) -> beside.Found:
    conds = {prompt: encode(clip, prompt) for prompt in beside.prompts(dataset, scenes, chosen)}
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", painting.STEPS)
    with differentiable.gradients(False, "", [model.model]), torch.no_grad():
        return with_model(
            model,
            {},
            [conds[""]],
            torch.zeros_like(dataset.pictures[0].latent),
            sigmas,
            lambda loaded: beside.find(loaded, conds, dataset, scenes, chosen, quiet),
        )


def quiet(phase: str, done: float) -> None:
    pass


class TestTraining:
    @pytest.mark.parametrize("name", ["SD1.5", "Flux", "Wan"])
    def test_pictures_beside_other_things_are_part_of_the_loss(self, name):
        trained = train(small_models(name), [picture(1)], steps=4, batch=2, if_there="anew", **WITH)
        assert trained.loss_map["beside"]
        assert trained.loss_map["preservation"]  # of the other rows
        assert "| beside other things |" in trained.report
        assert "12 painted pictures of it beside a dog, an apple" in trained.report

    def test_without_them_there_is_no_such_term(self):
        trained = train(small_models("SD1.5"), [picture(1)], if_there="anew")
        assert trained.loss_map["beside"] == []

    def test_the_loss_is_the_subject_s_inside_and_the_base_s_outside(self):
        """Of a LoRA that does nothing yet; the base sees the class word, the model the trigger."""

        def work(rows, learner):
            subject = square(2, 1, 4, (8, 12))
            caption = Caption(f"photo of a {TRIGGER}", f"photo of a {CLASS}")
            shown = data.Picture(torch.randn(1, 4, 8, 12), caption, subject)
            (draw,) = draws(0, 0, 1, 1)
            with torch.no_grad():
                x, sigma = rows._noisy(shown.latent, draw)
                asked, base = (rows.model.evaluate(rows.conds[text], x, sigma) for text in caption)
            inside = ((asked - shown.latent) * subject).square().mean()
            outside = ((asked - base) * (1 - subject)).square().mean()
            expected = rows._weight(sigma) * (inside + 4 * 3.0 * outside)
            return rows._beside(learner.deltas, shown, draw)["beside"], float(expected)

        found, expected = on_loaded(small_models("SD1.5"), [picture(1)], [], work, preservation=3.0)
        assert found == pytest.approx(expected, rel=1e-4)

    def test_with_the_class_word_they_are_preserved_and_so_is_what_was_painted(self, monkeypatch):
        """Or “a cat and a dog” would come to draw the concept, too."""
        given: list[data.Dataset] = []

        class Recorded(Rows):
            def __init__(self, model, dataset, conds, settings):
                super().__init__(model, dataset, conds, settings)
                given.append(dataset)

        monkeypatch.setattr(training, "Rows", Recorded)
        train(small_models("SD1.5"), [picture(1)], if_there="anew", **WITH)
        (dataset,) = given
        count = len(dataset.beside)
        assert len(dataset.others) == 2 * count
        for shown, plain, painted in zip(dataset.beside, dataset.others[:count], dataset.others[count:], strict=True):
            assert plain == (shown.latent, shown.caption.plain)
            assert painted.caption in ("photo of a dog", "photo of an apple")
            outside = shown.subject == 0
            assert torch.equal(painted.latent[..., outside], shown.latent[..., outside])

    def test_masks_are_not_said_to_have_no_effect(self):
        mask = torch.zeros(1, 64, 96)
        mask[:, 16:48, 16:64] = 1
        quick = QUICK | WITH | {"if_there": "anew"}
        assert (
            "The masks have no effect" not in train(small_models("SD1.5"), [picture(1)], masks=[mask], **quick).report
        )
        quick["beside"] = ""
        assert "The masks have no effect" in train(small_models("SD1.5"), [picture(1)], masks=[mask], **quick).report
