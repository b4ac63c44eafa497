"""The plain picture's moments, met again in a second take."""

import pytest
import torch
from loraclr.loraclr_core.host.sampler.plain import Moment, PlainPicture
from loraclr.loraclr_core.sampler.separation import Branch


def taken(*calls: tuple[float, int, bool]) -> PlainPicture:
    """calls: sigma, how many lists, whether it is the sampler's own; what is asked and found is the sigma's tenfold."""
    moments = []
    for sigma, lists, own in calls:
        value = torch.full((1, 1, 1, 1), 10 * sigma)
        moments.append(Moment(sigma, value, [value] * lists, torch.zeros(1, 1, 1, 3) if own else None))
    return PlainPicture(moments)


def test_calls_are_met_in_their_order():
    """Another node's calls at the same noise level too, and the same level twice."""
    calls = [(4.0, 2, True), (4.0, 1, False), (2.0, 2, True), (4.0, 2, True)]
    picture = taken(*calls)
    for number, (call, moment) in enumerate(zip(calls, picture.moments, strict=True)):
        assert picture.at(number, *call) is moment


def test_between_two_noise_levels_it_is_between_their_pictures():
    """For samplers that choose their steps by the picture."""
    picture = taken((4.0, 2, True), (3.5, 1, False), (2.0, 2, True))
    moment = picture.at(1, 3.0, 2, True)
    assert float(moment.x) == 30
    assert [float(found) for found in moment.predictions] == [30, 30]
    assert [float(picture.at(9, sigma, 2, True).x) for sigma in (5.0, 1.0)] == [40, 20]


def test_what_was_never_asked_for_is_an_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"asks for 3 predictions .* set surroundings to “composed"):
        taken((4.0, 2, True)).at(0, 4.0, 3, True)


def test_claims_are_the_mean_over_the_sampler_s_own_calls():
    """Each step's claim is relative to the strongest place of that step."""
    none = torch.zeros(1, 1, 1, 1)
    weak, strong = torch.tensor([[[[0.0, 0.1], [0.0, 0.2]]]]), torch.tensor([[[[0.0, 3.0], [0.0, 1.0]]]])
    picture = PlainPicture(
        [Moment(2.0, none, [none], weak), Moment(1.0, none, [none], None), Moment(0.5, none, [none], strong)]
    )
    claims = picture.claims(Branch(None, [[1]]))
    assert claims is not None
    torch.testing.assert_close(claims, torch.tensor([[[[(0.5 + 1) / 2, (1 + 1 / 3) / 2]]]]))
    assert PlainPicture([]).claims(Branch(None, [[1]])) is None
