"""How other packs' wrappers call the model: with which rows of ComfyUI's batch, and with which parts of the picture.

Tiling packs cut the picture into tiles and run several of them as rows of one batch, in an order of their own. They
reorder the conditioning of the rows likewise. The number of each row is therefore passed along as one more
conditioning, and read by the innermost wrapper, which learns from it the row that a tile belongs to. The tile's place
in the picture is found by its content, which is mostly noise and occurs nowhere else. (Passing the numbers of all
places along would be simpler, but tiled diffusion fails on conditioning of the latents' own size.)
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .attention import Read, Recorder
from .branches import BranchAdapters, Rows
from .layers import read_layers
from .patches import suspects

ROWS = "loraclr_rows"  # key of the row numbers among a batch's conditioning, and of the innermost wrapper

# How far a tile may differ from the content of its place, relative to the largest value: half precision and its
# rounding.
SAME_CONTENT = 0.02
COMPARED = 8  # pixels of a tile's first line by which its place is found


class Part(NamedTuple):
    """The parts of ComfyUI's batch that one call is for."""

    # For each row of the call, its row in ComfyUI's batch.
    rows: list[int]
    # For each row of the call, its places in that row, counted line by line, (rows, h, w).
    places: Tensor


class Calls:
    """The calls that other packs' wrappers make for one of ComfyUI's batches.

    Each row gets its own LoRA, and the attention of tiles is put together into that of the picture.
    """

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
        """Prepare to find the parts that each call is for.

        args: the wrappers' arguments. rows: the branch of each row. reading: the recorder, with the reads and the
        number of text tokens that it has begun with. differentiated: whether a gradient is taken through the calls.
        """
        self.model = model
        self.args = args
        self.who = suspects(wrappers)
        self.rows = rows
        self.adapters = adapters
        self.reading = reading
        self.differentiated = differentiated
        self.numbers = torch.arange(len(rows), dtype=torch.int, device=args["input"].device)[:, None]
        self.size = args["input"].shape[-2:]
        self.mosaics: dict[int, Mosaic] = {}

    def watched(self) -> dict:
        """Return the wrappers' arguments with the numbers of the rows and an innermost wrapper that reads them."""
        options = self.args["c"]["transformer_options"]
        kinds = options.get("wrappers", {})
        innermost = {**kinds.get(WrappersMP.DIFFUSION_MODEL, {}), ROWS: [self._run]}
        options = {**options, "wrappers": {**kinds, WrappersMP.DIFFUSION_MODEL: innermost}}
        return {**self.args, "c": {**self.args["c"], ROWS: self.numbers, "transformer_options": options}}

    def finish(self) -> None:
        """Give the recorder the maps assembled from tiles. Raises ValueError where a place is missing."""
        if self.reading is None or not self.mosaics:
            return
        recorder, reads, _ = self.reading
        if any(row not in self.mosaics or not self.mosaics[row].complete() for read in reads for row in read.rows):
            raise ValueError(
                f"{self.who} leaves out parts of the picture, and CLoRA needs the attention at all of it. Remove that node,"
                " or use LoRACLR Merge with it."
            )
        recorder.add([(read, torch.stack([self.mosaics[row].whole() for row in read.rows])) for read in reads])

    def _run(self, executor: Callable, x: Tensor, *args, **kwargs) -> Tensor:
        part = self._part(x, kwargs.pop(ROWS, None))
        if part is None:
            return executor(x, *args, **kwargs)
        if self.differentiated:
            raise ValueError(
                f"{self.who} cuts the picture into tiles or regroups its rows, through which CLoRA cannot move the latent. Set"
                " update_strength to 0, or remove that node."
            )
        with self.adapters.routed(tuple(self.rows[row] for row in part.rows)):
            if self.reading is None:
                return executor(x, *args, **kwargs)
            recorder, reads, tokens = self.reading
            recorder.add(recorder.end())  # from calls with the whole batch
            layers = read_layers(self.model.diffusion_model, *x.shape[-2:])
            recorder.begin(list(_select(reads, part)), tokens, len(x), layers)
            output = executor(x, *args, **kwargs)
            for read, chunk in recorder.end():
                for row, maps in zip(read.rows, chunk, strict=True):
                    new = Mosaic(self.size, read.tokens, maps.device)
                    self.mosaics.setdefault(part.rows[row], new).put(maps, part.places[row])
            recorder.begin(reads, tokens, len(self.rows))
        return output

    def _part(self, x: Tensor, numbers: Tensor | None) -> Part | None:
        """Return the parts that a call of the model is for; None where it is for ComfyUI's batch as it is."""
        x, latent = x.detach(), self.args["input"].detach()
        latents = self.model.model_sampling.calculate_input(self.args["timestep"], latent).to(x)
        x = x[:, : latents.shape[1]]
        whole = x.shape == latents.shape and (numbers is None or torch.equal(numbers, self.numbers))
        if whole and (numbers is None or _is_alike(x, latents)):
            return None
        if numbers is not None and len(numbers) == len(x):
            part = _locate(x, latents, numbers[:, 0])
            if part is not None:
                return part
        if whole:
            return None  # the wrapper has changed the content
        raise ValueError(
            f"{self.who} calls the model with {_sizes(x.shape)} where it was given {_sizes(latent.shape)}, and CLoRA cannot know"
            " what they are parts of, and so which LoRA belongs to them. Remove that node, or use LoRACLR Merge with it."
        )


def _is_alike(x: Tensor, expected: Tensor) -> bool:
    return bool((x - expected).abs().max() <= SAME_CONTENT * expected.abs().max())


def _locate(x: Tensor, latents: Tensor, rows: Tensor) -> Part | None:
    """Return where the rows of a call lie in these rows of the latents; None where the content differs."""
    # Models that have pictures as videos of one frame: (rows, channels, 1, h, w) -> (rows, channels, h, w).
    x, latents = x.flatten(1, -3), latents[rows].flatten(1, -3)
    places = torch.stack([_locate_tile(tile, picture) for tile, picture in zip(x, latents, strict=True)])
    where = places.flatten(1)[:, None].expand(-1, latents.shape[1], -1)
    content = latents.flatten(2).gather(2, where).view_as(x)
    return Part(rows.tolist(), places) if _is_alike(x, content) else None


def _locate_tile(tile: Tensor, picture: Tensor) -> Tensor:
    """Return the places, (h, w), where a tile fits best in the picture that it was cut from; both are (channels, …).

    A tile may cross the picture's border and continue at the other side, where a pack shifts the picture around.
    """
    distances = torch.zeros_like(picture[0])
    for column in range(min(COMPARED, tile.shape[-1])):
        distance = (picture.roll(-column, dims=-1) - tile[:, :1, column : column + 1]).abs().amax(dim=0)
        distances = torch.maximum(distances, distance)
    height, width = distances.shape
    top, left = divmod(int(distances.argmin()), width)
    rows = torch.arange(top, top + tile.shape[-2], device=tile.device) % height
    columns = torch.arange(left, left + tile.shape[-1], device=tile.device) % width
    return rows[:, None] * width + columns


class Mosaic:
    """One picture's maps, put together from those of tiles, in the resolution of the latent."""

    def __init__(self, size: torch.Size, tokens: int, device: torch.device):
        """Start empty. size: (height, width) of the latent."""
        self.size = size
        self.sum = torch.zeros(tokens, math.prod(size), device=device)
        self.count = torch.zeros(math.prod(size), device=device)
        self.scale = (1, 1)  # how much finer the latent is than the layers' resolution

    def put(self, maps: Tensor, places: Tensor) -> None:
        """Add a tile's maps, (h, w, tokens) in the layers' resolution, at its places in the latent, (height, width)."""
        fine = F.interpolate(maps.movedim(-1, 0)[None], size=places.shape, mode="nearest-exact")[0].flatten(1)
        where = places.flatten()
        self.sum.index_add_(1, where, fine)
        self.count.index_add_(0, where, torch.ones_like(fine[0]))
        self.scale = round(places.shape[0] / maps.shape[0]), round(places.shape[1] / maps.shape[1])

    def complete(self) -> bool:
        return bool((self.count > 0).all())

    def whole(self) -> Tensor:
        """Return the picture's maps in the layers' resolution, (h, w, tokens); overlapping tiles are averaged."""
        fine = (self.sum / self.count).unflatten(1, self.size)
        size = [math.ceil(side / scale) for side, scale in zip(self.size, self.scale, strict=True)]
        return F.interpolate(fine[None], size=size, mode="area")[0].movedim(0, -1)


def wrappers(inner: Callable | None, transformer_options: dict) -> list:
    """Return other packs' wrappers between ComfyUI's batch and the model's layers. inner: a model_function_wrapper."""
    kinds = transformer_options.get("wrappers", {})
    functions = [] if inner is None else [inner]
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL):
        functions += [wrapper for by_key in kinds.get(kind, {}).values() for wrapper in by_key]
    return functions


def _select(reads: list[Read], part: Part) -> Iterator[Read]:
    """Yield the reads whose rows are in a call, with their row numbers there."""
    for read in reads:
        rows = [row for row, row_of_batch in enumerate(part.rows) if row_of_batch in read.rows]
        if rows:
            yield read._replace(rows=rows)


def _sizes(shape: torch.Size) -> str:
    return f"{shape[0]} rows of {shape[-1]}×{shape[-2]}"
