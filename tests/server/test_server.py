"""The shipped workflows in a real server, over HTTP."""

import itertools
import json
from pathlib import Path

import further
import graph
import host
import numpy as np
import pytest
import workflows
from comfy_server import ComfyServer, NodeError, RunInterruptedError
from comfyui_version import __version__ as host_version
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent


def demo_prompt(infos: dict, name: str) -> dict:
    """A shipped workflow on the demo's models."""
    return graph.api_format(workflows.described(name, infos, workflows.DEMO))


def node_of(prompt: dict, class_type: str) -> dict:
    return next(node for node in prompt.values() if node["class_type"] == class_type)


def merge_prompt(infos: dict, **inputs) -> dict:
    """The merge workflow with other settings; its LoRA is saved beside the shipped workflow's."""
    prompt = demo_prompt(infos, workflows.MERGE)
    node_of(prompt, "LoRACLR_Merge")["inputs"].update({"merge_text_encoder": False, **inputs})
    node_of(prompt, "LoRACLR_SaveMergedLoRA")["inputs"]["filename"] = "loraclr/other"
    return prompt


def picture(server: ComfyServer, prompt: dict, history: dict) -> np.ndarray:
    return pixels(
        server, next(o["images"] for n, o in history["outputs"].items() if prompt[n]["class_type"] == "SaveImage")
    )


def pixels(server: ComfyServer, images: list[dict]) -> np.ndarray:
    (image,) = images
    return np.asarray(Image.open(server.output / image["subfolder"] / image["filename"]).convert("RGB")).astype(int)


def run(server: ComfyServer, prompt: dict, **kwargs) -> tuple[np.ndarray, dict]:
    history = server.wait(server.queue(prompt), **kwargs)
    return picture(server, prompt, history), history


@pytest.fixture(scope="session")
def first_run(server, infos):
    """(picture, history) of the merge workflow as shipped."""
    return run(server, demo_prompt(infos, workflows.MERGE))


def test_the_pack_loads_without_complaint(server):
    log = server.log.read_text()
    assert "IMPORT FAILED" not in log
    assert "Traceback" not in log


def test_the_page_asks_for_the_words_of_a_lora(server):
    said = server.lora_words("loraclr_demo_ball.safetensors")
    assert said == {"trigger": "sks ball", "class_word": "ball", "others": [], "picture_folder": None}


@pytest.mark.parametrize("name", ["none.safetensors", "../checkpoints/none.safetensors", "/etc/passwd", ""])
def test_words_of_what_is_no_lora_are_not_to_be_had(server, name):
    assert server.lora_words(name) == {"trigger": "", "class_word": "", "others": [], "picture_folder": None}


@pytest.mark.skipif(
    host_version != host.DEFAULT_VERSION,
    reason=f"workflows are written on ComfyUI {host.DEFAULT_VERSION}; others' core nodes have other outputs",
)
def test_workflow_files_are_written_by_their_description(server, infos):
    """After a node has changed: `make workflows`."""
    for path, text in workflows.files(infos).items():
        assert path.read_text("utf-8") == text


@pytest.mark.parametrize("name", [*workflows.WORKFLOWS, *workflows.FURTHER])
def test_the_page_s_format_and_the_api_s_are_the_same_graph(server, infos, name):
    page = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text("utf-8"))
    api = json.loads((ROOT / "example_workflows" / "api" / f"{name}.json").read_text("utf-8"))
    assert graph.to_api(page, infos) == api


@pytest.mark.parametrize("name", [*workflows.WORKFLOWS, *workflows.FURTHER])
def test_wires_join_equal_types(infos, name):
    """Those of muted nodes among them, which no run would find wrong."""
    for node in workflows.described(name, infos, workflows.REAL).nodes:
        for title, spec, _ in graph.schema(node.info):
            if isinstance(wire := node.inputs.get(title), graph.Output):
                assert wire.node.info["output"][wire.slot] == spec[0] or spec[0] == "*", (node.type, title)


def test_merge_workflow_runs_as_shipped(first_run):
    pixels, history = first_run
    assert pixels.std() > 0
    (report,) = (
        text for output in history["outputs"].values() for text in output.get("text", ()) if "# LoRACLR" in text
    )
    for subject in workflows.DEMO.subjects:
        assert f"| {subject.name} |" in report


def test_the_sampler_s_pictures_teach_a_merged_lora_in_one_run(server, infos):
    """With few steps: the wires and what the merge says of the pictures."""
    prompt = demo_prompt(infos, further.TAUGHT)
    node_of(prompt, "EmptyLatentImage")["inputs"]["batch_size"] = 2
    node_of(prompt, "LoRACLR_Merge")["inputs"].update(capture_steps=1, distillation_steps=1)
    for node in prompt.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    outputs = server.wait(server.queue(prompt))["outputs"]
    (merged,) = (output["loraclr_merge"] for output in outputs.values() if "loraclr_merge" in output)
    assert "2 of `a photo of a {ball} and a {box} on grass`" in merged[0]["markdown"]
    saved = {node: len(output["images"]) for node, output in outputs.items() if "images" in output}
    assert sorted(saved.values()) == [2, 2]  # by the sampler, and by the merged LoRA


def test_progress_is_told_in_words(server, infos):
    """With a seed of its own, so that nothing is captured yet, whatever ran before."""
    messages: list[dict] = []
    run(server, merge_prompt(infos, capture_steps=1, capture_seed=17), on_message=messages.append)
    texts = [message["data"]["text"] for message in messages if message["type"] == "progress_text"]
    for subject in workflows.DEMO.subjects:
        assert any(text.startswith(f"capturing {subject.name}, evaluation") for text in texts)
    assert any(text.startswith("solving layer") for text in texts)
    assert texts[-1].startswith("merged in ")


def test_a_workflow_with_the_former_setting_runs(server, infos):
    """Version 0.1 could clear the disk by a setting of the merge; the server would refuse a value that is no option."""
    prompt = merge_prompt(infos, capture_steps=1, captures="clear the disk")
    history = server.wait(server.queue(prompt))
    reports = [text for output in history["outputs"].values() for text in output.get("text", ())]
    assert any("the node Clear Captures" in report for report in reports)


def test_the_words_taken_from_a_file_are_shown_under_its_node(server, infos):
    """With a strength of its own, so that the node runs, whatever ran before."""
    prompt = merge_prompt(infos, capture_steps=1)
    (node_id, *_) = (key for key, node in prompt.items() if node["class_type"] == "LoRACLR_LoadConceptLoRA")
    prompt[node_id]["inputs"].update({"trigger": "", "class_word": "", "strength_model": 0.97})
    messages: list[dict] = []
    server.wait(server.queue(prompt), messages.append)
    (text,) = (
        each["data"]["text"] for each in messages if each["type"] == "progress_text" and each["data"]["node"] == node_id
    )
    assert text.startswith("Trigger “sks ball”, from ")
    assert "Class word “ball”. Prompts name it {ball}." in text


def test_saved_merge_reloads_to_the_same_picture(server, infos, first_run):
    pixels, _ = run(server, demo_prompt(infos, workflows.REUSE))
    assert np.abs(pixels - first_run[0]).max() == 0


def test_clora_workflow_runs_as_shipped(server, infos):
    prompt = demo_prompt(infos, workflows.MAPS)
    messages: list[dict] = []
    history = server.wait(server.queue(prompt), messages.append)
    (maps,) = (node for node in prompt if prompt[node]["class_type"] == "LoRACLR_CLoRAMaps")
    texts = [each["data"] for each in messages if each["type"] == "progress_text"]
    assert [text["text"] for text in texts if text["node"] == maps] == ["1 ball, 2 box"]  # whose map is which
    shown = {prompt[node]["_meta"]["title"]: output for node, output in history["outputs"].items()}
    assert [len(shown[title]["images"]) for title in ("Picture", "Heat maps", "Masks", "Separation loss")] == [
        1,
        2,
        2,
        1,
    ]
    assert picture(server, prompt, history).std() > 0
    (sampler,) = (node for node in prompt if prompt[node]["class_type"] == "LoRACLR_CLoRASampler")
    (told,) = (text["text"] for text in texts if text["node"] == sampler)
    assert [line.partition(":")[0] for line in told.splitlines()] == ["“ball”", "“box”"]


def test_a_run_that_stops_after_the_plain_picture_says_why_and_blocks_only_the_loss(server, infos):
    prompt = demo_prompt(infos, workflows.MAPS)
    node_of(prompt, "KSampler")["inputs"]["steps"] = 4
    (sampler,) = (node for node in prompt if prompt[node]["class_type"] == "LoRACLR_CLoRASampler")
    prompt[sampler]["inputs"]["if_unclear"] = "stop after the plain take"
    (*_, box) = (node for node in prompt.values() if node["class_type"] == "LoRACLR_LoadConceptLoRA")
    box["inputs"] |= {"class_word": "banana", "name": "box"}
    messages: list[dict] = []
    history = server.wait(server.queue(prompt), messages.append)
    told = [
        each["data"]["text"] for each in messages if each["type"] == "progress_text" and each["data"]["node"] == sampler
    ]
    assert "hardly any attention to its class word “banana”" in told[-1]
    assert "the run has stopped before the concepts" in told[-1]
    shown = {prompt[node]["_meta"]["title"] for node in history["outputs"]}
    assert {"Picture", "Heat maps", "Masks"} <= shown
    assert "Separation loss" not in shown


def test_each_clora_node_has_its_own_live_view(server, infos):
    """Of one workflow after another with the same inputs, whose result the host would take from the first."""
    prompt = demo_prompt(infos, workflows.MAPS)
    node_of(prompt, "KSampler")["inputs"]["steps"] = 2
    (sampler,) = (node for node in prompt if prompt[node]["class_type"] == "LoRACLR_CLoRASampler")
    for name in (sampler, f"another {sampler}"):
        messages: list[dict] = []
        server.wait(server.queue(json.loads(json.dumps(prompt).replace(f'"{sampler}"', f'"{name}"'))), messages.append)
        assert {each["data"]["node"] for each in messages if each["type"] == "loraclr.clora"} == {name}


def test_side_by_side_workflow_runs_as_shipped(server, infos):
    """Three pictures of one seed, none like another."""
    prompt = demo_prompt(infos, workflows.COMPARE)
    history = server.wait(server.queue(prompt))
    shown = {prompt[node]["_meta"]["title"]: output for node, output in history["outputs"].items()}
    found = [pixels(server, shown[f"Picture: {way}"]["images"]) for way in ("stacked", "merged", "sampler")]
    assert all(np.abs(a - b).max() > 0 for a, b in itertools.combinations(found, 2))


def demo_training(infos: dict, name: str) -> dict:
    """A shipped workflow that trains, by few steps and with nothing painted beside the concept, which takes longer."""
    prompt = demo_prompt(infos, name)
    few = {"steps": 2, "capture_steps": 2, "beside": ""}
    for node in prompt.values():
        node["inputs"].update({key: value for key, value in few.items() if key in node["inputs"]})
    return prompt


def test_training_workflow_runs_as_shipped(server, infos):
    """Pictures of each kind, and a LoRA that the stock loader offers. Its scores wait for a model that the demo lacks."""
    prompt = demo_training(infos, workflows.TRAIN)
    history = server.wait(server.queue(prompt))
    shown = {prompt[node]["_meta"]["title"]: output for node, output in history["outputs"].items()}
    kinds = ("with trigger", "without", "before training")
    assert [len(shown[f"Picture: {kind}"]["images"]) for kind in kinds] == [workflows.SCORED] * 3
    (files, *_) = server.object_info()["LoraLoader"]["input"]["required"]["lora_name"]
    assert f"loraclr/{workflows.DEMO.subjects[0].trigger}.safetensors" in files


def test_workflow_that_trains_two_runs_as_shipped(server, infos):
    """The merge and the sampler get both concepts, in the order of the chain."""
    prompt = demo_training(infos, workflows.TRAIN_TWO)
    messages: list[dict] = []
    history = server.wait(server.queue(prompt), messages.append)
    shown = {prompt[node]["_meta"]["title"]: output for node, output in history["outputs"].items()}
    merged, both = (pixels(server, shown[f"Picture: {title}"]["images"]) for title in ("merged", "both"))
    assert np.abs(merged - both).max() > 0
    texts = [message["data"]["text"] for message in messages if message["type"] == "progress_text"]
    captured = [text.split()[1].rstrip(",") for text in texts if text.startswith("capturing ")]
    assert list(dict.fromkeys(captured)) == ["ball", "box"]


def test_running_again_uses_the_host_s_cache(server, infos):
    prompt = merge_prompt(infos, capture_steps=1)
    run(server, prompt)
    _, history = run(server, prompt)
    cached = next(data["nodes"] for event, data in history["status"]["messages"] if event == "execution_cached")
    merge_id = next(node_id for node_id, node in prompt.items() if node["class_type"] == "LoRACLR_Merge")
    assert merge_id in cached


def test_cancelled_in_the_middle_it_stops_and_the_next_run_is_as_ever(server, infos):
    prompt = merge_prompt(infos, capture_steps=3)
    expected, _ = run(server, prompt)

    def interrupt_second_concept(message: dict) -> None:
        if message["type"] == "progress_text" and message["data"]["text"].startswith("capturing box"):
            server.interrupt()

    cancelled = merge_prompt(infos, capture_steps=3, capture_seed=9)
    with pytest.raises(RunInterruptedError, match="LoRACLR_Merge"):
        server.wait(server.queue(cancelled), interrupt_second_concept)
    again, _ = run(server, prompt)
    assert np.array_equal(expected, again)


def test_errors_reach_the_user_with_what_to_do(server, infos):
    prompt = merge_prompt(infos, capture_prompts="a cat")
    with pytest.raises(NodeError, match=r"LoRACLR_Merge.*lacks \{trigger\}"):
        server.wait(server.queue(prompt))
