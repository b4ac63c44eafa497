"""Training on every architecture, quantised models and half precision: the concept's pictures are learned."""

import pytest
import quantised
from architectures import ARCHITECTURES
from host_train.training import (
    TRIGGER,
    Models,
    errors,
    latent_of,
    picture,
    small_models,
    small_vae,
    train,
    with_lora,
)

PROMPT = f"photo of a {TRIGGER}"


def check_learns(models, twin=None, **inputs) -> None:
    """twin: the same weights in a form that the stock loader patches."""
    images = [picture(1), picture(2, 96, 64)]
    trained = train(models, images, steps=5, learning_rate=0.1, ema=0.0, **inputs)
    judged = models.model if twin is None else twin
    after = with_lora(judged, trained.lora)
    before, learned = (
        sum(errors(model, models.clip, PROMPT, latent_of(models, image)) for image in images)
        for model in (judged, after)
    )
    assert learned < 0.999 * before
    assert models.model.patches == {}
    assert not any(module._forward_hooks or "forward" in vars(module) for module in models.model.model.modules())
    assert not any(parameter.requires_grad for parameter in models.model.model.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_few_steps_lower_the_error_of_the_trained_pictures(name):
    check_learns(small_models(name))


@pytest.mark.parametrize("form", quantised.FORMS)
def test_a_quantised_model_is_trained_on(form, tmp_path):
    model, twin = quantised.pair(form, "Flux", tmp_path)
    check_learns(Models(model.model, model.clip, small_vae(16, False)), twin.model)
