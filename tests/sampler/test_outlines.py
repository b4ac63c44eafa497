"""Claims that end where the objects in the picture do."""

import pytest
import torch
from loraclr.loraclr_core.sampler.outlines import follow_outlines


def square(size: int, start: int, end: int) -> torch.Tensor:
    """(1, 1, size, size), 1 from start to end in both directions."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., start:end, start:end] = 1
    return mask


@pytest.fixture
def latent():
    """Return a thing from 4 to 12, unlike its ground in both channels."""
    thing = square(16, 4, 12)
    return torch.cat([thing, -3 * thing], dim=1)


def test_a_claim_to_the_middle_of_a_thing_becomes_one_to_all_of_it(latent):
    claims = square(16, 6, 10)
    found = follow_outlines(claims, latent)
    assert torch.equal((found > 0.1).float(), square(16, 4, 12))
    assert ((claims > 0.1) != (square(16, 4, 12) > 0)).any()


def test_a_claim_beyond_the_outline_is_cut_back(latent):
    """Attention is blurred: it also marks the ground around a thing."""
    blurred = torch.nn.functional.avg_pool2d(square(16, 4, 12), 5, stride=1, padding=2)
    beside = (blurred > 0.3) & (square(16, 4, 12) == 0)
    assert beside.any()
    found = follow_outlines(blurred, latent)
    assert (found[beside] < blurred[beside]).all()
    assert found[square(16, 4, 12) > 0].min() > blurred[square(16, 4, 12) > 0].min()


def test_the_strongest_claim_of_each_concept_is_1_and_none_stays_none(latent):
    claims = torch.cat([0.5 * square(16, 6, 10), torch.zeros(1, 1, 16, 16)], dim=1)
    found = follow_outlines(claims, latent)
    assert found[0, 0].max() == 1
    assert not found[0, 1].any()


def test_where_a_picture_has_no_outlines_claims_only_blur():
    found = follow_outlines(square(16, 7, 9), torch.zeros(1, 4, 16, 16))
    torch.testing.assert_close(found, found.flip(-1))
    torch.testing.assert_close(found, found.transpose(-1, -2))
    assert found[..., 0, 0] == 0


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 2, 1, 32, 32)])
def test_the_latent_may_be_larger_and_have_frames(latent, shape):
    larger = latent.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2).reshape(shape)
    claims = square(16, 6, 10)
    torch.testing.assert_close(follow_outlines(claims, larger), follow_outlines(claims, latent))


def test_a_latent_s_scale_and_shift_do_not_matter(latent):
    claims = square(16, 6, 10)
    torch.testing.assert_close(follow_outlines(claims, 7 * latent + 3), follow_outlines(claims, latent))


def test_pictures_of_a_batch_do_not_mix(latent):
    claims, latents = torch.cat([square(16, 6, 10), square(16, 2, 5)]), torch.cat([latent, latent.flip(-1)])
    found = follow_outlines(claims, latents)
    for number in range(2):
        alone = follow_outlines(claims[number : number + 1], latents[number : number + 1])
        torch.testing.assert_close(found[number : number + 1], alone)
