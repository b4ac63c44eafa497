"""The file: loaded by stock nodes, merged, composed, and read back without anything typed."""

import json

import nodes
import pytest
import torch
from comfy_extras.nodes_train import LoraModelLoader, LossGraphNode
from host_train.training import CLASS, TRIGGER, encoded, evaluate, picture, small_models, train
from loraclr.loraclr_core.host.lora import file as lora_file
from pack import run
from torch import Tensor

CAPTION = f"a {TRIGGER} on a table"


@pytest.fixture(scope="module")
def trained(loras_folder):
    with torch.inference_mode():
        models = small_models("SD1.5")
        images = [picture(1), picture(2, 96, 64), picture(3)]
        return models, train(models, images, name="file/{trigger}", steps=3, learning_rate=0.03, captions=[CAPTION])


def prediction(models, model) -> Tensor:
    def work(denoise, sampling) -> Tensor:
        x = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
        return denoise(x, torch.tensor([1.0]))

    return evaluate(model, encoded(models.clip, CAPTION), torch.zeros(1, 4, 8, 12), work)


def test_the_stock_nodes_load_the_file_and_the_output_alike(trained):
    models, result = trained
    by_file = nodes.LoraLoaderModelOnly().load_lora_model_only(models.model, result.lora_name, 1.0)[0]
    by_output = LoraModelLoader.execute(models.model, result.lora, 1.0).args[0]
    plain, one, other = (prediction(models, model) for model in (models.model, by_file, by_output))
    assert torch.equal(one, other)
    assert float((one - plain).norm() / plain.norm()) > 1e-3
    assert len(by_file.patches) == len(result.lora) // 3


def test_the_header_says_what_it_is_and_how_it_was_made(trained, loras_folder):
    _, result = trained
    header = lora_file.read_metadata(loras_folder / result.lora_name)
    assert result.lora_name == f"file/{TRIGGER}.safetensors"
    expected = {
        "modelspec.trigger_phrase": TRIGGER,
        "modelspec.title": TRIGGER,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.resolution": "96x64",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_base_model_version": "sd_v1",
        "ss_num_train_images": "3",
        "ss_num_reg_images": "0",
        "ss_learning_rate": "0.03",
        "ss_steps": "3",
        "ss_prior_loss_weight": "1",
        "ss_min_snr_gamma": "5.0",
    }
    assert {name: header[name] for name in expected} == expected
    assert json.loads(header["ss_tag_frequency"]) == {f"1_{TRIGGER}": {CAPTION: 3}}
    training = json.loads(header["loraclr.training"])
    assert (training["class_word"], training["steps"]) == (CLASS, 3)
    assert training["settings"]["preservation"] == 1.0
    assert len(training["identity"]) == 24


def test_load_concept_lora_needs_nothing_typed(trained):
    _, result = trained
    (concept,) = run("LoRACLR_LoadConceptLoRA", lora_name=result.lora_name)[0]
    assert [concept] == result.concepts
    assert (concept.trigger, concept.class_word, concept.name) == (TRIGGER, CLASS, CLASS)


def test_a_class_word_of_its_own_is_read_back(trained):
    models, _ = trained
    result = train(models, [picture(1)], trigger="zwx", class_word="small pet", name="file/zwx", steps=1)
    (concept,) = run("LoRACLR_LoadConceptLoRA", lora_name=result.lora_name)[0]
    assert (concept.trigger, concept.class_word) == ("zwx", "small pet")


def test_a_merge_takes_it_with_nothing_summed(trained):
    models, result = trained
    both = train(models, [picture(4)], trigger="zwx dog", name="file/dog", concepts=result.concepts, steps=2).concepts
    assert [concept.name for concept in both] == ["cat", "dog"]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    *_, report = run(
        "LoRACLR_Merge", model=models.model, clip=models.clip, concepts=both, latent=latent, capture_steps=2
    )
    # merged / summed / idle
    assert report.count(f"| {len(result.lora) // 3} / 0 / 0 |") == 2


def test_the_stock_graph_takes_the_losses(trained):
    _, result = trained
    shown = LossGraphNode.execute(result.loss_map, "loss")
    assert shown.ui
    assert len(result.loss_map["loss"]) == len(result.loss_map["preservation"]) == 3


def test_a_second_concept_of_the_same_name_is_refused_before_training(trained):
    models, result = trained
    with pytest.raises(ValueError, match="Two concepts are called “cat”"):
        train(models, [picture(1)], trigger="zwx cat", concepts=result.concepts)
