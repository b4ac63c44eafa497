"""How other packs' wrappers call the model: with which rows of the host's batch, and with which parts of the picture.

Tiling packs cut the picture into tiles and run several of them as rows of one batch, in an order of their own. What has a value
for each place, as an inpainting model's conditioning has, they cut and order as they do the latents. So the numbers of all
places go along as one more such conditioning, and tell innermost of all what each row is a part of.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .attention import Read, Recorder, read_layers
from .branches import BranchAdapters, Rows
from .patches import suspects

PLACES = "loraclr_places"  # of the numbers among a batch's conditioning, and of the innermost wrapper

# How far, of the largest value, a tile may be from what is in its place: half precision and its rounding.
SAME_CONTENT = 0.02


class Part(NamedTuple):
    """What the rows of one call are parts of.

    rows: of each, its row in the host's batch. places: of each, its places in that row, counted line by line; (rows, h, w).
    """

    rows: list[int]
    places: Tensor


class Calls:
    """Those that other packs' wrappers make for one of the host's batches: each row gets its own LoRA, and the attention of
    tiles is put together to that of the picture."""

    def __init__(
        self,
        model: BaseModel,
        args: dict,
        wrappers: list,
        rows: Rows,
        adapters: BranchAdapters,
        reading: tuple[Recorder, list[Read], int] | None,
        differentiated: bool,
    ):
        """args: what the wrappers are given. rows: the branch of each row. reading: the recorder, and what it has been begun with."""
        self.model = model
        self.args = args
        self.who = suspects(wrappers)
        self.rows = rows
        self.adapters = adapters
        self.reading = reading
        self.differentiated = differentiated
        latents = args["input"]
        self.numbers = torch.arange(latents[:, 0].numel(), dtype=torch.int, device=latents.device)
        self.numbers = self.numbers.view_as(latents[:, :1])
        self.mosaics: dict[int, Mosaic] = {}

    def watched(self) -> dict:
        """Return the wrappers' arguments with the numbers of all places, and with a wrapper that reads them innermost."""
        options = self.args["c"]["transformer_options"]
        kinds = options.get("wrappers", {})
        innermost = {**kinds.get(WrappersMP.DIFFUSION_MODEL, {}), PLACES: [self._called]}
        options = {**options, "wrappers": {**kinds, WrappersMP.DIFFUSION_MODEL: innermost}}
        return {**self.args, "c": {**self.args["c"], PLACES: self.numbers, "transformer_options": options}}

    def finish(self) -> None:
        """Gives the recorder the maps that tiles were put together to. Raises ValueError where a place is missing."""
        if self.reading is None or not self.mosaics:
            return
        recorder, reads, _ = self.reading
        if any(row not in self.mosaics or not self.mosaics[row].complete() for read in reads for row in read.rows):
            raise ValueError(
                f"{self.who} leaves out parts of the picture, and CLoRA needs the attention at all of it. Remove that node,"
                " or use LoRACLR Merge with it."
            )
        recorder.add([(read, torch.stack([self.mosaics[row].whole() for row in read.rows])) for read in reads])

    def _called(self, executor: Callable, x: Tensor, *args, **kwargs) -> Tensor:
        part = self._part(x, kwargs.pop(PLACES, None))
        if part is None:
            return executor(x, *args, **kwargs)
        if self.differentiated:
            raise ValueError(
                f"{self.who} regroups the rows or cuts the picture into tiles, through which CLoRA cannot move the latent. Set"
                " update_strength to 0, or remove that node."
            )
        with self.adapters.routed(tuple(self.rows[row] for row in part.rows)):
            if self.reading is None:
                return executor(x, *args, **kwargs)
            recorder, reads, tokens = self.reading
            recorder.add(recorder.end())  # of calls with the whole batch
            layers = read_layers(self.model.diffusion_model, *x.shape[-2:])
            recorder.begin(list(_of_part(reads, part)), tokens, len(x), layers)
            output = executor(x, *args, **kwargs)
            for read, found in recorder.end():
                for row, maps in zip(read.rows, found, strict=True):
                    new = Mosaic(self.numbers.shape[-2:], read.tokens, maps.device)
                    self.mosaics.setdefault(part.rows[row], new).put(maps, part.places[row])
            recorder.begin(reads, tokens, len(self.rows))
        return output

    def _part(self, x: Tensor, numbers: Tensor | None) -> Part | None:
        """What a call of the model is for; None where it is for the host's batch as it is."""
        alike = len(x) == len(self.numbers) and x.shape[-2:] == self.numbers.shape[-2:]
        if alike and (numbers is None or torch.equal(numbers, self.numbers)):
            return None
        area = self.numbers[0].numel()
        if numbers is not None and numbers.shape == (len(x), 1, *x.shape[-2:]):
            rows = numbers // area
            part = Part(rows[:, 0, 0, 0].tolist(), (numbers % area)[:, 0])
            if torch.equal(rows, rows[:, :, :1, :1].expand_as(rows)) and self._is_there(part, x):
                return part
        given = self.args["input"].shape
        raise ValueError(
            f"{self.who} calls the model with {_sizes(x.shape)} where it was given {_sizes(given)}, and its conditioning does"
            " not say what they are parts of; so CLoRA cannot know which LoRA belongs to them. Remove that node, or use"
            " LoRACLR Merge with it."
        )

    def _is_there(self, part: Part, x: Tensor) -> bool:
        """Whether the rows of a call hold what is in their places."""
        latents = self.model.model_sampling.calculate_input(self.args["timestep"], self.args["input"]).flatten(2)
        places = part.places.flatten(1)[:, None].long().expand(-1, latents.shape[1], -1)
        expected = latents[part.rows].gather(2, places).view(len(x), latents.shape[1], *x.shape[-2:])
        apart = (x[:, : expected.shape[1]].float() - expected.float()).abs().max()
        return bool(apart <= SAME_CONTENT * expected.abs().max())


class Mosaic:
    """One picture's maps, put together of tiles' in the resolution of the latent."""

    def __init__(self, size: torch.Size, tokens: int, device: torch.device):
        """size: of the latent."""
        self.size = size
        self.sum = torch.zeros(tokens, math.prod(size), device=device)
        self.count = torch.zeros(math.prod(size), device=device)
        self.scale = (1, 1)  # of the latent to the layers' resolution

    def put(self, maps: Tensor, places: Tensor) -> None:
        """Adds a tile's maps, (h, w, tokens) in the layers' resolution, at its places in the latent, (height, width)."""
        fine = F.interpolate(maps.movedim(-1, 0)[None], size=places.shape, mode="nearest-exact")[0].flatten(1)
        where = places.flatten().long()
        self.sum.index_add_(1, where, fine)
        self.count.index_add_(0, where, torch.ones_like(fine[0]))
        self.scale = round(places.shape[0] / maps.shape[0]), round(places.shape[1] / maps.shape[1])

    def complete(self) -> bool:
        return bool((self.count > 0).all())

    def whole(self) -> Tensor:
        """Return the picture's maps in the layers' resolution, (h, w, tokens); places in several tiles are averaged."""
        fine = (self.sum / self.count).unflatten(1, self.size)
        size = [math.ceil(side / scale) for side, scale in zip(self.size, self.scale, strict=True)]
        return F.interpolate(fine[None], size=size, mode="area")[0].movedim(0, -1)


def wrappers(inner: Callable | None, transformer_options: dict) -> list:
    """Return what other packs have put between the host's batch and the model's layers. inner: a model_function_wrapper."""
    kinds = transformer_options.get("wrappers", {})
    found = [] if inner is None else [inner]
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        found += [wrapper for of_key in kinds.get(kind, {}).values() for wrapper in of_key]
    return found


def _of_part(reads: list[Read], part: Part) -> Iterator[Read]:
    """Those reads whose rows are in a call, with the rows they have there."""
    for read in reads:
        rows = [row for row, of in enumerate(part.rows) if of in read.rows]
        if rows:
            yield read._replace(rows=rows)


def _sizes(shape: torch.Size) -> str:
    return f"{shape[0]} rows of {shape[-1]}×{shape[-2]}"
