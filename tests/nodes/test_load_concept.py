"""Load Concept LoRA: which words and masks it takes, asks for and refuses; and what then needs them."""

import json

import pytest
import torch
from host_sampler.sampling import clora, compose, concept, sample
from running import load, merge, write_lora

STATE = {"lora_unet_a.lora_up.weight": torch.ones(4, 2), "lora_unet_a.lora_down.weight": torch.ones(2, 4)}
CAT, DOG = "loraclr_random_cat.safetensors", "loraclr_random_dog.safetensors"


def booru(**tags: int) -> dict[str, str]:
    """Metadata of a file with forty captions in tags."""
    counts = {tag.replace("_", " "): count for tag, count in tags.items()}
    return {
        "ss_dataset_dirs": json.dumps({"5_img": {"n_repeats": 5, "img_count": 40}}),
        "ss_tag_frequency": json.dumps({"5_img": counts}),
    }


def words(chain: list) -> tuple[str, str, str]:
    return chain[-1].trigger, chain[-1].class_word, chain[-1].name


# --- Words -----------------------------------------------------------------------------------------------------------


def test_regularisation_is_no_trigger_and_the_log_says_where_the_trigger_stands(caplog):
    metadata = {
        "ss_dataset_dirs": json.dumps({"10_ohwx woman": {"n_repeats": 10, "img_count": 20}}),
        "ss_reg_dataset_dirs": json.dumps({"1_woman": {"n_repeats": 1, "img_count": 200}}),
        "ss_tag_frequency": json.dumps({"10_ohwx woman": {"ohwx woman": 20}, "1_woman": {"woman": 200}}),
    }
    caplog.set_level("INFO")
    chain, *_ = load(write_lora("regularised.safetensors", STATE, metadata))
    assert words(chain) == ("ohwx woman", "woman", "woman")
    assert "“ohwx woman”, from the training folder “10_ohwx woman”" in caplog.text


def test_a_file_that_names_no_trigger_is_asked_about_with_what_it_does_say():
    name = write_lora("two_tags.safetensors", STATE, booru(**{"1girl": 40, "mychar": 40, "armor": 39}))
    with pytest.raises(ValueError, match=r"two_tags\.safetensors does not say .*“mychar”, “armor”"):
        load(name)
    name = write_lora("booru.safetensors", STATE, booru(**{"1girl": 40, "solo": 39, "looking_at_viewer": 38}))
    with pytest.raises(ValueError, match=r"booru\.safetensors does not say"):
        load(name)


def test_parentheses_of_a_file_s_words_do_not_weigh_the_prompt(demo):
    """The text encoder sees the same tokens with the same weights as for a prompt without any syntax."""
    chain, *_ = load(write_lora("saber.safetensors", STATE, booru(**{"1girl": 40, "saber_(fate)": 40})))
    assert words(chain) == ("saber \\(fate\\)", "", "saber (fate)")
    assert {weight for _, weight in demo.clip.tokenize(chain[0].trigger)["l"][0]} == {1.0}


@pytest.mark.parametrize("trigger", ["(sks cat:1.2)", "sks cat,", "sks cat"])
def test_a_typed_trigger_stays_as_it_is_and_gives_its_plain_class_word(trigger):
    chain, *_ = load(CAT, trigger)
    assert words(chain) == (trigger, "cat", "cat")


def test_blank_fields_are_empty_fields():
    chain, *_ = load(CAT, " ", class_word=" ", name="\t")
    assert words(chain) == ("sks cat", "cat", "cat")


def test_syntax_that_is_not_read_is_said(caplog):
    load(CAT, "{red|blue} cat <lora:sks:1>")
    assert f"{CAT}: trigger holds <lora:sks:1>, which is read as words" in caplog.text
    assert f"{CAT}: trigger holds braces" in caplog.text


def test_one_rare_word_merges_without_a_class_word(demo):
    """As workflows of version 0.1.0 did."""
    chain = load(DOG, "zwx", load(CAT, "sks")[0])[0]
    assert [each.name for each in chain] == ["sks", "zwx"]
    given = load(DOG, "zwx", load(CAT, "sks", class_word="cat")[0], class_word="dog")[0]
    found, expected = merge(demo, chain)[2], merge(demo, given)[2]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_what_needs_a_class_word_asks_for_it(demo):
    chain = load(DOG, "zwx dog", load(CAT, "sks")[0])[0]
    asked = r"“sks” \(loraclr_random_cat\.safetensors\) has no class word, but .*class_word of its Load Concept LoRA"
    with pytest.raises(ValueError, match=asked):
        compose(demo, chain, prompt="a photo of {sks} and {dog}")
    with pytest.raises(ValueError, match=f"(?=.*anchor_weight){asked}"):
        merge(demo, chain, anchor_weight=0.5)
    with pytest.raises(ValueError, match=f"(?=.*distillation_steps){asked}"):
        merge(demo, chain, distillation_steps=1)


def test_a_name_that_no_prompt_can_write_is_refused_where_prompts_are(demo):
    chain = concept("dog", concept("cat", name="{cat}"))
    with pytest.raises(ValueError, match=r"No prompt can name concept “\{cat\}”"):
        compose(demo, chain)


# --- Masks -----------------------------------------------------------------------------------------------------------

LEFT = torch.cat([torch.ones(8, 6), torch.zeros(8, 6)], dim=1)


@pytest.mark.parametrize(
    "mask",
    [LEFT, LEFT[None], LEFT[None, None], LEFT.expand(2, 1, 8, 12), LEFT.bool(), LEFT.to(torch.uint8), LEFT.double()],
    ids=lambda mask: f"{tuple(mask.shape)} {mask.dtype}",
)
def test_masks_are_taken_in_every_form_the_host_s_nodes_take(mask):
    kept = concept("cat", mask=mask)[0].mask
    assert kept.shape[1:] == (8, 12)
    assert all(torch.equal(each.float(), LEFT) for each in kept)
    assert kept.is_floating_point()


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (LEFT[..., None], r"8×12×1"),
        (LEFT[None, ..., None], r"1×8×12×1"),
        (LEFT.expand(1, 3, 8, 12), r"1×3×8×12"),
        (LEFT[None, None, None], r"1×1×1×8×12"),
        (LEFT[0], r"shape 12 "),
        (torch.tensor(1.0), r"shape \(\)"),
        (LEFT[None][:0], r"0×8×12"),
        (LEFT[:, :0], r"8×0"),
        (LEFT.to(torch.complex64), r"complex64"),
        (LEFT * float("nan"), r"8×12.*NaN"),
        (LEFT / 0.0, r"8×12.*NaN or Inf"),
        (LEFT * 255, r"8×12.*from 0 to 255: scale"),
        (LEFT - 1, r"8×12.*from -1 to 0"),
        ([[0.0, 1.0]], r"no mask but a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_other_mask_is_refused_by_concept_and_shape_when_the_node_runs(mask, says):
    with pytest.raises(ValueError, match=f"(?s)mask of concept “cat”.*{says}"):
        concept("cat", mask=mask)


def test_an_empty_mask_is_said_as_it_comes_from_a_picture_without_transparency(caplog):
    concept("cat", mask=torch.zeros(1, 64, 64))
    assert "The mask is empty" in caplog.text


def test_masks_that_are_not_one_for_each_picture_are_told(demo, caplog):
    """They are repeated or cut as the host does it with masks."""
    chain = concept("dog", concept("cat", mask=torch.stack([LEFT, 1 - LEFT, LEFT])))
    sample(*clora(demo, chain), {"samples": torch.zeros(2, 4, 8, 12)}, steps=1)
    assert "Concept “cat” has 3 masks for 2 pictures" in caplog.text


def test_one_mask_or_one_for_each_picture_is_nothing_to_tell(demo, caplog):
    chain = concept("dog", concept("cat", mask=torch.stack([LEFT, 1 - LEFT])), mask=1 - LEFT)
    sample(*clora(demo, chain), {"samples": torch.zeros(2, 4, 8, 12)}, steps=1)
    assert "masks for" not in caplog.text
