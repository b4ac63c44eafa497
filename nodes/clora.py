"""CLoRA: several concept LoRAs in one picture, kept apart while sampling; and a node for its attention maps."""

import logging

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..loraclr_core.concept import Concept
from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.host.sampler import labels, overlay
from ..loraclr_core.host.sampler.compose import compose
from ..loraclr_core.host.sampler.evaluation import KEY
from ..loraclr_core.host.sampler.live import LiveView
from ..loraclr_core.host.sampler.notes import Notes
from ..loraclr_core.host.sampler.settings import (
    GRADIENT_MEMORY,
    IF_UNCLEAR,
    SURROUNDINGS,
    GradientMemory,
    IfUnclear,
    Settings,
    Surroundings,
    UpdateSettings,
)
from ..loraclr_core.sampler.areas import AreaSettings
from ..loraclr_core.sampler.masks import MORPHOLOGY, OVERLAPS, Morphology, Overlap
from ..loraclr_core.sampler.separation import UPDATE_UNITS, UpdateUnit
from . import page
from .types import CATEGORY, Concepts

log = logging.getLogger("loraclr")

NO_LOSS = "There is no loss: the sampler stopped after the plain picture."


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="The model to sample with. LoRAs loaded before this node, such as a style, apply everywhere.",
        ),
        io.Clip.Input("clip", tooltip="The model's text encoder."),
        Concepts.Input("concepts", tooltip="The concepts to compose. Connect the last Load Concept LoRA of the chain."),
        io.String.Input(
            "prompt",
            default="a photo of {cat} and {dog} in a park",
            multiline=True,
            dynamic_prompts=False,
            tooltip="Describes the picture, with each concept by its name in braces. Name every concept of"
            " the chain; type { to choose one.",
        ),
        io.String.Input(
            "negative",
            default="",
            multiline=True,
            dynamic_prompts=False,
            tooltip="What to keep out of the picture, in plain words. Applies to the whole picture.",
        ),
        io.Float.Input(
            "update_strength",
            display_name="update strength",
            default=UpdateSettings.strength,
            min=0.0,
            max=1000.0,
            step=0.005,
            round=1e-5,
            advanced=True,
            tooltip="How far each update moves the latent to keep the concepts apart. 0: no updates, only"
            " masks; faster. relative: a share of the latent's size, the same for every model; try 0.02."
            " absolute (paper): try 20 for SD1.5, 0.02 for SDXL.",
        ),
        io.Combo.Input(
            "update_unit",
            display_name="update unit",
            options=list(UPDATE_UNITS),
            default=UpdateSettings.unit,
            advanced=True,
            tooltip="Unit of the update strength. relative: a share of the latent's size. absolute (paper): the"
            " published step size, which differs between models.",
        ),
        io.Float.Input(
            "update_start",
            display_name="update start",
            default=UpdateSettings.start,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Where in the schedule updates begin: 0 is pure noise, 1 is the finished picture.",
        ),
        io.Float.Input(
            "update_end",
            display_name="update end",
            default=UpdateSettings.end,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Where in the schedule updates end; 0.5 as published. Later steps use only the masks and"
            " are faster.",
        ),
        io.String.Input(
            "refine_steps",
            display_name="refine at steps",
            default=", ".join(map(str, UpdateSettings.refine_steps)),
            dynamic_prompts=False,
            advanced=True,
            tooltip="Steps that get extra updates, counted from 0 and separated by commas. They must lie"
            " between update start and update end.",
        ),
        io.Int.Input(
            "refine_repeats",
            display_name="refine repeats",
            default=UpdateSettings.refine_repeats,
            min=0,
            max=1000,
            advanced=True,
            tooltip="Number of extra updates at each step of “refine at steps”; 20 as published. Each takes as long as"
            " any other update.",
        ),
        io.Float.Input(
            "temperature",
            default=UpdateSettings.temperature,
            min=0.01,
            max=100.0,
            step=0.01,
            advanced=True,
            tooltip="How sharply updates tell the concepts' attention apart (the temperature of CLoRA's loss). Lower"
            " values act on the most similar attention only.",
        ),
        io.Float.Input(
            "mask_threshold",
            display_name="area threshold",
            default=AreaSettings.threshold,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Selects what counts as an object: places with at least this share of a word's strongest"
            " attention. Lower values give larger areas, but nearby objects run together.",
        ),
        io.Combo.Input(
            "mask_morphology",
            display_name="grow areas",
            options=list(MORPHOLOGY),
            default=AreaSettings.morphology,
            advanced=True,
            tooltip="Adjusts the masks by 3×3 cells of attention. dilate grows them, to keep a plain object"
            " from showing around a concept; erode shrinks them; open removes specks; close fills holes.",
        ),
        io.Int.Input(
            "first_masked_step",
            display_name="areas from step",
            default=AreaSettings.first_masked_step,
            min=0,
            max=10000,
            advanced=True,
            tooltip="From this step on, each LoRA draws in its own area only. In earlier steps all LoRAs draw everywhere,"
            " averaged.",
        ),
        io.Combo.Input(
            "gradient_memory",
            display_name="gradient memory",
            options=list(GRADIENT_MEMORY),
            default=UpdateSettings.gradient_memory,
            advanced=True,
            tooltip="How to compute the gradients of an update. “all at once” is faster but needs about 20 %"
            " more memory. “one branch at a time” needs none extra, and is the fallback when memory runs out.",
        ),
        io.Boolean.Input(
            "live_view",
            display_name="live view",
            optional=True,  # added later: prompts saved before lack it
            default=True,
            advanced=True,
            tooltip="Shows the concepts' masks and attention on this node while it samples. Costs next to nothing.",
        ),
        io.Combo.Input(
            "mask_overlap",
            display_name="area overlap",
            options=list(OVERLAPS),
            optional=True,  # added later, too
            default=AreaSettings.overlap,
            advanced=True,
            tooltip="Decides who gets a place that several concepts claim, such as the edge between two"
            " objects. strongest: the concept whose words have attended to it most so far. average (paper):"
            " all of them, which blends them.",
        ),
        io.Combo.Input(
            "surroundings",
            display_name="around each concept",
            options=list(SURROUNDINGS),
            optional=True,  # added later, too
            default=Settings.surroundings,
            advanced=True,
            tooltip="What a concept's LoRA sees around its own area. plain: a picture of the prompt with"
            " class words only, made first; each concept is drawn at one object in it. This keeps LoRAs from"
            " redrawing another's subject or drawing their own twice. composed (paper): the picture with all"
            " subjects; areas follow the attention of each step.",
        ),
        io.Int.Input(
            "concepts_per_step",
            display_name="concepts per step",
            optional=True,  # added later, too
            default=Settings.concepts_per_step,
            min=0,
            max=64,
            advanced=True,
            tooltip="How many concepts each step computes, in turn; the others keep the result of their last turn. 1: a"
            " picture takes about as long as two plain ones, whatever the number of concepts. 0: all at every step.",
        ),
        io.Combo.Input(
            "if_unclear",
            display_name="if unclear",
            options=list(IF_UNCLEAR),
            optional=True,  # added later, too
            default=Settings.if_unclear,
            advanced=True,
            tooltip="What to do when the plain picture does not show where a concept goes; the node says why. go on: draw it"
            " all the same. stop after the plain take: return the plain picture, so that you lose less time and can try"
            " another seed.",
        ),
        io.Mask.Input(
            "areas",
            optional=True,  # added later, too
            tooltip="Where to draw each concept: one mask for each, in the order of the chain, such as the edited masks of"
            " Attention Maps of CLoRA. An empty mask leaves the place to the sampler. They go before the masks of Load"
            " Concept LoRA.",
        ),
        io.Int.Input(
            "plain_every",
            display_name="plain picture interval",
            optional=True,  # added later, too
            default=Settings.plain_every,
            min=1,
            max=4,
            advanced=True,
            tooltip="With 2, the plain picture, which shows where each concept goes, is computed at every second step, and its"
            " last result kept in between: faster. With few steps (turbo models) leave it at 1, at every step.",
        ),
    ]


class CLoRASampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_CLoRASampler",
            display_name="CLoRA Attention Contrast Sampler",
            category=CATEGORY,
            description="Draws two to four subjects in one picture, each by its own LoRA, without blending them (CLoRA, arXiv"
            " 2403.19776). Connect all three outputs to any sampler node, such as KSampler.",
            search_aliases=[
                "clora",
                "multi lora",
                "two characters",
                "couple",
                "regional",
                "compose lora",
                "multi concept",
            ],
            inputs=_inputs(),
            outputs=[
                io.Model.Output(
                    tooltip="The model that samples with all LoRAs. Works only with this node's positive and negative."
                ),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The prompt. Works only with this node's MODEL. ControlNet and mask nodes may follow.",
                ),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt. Works only with this node's MODEL."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            not_idempotent=True,  # the live view belongs to this node: another with the same inputs has its own
        )

    @classmethod
    @plain_errors()
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        concepts: list[Concept],
        prompt: str,
        negative: str,
        update_strength: float,
        update_unit: UpdateUnit,
        update_start: float,
        update_end: float,
        refine_steps: str,
        refine_repeats: int,
        temperature: float,
        mask_threshold: float,
        mask_morphology: Morphology,
        first_masked_step: int,
        gradient_memory: GradientMemory,
        live_view: bool = True,
        mask_overlap: Overlap = "strongest",
        surroundings: Surroundings = "plain",
        concepts_per_step: int = 0,
        if_unclear: IfUnclear = "go on",
        areas: Tensor | None = None,
        plain_every: int = 1,
    ) -> io.NodeOutput:
        updates = UpdateSettings(
            strength=update_strength,
            unit=update_unit,
            start=update_start,
            end=update_end,
            refine_steps=_steps(refine_steps),
            refine_repeats=refine_repeats,
            temperature=temperature,
            gradient_memory=gradient_memory,
        )
        area_settings = AreaSettings(
            threshold=mask_threshold,
            morphology=mask_morphology,
            overlap=mask_overlap,
            first_masked_step=first_masked_step,
        )
        settings = Settings(
            updates=updates,
            areas=area_settings,
            surroundings=surroundings,
            concepts_per_step=concepts_per_step,
            if_unclear=if_unclear,
            plain_every=plain_every,
        )
        view = _view(page.source(cls.hidden), concepts) if live_view else None
        node_id = cls.hidden.unique_id
        notes = Notes(lambda text: page.show_text(text, node_id))
        return io.NodeOutput(*compose(model, clip, concepts, prompt, negative, settings, notes, view, areas))


def _view(source: dict, concepts: list[Concept]) -> LiveView:
    """Return a view that sends frames to this node on the page, while a page is open (web/clora_view.js)."""
    return LiveView(
        [concept.name for concept in concepts],
        lambda frame: page.send("loraclr.clora", {**source, **frame}),
        page.is_open,
    )


def _steps(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(
            f"refine_steps is “{text}”: write step numbers separated by commas, such as “0, 10, 20”."
        ) from error


class CLoRAMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_CLoRAMaps",
            display_name="Attention Maps of CLoRA",
            category=CATEGORY,
            description="Shows what CLoRA Attention Contrast Sampler attended to while it sampled a latent: masks,"
            " heat maps and separation loss.",
            search_aliases=["clora", "attention map", "heat map", "lora mask"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL output of CLoRA Attention Contrast Sampler."),
                io.Latent.Input("latent", tooltip="The LATENT sampled with that model."),
                io.Int.Input(
                    "batch_index",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Which picture of a batch to show, counted from 0.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The decoded picture to draw the heat maps over. If not connected, a rough preview of the"
                    " latent is used.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Where each concept was drawn in the last step. One mask per concept, in the order of the"
                    " chain. Edit them and connect them to areas of the sampler to use them again.",
                ),
                io.Image.Output(
                    display_name="heat_maps",
                    tooltip="Each concept's attention, averaged over all steps, with its name.",
                ),
                io.LossMap.Output(
                    display_name="loss",
                    tooltip="How similar the concepts' attention was at each step; lower is further apart. Connect to"
                    " Plot Loss Graph.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @plain_errors()
    def execute(cls, model: ModelPatcher, latent: dict, batch_index: int, image: Tensor | None = None) -> io.NodeOutput:
        method = model.get_attachment(KEY)
        if method is None:
            raise ValueError(
                "This MODEL is not from CLoRA Attention Contrast Sampler; connect that node's MODEL output."
            )
        samples = latent["samples"]
        record = method.records.of(samples)
        if batch_index >= len(samples) or (image is not None and batch_index >= len(image)):
            raise ValueError(
                f"batch_index is {batch_index}, but the batch holds {len(samples)} latents"
                f"{'' if image is None else f' and {len(image)} pictures'}: choose a smaller one."
            )
        if image is None:
            latent_format = model.get_model_object("latent_format")
            picture, problem = overlay.background(latent_format, samples[batch_index : batch_index + 1])
        else:
            picture, problem = image[batch_index : batch_index + 1, ..., :3], ""
        height, width = picture.shape[1:3]
        fitted = labels.fit(record.concepts, height, width, labels.font_files())
        heat = overlay.heat_over(picture, record.heat[batch_index].to(picture), fitted)
        losses = [float(loss[batch_index]) for _, loss in sorted(record.losses.items())]
        said = " ".join(filter(None, (labels.legend(record.concepts, fitted), problem, "" if losses else NO_LOSS)))
        log.info("Attention Maps of CLoRA: %s", said)
        page.show_text(said, cls.hidden.unique_id)
        loss = {"loss": losses} if losses else ExecutionBlocker(None)
        return io.NodeOutput(record.masks[batch_index], heat, loss)
