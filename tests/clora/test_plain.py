"""The plain picture's moments, met again in a second take."""

import pytest
import torch
from loraclr.loraclr_core.host.sampler.plain import PlainPicture


def taken(*calls: tuple[float, int, bool]) -> PlainPicture:
    """calls: sigma, how many lists, whether it is the sampler's own; what is asked and found is the sigma's tenfold."""
    picture = PlainPicture()
    for sigma, lists, own in calls:
        value = torch.full((1, 1, 1, 1), 10 * sigma)
        picture.add(sigma, value, [value] * lists, torch.zeros(1, 1, 1, 3) if own else None)
    return picture


def test_calls_are_met_in_their_order():
    """Another node's calls at the same noise level too, and the same level twice."""
    calls = [(4.0, 2, True), (4.0, 1, False), (2.0, 2, True), (4.0, 2, True)]
    picture = taken(*calls)
    assert [picture.next(*call) is moment for call, moment in zip(calls, picture.moments, strict=True)] == [True] * 4


def test_between_two_noise_levels_it_is_between_their_pictures():
    """For samplers that choose their steps by the picture."""
    picture = taken((4.0, 2, True), (3.5, 1, False), (2.0, 2, True))
    moment = picture.next(3.0, 2, True)
    assert float(moment.x) == 30
    assert [float(found) for found in moment.predictions] == [30, 30]
    assert [float(picture.next(sigma, 2, True).x) for sigma in (5.0, 1.0)] == [40, 20]


def test_what_was_never_asked_for_is_an_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"asks for 3 predictions .* set surroundings to “composed"):
        taken((4.0, 2, True)).next(4.0, 3, True)
