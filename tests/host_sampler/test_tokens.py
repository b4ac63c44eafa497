"""A concept's tokens are found by its words, in the conditioning of the host's own text encoders."""

import contextlib
from collections.abc import Iterator

import architectures
import comfy.text_encoders.sd3_clip
import pytest
import safetensors.torch
import torch
from comfy.sd import CLIP
from comfy.supported_models_base import ClipTarget
from loraclr.loraclr_core.host.sampler import tokens
from loraclr.loraclr_core.sampler.prompt import BranchPrompt, PromptError

CHUNK = 77
WIDTH = architectures.WIDTH


def prompt(text: str) -> BranchPrompt:
    """`[a phrase]` in brackets is the one concept's."""
    spans, plain = [], ""
    for part in text.split("["):
        phrase, bracket, rest = part.partition("]")
        if bracket:
            spans.append((len(plain), len(plain) + len(phrase)))
        plain += phrase + rest
    return BranchPrompt(plain, [spans])


def positions(clip, text: str) -> list[int]:
    (found,) = tokens.encode(clip, prompt(text))[1]
    return found


def words(clip, text: str) -> list[str]:
    """The tokens found, in words."""
    tokenizer = clip.tokenizer.clip_l
    flat = [token for chunk in clip.tokenize(prompt(text).text)["l"] for token, _ in chunk]
    return [tokenizer.inv_vocab[flat[i]] for i in positions(clip, text)]


@pytest.fixture
def clip() -> CLIP:
    return architectures.build("SD1.5").clip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a photo of [sks cat] and dog", ["sks</w>", "cat</w>"]),
        ("[cat]", ["cat</w>"]),
        ("a cat, a [cat] and a cat", ["cat</w>"]),
        ("[cat] and [cat]", ["cat</w>", "cat</w>"]),
        ("(a [sks cat]:1.3) in (the [sks cat])", ["sks</w>", "cat</w>"] * 2),
        ("an ([cat]:0.5), with \\(brackets\\)", ["cat</w>"]),
        ("two [cat]s", ["cats</w>"]),
        ("a [<sks>]!", ["<</w>", "sks</w>", ">"]),
        ("a [qzx cat] at home", ["q", "zx</w>", "cat</w>"]),
        ("ein [Kätzchen] im Park", ["k", "Ã¤", "tz", "chen</w>"]),
    ],
)
def test_in_one_chunk(clip, text, expected):
    assert words(clip, text) == expected


def test_the_second_of_two_equal_words_is_the_one(clip):
    assert positions(clip, "cat [cat] cat") == [2]


def test_beyond_one_chunk(clip):
    """The host starts a chunk anew after 75 words and pads what a word group leaves over."""
    long = "one two three four five six seven eight nine ten " * 8
    assert words(clip, f"{long} a [sks cat] there") == ["sks</w>", "cat</w>"]
    assert min(positions(clip, f"{long} a [sks cat] there")) > CHUNK


def test_across_two_chunks(clip):
    text = "x " * 74 + "[sks cat] there"
    assert words(clip, text) == ["sks</w>", "cat</w>"]
    assert positions(clip, text) == [75, 78]


@contextlib.contextmanager
def embeddings(clip: CLIP, folder, **files: dict[str, torch.Tensor]) -> Iterator[None]:
    """Files of embeddings that every tokenizer of the clip finds."""
    for name, vectors in files.items():
        safetensors.torch.save_file(vectors, folder / f"{name}.safetensors")
    found = [t for t in vars(clip.tokenizer).values() if hasattr(t, "embedding_directory")]
    before = [tokenizer.embedding_directory for tokenizer in found]
    for tokenizer in found:
        tokenizer.embedding_directory = [str(folder)]
    yield
    for tokenizer, directory in zip(found, before, strict=True):
        tokenizer.embedding_directory = directory


@pytest.fixture
def with_embedding(clip, tmp_path):
    with embeddings(clip, tmp_path, style={"clip_l": torch.randn(3, WIDTH)}):
        yield clip


def test_behind_an_embedding(with_embedding):
    """An embedding of three vectors takes three places."""
    assert positions(with_embedding, "in embedding:style a [sks cat] there") == [6, 7]


def test_an_embedding_as_the_phrase(with_embedding):
    assert positions(with_embedding, "a photo of [embedding:style] there") == [4, 5, 6]


def test_a_phrase_without_tokens_is_an_error_that_shows_the_prompt(with_embedding):
    with pytest.raises(PromptError, match=r"“embedding:gone”.*“a photo of embedding:gone there”"):
        positions(with_embedding, "a photo of [embedding:gone] there")


@pytest.fixture
def sdxl() -> CLIP:
    return architectures.build("SDXL").clip


def test_every_text_encoder_counts(sdxl, tmp_path):
    """SDXL: an embedding of two vectors for one encoder and four for the other shifts the phrase differently."""
    vectors = {"clip_l": torch.randn(2, WIDTH), "clip_g": torch.randn(4, WIDTH)}
    with embeddings(sdxl, tmp_path, style=vectors):
        assert positions(sdxl, "a embedding:style [cat] there") == [4, 6]


def test_behind_an_embedding_that_an_encoder_leaves_out(sdxl, tmp_path):
    """One for SD1.5 in SDXL: its second encoder is wider, and the host moves up there what follows."""
    vectors = {"clip_l": torch.randn(2, WIDTH), "clip_g": torch.randn(2, WIDTH + 1)}
    with embeddings(sdxl, tmp_path, style=vectors):
        assert positions(sdxl, "a embedding:style [cat] there") == [2, 4]
        with (
            pytest.raises(PromptError, match="“embedding:style”"),
            embeddings(
                sdxl, tmp_path, style={"clip_l": torch.randn(2, WIDTH + 1), "clip_g": torch.randn(2, WIDTH + 1)}
            ),
        ):
            positions(sdxl, "a [embedding:style] cat there")


def test_what_the_host_cuts_off_counts_no_more(sdxl, tmp_path):
    """Where its encoders need different numbers of chunks, SDXL keeps as many as both have."""
    vectors = {"clip_l": torch.randn(2, WIDTH), "clip_g": torch.randn(80, WIDTH)}
    with embeddings(sdxl, tmp_path, style=vectors):
        assert positions(sdxl, "a embedding:style [cat] there") == [4]


def test_encoders_whose_texts_stand_one_behind_the_other():
    """SD3's T5 behind its two CLIPs; of few words, because its width is fixed."""
    clip = {"clip_l_model_config": architectures.CLIP, "clip_g_model_config": architectures.CLIP}
    t5 = architectures.T5 | {"d_model": architectures.SD3_TEXT_WIDTH, "vocab_size": 4096}
    target = ClipTarget(comfy.text_encoders.sd3_clip.SD3Tokenizer, comfy.text_encoders.sd3_clip.sd3_clip())
    sd3 = CLIP(target, model_options={"dtype": architectures.DTYPE, "t5xxl_model_config": t5, **clip})
    architectures.fill(sd3.cond_stage_model, 1)
    assert positions(sd3, "a photo of [cat] in the park") == [4, CHUNK + 4]
    assert positions(sd3, "a photo of ([cat]:1.3) in the park") == [4, CHUNK + 4]


def test_a_prompt_that_the_encoder_cuts_off_is_an_error_that_shows_it():
    """LongCat-Image takes 512 tokens: a phrase beyond them is lost, and one before them cannot be told from what follows."""
    longcat = architectures.build("LongCat-Image").clip
    filler = " ".join(500 * ["red"])
    assert positions(longcat, f"a [cat] {' '.join(400 * ['red'])}") == [1]
    for text in (
        f"a [cat] {filler} blue blue blue blue blue blue blue blue blue blue blue",
        f"{filler} {filler} [cat]",
    ):
        with pytest.raises(PromptError, match=r"“.*cat.*red.*” is too long|“.*red.*cat” is too long"):
            positions(longcat, text)


def test_rows_that_another_pack_has_changed_are_counted(clip, monkeypatch):
    """Packs that weight prompts in their own way give as many rows as ever."""
    encode = clip.cond_stage_model.encode_token_weights
    monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", lambda of: (2 * encode(of)[0], None))
    assert positions(clip, "a photo of [sks cat] and dog") == [4, 5]


def test_rows_that_nothing_explains_are_refused(clip, monkeypatch):
    encode = clip.cond_stage_model.encode_token_weights
    monkeypatch.setattr(clip.cond_stage_model, "encode_token_weights", lambda of: (2 * encode(of)[0][:, 5:], None))
    with pytest.raises(ValueError, match=r"SD1ClipModel takes 77 tokens and gives 72, .* Use LoRACLR Merge"):
        positions(clip, "a photo of [sks cat] and dog")


def test_the_text_encoder_is_left_as_it_was(clip):
    positions(clip, "a [cat]")
    assert not any(module._forward_hooks for module in clip.cond_stage_model.modules())
