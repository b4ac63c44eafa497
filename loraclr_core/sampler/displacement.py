"""The move z ← z − α ∇L (arXiv 2403.19776), for samplers that keep latents of their own.

A sampler copies latents and remembers earlier ones, so moving one of its tensors would move only a part of its state.
The move is kept beside the sampler instead, as a displacement o: the model sees x + o, the sampler gets the prediction
minus o, and o is added to the sampler's result. In every sampler of ComfyUI the coefficients of latent and prediction
add up to one, so its path is the moved path minus o, whichever tensors it keeps.

Two errors remain. A multi-step sampler remembers predictions from before a move, so its correction terms are off by
that one move. The ancestral samplers of flow models scale the latent before they add noise, which the displacement does
not follow.
"""

from collections.abc import Callable

from torch import Tensor


class Displacement:
    """The sum of all moves of one run, (batch, channels, height, width); None before the first."""

    def __init__(self):
        self.total: Tensor | None = None

    def shift(self, move: Tensor) -> None:
        """Add a move."""
        self.total = move if self.total is None else self.total + move

    def moved(self, x: Tensor) -> Tensor:
        """Return the latent that the model sees while the sampler is at `x`."""
        return x if self.total is None else x + self.total

    def unmoved(self, prediction: Tensor) -> Tensor:
        """Return a prediction at the moved latent in the form that the sampler must get."""
        return prediction if self.total is None else prediction - self.total

    def finish(self, samples: Tensor, scale: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sampler's result, moved. scale: converts the latent's units to the result's."""
        return samples if self.total is None else samples + scale(self.total)
