"""What cannot be trained is refused at once, with what to do; and pictures of any size are taken."""

import comfy.model_management
import pytest
import random_models
import torch
from host_train.training import TRIGGER, latent_of, picture, small_models, small_vae, train
from loraclr.loraclr_core.host.train import data
from loraclr.loraclr_core.host.train.data import fitted
from loraclr.loraclr_core.host.train.rows import Rows


@pytest.fixture
def models():
    return small_models("SD1.5")


@pytest.mark.parametrize(
    ("images", "inputs", "message"),
    [
        ([], {}, "No images: connect pictures"),
        ([picture(1)], {"trigger": " "}, "trigger is empty"),
        ([picture(1)], {"trigger": "cat", "class_word": "Cat"}, "would have the same name"),
        ([picture(1)], {"captions": ["<sks cat>, on grass"]}, "only as a part of another word"),
        ([picture(1), picture(2), picture(3)], {"captions": ["a", "b"]}, "3 images and 2 captions"),
        ([picture(1), picture(2)], {"masks": [torch.ones(1, 8, 8)]}, "2 images and 1 masks"),
        ([picture(1), picture(2, 40, 200)], {}, "image 2 has 200×40 pixels: its shorter side needs at least 64"),
        ([picture(1)], {"others": [picture(2)]}, "1 pictures of others and 0 captions"),
        ([picture(1)], {"others": [picture(2)], "other_captions": [f"a {TRIGGER}"]}, "has the trigger"),
        ([picture(1)], {"name": "../cat"}, "does not name a file within"),
    ],
)
def test_it_is_refused_with_what_to_do(models, images, inputs, message):
    with pytest.raises(ValueError, match=message):
        train(models, images, **inputs)


def test_a_vae_of_another_model_is_refused(models):
    with pytest.raises(ValueError, match=r"16 channels and the model takes 4: connect the VAE"):
        train(models._replace(vae=small_vae(16, False)), [picture(1)])


def test_a_loss_that_is_no_number_ends_the_training_and_writes_no_lora(models, loras_folder):
    with pytest.raises(ValueError, match=r"NaN or Inf in step \d+\. Lower learning_rate, which is 1;"):
        train(models, [picture(1)], steps=60, learning_rate=1.0, rank=64, ema=0.0, name="nan/cat", layers="all linear",
              weighting="noise (paper)", batch=1, training_seed=1)  # fmt: skip
    assert not [*(loras_folder / "nan").iterdir()]


def test_too_little_memory_is_met_by_checkpointing_once(models, monkeypatch):
    """As on a device that holds a step only where blocks are computed again."""
    real, calls = Rows.add_gradients, []

    def add(self, deltas, step):
        blocks = [module for module in self.model.inner.diffusion_model.modules() if "forward" in vars(module)]
        calls.append(bool(blocks))
        if not blocks:
            raise comfy.model_management.OOM_EXCEPTION("no memory")
        return real(self, deltas, step)

    monkeypatch.setattr(Rows, "add_gradients", add)
    train(models, [picture(1)], steps=2)
    assert calls == [False, True, True]
    with pytest.raises(ValueError, match="Set checkpointing to on, lower resolution or rank"):
        train(models, [picture(1)], steps=3, checkpointing="off", if_there="anew")


def test_an_empty_mask_counts_as_none(models):
    masks = [torch.zeros(1, 64, 96), torch.ones(1, 64, 96)]
    losses = train(models, [picture(1), picture(2)], masks=masks, outside=0.5, batch=2, steps=3).loss_map
    assert len(losses["outside"]) == 3
    without = train(
        models, [picture(1), picture(2)], masks=[torch.zeros(2, 64, 96)], outside=0.5, batch=2, steps=3
    ).loss_map
    assert without["outside"] == []


def test_pictures_of_all_sizes_are_scaled_as_the_model_takes_them(models):
    """The stock node leaves latents of mixed sizes in the VAE's own scale."""
    images = [picture(1), picture(2, 100, 70), torch.cat([picture(3), picture(4)])]
    settings = data.TrainSettings(trigger=TRIGGER, class_word="cat")
    sources = data.check(data.Given(images, [], [], [], []), settings)
    found = data.encode(models.model, models.vae, sources, 0, lambda phase, done: None)
    assert [tuple(each.latent.shape[2:]) for each in found.pictures] == [(8, 12), (12, 8), (8, 12), (8, 12)]
    torch.testing.assert_close(found.pictures[0].latent, latent_of(models, images[0]))


def test_large_pictures_are_scaled_down_and_cut_to_whole_cells():
    assert fitted(torch.zeros(1, 3, 1024, 2048), 512, 8).shape == (1, 3, 360, 720)
    assert fitted(torch.zeros(1, 3, 515, 500), 512, 8).shape == (1, 3, 512, 496)
    assert fitted(torch.zeros(1, 3, 64, 64), 512, 8).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_float32_factors(dtype):
    model, clip, vae = random_models.load(dtype=dtype)
    models = small_models("SD1.5")._replace(model=model, clip=clip, vae=vae)
    trained = train(models, [picture(1)], steps=3, learning_rate=0.03)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in trained.lora.values())
    assert len(trained.lora) > 0
