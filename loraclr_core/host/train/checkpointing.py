"""Gradient checkpointing: activations of a model's blocks are computed again in the backward pass, not kept."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@contextlib.contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Checkpoint the model's blocks: its children, and what stands in lists and sequences of them."""
    with contextlib.ExitStack() as patches:
        for block in _blocks(model):
            patches.callback(_patch(block))
        yield


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, CONTAINERS):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def _patch(block: nn.Module):
    """Replace a block's forward, and return what undoes it."""
    before = vars(block).get("forward")
    forward = block.forward

    def run(args: tuple, kwargs: dict):
        # Some models add to their input in place, and the second time it must be what it was the first time.
        args = tuple(each.clone() if isinstance(each, Tensor) else each for each in args)
        kwargs = {name: each.clone() if isinstance(each, Tensor) else each for name, each in kwargs.items()}
        return forward(*args, **kwargs)

    def checkpointing(*args, **kwargs):
        return checkpoint(run, args, kwargs, use_reentrant=False)

    block.forward = checkpointing

    def undo() -> None:
        if before is None:
            del block.forward
        else:
            block.forward = before

    return undo
