"""Two demo concepts, and samplers to run them in."""

import pytest
import torch
from clora.sampling import concept


@pytest.fixture(scope="session")
def concepts(demo):
    with torch.inference_mode():
        return concept("dog", concept("cat"))


@pytest.fixture
def latent():
    """An empty latent, non-square so that a swap of height and width shows."""
    return {"samples": torch.zeros(1, 4, 8, 12)}
