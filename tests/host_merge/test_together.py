"""Pictures of several concepts: the distillation teaches them, and what cannot be taught is said."""

import json

import comfy.samplers
import pytest
import torch
from host_merge import test_architectures
from host_merge.test_distillation import quietly, settings
from loraclr.loraclr_core.host.loaded import encode
from loraclr.loraclr_core.host.merge import export, report
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge.together import Together, read_together
from running import merge

STEPS = 12


def pictures(count: int = 2) -> dict:
    """A latent of so many pictures."""
    return {"samples": torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(7))}


def prompt(concepts) -> str:
    return f"{{{concepts[0].name}}} and {{{concepts[1].name}}}"


def distilled(demo, concepts, together: list[Together]):
    """A merge of two concepts, with or without pictures of both."""
    asked = settings((4, 8, 8), STEPS)
    with torch.inference_mode():
        return merging.merge(
            demo.model, demo.clip, concepts[:2], merging.MergeSettings(**vars(asked) | {"together": together}), quietly
        )


@pytest.fixture(scope="module")
def both(demo, concepts):
    """Distilled without pictures of several concepts, and with."""
    together = read_together(demo.model, pictures(), prompt(concepts), STEPS, concepts)
    return distilled(demo, concepts, []), distilled(demo, concepts, together)


def error(demo, result, concepts) -> float:
    """How far a merged model's denoised predictions of the noisy pictures are from the pictures."""
    text = f"{concepts[0].trigger} and {concepts[1].trigger}"
    model, latent = result.model, pictures()["samples"]
    cond = encode(result.clip, text)
    found: list[float] = []

    class Predicting(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image, *args, **kwargs):
            sampling, sigma = model_wrap.inner_model.model_sampling, sigmas[1].expand(len(noise))
            x = sampling.noise_scaling(sigmas[1], noise, latent_image)
            found.append(float((model_wrap(x, sigma, **extra_args) - latent_image).square().mean()))
            return noise

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(cond, cond)
    guider.set_cfg(1.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 2)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    guider.sample(noise, latent, Predicting(), sigmas, disable_pbar=True, seed=0)
    return found[0]


def test_predictions_come_nearer_to_the_pictures(demo, concepts, both):
    without, with_pictures = (error(demo, result, concepts) for result in both)
    assert with_pictures < 0.97 * without


def test_the_report_says_what_was_taught(both, concepts):
    without, with_pictures = (report.markdown(result) for result in both)
    assert f"pictures of several concepts: 2 of `{prompt(concepts)}`." in with_pictures
    assert "of several concepts" not in without


def test_the_saved_file_says_what_was_taught(both, concepts):
    result = both[1]
    said = export.metadata(result.lora, export.info(result), "taught")
    assert json.loads(said["loraclr.settings"])["together"] == [{"prompt": prompt(concepts), "pictures": 2}]


def test_each_line_is_that_of_an_equal_part_of_the_pictures(demo, concepts):
    lines = [f"{{{concept.name}}} alone" for concept in concepts[:2]]
    first, second = read_together(demo.model, pictures(4), "\n\n".join(lines), STEPS, concepts)
    assert [first.with_triggers, second.with_triggers] == [f"{concept.trigger} alone" for concept in concepts[:2]]
    assert [first.with_class_words, second.with_class_words] == [f"{each.class_word} alone" for each in concepts[:2]]
    assert torch.equal(torch.cat([first.latents, second.latents]), pictures(4)["samples"])


@pytest.mark.parametrize("frames", [True, False])
def test_a_model_of_pictures_with_frames_takes_them_with_and_without(frames):
    case = test_architectures.merged("Wan")
    model, (channels, *_) = case.model.model, case.model.latent
    samples = torch.ones(2, channels, *([1] if frames else []), 8, 8)
    (found,) = read_together(model, {"samples": samples}, f"{{{case.chain[0].name}}}", STEPS, case.chain)
    assert found.latents.shape == (2, channels, 1, 8, 8)


REFUSED = {
    "pictures without a prompt": ({"pictures_together": pictures()}, "together_prompt is empty"),
    "a prompt without pictures": ({"together_prompt": "{ball}"}, "connect a latent to pictures_together"),
    "no steps": ({"distillation_steps": 0}, "set distillation_steps to 200"),
    "lines that do not divide the pictures": (
        {"together_prompt": "{a}\n{b}\n{c}"},
        "2 pictures and together_prompt 3 lines",
    ),
    "somebody unknown": ({"together_prompt": "{nobody}"}, "no concept is called that"),
    "nobody": ({"together_prompt": "a park"}, "names no concept"),
    "another model's latents": ({"pictures_together": {"samples": torch.ones(2, 16, 8, 8)}}, "16 channels.*VAE Encode"),
    "an empty latent": ({"pictures_together": {"samples": torch.zeros(2, 4, 8, 8)}}, "connect finished pictures"),
    "NaN": ({"pictures_together": {"samples": torch.full((2, 4, 8, 8), torch.nan)}}, "NaN or infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_taught_is_refused_with_what_to_do(demo, concepts, case):
    values = {"distillation_steps": 1, "pictures_together": pictures(), "together_prompt": prompt(concepts)}
    given, message = REFUSED[case]
    if case == "pictures without a prompt":
        values["together_prompt"] = ""
    if case == "a prompt without pictures":
        values["pictures_together"] = None
    with pytest.raises(ValueError, match=message):
        merge(demo, concepts[:2], **values | given)


def test_one_concept_alone_cannot_be_taught_together(demo, concepts):
    with pytest.raises(ValueError, match="fewer than two"):
        merge(
            demo,
            concepts[:1],
            distillation_steps=1,
            pictures_together=pictures(),
            together_prompt=f"{{{concepts[0].name}}}",
        )
