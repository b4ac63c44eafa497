"""Each row of a batch with its own LoRA, without patching a weight.

A batch holds rows of several branches: branch 0 is the plain model, branch k has concept k's LoRA. Forward hooks add to
each row the contribution of its branch's weight difference. Every layer here is linear in its own parameters, so the
contribution is the layer's function with the difference in place of the parameters, whatever adapter made it.

Hooks are used rather than patches of `forward`: they can be removed in any order, whatever other packs attach to the
layers.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...lowrank import LowRank
from ..lora.adapters import layer
from ..lora.layers import product
from ..lora.load import Loaded
from ..lora.match import AdapterError
from ..weights import is_linear, weight_shape

Rows = tuple[int, ...]  # the branch of each row of a batch


class BranchAdapters:
    """The concepts' effects on one model: concept k acts on the rows of branch k + 1.

    Raises AdapterError for a difference in a layer that cannot treat its rows separately.
    """

    def __init__(self, patcher: ModelPatcher, loaded: Sequence[Loaded]):
        self.layers: dict[str, _Layer] = {}
        self.running = threading.local()  # ComfyUI runs batches of several devices in threads
        self.waiting: set[str] = set()
        for branch, concept in enumerate(loaded, start=1):
            for key, difference in (concept.model.merge | concept.model.add).items():
                path, _, parameter = key.rpartition(".")
                module = layer(patcher, key)
                if not (is_linear(module) or isinstance(module, SUPPORTED)) or parameter not in ("weight", "bias"):
                    raise AdapterError(
                        f"LoRA {concept.lora.name} changes {key} of a {type(module).__name__}, which cannot be changed for some rows"
                        " of a batch only. Use LoRACLR Merge for this LoRA, or one that leaves the layer alone."
                    )
                self.layers.setdefault(path, _Layer(path)).put(branch, parameter, difference)

    @contextlib.contextmanager
    def attached(self, models: Iterable[nn.Module]) -> Iterator[None]:
        """Hook the layers of the patcher's model and of its copies on other devices, within the context."""
        self.waiting = set(self.layers)
        with contextlib.ExitStack() as hooks:
            for model in models:
                for path, changes in self.layers.items():
                    hook = self._hook(changes)
                    hooks.callback(model.get_submodule(path).register_forward_hook(hook, with_kwargs=True).remove)
                    hooks.callback(changes.release)
            yield

    @contextlib.contextmanager
    def routed(self, rows: Rows) -> Iterator[None]:
        """Set the rows of this thread's batches within the context; outside of any, the hooks do nothing."""
        outer, self.running.rows = self._rows(), rows
        try:
            yield
        finally:
            self.running.rows = outer

    def _rows(self) -> Rows | None:
        return getattr(self.running, "rows", None)

    def check_all_ran(self) -> None:
        """Raise AdapterError if a layer has not run since `attached`: the model then uses its weight in another way."""
        if self.waiting:
            raise AdapterError(
                f"{len(self.waiting)} layers with a LoRA did not run in the first evaluation of the model"
                f" ({', '.join(sorted(self.waiting)[:3])}), so their LoRA would be lost. Remove the patch that skips them, or"
                " use LoRACLR Merge."
            )

    def _hook(self, changes: "_Layer"):
        def add(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
            batch = self._rows()
            if batch is None:
                return None
            self.waiting.discard(changes.path)
            inputs = args[0] if args else kwargs["input"]
            times, rest = divmod(inputs.shape[0], len(batch))
            if rest:
                raise AdapterError(
                    f"{changes.path} runs on {inputs.shape[0]} rows of a batch of {len(batch)}; which row belongs to"
                    " which branch cannot be known. Remove the patch that regroups them."
                )
            return changes.add(module, inputs, output, _repeated(batch, times, inputs))

        return add


class _Layer:
    """One layer's differences, by branch."""

    def __init__(self, path: str):
        self.path = path
        self.factors: dict[int, LowRank] = {}
        self.parameters: dict[int, dict[str, Tensor]] = {}
        self.ready: dict[object, object] = {}

    def put(self, branch: int, parameter: str, difference: LowRank | Tensor) -> None:
        if isinstance(difference, LowRank):
            self.factors[branch] = difference
        else:
            self.parameters.setdefault(branch, {})[parameter] = difference

    def release(self) -> None:
        """Drop the copies on the sampling device."""
        self.ready.clear()

    def add(self, module: nn.Module, inputs: Tensor, output: Tensor, rows: Rows) -> Tensor:
        """Add each row's contribution to `output` and return it; in place where autograd permits."""
        if isinstance(output.grad_fn, torch.autograd.function.BackwardCFunction):
            output = output.clone()  # ComfyUI's quantised layers return a view that autograd does not let us change
        if is_linear(module):
            self._add_products(inputs, output, rows)
        else:
            for branch in self.factors.keys() & set(rows):
                where = _where(rows, {branch}, inputs.device)
                up, down = self._cast(("factors", branch), inputs, lambda b=branch: self.factors[b])
                _add(output, where, product(module, LowRank(up, down), _take(inputs, where)))
        for branch in self.parameters.keys() & set(rows):
            where = _where(rows, {branch}, inputs.device)
            names = list(self.parameters[branch])
            values = self._cast(("parameters", branch), inputs, lambda b=branch: tuple(self.parameters[b].values()))
            _add(output, where, _affine(module, _take(inputs, where), **dict(zip(names, values, strict=True))))
        return output

    def _add_products(self, inputs: Tensor, output: Tensor, rows: Rows) -> None:
        """Add x A^T B^T row by row, with all concepts of equal rank in one batched product."""
        tokens = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
        target = output.view(output.shape[0], -1, output.shape[-1])
        ranks = {self.factors[branch].rank for branch in self.factors.keys() & set(rows)}
        for rank in ranks:
            group = {branch for branch, factors in self.factors.items() if factors.rank == rank}
            where = _where(rows, group, inputs.device)
            down, up = self._cast((rows, rank), inputs, lambda g=group: self._stack(rows, g))
            hidden = torch.bmm(_take(tokens, where), down)
            if isinstance(where, slice):
                target[where].baddbmm_(hidden, up)
            else:
                target.index_add_(0, where, torch.bmm(hidden, up))

    def _stack(self, rows: Rows, group: set[int]) -> tuple[Tensor, Tensor]:
        """Return down (rows, in, rank) and up (rows, rank, out) of the rows whose branch is in `group`."""
        chosen = [self.factors[branch] for branch in rows if branch in group]
        return torch.stack([c.down.T for c in chosen]), torch.stack([c.up.T for c in chosen])

    def _cast(self, key, like: Tensor, make) -> tuple[Tensor, ...]:
        """Return `make()` on the device and in the precision of `like`, cached."""
        key = (key, like.device, like.dtype)
        if key not in self.ready:
            # Autograd would refuse to save inference tensors in a gradient pass.
            with torch.inference_mode(False):
                self.ready[key] = tuple(t.clone().to(like.device, like.dtype) for t in make())
        return self.ready[key]  # pyright: ignore[reportReturnType]


SUPPORTED = (_ConvNd, nn.GroupNorm, nn.LayerNorm)


def _affine(module: nn.Module, inputs: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Return the layer's function of `inputs` with other parameters; a missing one counts as zero."""
    if weight is None:
        weight = torch.zeros(weight_shape(module) or module.weight.shape, device=inputs.device, dtype=inputs.dtype)
    if is_linear(module):
        return F.linear(inputs, weight, bias)
    if isinstance(module, _ConvNd):
        return module._conv_forward(inputs, weight, bias)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(inputs, module.num_groups, weight, bias, module.eps)
    return F.layer_norm(inputs, module.normalized_shape, weight, bias, module.eps)


# --- rows ------------------------------------------------------------------------------------------------------------


def _repeated(batch: Rows, times: int, inputs: Tensor) -> Rows:
    """Return the branch of each row of inputs that hold every row of a batch so many times."""
    # A vector per row is its time. An edit model appends the times of all reference pictures to those of the pictures.
    if inputs.ndim == 2:
        return batch * times
    # Windows or frames of one row stand next to each other.
    return tuple(branch for branch in batch for _ in range(times))


def _where(rows: Rows, branches: set[int], device: torch.device) -> slice | Tensor:
    """Return the rows of these branches, as a slice where they are contiguous, which saves a copy."""
    indices = [i for i, branch in enumerate(rows) if branch in branches]
    if indices[-1] - indices[0] + 1 == len(indices):
        return slice(indices[0], indices[-1] + 1)
    return torch.tensor(indices, device=device)


def _take(tensor: Tensor, where: slice | Tensor) -> Tensor:
    return tensor[where] if isinstance(where, slice) else tensor.index_select(0, where)


def _add(output: Tensor, where: slice | Tensor, contribution: Tensor) -> None:
    if isinstance(where, slice):
        output[where].add_(contribution)
    else:
        output.index_add_(0, where, contribution)
