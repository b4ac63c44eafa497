"""A saved merge is the merge: it reloads equal, in any ComfyUI, and never replaces anything unasked."""

import json
import re
from pathlib import Path

import folder_paths
import nodes
import pytest
import safetensors.torch
import torch
from loraclr.loraclr_core.host.lora import file as lora_file
from running import load, merge, save, weights


def stock_loaded(demo, lora_name: str):
    return nodes.LoraLoader().load_lora(demo.model, demo.clip, lora_name, 1.0, 1.0)


def largest_relative_error(expected: dict, found: dict) -> float:
    assert expected.keys() == found.keys()
    return max(float((found[key] - expected[key]).norm() / expected[key].norm()) for key in expected)


def test_the_stock_loader_gives_the_node_s_own_model_again(demo, merged):
    """Merged from a kohya, a PEFT and a LoHa file; the commonest complaint about merges is that they do not reload."""
    model, clip, lora, info, _ = merged
    name, _ = save(lora, "exact", merge_info=info)
    stock_model, stock_clip = stock_loaded(demo, name)
    for ours, stock in ((model, stock_model), (clip.patcher, stock_clip.patcher)):
        expected, found = weights(ours), weights(stock)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("index", range(3))
def test_each_format_alone_is_exported_exactly(demo, concepts, index):
    _, _, lora, *_ = merge(demo, [concepts[index]], merge_text_encoder=True)
    name, _ = save(lora, f"alone_{index}")
    original = nodes.LoraLoader().load_lora(demo.model, demo.clip, concepts[index].lora_name, 1.0, 1.0)
    reloaded = stock_loaded(demo, name)
    assert largest_relative_error(weights(original[0]), weights(reloaded[0])) < 1e-5
    assert largest_relative_error(weights(original[1].patcher), weights(reloaded[1].patcher)) < 1e-5


@pytest.mark.parametrize(("precision", "bound"), [("float16", 1e-3), ("bfloat16", 1e-2)])
def test_half_precision_is_close_and_says_how_close(demo, merged, precision, bound):
    model, _, lora, *_ = merged
    name, report = save(lora, precision, precision=precision)
    assert largest_relative_error(weights(model), weights(stock_loaded(demo, name)[0])) < bound
    average = float(re.search(r"([\d.]+)% on average", report)[1]) / 100
    assert 0 < average < bound
    exact_size = Path(folder_paths.get_full_path("loras", save(lora, "size")[0])).stat().st_size
    assert Path(folder_paths.get_full_path("loras", name)).stat().st_size < 0.6 * exact_size


def test_a_rank_limit_truncates_to_the_nearest_and_reports_the_error(demo, merged):
    _, _, lora, info, _ = merged
    name, report = save(lora, "rank 4", max_rank=4, merge_info=info)
    tensors, metadata = lora_file.read(folder_paths.get_full_path("loras", name))
    assert {tensor.shape[0] for key, tensor in tensors.items() if key.endswith("lora_down.weight")} == {4}
    assert metadata["ss_network_dim"] == "4"

    name = next(key.removesuffix(".lora_up.weight") for key in lora if key.endswith("attn1_to_q.lora_up.weight"))
    whole, kept = (t[f"{name}.lora_up.weight"] @ t[f"{name}.lora_down.weight"] for t in (lora, tensors))
    values = torch.linalg.svdvals(whole)
    torch.testing.assert_close((whole - kept).norm(), values[4:].norm(), rtol=1e-3, atol=0)
    assert "on average" in report


def test_metadata_says_what_was_merged_and_how(merged):
    _, _, lora, info, _ = merged
    name, _ = save(lora, "told", merge_info=info)
    _, metadata = lora_file.read(folder_paths.get_full_path("loras", name))
    told = json.loads(metadata["loraclr.concepts"])
    assert [concept["trigger"] for concept in told] == ["sks cat", "zwx dog", "qvk bird"]
    assert all(len(concept["sha256"]) == 64 for concept in told)
    assert json.loads(metadata["loraclr.settings"])["ridge"] == 0.1
    assert metadata["loraclr.base_model"] == "SD15"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert load(name)[0][0].trigger == "sks cat, zwx dog, qvk bird"
    assert str(Path.home()) not in json.dumps(metadata)


def test_names_are_kohya_s_for_sd15(merged):
    lora = merged[2]
    assert {key.split("_")[1] for key in lora} == {"unet", "te"}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight" in lora
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in lora


def test_an_existing_file_is_numbered_kept_or_overwritten_as_asked(merged):
    lora = {key: tensor for key, tensor in merged[2].items() if "attn1_to_q" in key}
    first, _ = save(lora, "same/name")
    assert first == "same/name.safetensors"
    assert save(lora, "same/name")[0] == "same/name_2.safetensors"
    assert save(lora, "same/name.safetensors")[0] == "same/name_3.safetensors"
    with pytest.raises(FileExistsError, match="choose another filename"):
        save(lora, "same/name", if_exists="fail")
    path = Path(folder_paths.get_full_path("loras", first))
    before = path.stat().st_ino
    assert save(lora, "same/name", if_exists="overwrite")[0] == first
    assert path.stat().st_ino != before


@pytest.mark.parametrize("filename", ["../escaped", "/tmp/escaped", "a/../../escaped", "", "  ", "folder/", "a\0b"])
def test_paths_outside_the_folder_are_refused(merged, filename):
    with pytest.raises(ValueError, match="filename"):
        save(merged[2], filename)


def test_a_link_out_of_the_folder_is_refused(merged, loras_folder, tmp_path):
    (loras_folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="filename"):
        save(merged[2], "link/escaped")
    assert list(tmp_path.iterdir()) == []


def test_the_output_folder_can_be_chosen(merged, tmp_path):
    lora = {key: tensor for key, tensor in merged[2].items() if "attn1_to_q" in key}
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    try:
        assert save(lora, "x", folder="output")[0] == "x.safetensors"
    finally:
        folder_paths.set_output_directory(before)
    assert safetensors.torch.load_file(tmp_path / "x.safetensors").keys() == lora.keys()


def test_an_empty_merge_is_not_saved():
    with pytest.raises(ValueError, match="is empty"):
        save({}, "nothing")


def test_values_that_do_not_fit_the_precision_are_an_error():
    lora = {"a.lora_up.weight": torch.full((2, 1), 1e6), "a.lora_down.weight": torch.ones(1, 2)}
    with pytest.raises(ValueError, match="does not fit float16"):
        save(lora, "overflow", precision="float16")
