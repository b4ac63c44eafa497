"""A concept's tokens are found by its words, in the host's own tokenizers."""

import comfy.sdxl_clip
import pytest
import safetensors.torch
import torch
from loraclr.loraclr_core.host.sampler import tokens
from loraclr.loraclr_core.sampler.prompt import BranchPrompt, PromptError

CHUNK = 77


def prompt(text: str) -> BranchPrompt:
    """`[a phrase]` in brackets is the one concept's."""
    spans, plain = [], ""
    for part in text.split("["):
        phrase, bracket, rest = part.partition("]")
        if bracket:
            spans.append((len(plain), len(plain) + len(phrase)))
        plain += phrase + rest
    return BranchPrompt(plain, [spans])


def words(clip, text: str) -> list[str]:
    """The tokens found, in words."""
    branch = prompt(text)
    tokenizer = clip.tokenizer.clip_l
    flat = [token for chunk in clip.tokenize(branch.text)["l"] for token, _ in chunk]
    return [tokenizer.inv_vocab[flat[i]] for i in tokens.positions(clip, branch)[0]]


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
def test_in_one_chunk(demo, text, expected):
    assert words(demo.clip, text) == expected


def test_the_second_of_two_equal_words_is_the_one(demo):
    assert tokens.positions(demo.clip, prompt("cat [cat] cat")) == [[2]]


def test_beyond_one_chunk(demo):
    """The host starts a chunk anew after 75 words and pads what a word group leaves over."""
    long = "one two three four five six seven eight nine ten " * 8
    assert words(demo.clip, f"{long} a [sks cat] there") == ["sks</w>", "cat</w>"]
    (found,) = tokens.positions(demo.clip, prompt(f"{long} a [sks cat] there"))
    assert min(found) > CHUNK


def test_across_two_chunks(demo):
    text = "x " * 74 + "[sks cat] there"
    assert words(demo.clip, text) == ["sks</w>", "cat</w>"]
    (found,) = tokens.positions(demo.clip, prompt(text))
    assert found == [75, 78]


@pytest.fixture
def with_embedding(demo, tmp_path):
    safetensors.torch.save_file({"clip_l": torch.randn(3, 768)}, tmp_path / "style.safetensors")
    clip = demo.clip.clone()
    before, clip.tokenizer.clip_l.embedding_directory = clip.tokenizer.clip_l.embedding_directory, [str(tmp_path)]
    yield clip
    clip.tokenizer.clip_l.embedding_directory = before


def test_behind_an_embedding(with_embedding):
    """An embedding of three vectors takes three places."""
    (found,) = tokens.positions(with_embedding, prompt("in embedding:style a [sks cat] there"))
    assert found == [6, 7]


def test_an_embedding_as_the_phrase(with_embedding):
    (found,) = tokens.positions(with_embedding, prompt("a photo of [embedding:style] there"))
    assert found == [4, 5, 6]


def test_a_phrase_without_tokens_is_an_error_that_shows_the_prompt(with_embedding):
    with pytest.raises(PromptError, match=r"“embedding:gone”.*“a photo of embedding:gone there”"):
        tokens.positions(with_embedding, prompt("a photo of [embedding:gone] there"))


def test_every_text_encoder_counts(tmp_path):
    """SDXL: an embedding of two vectors for one encoder and four for the other shifts the phrase differently."""
    both = {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(4, 1280)}
    safetensors.torch.save_file(both, tmp_path / "style.safetensors")

    class Clip:
        tokenizer = comfy.sdxl_clip.SDXLTokenizer(embedding_directory=[str(tmp_path)])

        def tokenize(self, text, return_word_ids=False):
            return self.tokenizer.tokenize_with_weights(text, return_word_ids)

    assert tokens.positions(Clip(), prompt("a embedding:style [cat] there")) == [[4, 6]]
