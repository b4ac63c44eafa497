"""Train Concept LoRA: pictures of a concept into a LoRA that leaves the rest of the model alone."""

import logging
import re
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..loraclr_core import words
from ..loraclr_core.concept import Concept, check_name
from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.host.lora import file
from ..loraclr_core.host.train import report
from ..loraclr_core.host.train.data import Given
from ..loraclr_core.host.train.learner import Losses
from ..loraclr_core.host.train.settings import (
    CHECKPOINTING,
    IF_THERE,
    LAYER_CHOICES,
    PRESERVED_PROMPTS,
    RunSettings,
    TrainSettings,
)
from ..loraclr_core.host.train.train import Models, train
from ..loraclr_core.host.train.view import TrainView
from ..loraclr_core.train.captions import class_word_of
from ..loraclr_core.train.objective import WEIGHTINGS
from . import page
from .types import CATEGORY, Concepts

log = logging.getLogger("loraclr")


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="The model to train on. LoRAs loaded before this node count as part of it and are not trained.",
        ),
        io.Clip.Input("clip", tooltip="The model's text encoder. It is not trained."),
        io.Vae.Input("vae", tooltip="The model's VAE, which encodes the pictures."),
        io.Image.Input(
            "images",
            tooltip="Pictures of the concept: one, a batch or a list, of any sizes. Five to twenty are enough.",
        ),
        io.String.Input(
            "trigger",
            default="",
            dynamic_prompts=False,
            placeholder="sks cat",
            tooltip="The words that will name the concept: a rare word and what it is, such as “sks cat”. It is put"
            " before captions that do not contain it.",
        ),
        io.String.Input(
            "class_word",
            default="",
            dynamic_prompts=False,
            placeholder="cat",
            tooltip="Plain words that the model knows for the same thing. They take the trigger's place in the prompts"
            " that are preserved. Leave empty to use the last word of a longer trigger.",
        ),
        io.String.Input(
            "name",
            default="loraclr/{trigger}",
            dynamic_prompts=False,
            tooltip="Name of the file within the loras folder. May contain subfolders; .safetensors is added."
            " {trigger} stands for the trigger.",
        ),
        io.Int.Input(
            "steps",
            default=RunSettings.steps,
            min=1,
            max=100000,
            tooltip="Training steps in all. Raise it later to continue the training.",
        ),
        io.Float.Input(
            "learning_rate",
            default=TrainSettings.learning_rate,
            min=1e-7,
            max=1.0,
            step=1e-5,
            round=1e-8,
            tooltip="How far each step goes. Lower it if previews break up; raise it if nothing is learned.",
        ),
        io.Int.Input(
            "rank",
            default=TrainSettings.rank,
            min=1,
            max=128,
            tooltip="Rank of the LoRA, and its alpha. Higher ranks hold more detail and make a larger file.",
        ),
        io.Float.Input(
            "preservation",
            default=TrainSettings.preservation,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How strongly to keep the model's output unchanged on prompts without the trigger: α of CAT. 0: plain"
            " training, in less than half the time.",
        ),
        io.String.Input(
            "beside",
            default=TrainSettings.beside,
            dynamic_prompts=False,
            tooltip="What the concept will stand beside, with commas between. The base model paints such pictures around the"
            " subject, and training keeps the other things as they are. Empty: the concept is trained by itself. Without"
            " masks, the subject is found by its class word.",
        ),
        *_advanced_inputs(),
        io.String.Input(
            "captions",
            optional=True,
            force_input=True,
            dynamic_prompts=False,
            tooltip="One caption per picture, in the same order, or one for all. Describe what is not part of the"
            " concept, such as the background. Without captions: “photo of a {trigger}”.",
        ),
        io.Mask.Input(
            "masks",
            optional=True,
            tooltip="One mask per picture: 1 on the concept, 0 elsewhere. An empty mask counts as none. Used by the setting outside.",
        ),
        io.Image.Input(
            "others",
            optional=True,
            tooltip="Pictures without the concept, on which the model is to stay as it is: other things of its class, or"
            " what it will stand beside.",
        ),
        io.String.Input(
            "other_captions",
            optional=True,
            force_input=True,
            dynamic_prompts=False,
            tooltip="One caption per picture of others, or one for all, without the trigger.",
        ),
        Concepts.Input(
            "concepts",
            optional=True,
            tooltip="The concepts so far; the trained one is added at the end.",
        ),
    ]


def _advanced_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "preserve_prompts",
            options=list(PRESERVED_PROMPTS),
            default=TrainSettings.preserve_prompts,
            advanced=True,
            tooltip="Prompts on which the model's output is kept unchanged. class (paper): the captions with the class word in"
            " place of the trigger. One in four empty: the empty prompt in a quarter of the cases, which guidance relies on.",
        ),
        io.Int.Input(
            "preserve_every",
            default=TrainSettings.preserve_every,
            min=1,
            max=16,
            advanced=True,
            tooltip="Preserves in every step (1), every second step (2), and so on. 2 takes less time than 1.",
        ),
        io.Float.Input(
            "outside",
            default=TrainSettings.outside,
            min=0.0,
            max=10.0,
            step=0.1,
            advanced=True,
            tooltip="How strongly to keep the model's output unchanged outside the masks, with the trigger in the prompt. Needs"
            " masks. 0: the whole picture is learned.",
        ),
        io.Combo.Input(
            "weighting",
            options=list(WEIGHTINGS),
            default=TrainSettings.weighting,
            advanced=True,
            tooltip="How much each noise level counts. Min-SNR 5: errors of the picture by the signal-to-noise ratio, at"
            " most 5. noise (paper): errors of the noise. picture (stock node): errors of the picture, mostly layout.",
        ),
        io.Int.Input(
            "batch",
            default=TrainSettings.batch,
            min=1,
            max=64,
            advanced=True,
            tooltip="Pictures per step, processed one after another: memory stays the same, time grows with the number.",
        ),
        io.Combo.Input(
            "layers",
            options=list(LAYER_CHOICES),
            default=TrainSettings.layers,
            advanced=True,
            tooltip="Layers to train. All of them merge exactly. all linear also trains layers that see the noise level.",
        ),
        io.Float.Input(
            "ema",
            default=TrainSettings.ema,
            min=0.0,
            max=0.9999,
            step=0.01,
            round=1e-4,
            advanced=True,
            tooltip="Saves an average over the last steps, which is smoother: 0.99 is about the last 100. 0: the last"
            " step alone.",
        ),
        io.Float.Input(
            "caption_dropout",
            default=TrainSettings.caption_dropout,
            min=0.0,
            max=1.0,
            step=0.05,
            advanced=True,
            tooltip="Share of steps whose caption is “photo of a {trigger}” alone.",
        ),
        io.Boolean.Input(
            "flip",
            default=TrainSettings.flip,
            advanced=True,
            tooltip="Also trains on mirrored pictures. Turn off for subjects that are not symmetric, such as faces and text.",
        ),
        io.Int.Input(
            "resolution",
            default=TrainSettings.resolution,
            min=0,
            max=4096,
            step=64,
            advanced=True,
            tooltip="Pictures with more pixels than this number squared are scaled down. 0: 512 for SD1.x and SD2.x,"
            " 1024 for other models.",
        ),
        io.Combo.Input(
            "checkpointing",
            options=list(CHECKPOINTING),
            default=RunSettings.checkpointing,
            advanced=True,
            tooltip="Recomputes activations in the backward pass instead of storing them: less memory, more time."
            " automatic: only once memory runs out.",
        ),
        io.Int.Input(
            "save_every",
            default=RunSettings.save_every,
            min=0,
            max=100000,
            advanced=True,
            tooltip="Saves a LoRA and the state to go on from every so many steps. 0: at the end and when cancelled.",
        ),
        io.Int.Input(
            "keep",
            default=RunSettings.keep,
            min=0,
            max=1000,
            advanced=True,
            tooltip="How many intermediate LoRAs to keep; older ones are deleted.",
        ),
        io.Int.Input(
            "preview_every",
            default=RunSettings.preview_every,
            min=0,
            max=100000,
            advanced=True,
            tooltip="Draws small previews on this node every so many steps, while the page is open. 0: none.",
        ),
        io.String.Input(
            "preview_prompts",
            default="\n".join(RunSettings.preview_prompts),
            multiline=True,
            dynamic_prompts=False,
            advanced=True,
            tooltip="Prompts of the previews, one per line. {trigger} and {class} stand for the trigger and class word.",
        ),
        io.Int.Input(
            "training_seed",
            default=TrainSettings.seed,
            min=0,
            max=0xFFFFFFFF,
            control_after_generate=False,
            advanced=True,
            tooltip="Seed of the order of pictures, the noise and the initial weights.",
        ),
        io.Combo.Input(
            "if_there",
            options=list(IF_THERE),
            default=RunSettings.if_there,
            advanced=True,
            tooltip="What to do if this training was interrupted earlier. go on: continue from its state. anew: start again.",
        ),
    ]


class TrainConceptLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_TrainConcept",
            display_name="Train Concept LoRA",
            category=CATEGORY,
            description="Trains a LoRA of one concept from a few pictures, and keeps the model's output unchanged on"
            " prompts without the trigger, as in CAT (arXiv 2404.07554).",
            search_aliases=["train lora", "cat", "dreambooth", "fine-tune", "loraclr"],
            is_experimental=True,  # its defaults may change until they are measured on more concepts
            is_input_list=True,
            is_output_node=True,
            inputs=_inputs(),
            outputs=[
                io.LoraModel.Output(display_name="lora", tooltip="The LoRA. Connect to Load LoRA Model to try it."),
                io.LossMap.Output(
                    display_name="loss_map", tooltip="The loss of each step. Connect to Plot Loss Graph."
                ),
                io.String.Output(display_name="lora_name", tooltip="Name of the file within the loras folder."),
                Concepts.Output(
                    display_name="concepts",
                    tooltip="The concepts so far with this one at the end. Connect to LoRACLR Merge or to CLoRA Attention"
                    " Contrast Sampler.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Report on the training, in Markdown. Connect to Preview Any to read it.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @plain_errors()
    def execute(
        cls,
        model: list,
        clip: list,
        vae: list,
        images: list,
        trigger: list[str],
        class_word: list[str],
        name: list[str],
        steps: list[int],
        learning_rate: list[float],
        rank: list[int],
        preservation: list[float],
        beside: list[str],
        preserve_prompts: list,
        preserve_every: list[int],
        outside: list[float],
        weighting: list,
        batch: list[int],
        layers: list,
        ema: list[float],
        caption_dropout: list[float],
        flip: list[bool],
        resolution: list[int],
        checkpointing: list,
        save_every: list[int],
        keep: list[int],
        preview_every: list[int],
        preview_prompts: list[str],
        training_seed: list[int],
        if_there: list,
        captions: list[str] | None = None,
        masks: list | None = None,
        others: list | None = None,
        other_captions: list[str] | None = None,
        concepts: list[list[Concept]] | None = None,
    ) -> io.NodeOutput:
        given = Given(images, captions or [], masks or [], others or [], other_captions or [])
        phrase = words.prompt_syntax(trigger[0])  # as captions are read
        settings = TrainSettings(
            trigger=phrase,
            class_word=class_word_of(phrase, class_word[0].strip()),
            learning_rate=learning_rate[0],
            rank=rank[0],
            preservation=preservation[0],
            beside=words.prompt_syntax(beside[0]),
            preserve_prompts=preserve_prompts[0],
            preserve_every=preserve_every[0],
            outside=outside[0],
            weighting=weighting[0],
            batch=batch[0],
            layers=layers[0],
            ema=ema[0],
            caption_dropout=caption_dropout[0],
            flip=flip[0],
            resolution=resolution[0],
            seed=training_seed[0],
        )
        run = RunSettings(
            steps=steps[0],
            checkpointing=checkpointing[0],
            save_every=save_every[0],
            keep=keep[0],
            preview_every=preview_every[0],
            preview_prompts=tuple(line.strip() for line in preview_prompts[0].splitlines() if line.strip()),
            if_there=if_there[0],
        )
        root = Path(folder_paths.get_folder_paths("loras")[0])
        path = file.path_within(root, name[0].replace("{trigger}", _as_file_name(phrase)))
        earlier = concepts[0] if concepts else []
        check_name(words.concept_name(phrase, settings.class_word), earlier, path.name)
        progress = page.progress(cls.hidden.unique_id)
        models = Models(model[0], clip[0], vae[0])
        trained = train(models, given, settings, run, path, progress, _view(cls.hidden))
        progress(f"trained in {trained.seconds:.0f} s", 1.0)
        lora_name = trained.path.relative_to(root).as_posix()
        concept = _concept(settings, lora_name, trained.path)
        return io.NodeOutput(
            trained.lora,
            _loss_map(trained.losses),
            lora_name,
            [*earlier, concept],
            report.markdown(trained),
        )


def _view(hidden: io.HiddenHolder) -> TrainView:
    """Return a view that sends frames to this node on the page, while a page is open (web/train_view.js)."""
    source = page.source(hidden)
    return TrainView(lambda frame: page.send("loraclr.train", {**source, **frame}), page.is_open)


def _loss_map(losses: list[Losses]) -> dict[str, list[float]]:
    """Return the terms of the steps that had them; “loss” is the one that the stock graph plots."""
    terms = {"loss": "concept", "preservation": "preservation", "outside": "outside", "beside": "beside"}
    return {
        name: [value for step in losses if (value := getattr(step, term)) is not None] for name, term in terms.items()
    }


def _as_file_name(trigger: str) -> str:
    """Return a trigger without what file systems do not take."""
    return re.sub(r"[^\w -]+", "_", words.plain(trigger)).strip() or "concept"


def _concept(settings: TrainSettings, lora_name: str, path: Path) -> Concept:
    name = words.concept_name(settings.trigger, settings.class_word)
    return Concept(name, settings.trigger, settings.class_word, lora_name, path, file.sha256(path), 1.0, 1.0)
