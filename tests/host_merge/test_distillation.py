"""Distillation: the whole model's predictions come nearer to each concept's, and nothing else is touched."""

import comfy.model_management
import pytest
import torch
from host_merge import test_architectures
from host_merge.test_architectures import PROMPT, SEED
from loraclr.loraclr_core.host.merge import distillation, report
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge.merge import MergeSettings
from loraclr.loraclr_core.host.merge.target import CaptureSettings
from running import merge, weights

# Noise and flows, a pooled text, blocks that add to their input in place, latents with frames.
UNLIKE_EACH_OTHER = ["SDXL", "Flux", "Wan"]


def settings(latent: tuple[int, ...], steps: int) -> MergeSettings:
    capture = CaptureSettings((PROMPT,), 2, SEED, latent)
    return MergeSettings(capture=capture, distillation_steps=steps)


def quietly(phase: str, done: float) -> None:
    pass


@pytest.mark.parametrize("name", UNLIKE_EACH_OTHER)
def test_predictions_come_nearer_to_the_concepts_own(name):
    case = test_architectures.merged(name)
    model, clip = case.model.model, case.model.clip
    found = merging.merge(model, clip, case.chain, settings(case.model.latent, 20), quietly).agreements
    assert sum(each.distilled for each in found) < 0.97 * sum(each.solved for each in found)


@pytest.fixture(scope="module")
def short(demo, concepts):
    """A merge of two concepts with a few steps, and what it reported on the way."""
    seen: list[tuple[str, float]] = []
    with torch.inference_mode():
        before = {key: weight.clone() for key, weight in demo.model.model.state_dict().items()}
        result = merging.merge(
            demo.model, demo.clip, concepts[:2], settings((4, 8, 8), 2), lambda phase, done: seen.append((phase, done))
        )
    return result, seen, before


def hooks(model) -> int:
    return sum(len(module._forward_hooks) for module in model.model.modules())


def test_the_model_it_was_given_stays_as_it_is(demo, short):
    before = short[2]
    assert hooks(demo.model) == 0
    assert demo.model.patches == {}
    assert all(torch.equal(weight, before[key]) for key, weight in demo.model.model.state_dict().items())


def test_only_the_diffusion_model_s_layers_move_and_ranks_stay(demo, concepts, short):
    solved = merging.merge(demo.model, demo.clip, concepts[:2], settings((4, 8, 8), 0), quietly)
    distilled = short[0]
    assert {key: tensor.shape for key, tensor in solved.lora.items()} == {
        key: tensor.shape for key, tensor in distilled.lora.items()
    }
    after = weights(distilled.clip.patcher)
    assert all(torch.equal(weight, after[key]) for key, weight in weights(solved.clip.patcher).items())
    after = weights(distilled.model)
    assert not any(torch.equal(weight, after[key]) for key, weight in weights(solved.model).items())


def test_every_phase_is_reported_and_the_bar_only_grows(short):
    _, seen, _ = short
    shares = [done for _, done in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    phases = [phase for phase, _ in seen]
    for phase in ("distilling, teacher 4 of 4 paints", "distilling, step 2 of 2"):
        assert phase in phases


def test_the_report_says_what_it_did_for_each_concept(short):
    result = short[0]
    section = report.markdown(result).partition("## Distillation, 2 steps")[2].partition("##")[0]
    for loaded, agreement in zip(result.loaded, result.agreements, strict=True):
        before, after = (f"{100 * value / agreement.base:.1f} %" for value in agreement[1:])
        assert f"| {loaded.concept.name} | {before} | {after} |" in section


def test_the_same_again_gives_the_same_lora(demo, concepts, short):
    again = merging.merge(demo.model, demo.clip, concepts[:2], settings((4, 8, 8), 2), quietly)
    assert all(torch.equal(tensor, short[0].lora[key]) for key, tensor in again.lora.items())


@pytest.mark.parametrize("phase", ["distilling, teacher 2 of 4 paints", "distilling, step 2 of 2"])
def test_cancelling_leaves_nothing_on_the_model(demo, concepts, phase):
    def cancel(at: str, done: float) -> None:
        if at == phase:
            raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        merging.merge(demo.model, demo.clip, concepts[:2], settings((4, 8, 8), 2), cancel)
    assert hooks(demo.model) == 0


def test_too_little_memory_is_said_with_what_to_do(demo, concepts, monkeypatch):
    def full(*_):
        raise comfy.model_management.OOM_EXCEPTION("no memory")

    monkeypatch.setattr(distillation._Distillation, "_descend", full)
    with pytest.raises(ValueError, match=r"smaller latent.*distillation_steps to 0"):
        merging.merge(demo.model, demo.clip, concepts[:2], settings((4, 8, 8), 2), quietly)


def test_one_concept_alone_needs_none(demo, concepts):
    *_, text = merge(demo, concepts[:1], distillation_steps=5)
    assert "Distillation" not in text
