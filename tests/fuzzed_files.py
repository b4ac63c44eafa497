"""LoRA files that are not what they should be, and odd ones that are: any number of them, each made anew by its number.

`case(number)` is always the same file. Kinds take turns, so `number % len(KINDS)` is the kind; each says what is to become
of its files: REFUSED where they are wrong by construction, LOADED where they are sound, EITHER where chance decides.
"""

import functools
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import lora_files
import safetensors.torch
import torch
from torch import Tensor

REFUSED, LOADED, EITHER = "refused", "loaded", "either"
BLOCK = "diffusion_model.input_blocks.1.1"
# Names under which the host finds layers of SD1.5; a weight's key is its name and `.weight`.
LINEAR = {
    f"{BLOCK}.transformer_blocks.0.attn1.to_q": (320, 320),
    f"{BLOCK}.transformer_blocks.0.attn2.to_k": (320, 768),
    f"{BLOCK}.transformer_blocks.0.attn2.to_v": (320, 768),
}
CONVOLUTION = f"{BLOCK}.proj_in", (320, 320, 1, 1)
TEXT_LAYER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj", (768, 768)
PICKLES = (".pt", ".ckpt", ".bin", ".pth")
# A pickle of so many bytes of nothing packs to a thousandth of them.
BOMB = 1 << 27

StateDict = dict[str, Tensor]
executed: list[str] = []  # what code in a pickle has done


class File(NamedTuple):
    """named: what the refusal has to mention. unmatched: keys that no layer is to take, of a file that loads."""

    content: bytes
    named: str = ""
    unmatched: frozenset[str] = frozenset()
    suffix: str = ".safetensors"


class Case(NamedTuple):
    number: int
    kind: str
    verdict: str
    file: File

    @property
    def name(self) -> str:
        return f"{self.number}_{self.kind}{self.file.suffix}"


KINDS: dict[str, tuple[str, Callable[[Random], File]]] = {}


def case(number: int) -> Case:
    """Seeds torch's generator, by which the weights are made."""
    torch.manual_seed(number)
    kind = list(KINDS)[number % len(KINDS)]
    verdict, make = KINDS[kind]
    return Case(number, kind, verdict, make(Random(number)))


def numbers(kind: str, cases: range) -> range:
    """Those of `cases` that are of this kind."""
    first = cases.start + (list(KINDS).index(kind) - cases.start) % len(KINDS)
    return range(first, cases.stop, len(KINDS))


def kind(verdict: str):
    def register(make: Callable[[Random], File]):
        KINDS[make.__name__] = verdict, make
        return make

    return register


# --- sound files, and their parts -----------------------------------------------------------------------------------


def linear_layer(rng: Random) -> tuple[str, tuple[int, ...]]:
    return rng.choice(list(LINEAR.items()))


def one_layer(rng: Random, *kinds: str) -> tuple[str, StateDict]:
    """An adapter on one linear layer; of these kinds, or of any."""
    name, shape = linear_layer(rng)
    return name, lora_files.LINEAR[rng.choice(kinds or list(lora_files.LINEAR))](name, shape)


def sound(rng: Random) -> StateDict:
    """Adapters on one to four layers, in any order."""
    layers = rng.sample(list(LINEAR.items()), rng.randint(1, 2))
    state: StateDict = {}
    for name, shape in layers:
        state |= rng.choice(list(lora_files.LINEAR.values()))(name, shape)
    if rng.random() < 0.3:
        state |= rng.choice([lora_files.lora, lora_files.tucker, lora_files.oft])(*CONVOLUTION)
    if rng.random() < 0.3:
        state |= lora_files.lora(*TEXT_LAYER)
    keys = rng.sample(list(state), len(state))
    return {key: state[key] for key in keys}


def plain(rng: Random) -> StateDict:
    """A LoRA of two layers: what the faults of a container are made in."""
    (a, shape_a), (b, shape_b) = rng.sample(list(LINEAR.items()), 2)
    return lora_files.lora(a, shape_a, rank=1) | lora_files.lora(b, shape_b, rank=2)


def packed(state: StateDict, metadata: dict[str, str] | None = None) -> bytes:
    content = safetensors.torch.save({key: tensor.contiguous() for key, tensor in state.items()})
    if metadata is None:
        return content
    header, data = opened(content)  # the library would write the metadata in any order
    return closed({"__metadata__": metadata} | header, data)


def opened(content: bytes) -> tuple[dict, bytes]:
    """Header and data."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def closed(header: dict | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def with_entry(rng: Random, change: Callable[[dict], object]) -> File:
    """A plain LoRA with one tensor's entry in the header changed."""
    header, data = opened(packed(plain(rng)))
    change(header[rng.choice([key for key in header if key != "__metadata__"])])
    return File(closed(header, data))


def saved(value: object, **kwargs) -> bytes:
    """By torch.save."""
    buffer = io.BytesIO()
    torch.save(value, buffer, **kwargs)
    return buffer.getvalue()


# --- containers that are wrong --------------------------------------------------------------------------------------


@kind(REFUSED)
def empty(rng: Random) -> File:
    return File(b"", suffix=rng.choice([".safetensors", ".sft", *PICKLES]))


@kind(REFUSED)
def shorter_than_its_length(rng: Random) -> File:
    return File(rng.randbytes(rng.randint(1, 7)))


@kind(REFUSED)
def truncated(rng: Random) -> File:
    content = packed(sound(rng))
    return File(content[: rng.randrange(8, len(content))])


@kind(REFUSED)
def trailing_bytes(rng: Random) -> File:
    return File(packed(plain(rng)) + rng.randbytes(rng.choice([1, 8, 4096])))


@kind(REFUSED)
def forged_header_length(rng: Random) -> File:
    content = packed(plain(rng))
    (length,) = struct.unpack("<Q", content[:8])
    forged = [0, 1, length - 1, length + 1, len(content), 1 << 26, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1]
    return File(struct.pack("<Q", rng.choice(forged)) + content[8:])


@kind(REFUSED)
def header_of_no_json(rng: Random) -> File:
    header, data = opened(packed(plain(rng)))
    text = json.dumps(header).encode()
    wrong = [text[:-1], text + b"}", text.replace(b":", b"=", 1), text.replace(b'"', b"'"), b"\xef\xbb\xbf" + text]
    wrong += [text.replace(b",", b",,", 1), b"<html>404 Not Found</html>", b"\0" * len(text), b""]
    return File(closed(rng.choice(wrong), data))


@kind(REFUSED)
def header_of_no_object(rng: Random) -> File:
    return File(closed(rng.choice([b"[]", b"[1, 2]", b"7", b'"a"', b"null", b"true", b"NaN"]), rng.randbytes(16)))


@kind(REFUSED)
def header_of_no_utf8(rng: Random) -> File:
    header, data = opened(packed(plain(rng)))
    text = json.dumps(header).encode()
    at = text.index(b"lora_")
    return File(closed(text[:at] + rng.choice([b"\xff\xfe", b"\x80", b"\xc3", b"\xed\xa0\x80"]) + text[at:], data))


@kind(REFUSED)
def header_nested_too_deep(rng: Random) -> File:
    depth = rng.choice([200, 5_000, 100_000])
    return File(closed(b'{"a":' + b"[" * depth + b"]" * depth + b"}", b""))


@kind(REFUSED)
def unknown_dtype(rng: Random) -> File:
    wrong = ["F33", "f32", "float32", "", "Q4_0", 7, None, [], {"F32": 1}]
    return with_entry(rng, lambda entry: entry.update(dtype=rng.choice(wrong)))


@kind(REFUSED)
def shape_of_other_size(rng: Random) -> File:
    return with_entry(rng, lambda entry: entry.update(shape=[*entry["shape"], rng.choice([0, 2, 3, 1000])]))


@kind(REFUSED)
def impossible_shape(rng: Random) -> File:
    huge = [[1 << 63, 2], [1 << 32, 1 << 32], [1 << 40], [(1 << 64) - 1], [1 << 70]]
    wrong = [*huge, [-1, 4], [1.5], ["4"], None, {}, 4, [[4]]]
    return with_entry(rng, lambda entry: entry.update(shape=rng.choice(wrong)))


@kind(REFUSED)
def wrong_offsets(rng: Random) -> File:
    """Overlapping, with a gap, the wrong way round, beyond the end, or no offsets at all."""

    def change(entry: dict) -> None:
        start, end = entry["data_offsets"]
        wrong = [[start - 4, end - 4], [start + 4, end + 4], [end, start], [start, end + 4], [start, start]]
        wrong += [[start, 1 << 62], [1 << 62, (1 << 62) + end - start], [-start - 4, end], [start + 0.5, end], [start]]
        wrong += [[start, end, end], None, {}, "0"]
        entry["data_offsets"] = rng.choice(wrong)

    return with_entry(rng, change)


@kind(REFUSED)
def incomplete_entry(rng: Random) -> File:
    return with_entry(rng, lambda entry: entry.pop(rng.choice(list(entry))))


@kind(REFUSED)
def key_twice(rng: Random) -> File:
    """Two tensors of one name; one of them would be lost."""
    header, data = opened(packed(plain(rng)))
    a, b = rng.sample([key for key in header if key != "__metadata__" and not key.endswith("alpha")], 2)
    return File(closed(json.dumps(header).replace(json.dumps(a), json.dumps(b)).encode(), data))


@kind(REFUSED)
def metadata_of_no_text(rng: Random) -> File:
    header, data = opened(packed(plain(rng)))
    wrong = [{"a": 1}, {"a": None}, {"a": ["x"]}, {"a": {"b": "c"}}, ["a"], "a", 7, True]
    return File(closed({"__metadata__": rng.choice(wrong)} | header, data))


@kind(REFUSED)
def no_tensors(rng: Random) -> File:
    if rng.random() < 0.5:
        return File(saved({}), suffix=rng.choice(PICKLES))
    return File(closed(rng.choice([{}, {"__metadata__": {"modelspec.trigger_phrase": "sks cat"}}]), b""))


@kind(REFUSED)
def something_else(rng: Random) -> File:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"
    wrong = [b"<html>404 Not Found</html>", pointer, b"\x89PNG\r\n\x1a\n" + rng.randbytes(99), b"PK\x03\x04", b"GGUF"]
    wrong += [rng.randbytes(rng.randint(1, 4096)), b"\0" * 4096, b"{}", b"\n"]
    return File(rng.choice(wrong), suffix=rng.choice([".safetensors", ".sft", *PICKLES]))


@kind(REFUSED)
def wrong_suffix(rng: Random) -> File:
    if rng.random() < 0.5:
        return File(packed(plain(rng)), suffix=rng.choice(PICKLES))
    return File(saved(plain(rng)))


# --- pickles --------------------------------------------------------------------------------------------------------


def run() -> None:
    executed.append("code in a pickle")


class Code:
    """Calls `run` when it is unpickled by a reader that lets it."""

    def __reduce__(self):
        return run, ()


class Call:
    """A call that torch allows within a pickle of weights."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@kind(REFUSED)
def pickle_with_code(rng: Random) -> File:
    value = rng.choice([Code(), [Code()], {"a": Code()}, plain(rng) | {"b": Code()}, {"state_dict": {"a": Code()}}])
    content = pickle.dumps(value, rng.randint(0, 5)) if rng.random() < 0.5 else saved(value)
    return File(content, suffix=rng.choice(PICKLES))


@kind(REFUSED)
def pickle_of_no_weights(rng: Random) -> File:
    tensor = torch.ones(2)
    wrong = [None, 7, "text", [], [tensor], tensor, (tensor, tensor), {"a": 1, "b": tensor}, {"a": [tensor]}]
    wrong += [{7: tensor, "b": tensor}, {"a": {"b": {"c": tensor}}}, {"state_dict": tensor}, {"state_dict": {"a": "b"}}]
    return File(saved(rng.choice(wrong)), suffix=rng.choice(PICKLES))


@kind(REFUSED)
def pickle_truncated(rng: Random) -> File:
    content = saved(plain(rng), _use_new_zipfile_serialization=rng.random() < 0.5)
    return File(content[: rng.randrange(1, len(content) - 32)], suffix=rng.choice(PICKLES))


@kind(REFUSED)
def pickle_of_no_plain_tensor(rng: Random) -> File:
    """Tensors that are larger than their data, have none, or are stored in another way."""
    tensors = [
        torch.ones(1).expand(1 << 20, 1 << 20),
        torch.ones(2, 2).to_sparse(),
        torch.empty(1 << 30, device="meta"),
    ]
    return File(saved(plain(rng) | {"odd": rng.choice(tensors)}), suffix=rng.choice(PICKLES))


@kind(REFUSED)
def pickle_that_grows(rng: Random) -> File:
    """A few bytes that ask for more than a hundred megabytes."""
    calls = [Call(bytearray, BOMB), Call(torch.Tensor, BOMB // 4)]
    content = rng.choice([bomb(), *(saved(plain(rng) | {"b": call}) for call in calls), pickle.dumps(calls[0], 2)])
    return File(content, suffix=rng.choice(PICKLES))


@functools.cache
def bomb() -> bytes:
    """Zeros, deflated."""
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(BOMB // 4), "b": torch.ones(1)}))) as source,
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    return content.getvalue()


# --- tensors that are wrong -----------------------------------------------------------------------------------------


@kind(REFUSED)
def not_finite(rng: Random) -> File:
    state = sound(rng)
    key = rng.choice(list(state))
    value = rng.choice([float("nan"), float("inf"), -float("inf")])
    dtypes = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e5m2]
    tensor = state[key].float().flatten()
    tensor[rng.randrange(tensor.numel())] = value
    return File(packed(state | {key: tensor.reshape(state[key].shape).to(rng.choice(dtypes))}), key)


@kind(REFUSED)
def two_numbers_to_a_byte(rng: Random) -> File:
    _, state = one_layer(rng, "LoRA", "PEFT")
    header, data = opened(packed(state | {"packed": torch.ones(64, dtype=torch.uint8)}))
    header["packed"].update(dtype="F4", shape=[128])
    return File(closed(header, data), "packed")


@kind(REFUSED)
def complex_factors(rng: Random) -> File:
    _, state = one_layer(rng)
    key = rng.choice([key for key in state if not key.endswith("alpha")])
    return File(packed(state | {key: state[key].to(torch.complex64)}), key)


@kind(REFUSED)
def ranks_that_differ(rng: Random) -> File:
    name, state = one_layer(rng, "LoRA", "PEFT", "DoRA", "LoHa", "LoKr", "GLoRA")
    ends = (".lora_up.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w2_a", ".b1.weight")
    key = next(key for key in state if key.endswith(ends))
    return File(packed(state | {key: torch.randn(state[key].shape[0], state[key].shape[1] + rng.randint(1, 3))}), name)


@kind(REFUSED)
def shapes_that_differ(rng: Random) -> File:
    name, shape = linear_layer(rng)
    other = shape[0] + 8 * rng.choice([-20, -1, 1, 20]), shape[1] + 8 * rng.choice([-20, -1, 0, 1, 20])
    return File(packed(rng.choice(list(lora_files.LINEAR.values()))(name, other)), name)


@kind(REFUSED)
def another_architecture(rng: Random) -> File:
    names = ["transformer.single_transformer_blocks.0.attn.to_q", "model.layers.0.self_attn.q_proj", "a", ""]
    names += ["lora_unet_input_blocks_8_1_transformer_blocks_9_attn1_to_q", f"{BLOCK}.transformer_blocks.7.attn1.to_q"]
    make = rng.choice(list(lora_files.LINEAR.values()))
    return File(packed(make(rng.choice(names), rng.choice([(64, 64), (320, 320)]))))


@kind(REFUSED)
def mostly_another_architecture(rng: Random) -> File:
    name, shape = linear_layer(rng)
    others = [lora_files.lora(f"blocks.{index}.to_q", (8, 8)) for index in range(rng.randint(2, 9))]
    return File(packed(functools.reduce(dict.__or__, others, lora_files.lora(name, shape))))


@kind(REFUSED)
def alpha_of_no_number(rng: Random) -> File:
    name, state = one_layer(rng, "LoRA", "DoRA", "LoHa", "LoKr", "GLoRA")
    shape = rng.choice([(2,), (0,), (4, 4), (1, 320)])
    return File(packed(state | {f"{name}.alpha": torch.ones(shape)}), f"{name}.alpha")


@kind(REFUSED)
def half_missing(rng: Random) -> File:
    _, state = one_layer(rng, "LoRA", "PEFT", "DoRA", "LoHa", "GLoRA")
    ends = (".lora_down.weight", ".lora_A.weight", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
    ends += (".a2.weight", ".b1.weight", ".b2.weight")
    key = rng.choice([key for key in state if key.endswith(ends)])
    return File(packed({other: tensor for other, tensor in state.items() if other != key}), key)


@kind(REFUSED)
def only_one_factor(rng: Random) -> File:
    """By which the host knows no adapter, or one that it cannot apply."""
    _, state = one_layer(rng, "LoRA", "PEFT", "LoKr")
    return File(packed({key: state[key] for key in state if key.endswith(("down.weight", "lora_A.weight", "w1"))}))


@kind(REFUSED)
def empty_tensors(rng: Random) -> File:
    _, state = one_layer(rng)
    key = rng.choice(list(state))
    shape = list(state[key].shape) or [1]
    shape[rng.randrange(len(shape))] = 0
    return File(packed(state | {key: torch.empty(shape)}), key)


@kind(REFUSED)
def rank_of_zero(rng: Random) -> File:
    name, (out, width) = linear_layer(rng)
    factors = {f"{name}.lora_up.weight": torch.empty(out, 0), f"{name}.lora_down.weight": torch.empty(0, width)}
    alpha = {f"{name}.alpha": torch.tensor(4.0)} if rng.random() < 0.5 else {}
    return File(packed(factors | alpha), name)


@kind(REFUSED)
def wrong_dimensions(rng: Random) -> File:
    name, state = one_layer(rng, "LoRA", "PEFT", "DoRA", "LoHa", "full")
    key = rng.choice([key for key in state if not key.endswith(("alpha", "dora_scale"))])
    return File(packed(state | {key: rng.choice([state[key].flatten(), state[key].flatten()[0].clone()])}), name)


@kind(REFUSED)
def values_that_overflow(rng: Random) -> File:
    """Finite in the file, but not in the weight."""
    name, state = one_layer(rng, "LoRA", "PEFT", "LoHa", "full", "OFT")
    huge, dtype = (1e300, torch.float64) if rng.random() < 0.3 else (3e38, torch.float32)
    return File(packed({k: t if k.endswith("alpha") else t.sign().to(dtype) * huge for k, t in state.items()}), name)


@kind(REFUSED)
def products_too_large(rng: Random) -> File:
    """Small factors of a matrix of hundreds of megabytes, or of a million of them."""
    name, (out, width) = linear_layer(rng)
    side = rng.choice([10_000, 16_384, 60_000])
    column, row, scale = torch.randn(side, 1), torch.randn(1, side), torch.ones(out, 1)
    square = torch.randn(rng.choice([128, 300]), 100)
    state = rng.choice(
        [
            {"lora_up.weight": column, "lora_down.weight": row},
            {"lora_up.weight": column, "lora_down.weight": row, "dora_scale": scale},
            {"hada_w1_a": column, "hada_w1_b": row, "hada_w2_a": column, "hada_w2_b": row},
            {"lokr_w1": square, "lokr_w2": square},
            {"lokr_w1_a": column, "lokr_w1_b": row, "lokr_w2": square},
            {
                "a1.weight": torch.ones(width, 1),
                "a2.weight": torch.ones(1, width),
                "b1.weight": column,
                "b2.weight": row,
            },
            {
                "lora_up.weight": torch.ones(out, 1),
                "lora_down.weight": torch.ones(1, width),
                "reshape_weight": torch.tensor([side, side]),
            },
        ]
    )
    return File(packed({f"{name}.{part}": tensor.clone() for part, tensor in state.items()}), name)


# --- odd files that are sound ---------------------------------------------------------------------------------------


@kind(LOADED)
def whole(rng: Random) -> File:
    dtype = rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64])
    return File(packed({key: tensor.to(dtype) for key, tensor in sound(rng).items()}, {"format": "pt"}))


@kind(LOADED)
def eight_bits(rng: Random) -> File:
    _, state = one_layer(rng, "LoRA", "PEFT", "full")
    dtype = rng.choice([torch.float8_e4m3fn, torch.float8_e5m2])
    return File(packed({key: tensor if key.endswith("alpha") else tensor.to(dtype) for key, tensor in state.items()}))


@kind(LOADED)
def rank_beyond_the_layer(rng: Random) -> File:
    """What is made of it must not need memory of the rank's square."""
    name, shape = linear_layer(rng)
    rank = rng.choice([321, 400, 400, 4000])
    state = lora_files.lora(name, shape, rank)
    return File(packed({key: tensor.to(torch.float8_e5m2) for key, tensor in state.items()}))


@kind(LOADED)
def strange_neighbours(rng: Random) -> File:
    """Tensors that are no adapter's beside some that are."""
    state = sound(rng)
    state |= lora_files.lora(*TEXT_LAYER)
    names = [
        "",
        " ",
        "\n",
        "\0",
        "..",
        "ключ",
        "鍵" * 99,
        "a" * 5000,
        "lora_up.weight",
        ".alpha",
        "x.dora_scale",
        "__proto__",
    ]
    tensors = [torch.ones(3, dtype=torch.int64), torch.ones((), dtype=torch.bool), torch.ones(2, dtype=torch.complex64)]
    tensors += [torch.empty(0), torch.empty(1 << 40, 0), torch.ones(1, 1, 1, 1, 1, 1, 1, 1), torch.ones(2).double()]
    strange = {name: rng.choice(tensors).clone() for name in rng.sample(names, rng.randint(1, 3))}
    return File(packed(state | strange), unmatched=frozenset(strange))


@kind(LOADED)
def with_embeddings(rng: Random) -> File:
    names = rng.sample(["style", "a.b", "", "ключ"], rng.randint(1, 3))
    bundled = {f"bundle_emb.{name}.string_to_param.*": torch.randn(1, 768) for name in names}
    return File(packed(sound(rng) | bundled))


@kind(LOADED)
def strange_metadata(rng: Random) -> File:
    """What it says is of no use, so it says nothing."""
    values = ["", "{", "[]", "null", "7", '{"a": 1}', '{"a": null}', '{"a": {"b": null}}', '{"a": {"b": "many"}}']
    values += [
        '{"a": {"b": NaN}}',
        '{"a": {"b": 1e999}}',
        '{"a": ["b"]}',
        "[" * 9999,
        f'{{"a": {{"b": {"9" * 9999}}}}}',
    ]
    values += ['{"a": {"": 1}}', '{"_": 1}', '{"10_": 1}', "\0", "\ud7ff", "x" * 99_999]
    names = ["ss_tag_frequency", "ss_dataset_dirs", "ss_network_module", "", "\n"]
    metadata = {name: rng.choice(values) for name in rng.sample(names, rng.randint(1, 4))}
    return File(packed(sound(rng), metadata))


@kind(LOADED)
def header_written_otherwise(rng: Random) -> File:
    """With white space, fields in another order, and room at its end."""
    header, data = opened(packed(sound(rng)))
    entries = {key: dict(rng.sample(list(entry.items()), len(entry))) for key, entry in header.items()}
    shuffled = dict(rng.sample(list(entries.items()), len(entries)))
    text = json.dumps(shuffled, indent=rng.choice([None, 1, 8]), ensure_ascii=rng.random() < 0.5)
    return File(closed(text.encode() + b" " * rng.choice([0, 1, 9999]), data))


@kind(LOADED)
def pickled(rng: Random) -> File:
    state = sound(rng)
    if rng.random() < 0.3:
        state = {key: torch.nn.Parameter(tensor, requires_grad=False) for key, tensor in state.items()}
    if rng.random() < 0.3:
        state = {key: tensor.half() for key, tensor in state.items()}
    value = {"state_dict": state, "step": 7} if rng.random() < 0.3 else state
    content = saved(value, _use_new_zipfile_serialization=rng.random() < 0.7)
    return File(content, suffix=rng.choice(PICKLES))


# --- files damaged by chance ----------------------------------------------------------------------------------------


def flipped(rng: Random, content: bytes, start: int, end: int, count: int) -> bytes:
    found = bytearray(content)
    for _ in range(count):
        found[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(found)


@kind(EITHER)
def flipped_in_the_header(rng: Random) -> File:
    content = packed(sound(rng))
    (length,) = struct.unpack("<Q", content[:8])
    return File(flipped(rng, content, 8, 8 + length, rng.choice([1, 1, 2, 8])))


@kind(EITHER)
def flipped_in_the_data(rng: Random) -> File:
    content = packed(sound(rng))
    (length,) = struct.unpack("<Q", content[:8])
    return File(flipped(rng, content, 8 + length, len(content), rng.choice([1, 8, 64])))


@kind(EITHER)
def flipped_in_a_pickle(rng: Random) -> File:
    content = saved(plain(rng), _use_new_zipfile_serialization=rng.random() < 0.5)
    return File(flipped(rng, content, 0, len(content), rng.choice([1, 8, 64])), suffix=rng.choice(PICKLES))


@kind(EITHER)
def parts_exchanged(rng: Random) -> File:
    content = packed(plain(rng))
    a, b, c = sorted(rng.sample(range(len(content)), 3))
    exchanged = [content[:a] + content[b:c] + content[a:b] + content[c:], content[:a] + content[b:]]
    exchanged += [content[:b] + content[a:], content[:a] + bytes(b - a) + content[b:]]
    return File(rng.choice(exchanged))


@kind(EITHER)
def head_of_one_and_tail_of_another(rng: Random) -> File:
    a, b = packed(sound(rng)), packed(plain(rng))
    return File(a[: rng.randrange(8, len(a))] + b[rng.randrange(8, len(b)) :])


@kind(EITHER)
def numbers_exchanged_in_the_header(rng: Random) -> File:
    """Shapes and offsets that other tensors of the file have."""
    header, data = opened(packed(sound(rng)))
    for _ in range(rng.randint(1, 3)):
        a, b = (header[rng.choice([key for key in header if key != "__metadata__"])] for _ in range(2))
        field = rng.choice(["shape", "data_offsets", "dtype"])
        a[field], b[field] = b[field], a[field]
    return File(closed(header, data))
