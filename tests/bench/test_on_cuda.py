"""The bench on CUDA, on small models with the CPU in the device's place: everything but the device."""

import functools
import math

import architectures
import lora_files
import on_cuda
import pytest
import torch
import vram
from architectures import UNET
from comfy.cli_args import args
from on_cuda import WORKS, Case, Form, Loaded, Row, Size
from running import write_lora
from torch import nn

SMALL = Size((1, 4, 4, 6), 1)
# Of the least depth that the stock loader takes for SD1.5.
SHALLOW = {
    "model_channels": 320,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "context_dim": 768,
}
SHALLOW |= {"transformer_depth_output": [1, 1], "use_linear_in_transformer": False, "adm_in_channels": None}
SHALLOW |= {"use_temporal_attention": False}
TEXT = {"clip_l_model_config": {"num_hidden_layers": 2}}


def small_case(name: str) -> Case:
    """An architecture's small model, with LoRAs on every linear layer."""
    model, clip, shape = architectures.build(name)
    linear = {path: layer.weight for path, layer in model.model.named_modules() if isinstance(layer, nn.Linear)}
    state = {}
    for path, weight in linear.items():
        state |= lora_files.lora(path, tuple(weight.shape), scale=0.1)
    files = [write_lora(f"{name} {index} on cuda.safetensors", state) for index in range(2)]
    size = Size((1, *shape), 2)
    return Case(name, lambda: Loaded(model, clip, on_cuda.chain(files)), size, size)


def assert_whole(rows: list[Row], cases: list[Case]) -> None:
    """Every work of every case has its figures, and the CPU makes what the CPU makes."""
    assert [(row.case, row.work) for row in rows] == [(case.name, work) for case in cases for work in WORKS]
    for row in rows:
        assert (row.error, row.difference) == ("", 0.0), row
        assert row.seconds > 0
        assert math.isfinite(row.gib)


@pytest.mark.parametrize("name", ["SDXL", "Flux"])
def test_every_work_is_measured_and_compared(name):
    case = small_case(name)
    references = on_cuda.references([case])
    rows = list(on_cuda.measured([case], "cpu", references))
    assert_whole(rows, [case])
    pictures = [references[f"{name}, {work}"] for work in WORKS]
    assert all(picture.isfinite().all() for picture in pictures)
    for picture in pictures[1:4]:  # what is compared hangs on the concepts
        assert on_cuda.difference(picture, pictures[0]) > on_cuda.SMALL
    others = {key: 1.1 * made for key, made in references.items()}
    assert on_cuda.difference(pictures[0], others[f"{name}, plain picture"]) == pytest.approx(1 - 1 / 1.1, rel=1e-4)


def test_models_are_written_and_read_in_half_precision_and_fp8(tmp_path):
    form = Form("SD1.5, shallow", UNET | SHALLOW, torch.float16, SMALL, SMALL, TEXT)
    on_cuda.write(form, tmp_path)
    cases = [case._replace(load=functools.cache(case.load)) for case in on_cuda.cases_of(form, tmp_path)]
    weights = [next(case.load().model.model.diffusion_model.parameters()) for case in cases]
    assert [weight.dtype for weight in weights] == [torch.float16, on_cuda.FP8]
    references = on_cuda.references(cases)
    rows = list(on_cuda.measured(cases, "cpu", references))
    assert_whole(rows, cases)
    half, fp8 = (references[f"{case.name}, plain picture"] for case in cases)
    assert 0 < on_cuda.difference(fp8, half) < 1


def test_a_work_that_fails_is_a_row_and_the_others_go_on():
    """Concepts that the prompt does not name: the sampler refuses, and nothing else does."""
    case = small_case("SDXL")
    references = on_cuda.references([case])
    loaded = case.load()
    unnamed = [concept._replace(name=f"other{index}") for index, concept in enumerate(loaded.concepts)]
    rows = list(on_cuda.measured([case._replace(load=lambda: loaded._replace(concepts=unnamed))], "cpu", references))
    assert [row.work for row in rows if row.error] == ["sampler", "sampler with updates"]
    assert "c0" in on_cuda.line(rows[1])
    found = on_cuda.summary(rows)
    assert (found["failed"], found["beyond_bound"]) == (2, 0)


def test_a_difference_is_beyond_its_bound_where_it_is_twice_the_plain_picture_s():
    nan = float("nan")
    apart = {"half": (0.1, 0.19, 0.21, nan), "fp8": (0.001, 0.009, 0.011, 0.0), "broken": (nan, 0.009, 0.011, 0.0)}
    works = [on_cuda.PLAIN, "sampler", "merge", "training step"]
    rows = [
        Row(case, "dynamic", work, 1.0, 2.0, value)
        for case, values in apart.items()
        for work, value in zip(works, values, strict=True)
    ]
    assert [(row.case, row.work) for row in on_cuda.beyond(rows)] == [
        ("half", "merge"),
        ("half", "training step"),
        ("fp8", "merge"),
        ("broken", on_cuda.PLAIN),
        ("broken", "merge"),
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_the_bench_says_so_and_fails():
    with pytest.raises(SystemExit, match="measures on a CUDA device, and torch finds none here"):
        on_cuda.main([])


def test_comfyui_has_the_arguments_of_every_way():
    for arguments in vram.WAYS.values():
        assert arguments.keys() <= vars(args).keys()
