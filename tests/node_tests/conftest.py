"""A loras folder of this test run's own beside the demo's, and a merge of the three demo concepts."""

import folder_paths
import pytest
import torch
from node_tests.running import load, merge

DEMO_LORAS = {"loraclr_random_cat.safetensors": "sks cat", "loraclr_random_dog.safetensors": "zwx dog"}
DEMO_LORAS |= {"loraclr_random_bird.safetensors": "qvk bird"}


@pytest.fixture(scope="session", autouse=True)
def loras_folder(tmp_path_factory):
    """Where tests write LoRAs and merges are saved: the first of the host's loras folders."""
    folder = tmp_path_factory.mktemp("loras")
    folder_paths.add_model_folder_path("loras", str(folder), is_default=True)
    return folder


@pytest.fixture(scope="session")
def concepts(demo):
    """The three demo concepts: kohya, PEFT and LoHa files."""
    with torch.inference_mode():
        chain = None
        for lora_name, trigger in DEMO_LORAS.items():
            chain, _, _ = load(lora_name, trigger, chain)
        return chain


@pytest.fixture(scope="session")
def merged(demo, concepts):
    """MODEL, CLIP, lora, merge_info, report."""
    with torch.inference_mode():
        return merge(demo, concepts, merge_text_encoder=True)
