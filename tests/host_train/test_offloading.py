"""Training on a device that does not hold the model: ComfyUI keeps weights in RAM and casts them whenever they are used."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.model_patcher import LowVramPatch
from host_train.training import CLASS, Models, on_loaded, picture, small_models, train, with_lora
from loraclr.loraclr_core.host import differentiable
from loraclr.loraclr_core.host.train.checkpointing import checkpointed
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


def gradients(models, checkpoints: bool) -> Tensor:
    """The gradients of a step with every term, after the LoRA has moved."""

    def work(rows, learner) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        for delta in learner.deltas.values():
            delta.up.data.normal_(0.0, 0.05, generator=generator)
        model = rows.model
        with checkpointed(model.inner.diffusion_model, model.in_place) if checkpoints else torch.no_grad():
            rows.add_gradients(learner.deltas, 0)
        return torch.cat([factor.grad.flatten() for factor in learner.leaves() if factor.grad is not None])

    return on_loaded(models, [picture(1)], [torch.ones(1, 64, 96)], work, outside=0.5)


def styled(name: str) -> Models:
    """A small model with a LoRA loaded, which ComfyUI adds to a copy of each offloaded weight that is used."""
    models = small_models(name)
    style = train(models, [picture(2)], learning_rate=0.03, name=f"styles/{CLASS}").lora
    return models._replace(model=with_lora(models.model, style))


@pytest.mark.parametrize("name", ["SD1.5", "Flux"])
def test_offloaded_weights_give_the_same_gradients(name, request):
    models = styled(name)
    expected = gradients(models, checkpoints=False)
    request.getfixturevalue("offloaded")
    for checkpoints in (False, True):
        found = gradients(models, checkpoints)
        assert models.model.model.lowvram_patch_counter > 0
        assert float((found - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.usefixtures("offloaded")
def test_with_checkpointing_only_a_block_s_weights_are_held(monkeypatch):
    """Copies of weights that are there at a time."""
    models, patch = styled("Flux"), LowVramPatch.__call__
    copies: list[StorageWeakRef] = []
    held: list[int] = []

    def watch(self, weight: Tensor) -> Tensor:
        copy = patch(self, weight)
        copies.append(StorageWeakRef(copy.untyped_storage()))
        held.append(sum(not each.expired() for each in copies))
        return copy

    monkeypatch.setattr(LowVramPatch, "__call__", watch)
    gradients(models, checkpoints=False)
    without = max(held)
    held.clear()
    gradients(models, checkpoints=True)
    assert max(held) <= without / 2


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_the_node_trains_on_offloaded_weights(checkpointing, request):
    models, inputs = small_models("SD1.5"), {"checkpointing": checkpointing, "if_there": "anew"}
    expected = train(models, [picture(1)], **inputs)
    request.getfixturevalue("offloaded")
    trained = train(models, [picture(1)], **inputs)
    assert models.model.model.model_lowvram
    for name, losses in expected.loss_map.items():
        assert trained.loss_map[name] == pytest.approx(losses, rel=1e-4)


def test_a_cast_weight_is_not_overwritten_before_the_backward_pass(monkeypatch):
    """ComfyUI's asynchronous offloading has a buffer per stream; here from the CPU to the CPU by another name."""
    device, streams = torch.device("cpu:0"), [torch.cpu.Stream(), torch.cpu.Stream()]
    for stream in streams:
        stream.as_context = torch.cpu.stream  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(comfy.model_management, "NUM_STREAMS", len(streams))
    monkeypatch.setitem(comfy.model_management.STREAMS, device, streams)
    # ComfyUI would wait for these streams whenever it loads a model, and streams of a CPU cannot be waited for.
    monkeypatch.setattr(comfy.model_management, "STREAM_CAST_BUFFERS", {})
    monkeypatch.setattr(comfy.model_management, "LARGEST_CASTED_WEIGHT", (None, 0))
    layers = [comfy.ops.manual_cast.Linear(8, 8) for _ in range(3)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight)

    def all_stay() -> bool:
        cast = [
            comfy.ops.cast_bias_weight(
                layer, dtype=torch.float32, device=device, bias_dtype=torch.float32, offloadable=True
            )[0]
            for layer in layers
        ]
        return all(torch.equal(weight, layer.weight) for weight, layer in zip(cast, layers, strict=True))

    assert not all_stay()
    with differentiable.gradients(in_place=False, setting=""):
        assert all_stay()
    assert not all_stay()
