"""A latent that is moved beside the sampler comes out as one that is moved inside it."""

import comfy.sample
import comfy.samplers
import pytest
import torch
from host_sampler.sampling import assert_same, encode
from loraclr.loraclr_core.sampler.displacement import Displacement

SAMPLERS = ("euler", "uni_pc", "sa_solver", "dpm_2", "dpmpp_sde", "lcm", "er_sde", "res_multistep_cfg_pp")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_move_before_the_run_is_plain_sampling_from_the_moved_latent(demo, sampler):
    """Whatever the sampler keeps and copies."""
    move = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(5))
    displacement = Displacement()
    displacement.shift(move / 4)
    displacement.shift(3 * move / 4)

    def beside(apply_model, args):
        return displacement.unmoved(apply_model(displacement.moved(args["input"]), args["timestep"], **args["c"]))

    model = demo.model.clone()
    model.set_model_unet_function_wrapper(beside)
    sigmas = comfy.samplers.KSampler(demo.model, 3, "cpu", sampler, "normal", 1.0).sigmas
    noise = comfy.sample.prepare_noise(torch.zeros(1, 4, 8, 12), 3)
    scale = torch.sqrt(1 + sigmas[0] ** 2)  # how the first latent is made of the noise
    found = run(demo, model, noise, sampler, sigmas)
    sampling = demo.model.get_model_object("model_sampling")
    found = displacement.finish(found, lambda total: sampling.inverse_noise_scaling(sigmas[-1], total))
    expected = run(demo, demo.model, noise + move / scale, sampler, sigmas)
    assert_same({"samples": found}, {"samples": expected}, 2e-4)


def run(demo, model, noise: torch.Tensor, sampler: str, sigmas: torch.Tensor) -> torch.Tensor:
    """The latent in the model's units."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(encode(demo.clip, "a photo of cat and dog in a park"), encode(demo.clip, "blurry"))
    guider.set_cfg(5.0)
    found = guider.sample(
        noise,
        torch.zeros_like(noise),
        comfy.samplers.sampler_object(sampler),
        sigmas,
        seed=3,
        disable_pbar=True,
    )
    return demo.model.model.process_latent_in(found)


def test_nothing_moved_changes_nothing():
    x = torch.randn(1, 4, 2, 2)
    displacement = Displacement()
    assert displacement.moved(x) is x
    assert displacement.unmoved(x) is x
    assert displacement.finish(x, torch.ones_like) is x
