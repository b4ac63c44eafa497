"""The layers that a LoRA is trained on, in any architecture: linear ones and 1×1 convolutions, which merge exactly."""

import re
from collections.abc import Iterator

from comfy.model_patcher import ModelPatcher
from torch import nn

from .. import weights
from ..lora.layers import Layers
from .settings import LayerChoice

_PREFIX = "diffusion_model."
# A part of a module's path that is attention. In Flux's single blocks two layers are attention and feed-forward at once.
_ATTENTION = re.compile(
    r"(^|[._])(attn|attention)\w*(\.|$)|\w(attn|attention)\d?(\.|$)|single_blocks\.\d+\.linear[12]$"
)
# Layers within a block that see the time or the pooled text.
_MODULATION = re.compile(r"(^|[._])(mod|modulation|adaLN_modulation|norm\w*|emb\w*)(\.|$)")


class NoLayersError(ValueError):
    """A model in which nothing is found to train; the message says what to do."""


def chosen_layers(patcher: ModelPatcher, choice: LayerChoice) -> Layers:
    """Return the layers to train, by the key of their weight. Raises NoLayersError."""
    root: nn.Module = patcher.model.get_submodule(_PREFIX.removesuffix("."))
    linear = {path: module for path, module in root.named_modules() if _is_linear(module)}
    if choice == "all linear":
        paths = linear.keys()
    elif choice == "attention (paper)":
        paths = {path for path in linear if _ATTENTION.search(path)}
    else:
        blocks = {block for path in linear for block in _blocks_of(root, path)}
        paths = {path for path in linear if _is_in(path, blocks) and not _MODULATION.search(path)}
    if not paths:
        raise NoLayersError(
            f"No attention layers are found in this model ({type(root).__name__}): set layers to all linear."
        )
    return {f"{_PREFIX}{path}.weight": linear[path] for path in linear if path in paths}


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return weights.is_linear(module)


def _blocks_of(root: nn.Module, path: str) -> Iterator[str]:
    """Yield the block that an attention layer is a part of; for a U-Net its whole transformer."""
    found = _ATTENTION.search(path)
    if not found:
        return
    block = path[: found.start()].rstrip("._") if "single_blocks" not in path else path.rpartition(".")[0]
    # `to_q` of `img_attn` and `self_attn`: the block ends at the dot before.
    block = block if path[len(block) : len(block) + 1] == "." else block.rpartition(".")[0]
    parent = block.partition(".transformer_blocks.")[0]
    whole = parent != block and hasattr(root.get_submodule(parent), "proj_in")
    yield parent if whole else block


def _is_in(path: str, blocks: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:count]) in blocks for count in range(1, len(parts)))
