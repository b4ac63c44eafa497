"""Concepts that take turns, in ComfyUI's own samplers."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import PerpNegGuider
from host_sampler.sampling import CLORA, PLAIN, assert_same, clora, concept, encode, maps, plain, sample, sample_guided
from loraclr.loraclr_core.host.sampler.evaluation import KEY
from pack import run

STILL = {"update_strength": 0.0}


@pytest.fixture(scope="module")
def three(demo):
    with torch.inference_mode():
        return concept("bird", concept("dog", concept("cat")))


@pytest.fixture(scope="module")
def composed(demo, three):
    """Return a function: settings -> MODEL, positive, negative of three concepts without updates."""

    def make(**inputs):
        with torch.inference_mode():
            return clora(demo, three, prompt="a {cat} and {dog} and {bird}", **STILL, **inputs)

    return make


@pytest.fixture
def rows(demo):
    """The number of rows of each call of the model."""
    counted: list[int] = []
    watch = demo.model.model.diffusion_model.register_forward_pre_hook(
        lambda module, args: counted.append(len(args[0]))
    )
    yield counted
    watch.remove()


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m_sde"])
@pytest.mark.parametrize("per_step", [3, 8])
def test_with_all_concepts_at_every_step_it_is_the_same_bit_for_bit(composed, latent, sampler, per_step):
    expected = sample(*composed(), latent, sampler=sampler, steps=3)
    found = sample(*composed(concepts_per_step=per_step), latent, sampler=sampler, steps=3)
    assert torch.equal(found["samples"], expected["samples"])


@pytest.mark.parametrize(("cfg", "lists"), [(5.0, 2), (1.0, 1)])
def test_a_step_runs_as_many_branches_as_it_is_told(rows, composed, latent, cfg, lists):
    """In turns, the first step asks no concept for its negative prediction."""
    for per_step, first, later in ((0, 3 * lists, 3 * lists), (1, 3, lists), (2, 3, 2 * lists)):
        rows.clear()
        sample(*composed(concepts_per_step=per_step), latent, steps=4, cfg=cfg)
        assert rows == [lists] * 4 + [first] + [later] * 3


def test_a_first_step_that_is_evaluated_at_another_latent_too_asks_for_negative_predictions_there(
    rows, composed, latent
):
    """The plain picture's is at its own latent, and guidance compares what is of one."""
    sample(*composed(concepts_per_step=1), latent, sampler="dpm_2", steps=2)
    assert rows == [2] * 3 + [3, 6, 2]


def test_a_latent_that_was_moved_asks_for_negative_predictions(demo, rows, three, latent):
    sample(*clora(demo, three, prompt="a {cat} and {dog} and {bird}", concepts_per_step=1), latent, steps=1)
    assert rows[0] == 2
    assert rows[-1] == 6


def test_without_a_plain_picture_the_first_step_asks_for_negative_predictions(rows, composed, latent):
    sample(*composed(concepts_per_step=1, surroundings="composed (paper)"), latent, steps=2)
    assert rows == [8, 4]


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_nag_acts_on_the_first_step_too(demo, idle, latent, cfg):
    """It does nothing on a batch without negative rows."""
    guided = NAGuidance.execute(demo.model, 5.0, 0.5, 1.5).args[0]
    expected = plain(demo._replace(model=guided), latent, steps=1, cfg=cfg)
    assert (expected["samples"] - plain(demo, latent, steps=1, cfg=cfg)["samples"]).abs().max() > 0.01
    found = sample(*clora(demo._replace(model=guided), idle, **PLAIN, concepts_per_step=1), latent, steps=1, cfg=cfg)
    assert_same(found, expected, 1e-4)


def still_predictions(outputs, latent, calls: list[int], cfg: float = 5.0) -> list[torch.Tensor]:
    """The predictions at these places of a schedule of five levels, by a sampler that never moves its latent."""
    model, positive, negative = outputs
    predictions: list[torch.Tensor] = []

    def sampler(model, x, sigmas, extra_args, callback, disable):
        predictions[:] = [model(x, sigmas[call] * x.new_ones(len(x)), **extra_args) for call in calls]
        return predictions[-1]

    sigmas = torch.tensor([9.0, 5.0, 3.0, 1.0, 0.5, 0.0])
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(1))
    values = (cfg, comfy.samplers.KSAMPLER(sampler), sigmas, positive, negative, latent["samples"])
    comfy.sample.sample_custom(model, noise, *values, disable_pbar=True, seed=0)
    return predictions


@pytest.fixture(scope="module")
def thirds(demo):
    """Return a function: settings -> MODEL, positive, negative of three concepts, each in a third of the picture."""

    def make(**inputs):
        chain = None
        with torch.inference_mode():
            for name, third in (("cat", "left"), ("dog", "middle"), ("bird", "right")):
                chain = concept(name, chain, mask=run("LoRACLR_ConceptArea", area=f"{third} third")[0])
            return clora(demo, chain, prompt="a {cat} and {dog} and {bird}", **STILL, **inputs)

    return make


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_the_others_predictions_are_those_of_their_last_turn(demo, thirds, latent, cfg):
    """Where the latent never moves, they are what all concepts at every step predicted then.

    In the first step, the plain picture's negative prediction is guided away from.
    """
    calls = [0, 1, 2, 3, 4]
    every, turns = (still_predictions(thirds(concepts_per_step=n), latent, calls, cfg) for n in (0, 1))
    (positive,) = still_predictions(thirds(), latent, [0], cfg=1.0)
    negative = encode(demo.clip, CLORA["negative"])
    (away,) = still_predictions((demo.model, negative, negative), latent, [0], cfg=1.0)
    every[0] = away + cfg * (positive - away)
    last_turns = [(0, 0, 0), (1, 0, 0), (1, 2, 0), (1, 2, 3), (4, 2, 3)]
    for found, steps in zip(turns, last_turns, strict=True):
        for third, step in enumerate(steps):
            columns = slice(4 * third, 4 * third + 4)
            torch.testing.assert_close(found[..., columns], every[step][..., columns], rtol=1e-4, atol=1e-4)
    assert (every[4] - every[3]).abs().min() > 0


def test_a_level_that_is_evaluated_twice_is_one_turn(thirds, latent):
    once = still_predictions(thirds(concepts_per_step=1), latent, [0, 1, 2, 3])
    twice = still_predictions(thirds(concepts_per_step=1), latent, [0, 0, 1, 1, 2, 2, 3, 3])
    for expected, first, second in zip(once, twice[::2], twice[1::2], strict=True):
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_takes_turns(composed, sampler):
    small = {"samples": torch.zeros(1, 4, 4, 6)}
    model, positive, negative = composed(concepts_per_step=1)
    found = sample(model, positive, negative, small, sampler=sampler, steps=4)
    assert found["samples"].isfinite().all()
    assert len(maps(model, found)[0]) == 3


@pytest.mark.parametrize("every", [1, 2])
def test_nothing_is_kept_from_one_run_to_the_next(composed, latent, every):
    model, positive, negative = composed(concepts_per_step=1, plain_every=every)
    expected = sample(model, positive, negative, latent, steps=4)
    sample(model, positive, negative, latent, steps=3, seed=8)
    assert torch.equal(sample(model, positive, negative, latent, steps=4)["samples"], expected["samples"])


@pytest.mark.parametrize("every", [1, 2])
def test_a_run_that_is_cancelled_between_turns_leaves_no_trace(demo, composed, latent, every):
    model, positive, negative = composed(concepts_per_step=1, plain_every=every)
    expected, base = sample(model, positive, negative, latent, steps=4), plain(demo, latent)
    passes = []

    def cancel(module, args):
        passes.append(1)
        if len(passes) > 6:
            raise comfy.model_management.InterruptProcessingException

    handle = demo.model.model.diffusion_model.register_forward_pre_hook(cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, positive, negative, latent, steps=4)
    handle.remove()
    assert torch.equal(plain(demo, latent)["samples"], base["samples"])
    assert torch.equal(sample(model, positive, negative, latent, steps=4)["samples"], expected["samples"])


@pytest.mark.parametrize("every", [1, 2])
def test_a_batch_is_its_pictures_one_by_one(composed, every):
    model, positive, negative = composed(concepts_per_step=1, plain_every=every)
    noise = torch.zeros(2, 4, 8, 8)
    found = sample(model, positive, negative, {"samples": noise}, steps=4)["samples"]
    for i in range(2):
        alone = sample(model, positive, negative, {"samples": noise[:1], "batch_index": [i]}, steps=4)["samples"]
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-3 * float(alone.abs().max()))


def test_record_and_updates_go_on_at_every_step(demo, three, latent):
    values = {"prompt": "a {cat} and {dog} and {bird}", "concepts_per_step": 1}
    model, positive, negative = clora(demo, three, **values)
    found = sample(model, positive, negative, latent, steps=4)
    record = model.get_attachment(KEY).records.of(found["samples"])
    assert sorted(record.losses) == [0, 1, 2, 3]
    assert record.updated == [0, 1, 2, 3]
    assert record.heat.shape[1] == 3


def test_turns_are_taken_on_the_composed_picture_too(composed, latent):
    """There the base branch runs at every step, and the concepts in turn."""
    model, positive, negative = composed(concepts_per_step=1, surroundings="composed (paper)")
    assert sample(model, positive, negative, latent, steps=4)["samples"].isfinite().all()


@pytest.mark.parametrize(("cfg", "lists"), [(5.0, 2), (1.0, 1)])
@pytest.mark.parametrize(("every", "evaluated"), [(1, 6), (2, 4), (3, 3), (4, 3)])
def test_the_plain_picture_is_evaluated_at_every_so_many_steps_and_the_last(
    rows, composed, latent, every, evaluated, cfg, lists
):
    sample(*composed(concepts_per_step=1, plain_every=every), latent, steps=6, cfg=cfg)
    assert rows == [lists] * evaluated + [3] + [lists] * 5


@pytest.fixture(scope="module")
def left(demo):
    """Return a function: settings -> MODEL, positive, negative of two concepts in the left third; the rest is the plain picture's."""

    def make(model=None, **inputs):
        chain = None
        with torch.inference_mode():
            area = run("LoRACLR_ConceptArea", area="left third")[0]
            for name in ("cat", "dog"):
                chain = concept(name, chain, mask=area)
            patched = demo if model is None else demo._replace(model=model)
            return clora(patched, chain, prompt="a {cat} and {dog}", **STILL, **inputs)

    return make


@pytest.mark.parametrize("cfg", [5.0, 1.0])
def test_away_from_the_concepts_the_picture_holds_what_the_base_model_predicted_last(left, latent, cfg):
    calls = [0, 1, 2, 3, 4]
    expected, found = (still_predictions(left(plain_every=every), latent, calls, cfg) for every in (1, 2))
    for now, last in enumerate((0, 0, 2, 2, 4)):
        torch.testing.assert_close(found[now][..., 8:], expected[last][..., 8:], rtol=1e-4, atol=1e-4)
    assert (expected[1] - expected[0])[..., 8:].abs().min() > 0


@pytest.mark.parametrize("saving", [{"plain_every": 2}, {"concepts_per_step": 1}], ids=str)
def test_guidance_that_asks_itself_is_given_no_held_prediction(demo, left, latent, saving):
    """It compares its own prediction with the sampler's: both must be of one noise level."""
    guided = PerturbedAttentionGuidance.execute(demo.model, 3.0).args[0]
    expected, found = (sample(*left(guided, **values), latent, steps=4) for values in ({}, saving))
    assert torch.equal(found["samples"], expected["samples"])


@pytest.mark.parametrize("saving", [{"plain_every": 2}, {"concepts_per_step": 1}], ids=str)
def test_perp_neg_is_given_no_held_prediction_beside_its_own_empty_prompt(demo, left, latent, saving):
    """Its empty prompt has no branches, so it is asked at every step."""
    empty = encode(demo.clip, "")

    def pictures(**values):
        model, positive, negative = left(**values)
        guider = PerpNegGuider.execute(model, positive, negative, empty, 5.0, 1.0).args[0]
        return sample_guided(guider, latent, steps=4)[0]

    assert torch.equal(pictures(**saving)["samples"], pictures()["samples"])


def test_guidance_that_begins_after_the_first_step_is_given_no_held_prediction_of_a_concept(demo, left, latent):
    """The plain take has told that it asks."""

    def ask(args):
        if float(args["sigma"][0]) > 10:  # of the first step
            return args["denoised"]
        values = args["model"], [args["cond"]], args["input"], args["sigma"], args["model_options"]
        (own,) = comfy.samplers.calc_cond_batch(*values)
        return args["denoised"] + 0.5 * (args["cond_denoised"] - own)

    guided = demo.model.clone()
    guided.set_model_sampler_post_cfg_function(ask)
    expected, found = (sample(*left(guided, concepts_per_step=n), latent, steps=4) for n in (0, 1))
    assert torch.equal(found["samples"], expected["samples"])


@pytest.mark.parametrize("every", [1, 2])
def test_a_node_that_writes_into_the_predictions_changes_none_that_is_kept(left, latent, every):
    def write(args):
        args["conds_out"][0].mul_(1.1)
        return args["conds_out"]

    def anew(args):
        positive, *others = args["conds_out"]
        return [1.1 * positive, *others]

    pictures = []
    for change in (write, anew):
        model, positive, negative = left(plain_every=every)
        model.set_model_sampler_pre_cfg_function(change)
        pictures.append(sample(model, positive, negative, latent, steps=4)["samples"])
    torch.testing.assert_close(*pictures)


@pytest.mark.parametrize("sampler", comfy.samplers.SAMPLER_NAMES)
def test_every_sampler_goes_on_with_a_plain_picture_of_fewer_evaluations(composed, sampler):
    small = {"samples": torch.zeros(1, 4, 4, 6)}
    model, positive, negative = composed(concepts_per_step=1, plain_every=2)
    found = sample(model, positive, negative, small, sampler=sampler, steps=4)
    assert found["samples"].isfinite().all()


def test_the_composed_picture_has_no_plain_one_to_save(composed, latent):
    once, twice = (composed(plain_every=every, surroundings="composed (paper)") for every in (1, 2))
    assert torch.equal(sample(*twice, latent, steps=3)["samples"], sample(*once, latent, steps=3)["samples"])
