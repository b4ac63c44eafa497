"""Gradient checkpointing: what autograd saves within a model's blocks is computed again in the backward pass.

torch's own `checkpoint` saves views in its second pass. Blocks that add to their activations in place, such as Flux's,
then change what was saved, without an error: gradients are wrong by a percent. Here copies are saved for such models.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@contextlib.contextmanager
def checkpointed(model: nn.Module, in_place: bool) -> Iterator[None]:
    """Checkpoint the model's blocks: its children, and what stands in lists and sequences of them.

    in_place: whether the model changes activations in place. What is hooked in the blocks must stay so until the end of
    the backward pass.
    """
    with contextlib.ExitStack() as patches:
        for block in _blocks(model):
            patches.callback(_patch(block, in_place))
        yield


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, CONTAINERS):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def _patch(block: nn.Module, in_place: bool) -> Callable[[], None]:
    """Replace a block's forward, and return what undoes it."""
    before, forward = vars(block).get("forward"), block.forward

    def checkpointing(*args, **kwargs):
        def run():
            return forward(*map(copied, args), **{name: copied(value) for name, value in kwargs.items()})

        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        saved = _Recomputed(run, in_place)
        with saved_tensors_hooks(saved.pack, saved.unpack):
            return run()

    def copied(value):
        # The second time, the input must be what it was the first time.
        return value.clone() if in_place and isinstance(value, Tensor) else value

    def undo() -> None:
        if before is None:
            del block.forward
        else:
            block.forward = before

    block.forward = checkpointing
    return undo


class _Recomputed:
    """Stands for the tensors that autograd saves in `run()`, which is run again when the first of them is needed."""

    def __init__(self, run: Callable[[], object], in_place: bool):
        self.run, self.in_place = run, in_place
        self.count = 0
        self.values: list[Tensor] = []

    def pack(self, _: Tensor) -> int:
        self.count += 1
        return self.count - 1

    def unpack(self, number: int) -> Tensor:
        if not self.values:
            with torch.enable_grad(), saved_tensors_hooks(self._keep, lambda kept: kept):
                self.run()
        return self.values[number]

    def _keep(self, tensor: Tensor) -> None:
        changes = self.in_place and not isinstance(tensor, nn.Parameter)
        self.values.append(tensor.detach().clone() if changes else tensor.detach())
