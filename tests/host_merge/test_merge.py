"""The merge node: what it gives, what it keeps, and what it refuses."""

import comfy.model_management
import comfy.sd
import folder_paths
import lora_files
import pytest
import random_models
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from loraclr.loraclr_core.host.lora import file
from loraclr.loraclr_core.host.merge import cache as captures
from loraclr.loraclr_core.host.merge import merge as merging
from running import load, merge, weights, write_lora

K = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def evaluations(monkeypatch):
    """Counts the model evaluations that captures make."""
    counted = []
    original = captures.capture

    def counting(target, model_effect, clip_effect, phrase, settings, grams, device, step_done):
        def step():
            counted.append(phrase)
            step_done()

        return original(target, model_effect, clip_effect, phrase, settings, grams, device, step)

    monkeypatch.setattr(captures, "capture", counting)
    return counted


def test_inputs_stay_as_they_are(demo, concepts, merged):
    model, clip, *_ = merged
    assert demo.model.patches == {}
    assert demo.clip.patcher.patches == {}
    assert model is not demo.model
    assert len(model.patches) > 0
    assert len(clip.patcher.patches) > 0
    assert len(concepts) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_merged_is_nearer_to_every_concept_than_stacking(demo, concepts, dtype):
    """On a quantised base too, which a plain LoRA never looks at: only what its layers see is captured."""
    path = folder_paths.get_full_path("checkpoints", random_models.CHECKPOINT)
    model = comfy.sd.load_checkpoint_guess_config(
        path, output_vae=False, output_clip=False, model_options={"dtype": dtype}
    )[0]
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    assert before[f"{K}.weight"].dtype == dtype
    result = merging.merge(
        model,
        demo.clip,
        concepts,
        merging.MergeSettings(
            ridge=0.01,
            capture=merging.CaptureSettings(("photo of a {trigger}",), 2, 0, (4, 8, 8)),
            merge_text_encoder=False,
        ),
        lambda phase, done: None,
    )
    for i in range(len(concepts)):
        stacked, merged_error = (
            sum(getattr(layer, which)[i] for layer in result.solution.layers) for which in ("sum", "merged")
        )
        assert merged_error < 0.8 * stacked
    for key, weight in model.model.state_dict().items():
        assert weight.dtype == before[key].dtype
        assert torch.equal(weight.float(), before[key].float())


def test_model_output_is_the_lora_output_loaded_by_the_stock_loader(demo, merged):
    model, clip, lora, *_ = merged
    again_model, again_clip = comfy.sd.load_lora_for_models(demo.model, demo.clip, lora, 1.0, 1.0)
    for ours, stock in ((model, again_model), (clip.patcher, again_clip.patcher)):
        expected = weights(stock)
        for key, weight in weights(ours).items():
            torch.testing.assert_close(weight, expected[key], rtol=0, atol=0)


def test_lora_output_is_what_core_nodes_expect(merged):
    lora = merged[2]
    assert all(isinstance(tensor, torch.Tensor) and tensor.is_contiguous() for tensor in lora.values())
    assert len({tensor.data_ptr() for tensor in lora.values()}) == len(lora)


def test_another_margin_or_ridge_captures_nothing_again(demo, concepts, evaluations):
    first = merge(demo, concepts)[2]
    evaluations.clear()
    stronger = merge(demo, concepts, ridge=1e-4)[2]
    merge(demo, concepts, margin=0.9, margin_mode="relative")
    assert evaluations == []
    assert any(not torch.equal(first[key], stronger[key]) for key in first if key in stronger)


def test_an_added_concept_costs_one_capture(demo, concepts, evaluations):
    merge(demo, concepts[:2])
    evaluations.clear()
    merge(demo, concepts)
    assert evaluations == ["qvk bird"] * 2


@pytest.mark.parametrize("change", [{"capture_seed": 3}, {"capture_steps": 1}, {"capture_prompts": "a {trigger}"}])
def test_another_capture_setting_captures_anew(demo, concepts, evaluations, change):
    merge(demo, concepts[:2])
    evaluations.clear()
    merge(demo, concepts[:2], **change)
    assert set(evaluations) == {"sks cat", "zwx dog"}


def test_another_order_of_concepts_is_captured_anew_and_gives_the_same_model(demo, concepts):
    one = weights(merge(demo, concepts[:2])[0])
    other = weights(merge(demo, concepts[1::-1])[0])
    for key, weight in one.items():
        torch.testing.assert_close(weight, other[key], rtol=1e-3, atol=1e-4)


def test_same_inputs_give_the_same_lora(demo, concepts):
    first = merge(demo, concepts[:2])[2]
    captures.forget()
    second = merge(demo, concepts[:2])[2]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_merge_does_not_depend_on_the_solver_that_ran_before(demo, concepts):
    """The published optimiser's captures hold more tokens, on which an active margin depends."""
    settings = {"margin": 1.0, "margin_mode": "relative"}
    captures.forget()
    fresh = merge(demo, concepts[:2], **settings)[2]
    captures.forget()
    merge(demo, concepts[:2], solver="adamw (paper)")
    after = merge(demo, concepts[:2], **settings)[2]
    assert all(torch.equal(fresh[key], after[key]) for key in fresh)


def test_the_anchor_captures_the_base_and_holds_it(demo, concepts, evaluations):
    plain = merge(demo, concepts[:2])[2]
    evaluations.clear()
    anchored = merge(demo, concepts[:2], anchor_weight=5.0)[2]
    assert set(evaluations) == {"cat", "dog"}
    name = next(key.removesuffix(".lora_up.weight") for key in plain if key.endswith("attn1_to_q.lora_up.weight"))

    def size(lora):
        return (lora[f"{name}.lora_up.weight"] @ lora[f"{name}.lora_down.weight"]).norm()

    assert size(anchored) < size(plain)


def test_sum_is_plain_stacking(demo, concepts, evaluations):
    model, clip, *_ = merge(demo, concepts, solver="sum (baseline)", merge_text_encoder=True)
    stacked_model, stacked_clip = demo.model, demo.clip
    for concept in concepts:
        tensors, _ = file.read(concept.path)
        stacked_model, stacked_clip = comfy.sd.load_lora_for_models(stacked_model, stacked_clip, tensors, 1.0, 1.0)
    assert evaluations == []
    for ours, stock in ((model, stacked_model), (clip.patcher, stacked_clip.patcher)):
        expected = weights(stock)
        assert expected.keys() == weights(ours).keys()
        for key, weight in weights(ours).items():
            torch.testing.assert_close(weight, expected[key], rtol=1e-3, atol=1e-3)


def test_one_concept_alone_is_exported_as_it_is(demo, concepts, evaluations):
    model, _, _, _, report = merge(demo, concepts[:1], merge_text_encoder=True)
    tensors, _ = file.read(concepts[0].path)
    alone, _ = comfy.sd.load_lora_for_models(demo.model, demo.clip, tensors, 1.0, 1.0)
    assert evaluations == []
    expected = weights(alone)
    for key, weight in weights(model).items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-4)
    assert "exported as it is" in report


def test_adamw_runs_and_is_further_from_the_concepts_than_exact(demo, concepts):
    reports = {
        solver: merge(demo, concepts[:2], solver=solver, capture_steps=4)[4] for solver in ("adamw (paper)", "exact")
    }
    shares = {
        solver: [float(line.split("|")[-2].strip(" %")) for line in report.splitlines() if "loraclr_random" in line]
        for solver, report in reports.items()
    }
    assert all(exact < adamw for exact, adamw in zip(shares["exact"], shares["adamw (paper)"], strict=True))


def test_text_encoder_can_be_left_out(demo, concepts):
    _, clip, lora, _, report = merge(demo, concepts[:2])
    assert clip.patcher.patches == {}
    assert not any(key.startswith("lora_te") for key in lora)
    assert "text encoder was left as it is" in report


def test_upstream_patches_are_part_of_the_base(demo, concepts):
    """A style loaded before the merge stays in the merged model."""
    style = lora_files.full(K, (320, 768))
    styled, _ = comfy.sd.load_lora_for_models(demo.model, None, style, 1.0, 0.0)
    model, *_ = merge(demo._replace(model=styled), concepts[:2])
    key = f"{K}.weight"
    unpatched, _, lora, *_ = merge(demo._replace(model=styled), concepts[:2])
    alone, _ = comfy.sd.load_lora_for_models(demo.model, None, lora, 1.0, 0.0)
    difference = weights(model)[key] - weights(alone)[key]
    torch.testing.assert_close(difference, style[f"{K}.diff"], rtol=1e-2, atol=1e-3)
    assert unpatched.patches.keys() == model.patches.keys()


def test_cancelling_stops_it_and_the_next_run_is_as_ever(demo, concepts):
    captures.forget()
    expected = merge(demo, concepts[:2])[2]
    captures.forget()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        merge(demo, concepts[:2])
    again = merge(demo, concepts[:2])[2]
    assert all(torch.equal(expected[key], again[key]) for key in expected)


def test_every_phase_is_reported_and_the_bar_only_grows(demo, concepts):
    captures.forget()
    seen = []
    settings = merging.MergeSettings(
        ridge=0.01,
        capture=merging.CaptureSettings(("{trigger}",), 2, 0, (4, 8, 8)),
        merge_text_encoder=False,
    )
    merging.merge(demo.model, demo.clip, concepts[:2], settings, lambda phase, done: seen.append((phase, done)))
    shares = [done for _, done in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    text = "\n".join(phase for phase, _ in seen)
    for phase in ("reading loraclr_random_cat.safetensors", "capturing cat, evaluation 2 of 4", "solving layer 1 of"):
        assert phase in text


def test_report_accounts_for_everything(demo, concepts):
    odd = lora_files.lora(K, (320, 768)) | {"nowhere.lora_up.weight": torch.ones(2, 2)}
    odd |= lora_files.bias(K.replace("attn2.to_k", "attn2.to_out.0"), (320,))
    odd |= lora_files.lora(K.replace("to_k", "to_v"), (320, 768), scale=0.0)
    chain, _, _ = load(write_lora("odd.safetensors", odd), "odd thing", concepts[:1])
    report = merge(demo, chain)[4]
    for text in (
        "1 tensors match nothing in this model: `nowhere.lora_up.weight`",
        "changes nothing at 1 weights",
        "attn2.to_v.weight",
        "summed, not merged",
        "attn2.to_out.0.bias",
        "% of the tokens counted",
        "## Layer groups",
        "margin active",
        "capture ",
    ):
        assert text in report
    table = report.split("## Layer groups")[1].split("\n\n")[1].splitlines()[2:]
    assert len(table) > 2
    assert table == sorted(table), "the same from run to run"


def test_a_patch_that_keeps_every_layer_from_running_is_an_error(demo, concepts):
    model = demo.model.clone()
    model.set_model_unet_function_wrapper(lambda apply_model, args: args["input"])
    with pytest.raises(ValueError, match=r"None of the \d+ layers that the LoRAs change ran"):
        merge(demo._replace(model=model), concepts)


def test_no_concepts_is_an_error(demo):
    with pytest.raises(ValueError, match="connect at least one Load Concept LoRA"):
        merge(demo, [])


@pytest.mark.parametrize(
    "prompts", ["{trigger} and a {cat}", "{trigger}, {Trigger}", "{trigger}\n{ trigger } {trigger}"]
)
def test_a_capture_prompt_with_another_name_in_braces_is_an_error(demo, concepts, prompts):
    with pytest.raises(ValueError, match="stands for nothing there"):
        merge(demo, concepts, capture_prompts=prompts)


def test_other_braces_of_a_capture_prompt_stay_and_are_said(demo, concepts):
    report = merge(demo, concepts, capture_prompts="{trigger} in {snow|rain}", capture_steps=1)[4]
    assert "The capture prompts hold `{snow|rain}`, which is taken as it stands." in report


@pytest.mark.parametrize("prompts", ["", "photo of a cat"])
def test_capture_prompts_must_name_the_trigger(demo, concepts, prompts):
    with pytest.raises(ValueError, match="trigger"):
        merge(demo, concepts, capture_prompts=prompts)


# --- Load Concept LoRA -----------------------------------------------------------------------------------------------


def test_trigger_class_word_and_name_have_sensible_defaults(demo):
    (concept,), *_ = load("loraclr_random_cat.safetensors")
    assert (concept.trigger, concept.class_word, concept.name) == ("sks cat", "cat", "cat")


def test_a_file_without_a_trigger_needs_one():
    with pytest.raises(ValueError, match=r"loraclr_random_dog\.safetensors does not say what it was trained on"):
        load("loraclr_random_dog.safetensors")


def test_names_are_unique_and_the_list_is_not_changed_in_place(concepts):
    with pytest.raises(ValueError, match="Two concepts are called “cat”"):
        load("loraclr_random_cat.safetensors", concepts=concepts)
    longer, *_ = load("loraclr_random_cat.safetensors", concepts=concepts, name="cat 2")
    assert (len(concepts), len(longer)) == (3, 4)


def test_the_same_file_twice_is_warned_of(demo, concepts, caplog):
    chain, *_ = load("loraclr_random_cat.safetensors", concepts=concepts[:1], name="cat 2")
    assert "loaded as a concept twice" in caplog.text
    assert "it counts twice" in merge(demo, chain, solver="sum (baseline)")[4]


def test_model_and_clip_carry_the_concept_alone(demo):
    _, model, clip = load("loraclr_random_cat.safetensors", model=demo.model, clip=demo.clip, strength_model=0.5)
    tensors, _ = file.read(load("loraclr_random_cat.safetensors")[0][0].path)
    stock_model, stock_clip = comfy.sd.load_lora_for_models(demo.model, demo.clip, tensors, 0.5, 1.0)
    assert all(torch.equal(w, weights(stock_model)[k]) for k, w in list(weights(model).items())[:3])
    assert clip.patcher.patches.keys() == stock_clip.patcher.patches.keys()


def test_unconnected_outputs_block_with_the_reason():
    _, model, clip = load("loraclr_random_cat.safetensors")
    assert isinstance(model, ExecutionBlocker)
    assert "model input is connected" in model.message
    assert "clip input is connected" in clip.message
