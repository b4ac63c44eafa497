"""The loss of a step: against the paper's by hand, against the stock node's, and its gradients."""

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_train import TrainSampler
from host_train.training import (
    CLASS,
    TRIGGER,
    encoded,
    evaluate,
    evaluations,
    latent_of,
    on_loaded,
    picture,
    small_models,
    train,
    with_lora,
)
from loraclr.loraclr_core.host.train.checkpointing import checkpointed
from loraclr.loraclr_core.host.train.rows import SCALE
from loraclr.loraclr_core.train.draws import Draw, draws
from torch import Tensor

PAPER = {"preserve_prompts": "class (paper)", "weighting": "noise (paper)", "ema": 0.0, "learning_rate": 0.1}
CAPTION, PLAIN = f"a {TRIGGER} on a table", f"a {CLASS} on a table"


def predicted_noise(name: str, model: ModelPatcher, clip, prompt: str, latent: Tensor, draw: Draw) -> Tensor:
    """ε of x_t, from what the network itself gives: noise, velocity, or the flow from the picture to the noise."""
    seen = []
    network = model.model.diffusion_model
    hook = network.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))

    def work(denoise, sampling):
        sigma = torch.tensor([sampling.percent_to_sigma(draw.level)])
        noise = draw.noise(tuple(latent.shape))
        x = (1 - sigma) * latent + sigma * noise if name == "Flux" else latent + sigma * noise
        denoise(x, sigma)
        (x_t, output) = seen[0]
        kept = 1 / (1 + sigma.square())
        return {
            "SD1.5": output,
            "SD2 v-prediction": kept.sqrt() * output + (1 - kept).sqrt() * x_t,
            "Flux": x_t + (1 - sigma) * output,
        }[name]

    try:
        return evaluate(model, encoded(clip, prompt), latent, work)
    finally:
        hook.remove()


@pytest.mark.parametrize("name", ["SD1.5", "SD2 v-prediction", "Flux"])
def test_the_papers_loss_is_the_one_of_the_noise(name):
    """‖ε(x_t, c_T) − ε‖² and ‖ε(x_t, c) − ε_base(x_t, c)‖², after a first step has moved the LoRA."""
    models, image = small_models(name), picture(1)
    inputs = PAPER | {"captions": [CAPTION], "outside": 0.0}
    lora = train(models, [image], steps=1, if_there="anew", **inputs).lora
    losses = train(models, [image], steps=2, if_there="anew", **inputs).loss_map

    latent, adapted = latent_of(models, image), with_lora(models.model, lora)
    (draw,) = draws(0, 1, 1, 1)
    noise = draw.noise(tuple(latent.shape))
    concept = predicted_noise(name, adapted, models.clip, CAPTION, latent, draw)
    kept = predicted_noise(name, adapted, models.clip, PLAIN, latent, draw)
    base = predicted_noise(name, models.model, models.clip, PLAIN, latent, draw)
    assert losses["loss"][1] == pytest.approx(float((concept - noise).square().mean()), rel=1e-3)
    assert losses["preservation"][1] == pytest.approx(float((kept - base).square().mean()), rel=1e-3)
    assert losses["preservation"][0] == 0.0
    assert losses["preservation"][1] > 0.0


def test_the_weighting_of_the_stock_node_gives_the_stock_node_s_loss():
    models, image = small_models("SD1.5"), picture(1)
    losses = train(models, [image], steps=1, captions=[CAPTION], weighting="picture (stock node)", preservation=0.0)
    latent = latent_of(models, image)
    (draw,) = draws(0, 0, 1, 1)
    trainer = TrainSampler(loss_fn=torch.nn.functional.mse_loss, optimizer=None, training_dtype=torch.float32)

    def work(model_wrap, extra_args) -> float:
        sigma = torch.tensor([model_wrap.inner_model.model_sampling.percent_to_sigma(draw.level)])
        cond = model_wrap.conds["positive"]
        noise = draw.noise(tuple(latent.shape))
        with torch.inference_mode(False), torch.no_grad():
            given = (tensor.clone() for tensor in (sigma, noise, latent))
            return float(trainer.fwd_bwd(model_wrap, *given, cond, [0], extra_args, 1, bwd=False))

    stock = evaluate(models.model, encoded(models.clip, CAPTION), latent, work, wrapped=True)
    assert losses.loss_map["loss"][0] == pytest.approx(stock, rel=1e-5)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"preservation": 0.0, "outside": 0.0}, 2),
        ({"preservation": 0.0, "outside": 0.5}, 2 + 2),
        ({"preservation": 1.0, "outside": 0.0}, 4 + 2),
        # The base's prediction for the class caption serves both terms.
        ({"preservation": 1.0, "outside": 0.5}, 4 + 2),
        ({"preservation": 1.0, "preserve_every": 2, "outside": 0.0}, 2 + 2),
    ],
)
def test_each_term_evaluates_the_model_no_more_often_than_it_must(inputs, expected):
    models = small_models("SD1.5")
    masks = [torch.ones(1, 64, 96)]
    with evaluations(models.model) as count:
        train(models, [picture(1)], masks=masks, preserve_prompts="class (paper)", **inputs)
    assert len(count) == expected


@pytest.mark.parametrize("name", ["SD1.5", "Flux"])
@pytest.mark.parametrize("checkpoints", [False, True])
def test_gradients_are_those_of_the_losses(name, checkpoints):
    """Along a random direction, against central differences; Flux adds to its activations in place."""

    def work(rows, learner) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(3)
        for delta in learner.deltas.values():
            delta.up.data.normal_(0.0, 0.02, generator=generator)
        directions = [torch.randn(factor.shape, generator=generator) for factor in learner.leaves()]

        def loss(step: float) -> float:
            for factor, direction in zip(learner.leaves(), directions, strict=True):
                factor.data.add_(direction, alpha=step)
            losses = rows.add_gradients(learner.deltas, 0)
            for factor, direction in zip(learner.leaves(), directions, strict=True):
                factor.data.add_(direction, alpha=-step)
            return losses.concept + losses.preservation + 0.5 * losses.outside

        wide, narrow = ((loss(h) - loss(-h)) / (2 * h) for h in (2e-3, 1e-3))
        learner.optimizer.zero_grad()
        if checkpoints:
            with checkpointed(rows.model.inner.diffusion_model, rows.model.in_place):
                rows.add_gradients(learner.deltas, 0)
        else:
            rows.add_gradients(learner.deltas, 0)
        found = [
            (factor.grad / SCALE * direction).sum()
            for factor, direction in zip(learner.leaves(), directions, strict=True)
        ]
        # Richardson's extrapolation: without it, the third derivative shows.
        return float(sum(found)), (4 * narrow - wide) / 3

    mask = torch.zeros(1, 64, 96)
    mask[:, 16:48, 16:64] = 1
    found, expected = on_loaded(small_models(name), [picture(1)], [mask], work, outside=0.5)
    assert found == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("name", ["SDXL", "Flux", "Z-Image", "Wan", "SD3", "Qwen-Image"])
def test_checkpointing_gives_the_same_gradients(name):
    def work(rows, learner) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        for delta in learner.deltas.values():
            delta.up.data.normal_(0.0, 0.05, generator=generator)
        gradients = []
        for checkpoints in (False, True):
            learner.optimizer.zero_grad()
            context = (
                checkpointed(rows.model.inner.diffusion_model, rows.model.in_place) if checkpoints else torch.no_grad()
            )
            with context:
                rows.add_gradients(learner.deltas, 0)
            gradients.append(
                torch.cat([factor.grad.flatten() for factor in learner.leaves() if factor.grad is not None])
            )
        return gradients

    plain, again = on_loaded(small_models(name), [picture(1)], [], work)
    assert float((plain - again).norm() / plain.norm()) < 1e-4
