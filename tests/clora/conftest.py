"""Two demo concepts, and samplers to run them in."""

import pytest
import torch
from clora.sampling import clora, concept


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


@pytest.fixture
def two_threads():
    """For comparisons close to rounding: the host's own picture differs by 4e-5 of its size between one thread and two."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
