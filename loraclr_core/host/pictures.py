"""Small pictures of latents, for the page."""

import base64
import io

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE = 256  # longest side in pixels
QUALITY = 80


def rough_picture(latent_format, latent: Tensor) -> Tensor | None:
    """Draw a latent in rough colours, without a VAE: (1, channels, h, w) -> (1, H, W, 3), 0…1, as large as the picture.

    latent: in the model's own scale; a video, (1, channels, frames, h, w), is drawn by its first frame. The colours are
    those of ComfyUI's previewer (latent_preview.Latent2RGBPreviewer), unrounded. None where the format does not define
    them.
    """
    factors = latent_format.latent_rgb_factors
    if factors is None:
        return None
    height = latent_format.spacial_downscale_ratio * latent.shape[-2]
    latent = latent.float()
    if latent_format.latent_rgb_factors_reshape is not None:
        latent = latent_format.latent_rgb_factors_reshape(latent)
    if latent.ndim == 5:
        latent = latent[:, :, 0]
    colours = torch.einsum("bchw,cr->bhwr", latent, torch.tensor(factors, device=latent.device))
    if latent_format.latent_rgb_factors_bias is not None:
        colours = colours + torch.tensor(latent_format.latent_rgb_factors_bias, device=latent.device)
    colours = ((colours + 1) / 2).clamp(0, 1).nan_to_num()  # NaN is black
    pixels = max(1, height // colours.shape[1])
    return colours.repeat_interleave(pixels, dim=1).repeat_interleave(pixels, dim=2)


def jpeg(picture: Tensor) -> str:
    """Return a picture, (H, W, 3), 0…1, as a data URL."""
    share = SIDE / max(picture.shape[:2])
    if share < 1:
        picture = F.interpolate(picture.movedim(-1, 0)[None], scale_factor=share, mode="area")[0].movedim(0, -1)
    file = io.BytesIO()
    Image.fromarray((picture * 255).round().to(torch.uint8).cpu().numpy()).save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
