"""The loss of CAT, contrastive adapter training (arXiv 2404.07554), and what is added to it here.

With the caption c_T of a picture x₀, its trigger replaced in c, and x_t the same noisy picture in all of them, CAT is

    L = ‖ε(x_t, c_T) − ε‖² + α ‖ε(x_t, c) − ε_base(x_t, c)‖²

`concept_loss` is the first term and `preservation_loss` the second; ε_base is the model without the LoRA. Here both are
errors of the predicted picture D: for any kind of prediction ‖ε(x_t) − ε‖² = s ‖D(x_t) − x₀‖² with the signal-to-noise
ratio s, so the weighting *noise (paper)* is w = s. A third term holds the model in its place outside of the subject m:

    L = w ‖m (D(x_t, c_T) − x₀)‖² + β w ‖(1 − m) (D(x_t, c_T) − D_base(x_t, c))‖² + α w ‖D(x_t, c) − D_base(x_t, c)‖²

A fourth term shows the subject beside another thing, in x' with the caption c'_T (host/train/beside.py): what it holds is what
is meant to happen when several concepts are in one picture.

    w ‖m' (D(x'_t, c'_T) − x'₀)‖² + 4 α w ‖(1 − m') (D(x'_t, c'_T) − D_base(x'_t, c'))‖²

All norms are means over the values of a picture.
"""

from typing import Literal

from torch import Tensor

from .. import min_snr

Weighting = Literal["Min-SNR 5", "noise (paper)", "picture (stock node)"]
WEIGHTINGS: tuple[Weighting, ...] = ("Min-SNR 5", "noise (paper)", "picture (stock node)")


def weight(weighting: Weighting, signal_to_noise: float) -> float:
    """Return w at a noise level."""
    if weighting == "noise (paper)":
        return signal_to_noise
    return min_snr.weight(signal_to_noise) if weighting == "Min-SNR 5" else 1.0


def concept_loss(prediction: Tensor, picture: Tensor, subject: Tensor | None = None) -> Tensor:
    """Return how far the prediction with the trigger is from the picture, within `subject` where one is given.

    prediction, picture: (1, channels, …, h, w). subject: (h, w), 1 there and 0 elsewhere.
    """
    errors = (prediction.float() - picture.float()).square()
    return (errors if subject is None else errors * subject).mean()


def outside_loss(prediction: Tensor, base: Tensor, subject: Tensor) -> Tensor:
    """Return how far the prediction with the trigger is from the base's without it, outside of `subject`."""
    return ((prediction.float() - base.float()).square() * (1 - subject)).mean()


def preservation_loss(prediction: Tensor, base: Tensor) -> Tensor:
    """Return how far the prediction without the trigger is from the base's on the same prompt."""
    return (prediction.float() - base.float()).square().mean()
