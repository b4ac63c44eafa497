"""A wrapper that cuts the picture into tiles, as tiled diffusion does."""

import torch
from loraclr.loraclr_core.host.sampler.evaluation import KEY


class Tiles:
    """A wrapper that runs columns of the picture `at_once` as one batch, all rows of the first before those of the next."""

    def __init__(self, *starts: int, width: int, at_once: int, only: tuple = (), share: float = 1.0):
        """only: what it passes on of the conditioning, if not all. share: of a tile's content that it passes on."""
        self.boxes = [slice(start, start + width) for start in starts]
        self.at_once = at_once
        self.only, self.share = only, share

    def __call__(self, apply_model, args):
        x, c = args["input"], args["c"]
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for first in range(0, len(self.boxes), self.at_once):
            boxes = self.boxes[first : first + self.at_once]

            def repeated(value, boxes=boxes):
                return torch.cat([value] * len(boxes)) if isinstance(value, torch.Tensor) else value

            tiles = self.share * torch.cat([x[..., box] for box in boxes])
            known = {key: repeated(value) for key, value in c.items() if key in (self.only or c)}
            found = apply_model(tiles, repeated(args["timestep"]), **known)
            for box, tile in zip(boxes, found.chunk(len(boxes)), strict=True):
                total[..., box] += tile
                count[..., box] += 1
        return total / count


def tiled(model, *starts: int, **how):
    model = model.clone()
    model.set_model_unet_function_wrapper(Tiles(*starts, **how))
    return model


def record(model, found):
    return model.get_attachment(KEY).records.of(found["samples"])
