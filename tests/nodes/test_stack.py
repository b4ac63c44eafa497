"""Concepts from LoRA Stack: the stacks of other packs."""

import pytest
import torch
from pack import node, run
from running import load, write_lora

NODE = "LoRACLR_ConceptsFromStack"
CAT, DOG = "loraclr_random_cat.safetensors", "loraclr_random_dog.safetensors"
STATE = {"lora_unet_a.lora_up.weight": torch.ones(4, 2), "lora_unet_a.lora_down.weight": torch.ones(2, 4)}


def test_a_stack_gives_the_concepts_that_load_concept_lora_gives():
    stack = [(CAT, 0.8, 0.5), (DOG, 1.0, 1.0)]
    (concepts,) = run(NODE, lora_stack=stack, words="sks cat | tabby\nzwx dog")
    chain, *_ = load(CAT, "sks cat", class_word="tabby", strength_model=0.8, strength_clip=0.5)
    chain, *_ = load(DOG, "zwx dog", concepts=chain)
    assert concepts == chain


def test_without_words_the_file_s_are_taken_and_earlier_concepts_stay():
    earlier, *_ = load(CAT, "sks cat")
    name = write_lora("stacked.safetensors", STATE, {"modelspec.trigger_phrase": "mrf bird"})
    (concepts,) = run(NODE, lora_stack=[(name, 1.0, 1.0)], words="", concepts=earlier)
    assert [(concept.trigger, concept.name) for concept in concepts] == [("sks cat", "cat"), ("mrf bird", "bird")]


def test_an_empty_stack_adds_nothing():
    assert run(NODE, lora_stack=[], words="") == ([],)


def test_more_lines_than_loras_are_refused():
    with pytest.raises(ValueError, match="words has 2 lines and the stack 1 LoRAs"):
        run(NODE, lora_stack=[(CAT, 1.0, 1.0)], words="sks cat\nzwx dog")


def test_a_lora_without_a_trigger_is_named_with_the_line_to_write():
    name = write_lora("untold.safetensors", STATE, {})
    with pytest.raises(ValueError, match=r"untold\.safetensors does not say .* into its line of words"):
        run(NODE, lora_stack=[(CAT, 1.0, 1.0), (name, 1.0, 1.0)], words="sks cat")


def test_it_runs_again_when_a_file_changes():
    name = write_lora("changing.safetensors", STATE, {})
    before = node(NODE).fingerprint_inputs(lora_stack=[(name, 1.0, 1.0)])
    write_lora("changing.safetensors", STATE, {"modelspec.trigger_phrase": "a long phrase"})
    assert node(NODE).fingerprint_inputs(lora_stack=[(name, 1.0, 1.0)]) != before
