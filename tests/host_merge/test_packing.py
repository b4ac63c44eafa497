"""What a capture's file keeps is small, and a merge by files is nearly as good as one in memory."""

import pytest
import torch
from loraclr.loraclr_core.host.merge import cache, packing, store
from loraclr.loraclr_core.host.merge.capture import Capture
from loraclr.loraclr_core.host.merge.merge import MergeSettings, merge
from loraclr.loraclr_core.host.merge.target import CaptureSettings
from loraclr.loraclr_core.lowrank import LowRank
from loraclr.loraclr_core.merge.gram import Gram
from loraclr.loraclr_core.merge.moments import ConceptStatistics
from symmetric import full
from torch import Tensor

CPU = torch.device("cpu")
CAPTURE = CaptureSettings(("photo of a {trigger}",), steps=2, seed=0, latent_shape=(4, 16, 16))
# Held-out errors of a merge by files beside those of one in memory: of all layers, and of one layer for one concept.
LOSS, WORST_LOSS = 1.01, 1.1


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "folder", lambda: tmp_path)
    return tmp_path


def merged(demo, concepts, keeping):
    settings = MergeSettings(capture=CAPTURE, captures=keeping)
    return merge(demo.model, demo.clip, concepts, settings, lambda phase, share: None)


def errors(result) -> Tensor:
    """(layers, concepts), beside those of the base."""
    return torch.tensor([layer.merged for layer in result.solution.layers]) / torch.tensor(
        [layer.base for layer in result.solution.layers]
    )


def capture_of(rows: dict[str, Tensor]) -> Capture:
    """A capture of layers with these inputs and a LoRA that does nothing."""
    grams, statistics = {}, {}
    for layer, inputs in rows.items():
        grams[layer] = Gram(inputs.shape[1], CPU)
        grams[layer].add(inputs)
        delta = LowRank(torch.zeros(8, 1), torch.randn(1, inputs.shape[1]))
        parts = inputs[:4].clone(), torch.randn(4, 8), inputs[4:6].clone()
        statistics[layer] = ConceptStatistics(delta, delta.down, len(inputs), len(inputs), *parts)
    return Capture(statistics, grams)


def unpacked(capture: Capture) -> Capture:
    deltas = {layer: statistics.delta for layer, statistics in capture.statistics.items()}
    return packing.pack(capture, CPU).unpack(deltas)


def test_a_merge_by_files_is_nearly_as_good_and_the_same_again(demo, concepts):
    """One in memory is as before, even right after one by files, whose captures the model still keeps."""
    cache.forget()
    in_memory = merged(demo, concepts[:2], "in memory")
    by_files = merged(demo, concepts[:2], "on disk")
    assert by_files.evaluations == in_memory.evaluations
    assert errors(by_files).mean() < LOSS * errors(in_memory).mean()
    assert (errors(by_files) / errors(in_memory)).max() < WORST_LOSS
    cache.forget()
    again = merged(demo, concepts[:2], "on disk")
    assert again.evaluations == 0
    assert all(torch.equal(again.lora[key], by_files.lora[key]) for key in again.lora)
    later = merged(demo, concepts[:2], "in memory")
    assert all(torch.equal(later.lora[key], in_memory.lora[key]) for key in later.lora)


def test_layers_with_the_same_input_share_their_tensors():
    inputs = torch.randn(40, 30)
    packed = packing.pack(capture_of({"q": inputs, "k": inputs.clone(), "other": inputs + 1}), CPU)
    assert packed.layers["q"]["gram"] == packed.layers["k"]["gram"] != packed.layers["other"]["gram"]
    assert packed.layers["q"]["inputs"] == packed.layers["k"]["inputs"] != packed.layers["other"]["inputs"]
    assert packed.layers["q"]["outputs"] != packed.layers["k"]["outputs"]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
def test_a_wide_layer_is_kept_in_a_fraction_of_its_size_and_its_diagonal_exactly(scale):
    """Inputs whose directions fade as those of real layers, at sizes that half precision has not."""
    width = 1280
    inputs = scale * torch.randn(2000, width) / torch.arange(1, width + 1)
    capture = capture_of({"layer": inputs})
    size = sum(tensor.nbytes for tensor in packing.pack(capture, CPU).tensors.values())
    assert size < width * (packing.RANK + packing.STRONG + 30)
    gram, kept = (full(captured.grams["layer"].lower()) for captured in (capture, unpacked(capture)))
    torch.testing.assert_close(kept.diagonal(), gram.diagonal(), rtol=1e-2, atol=1e-4 * float(gram.diagonal().max()))
    assert (kept - gram).norm() < 0.01 * gram.norm()


def test_the_response_is_that_of_what_is_kept():
    capture = capture_of({"layer": torch.randn(600, 300)})
    kept = unpacked(capture)
    statistics = kept.statistics["layer"]
    expected = statistics.delta.down @ full(kept.grams["layer"].lower())
    torch.testing.assert_close(statistics.response, expected, rtol=1e-3, atol=1e-2)


def test_a_layer_that_never_ran_is_kept_as_such():
    capture = capture_of({"layer": torch.zeros(0, 30)})
    kept = unpacked(capture)
    assert kept.grams["layer"].mean_diagonal() == 0
    assert kept.statistics["layer"].inputs.shape == (0, 30)
    assert kept.statistics["layer"].seen == 0
