"""Two demo concepts, and samplers to run them in."""

import comfy.cldm.cldm
import comfy.controlnet
import comfy.ops
import pack
import pytest
import random_models
import small_models
import torch
from host_sampler.sampling import clora, concept


@pytest.fixture(scope="session")
def concepts(demo):
    with torch.inference_mode():
        return concept("dog", concept("cat"))


@pytest.fixture
def latent():
    """An empty latent, non-square so that a swap of height and width shows."""
    return {"samples": torch.zeros(1, 4, 8, 12)}


@pytest.fixture(scope="session")
def idle():
    """Concepts that do nothing: strengths 0, triggers equal to the class words."""
    nothing = {"strength_model": 0.0, "strength_clip": 0.0}
    with torch.inference_mode():
        return concept("dog", concept("cat", trigger="cat", **nothing), trigger="dog", **nothing)


@pytest.fixture(scope="module")
def patched(demo, concepts):
    """MODEL, positive, negative with updates in every step."""
    with torch.inference_mode():
        return clora(demo, concepts)


@pytest.fixture(scope="session")
def double(demo):
    """The demo with a U-Net in double precision, for comparisons with what the host draws by itself: in single precision its
    own picture changes by up to 4e-5 of its size with the number of threads.
    """
    with torch.inference_mode():
        return demo._replace(model=random_models.load(dtype=torch.float64)[0])


@pytest.fixture(scope="session")
def control():
    """A ControlNet of random weights for the demo."""
    shape = {**small_models.UNET, **random_models.MIDDLE}
    shape = {key: value for key, value in shape.items() if key not in ("out_channels", "transformer_depth_output")}
    network = comfy.cldm.cldm.ControlNet(
        **shape, hint_channels=3, operations=comfy.ops.manual_cast, dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.03, generator=generator)
    return comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))


@pytest.fixture(scope="session")
def trained():
    """The demo's trained checkpoint, which draws plain shapes: MODEL, CLIP, VAE."""
    with torch.inference_mode():
        return pack.demo_models()
