"""The demo's picture encoder, in the form of TAESD's: its weights are worked out, not trained.

A latent of the demo's world is an exact function of the picture: each cell's mean lightness, red against green, blue against
yellow, and how much lightness varies within the cell. The encoder's convolutions take means; its ReLUs square and take roots
piece by piece.
"""

import torch
from comfy.taesd.taesd import Block, Encoder
from torch import Tensor, nn

# Latent channels: lightness, red against green, blue against yellow, contrast within the cell. Each of about unit size.
TO_OPPONENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, -1.0, 0.0], [-0.5, -0.5, 1.0]])
SHIFT = torch.tensor([0.5, 0.05, 0.0, 0.05])
SCALE = torch.tensor([3.5, 3.5, 3.0, 9.0])

WIDTH = 64  # channels of every layer, and knots of a piecewise function
VARIANCE = 0.25  # of lightness, at most
# Channels: red, green and blue; squared lightness, later its variance; contrast.
COLOURS, SQUARE, SPREAD = slice(0, 3), 3, 4


@torch.no_grad()
def make_encoder() -> Encoder:
    """Return the encoder: pictures (batch, 3, h, w), 0…1 -> latents (batch, 4, h/8, w/8), as the U-Net sees them."""
    encoder = Encoder()
    for weight in encoder.parameters():
        weight.zero_()
    layers = [*encoder]
    layers[0].weight[COLOURS, :, 1, 1] = torch.eye(3)
    add_function(layers[1], TO_OPPONENT[0], torch.linspace(0, 1, WIDTH + 1), torch.square, SQUARE)
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2):
            layer.weight[range(WIDTH), range(WIDTH), 1:, 1:] = 1 / 4
    first, second, _ = layers[11:14]
    # The same pieces as before, so that a cell of one colour has no contrast at all.
    add_function(first, TO_OPPONENT[0], torch.linspace(0, 1, WIDTH + 1), lambda value: -value.square(), SQUARE)
    knots = VARIANCE * torch.linspace(0, 1, WIDTH + 1).square()
    add_function(second, nn.functional.one_hot(torch.tensor(SQUARE), SQUARE + 1).float(), knots, torch.sqrt, SPREAD)
    last = layers[-1]
    last.weight[:3, COLOURS, 1, 1] = TO_OPPONENT * SCALE[:3, None]
    last.weight[3, SPREAD, 1, 1] = SCALE[3]
    last.bias.copy_(-SHIFT * SCALE)
    return encoder


def add_function(block: Block, of_channels: Tensor, knots: Tensor, function, channel: int) -> None:
    """Let the block add a function, of a weighted sum of its first channels, to a channel: linear from knot to knot."""
    rise, square, end = (layer for layer in block.conv if isinstance(layer, nn.Conv2d))
    rise.weight[:, : len(of_channels), 1, 1] = of_channels
    rise.bias.copy_(-knots[:-1])
    square.weight[range(WIDTH), range(WIDTH), 1, 1] = 1
    slopes = function(knots).diff() / knots.diff()
    end.weight[channel, :, 1, 1] = slopes.diff(prepend=torch.zeros(1))
