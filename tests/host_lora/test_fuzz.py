"""Whatever a LoRA file holds, it is refused by its name or loads with every key accounted for, and the model stays as it was.

`LORACLR_FUZZ=1234` tries one file again, `LORACLR_FUZZ=2000:50000` others than the usual ones.
"""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import fuzzed_files
import lora_files
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from fuzzed_files import EITHER, KINDS, LOADED, REFUSED, Case
from loraclr.loraclr_core.host.lora import adapters
from loraclr.loraclr_core.host.lora import file as lora_file
from loraclr.loraclr_core.host.lora.file import LoRAFileError
from loraclr.loraclr_core.host.lora.match import AdapterError, key_names, match_lora
from loraclr.loraclr_core.trained_words import trained_words
from running import load, merge

first, _, end = os.environ.get("LORACLR_FUZZ", "0:2000").partition(":")
CASES = range(int(first), int(end or int(first) + 1))
CPU = torch.device("cpu")
# What one file may take: CPU seconds, and bytes beyond what the process held before.
SECONDS = 10
MEMORY = 100 << 20
# No file gets so far; one that asks for far more shall not take the machine with it.
ADDRESSES = 6 << 30
# Of `load`, for files that say nothing of their trigger.
TRIGGER = "sks cat"


class TookTooLongError(BaseException):
    """Not an Exception, which reading would take for a fault of the file."""


class State(NamedTuple):
    """Of a model, all that a LoRA could change."""

    patches_uuid: object
    patches: dict
    attachments: list
    object_patches: list
    weights: dict[str, torch.Tensor]


def state_of(patcher: ModelPatcher) -> State:
    weights = patcher.model_state_dict()
    touched = {key: weights[key].clone() for key in weights if key.removesuffix(".weight") in TOUCHED}
    return State(
        patcher.patches_uuid,
        {key: list(patches) for key, patches in patcher.patches.items()},
        list(patcher.attachments),
        list(patcher.object_patches),
        touched,
    )


TOUCHED = {*fuzzed_files.LINEAR, fuzzed_files.CONVOLUTION[0]}
TOUCHED |= {"clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj"}


def same(a: State, b: State) -> bool:
    return a[:-1] == b[:-1] and all(torch.equal(a.weights[key], b.weights[key]) for key in a.weights | b.weights)


@pytest.fixture(scope="module")
def key_map(demo) -> dict:
    return key_names(demo.model, demo.clip)


@pytest.fixture
def unchanged(demo, key_map) -> Iterator[None]:
    """The model is as it was, and a sound LoRA does what it did."""

    def found() -> tuple[State, State, torch.Tensor]:
        (name, shape), *_ = fuzzed_files.LINEAR.items()
        torch.manual_seed(0)
        lora = match_lora("sound", lora_files.loha(name, shape), key_map)
        effect = adapters.effect(lora, demo.model, 1.0, CPU).merge[f"{name}.weight"].dense()
        return state_of(demo.model), state_of(demo.clip.patcher), effect

    before = found()
    assert before[0].weights
    assert before[1].weights
    yield
    after = found()
    assert same(before[0], after[0])
    assert same(before[1], after[1])
    assert torch.equal(before[2], after[2])


@contextmanager
def bounded() -> Iterator[Callable[[], int]]:
    """Ends what takes too long; gives a function that says by how many bytes the process grew at most since the last call."""

    def stop(*_: object) -> None:
        raise TookTooLongError(f"more than {SECONDS} s")

    def growth() -> int:
        nonlocal before
        peak = memory("VmHWM") - before
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory("VmRSS")
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        return peak

    limits = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, stop)
    before = 0
    growth()
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESSES, limits[1]))
    try:
        yield growth
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(what))


def written(case: Case, folder: Path) -> Path:
    path = folder / case.name
    path.write_bytes(case.file.content)
    return path


def judge(case: Case, use: Callable[[], None]) -> None:
    """Fails, with the case's number, where `use` does not end as the case should."""
    try:
        use()
        refusal = None
    except Exception as error:
        refusal = str(error)
        refused = error.__cause__ if type(error) is ValueError else error  # a node raises it anew
        if not isinstance(refused, (LoRAFileError, AdapterError)):
            raise AssertionError(f"case {case.number} ({case.kind}) ends in {type(error).__name__}: {error}") from error
    if refusal is None:
        assert case.verdict != REFUSED, f"case {case.number} ({case.kind}) was loaded"
    else:
        assert case.verdict != LOADED, f"case {case.number} ({case.kind}) was refused: {refusal}"
        assert case.name in refusal, f"case {case.number}: no file's name in: {refusal}"
        assert case.file.named in refusal, f"case {case.number}: no {case.file.named!r} in: {refusal}"
    assert not fuzzed_files.executed, f"case {case.number} ran code"


def read_and_apply(case: Case, path: Path, demo, key_map: dict) -> None:
    """All that a merge does with a file before it samples."""
    tensors, metadata = lora_file.read(path)
    trigger = trained_words(metadata).trigger
    assert trigger == trigger.strip(), f"case {case.number}: trigger {trigger!r}"
    lora = match_lora(case.name, tensors, key_map)
    for patcher in (demo.model, demo.clip.patcher):
        adapters.effect(lora, patcher, 0.7, CPU)

    bundled = [key for key in tensors if key.startswith("bundle_emb.")]
    assert sorted([*lora.matched, *lora.unmatched, *bundled]) == sorted(tensors), f"case {case.number}: keys are lost"
    assert bool(lora.embeddings) == bool(bundled)
    if case.verdict == LOADED:
        assert set(lora.unmatched) == case.file.unmatched, f"case {case.number}: {lora.unmatched}"


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_refused_by_name_or_loads_whole(demo, key_map, unchanged, tmp_path, kind):
    with bounded() as growth:
        for number in fuzzed_files.numbers(kind, CASES):
            case = fuzzed_files.case(number)
            path = written(case, tmp_path)
            growth()
            judge(case, lambda case=case, path=path: read_and_apply(case, path, demo, key_map))
            assert (grown := growth()) < MEMORY, f"case {number} ({kind}) took {grown >> 20} MiB"
            path.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_the_nodes_treat_it_alike(demo, unchanged, loras_folder, kind):
    """Load Concept LoRA with a model to try it on, and a merge of this one concept."""
    for number in fuzzed_files.numbers(kind, CASES)[:1]:
        case = fuzzed_files.case(number)
        path = written(case, loras_folder)

        def use(name: str = case.name) -> None:
            concepts, _, _ = load(name, TRIGGER, model=demo.model, clip=demo.clip)
            merge(demo, concepts, merge_text_encoder=True)

        judge(case, use)
        path.unlink()


def test_a_number_is_always_the_same_file():
    for number in range(len(KINDS)):
        case = fuzzed_files.case(number)
        if not case.file.suffix.startswith((".safe", ".sft")):
            continue  # a pickle tells the time, or where in memory it was made
        assert fuzzed_files.case(number) == case
    assert {verdict for verdict, _ in KINDS.values()} == {REFUSED, LOADED, EITHER}
