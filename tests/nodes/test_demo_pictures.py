"""The demo's training pictures, as the stock node loads them."""

import asyncio
import os
from pathlib import Path

import demo_pictures
import nodes
import pytest
import torch

TRIGGERS = {"ball": "sks ball", "box": "zwx box"}


@pytest.fixture(scope="module")
def load_folder():
    """The stock node's `execute`."""
    extras = Path(os.environ["COMFYUI_PATH"]) / "comfy_extras" / "nodes_dataset.py"
    assert asyncio.run(nodes.load_custom_node(str(extras)))
    return nodes.NODE_CLASS_MAPPINGS["LoadImageTextDataSetFromFolder"].execute


@pytest.mark.parametrize("name", demo_pictures.NAMES)
def test_a_folder_holds_a_dozen_different_pictures_of_its_concept(load_folder, name):
    pictures, captions = load_folder(demo_pictures.folder(name)).args
    assert len(pictures) == demo_pictures.COUNT
    assert all(caption.startswith(f"a photo of a {TRIGGERS[name]} ") for caption in captions)
    assert len(set(captions)) > 2  # backgrounds
    assert len(torch.cat(pictures).flatten(1).unique(dim=0)) == demo_pictures.COUNT


def test_pictures_are_the_same_every_time():
    concept = next(concept for concept in demo_pictures.CONCEPTS if concept.name == "ball")
    assert dict(demo_pictures.training_files(concept)) == dict(demo_pictures.training_files(concept))
