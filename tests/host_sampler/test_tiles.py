"""CLoRA under wrappers of other packs that call the model with rows and sizes of their own, as tiled diffusion does."""

from typing import NamedTuple

import comfy.patcher_extension
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import pytest
import torch
from host_sampler.sampling import PLAIN, assert_same, clora, encode, plain, sample
from host_sampler.tiles import record, tiled
from loraclr.loraclr_core.host.sampler.attention import Recorder
from loraclr.loraclr_core.host.sampler.calls import Mosaic

WIDE = {"samples": torch.zeros(2, 4, 4, 12)}


@pytest.mark.parametrize("at_once", [1, 3])
def test_idle_concepts_give_the_host_s_own_tiled_picture(demo, idle, at_once):
    how = {"width": 6, "at_once": at_once}
    texts = encode(demo.clip, "a photo of cat and dog in a park"), encode(demo.clip, "blurry")
    expected = sample(tiled(demo.model, 0, 3, 6, **how), *texts, WIDE)
    assert (expected["samples"] - plain(demo, WIDE)["samples"]).abs().max() > 0.01
    model, positive, negative = clora(demo, idle, **PLAIN)
    assert_same(sample(tiled(model, 0, 3, 6, **how), positive, negative, WIDE), expected, 1e-4)


def test_tiles_in_one_batch_are_tiles_one_by_one(demo, concepts):
    """Each row of a batch of tiles gets its own concept's LoRA, and the tiles' attention is that of the picture."""
    model, positive, negative = clora(demo, concepts, update_strength=0.0)
    expected = sample(tiled(model, 0, 3, 6, width=6, at_once=1), positive, negative, WIDE)
    for at_once in (2, 3):
        found = sample(tiled(model, 0, 3, 6, width=6, at_once=at_once), positive, negative, WIDE)
        assert_same(found, expected, 1e-4)
        assert torch.equal(record(model, found).masks, record(model, expected).masks)
        torch.testing.assert_close(record(model, found).heat, record(model, expected).heat, rtol=0, atol=1e-4)
    assert 0 < record(model, expected).masks.mean() < 1


class Given(NamedTuple):
    """Noise that is known."""

    noise: torch.Tensor
    seed: int = 3

    def generate_noise(self, latent):
        return self.noise


def _attention(model, positive, negative, noise, monkeypatch):
    """The picture of this noise, and its first map of each branch."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(5.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 1)
    sampler, latent = comfy.samplers.sampler_object("euler"), {"samples": torch.zeros_like(noise)}
    seen, maps_of = [], Recorder.maps
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "maps", lambda recorder: seen.append(maps_of(recorder)) or seen[-1])
        found, _ = custom_sampler.SamplerCustomAdvanced.execute(Given(noise), guider, sampler, sigmas, latent).args
    return found, seen[0]


def test_the_attention_of_a_tile_is_at_its_place(demo, concepts, monkeypatch):
    """Two tiles side by side look at what each of them looks at as a picture of its own."""
    model, positive, negative = clora(demo, concepts, **PLAIN, surroundings="composed (paper)")
    noise = torch.randn(1, 4, 6, 12, generator=torch.Generator().manual_seed(3))
    found, both = _attention(tiled(model, 0, 6, width=6, at_once=2), positive, negative, noise, monkeypatch)
    halves = [_attention(model, positive, negative, half, monkeypatch) for half in noise.chunk(2, dim=-1)]
    assert_same(found, {"samples": torch.cat([picture["samples"] for picture, _ in halves], dim=-1)}, 1e-4)
    for branch in range(3):
        expected = torch.cat([maps[branch] for _, maps in halves], dim=2)
        torch.testing.assert_close(both[branch], expected, rtol=0, atol=1e-4 * float(expected.max()))


def test_the_attention_of_a_shifted_picture_is_shifted_back(demo, concepts, monkeypatch):
    def shifted(apply_model, args):
        return apply_model(args["input"].roll(3, -1), args["timestep"], **args["c"]).roll(-3, -1)

    model, positive, negative = clora(demo, concepts, **PLAIN, surroundings="composed (paper)")
    noise = torch.randn(1, 4, 6, 8, generator=torch.Generator().manual_seed(3))
    _, expected = _attention(model, positive, negative, noise.roll(3, -1), monkeypatch)
    model.set_model_unet_function_wrapper(shifted)
    _, found = _attention(model, positive, negative, noise, monkeypatch)
    for branch in range(3):
        there = expected[branch].roll(-3, 2)
        torch.testing.assert_close(found[branch], there, rtol=0, atol=1e-4 * float(there.max()))


def test_maps_coarser_than_the_latent_come_together_where_tiles_overlap_and_wrap_around():
    maps = torch.rand(4, 6, 3, generator=torch.Generator().manual_seed(0))
    places = torch.arange(8 * 12).view(8, 12).roll(-8, 1)
    mosaic = Mosaic(torch.Size((8, 12)), 3, maps.device)
    for start in (0, 2, 6):
        mosaic.put(maps.roll(-4, 1)[:, start // 2 : start // 2 + 3], places[:, start : start + 6])
    torch.testing.assert_close(mosaic.whole(), maps)


def _backwards(values, rows):
    return [v.flip(0) if isinstance(v, torch.Tensor) and len(v) == rows else v for v in values]


def _reversed_wrapper(model):
    def run(apply_model, args):
        c = dict(zip(args["c"], _backwards(args["c"].values(), len(args["input"])), strict=True))
        return apply_model(args["input"].flip(0), args["timestep"].flip(0), **c).flip(0)

    model.set_model_unet_function_wrapper(run)


def _reversed_inside(model):
    def run(executor, x, *args, **kwargs):
        kwargs = dict(zip(kwargs, _backwards(kwargs.values(), len(x)), strict=True))
        return executor(x.flip(0), *_backwards(args, len(x)), **kwargs).flip(0)

    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, run)


@pytest.mark.parametrize("reverse", [_reversed_wrapper, _reversed_inside])
def test_rows_in_another_order_change_nothing(demo, concepts, reverse):
    model, positive, negative = clora(demo, concepts, update_strength=0.0)
    expected = sample(model, positive, negative, WIDE)
    other = model.clone()
    reverse(other)
    found = sample(other, positive, negative, WIDE)
    assert_same(found, expected, 1e-4)
    assert torch.equal(record(model, found).masks, record(model, expected).masks)


KNOWN = ("c_crossattn", "transformer_options")


@pytest.mark.parametrize(
    ("settings", "how", "message"),
    [
        ({"update_strength": 0.05}, {}, r"“Tiles” of .*tiles\) .*update_strength to 0"),
        ({"update_strength": 0.0}, {"only": KNOWN}, r"“Tiles” of .*tiles\) calls the model with .*Remove"),
        ({"update_strength": 0.0}, {"share": 0.5}, r"“Tiles” of .*tiles\) calls the model with .*Remove"),
        ({"update_strength": 0.0}, {"starts": (0, 5)}, r"“Tiles” of .*tiles\) leaves out parts"),
    ],
)
def test_what_cannot_be_right_is_refused_by_name(demo, concepts, settings, how, message):
    model, positive, negative = clora(demo, concepts, **settings)
    how = {"starts": (0, 6), "width": 6, "at_once": 2} | how
    with pytest.raises(ValueError, match=message):
        sample(tiled(model, *how.pop("starts"), **how), positive, negative, WIDE)


def test_attention_on_rows_of_another_node_is_refused_by_name(demo, concepts):
    """Regional prompts multiply the rows of cross attention: which of them to read cannot be known."""

    def every_row_twice(q, k, v, options):
        return q.repeat(2, 1, 1), k.repeat(2, 1, 1), v.repeat(2, 1, 1)

    def halves(output, options):
        return output.chunk(2)[0]

    model, positive, negative = clora(demo, concepts, update_strength=0.0)
    model.set_model_attn2_patch(every_row_twice)
    model.set_model_attn2_output_patch(halves)
    with pytest.raises(
        ValueError, match=r"every_row_twice” of .*test_tiles\) runs the attention to text on 8 rows for 4"
    ):
        sample(model, positive, negative, WIDE)
