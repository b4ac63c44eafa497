"""CLoRA: several concept LoRAs in one picture, kept apart while sampling; and what it looked at."""

from comfy_api.latest import io

from ..loraclr_core.concept import Concept
from ..loraclr_core.host import clora, overlay, prompts
from ..loraclr_core.host.live import LiveView
from ..loraclr_core.masks import MORPHOLOGY, OVERLAPS, Overlap
from . import page
from .types import CATEGORY, Concepts


class CLoRASampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_CLoRASampler",
            display_name="CLoRA Attention Contrast Sampler",
            category=CATEGORY,
            description="Composes concept LoRAs while sampling and keeps them apart by their attention, as CLoRA (arXiv"
            " 2403.19776). Connect all three outputs to any sampler node.",
            search_aliases=["clora", "multi lora", "compose lora", "attention contrast", "multi concept"],
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with. LoRAs loaded before act in every branch."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                Concepts.Input("concepts", tooltip="The concepts, from the last Load Concept LoRA of the chain."),
                io.String.Input(
                    "prompt",
                    default="a photo of {cat} and {dog} in a park",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="The picture, with each concept by its name in braces. Every concept of the chain must be named.",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="What the picture must not show; for all branches.",
                ),
                io.Float.Input(
                    "update_strength",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.005,
                    round=1e-5,
                    advanced=True,
                    tooltip="How far one update moves the latent to keep the concepts apart. 0: no updates, masks only, and"
                    " faster. relative: as a share of the latent, the same for every model (try 0.02). absolute (paper): 20"
                    " for SD1.5, 0.02 for SDXL.",
                ),
                io.Combo.Input(
                    "update_unit",
                    options=list(clora.UPDATE_UNITS),
                    default="relative",
                    advanced=True,
                    tooltip="What update_strength counts in.",
                ),
                io.Float.Input(
                    "update_start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the schedule updates begin: 0 is pure noise, 1 the finished picture.",
                ),
                io.Float.Input(
                    "update_end",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Where in the schedule updates end; 0.5 as published. Later steps only use the masks and are faster.",
                ),
                io.String.Input(
                    "refine_steps",
                    default="0, 10, 20",
                    dynamic_prompts=False,
                    advanced=True,
                    tooltip="Steps with further updates, counted from 0, separated by commas. They must lie in the update range.",
                ),
                io.Int.Input(
                    "refine_repeats",
                    default=0,
                    min=0,
                    max=1000,
                    advanced=True,
                    tooltip="How many further updates those steps get. 20 as published, each as slow as an update.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.5,
                    min=0.01,
                    max=100.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Of the contrast between concepts. Smaller looks at the most similar maps only.",
                ),
                io.Float.Input(
                    "mask_threshold",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="What counts as an object: places with at least this share of a word's strongest attention. Smaller:"
                    " larger areas, and objects that are near each other run together.",
                ),
                io.Combo.Input(
                    "mask_morphology",
                    options=list(MORPHOLOGY),
                    default="dilate",
                    advanced=True,
                    tooltip="Change the masks by 3×3 cells of attention: dilate grows, so that no plain thing is drawn around"
                    " a concept, erode shrinks, open drops specks, close fills holes.",
                ),
                io.Int.Input(
                    "first_masked_step",
                    default=0,
                    min=0,
                    max=10000,
                    advanced=True,
                    tooltip="Before this step there are no masks and every branch counts everywhere.",
                ),
                io.Combo.Input(
                    "gradient_memory",
                    options=list(clora.GRADIENT_MEMORY),
                    default="all at once",
                    advanced=True,
                    tooltip="all at once is the faster one, and needs about a fifth more memory than the step itself. one branch"
                    " at a time needs no more than that, and is taken where memory runs out.",
                ),
                io.Boolean.Input(
                    "live_view",
                    optional=True,  # came later: prompts saved before lack it
                    default=True,
                    advanced=True,
                    tooltip="Show the concepts' masks and attention on this node while it samples. Costs next to nothing.",
                ),
                io.Combo.Input(
                    "mask_overlap",
                    options=list(OVERLAPS),
                    optional=True,  # came later, too
                    default="strongest",
                    advanced=True,
                    tooltip="A place that several concepts take, as on the edge of two objects. strongest: it goes to the one"
                    " whose words have looked at it most so far. average (paper): all of them draw there, which blends them.",
                ),
                io.Combo.Input(
                    "surroundings",
                    options=list(clora.SURROUNDINGS),
                    optional=True,  # came later, too
                    default="plain",
                    advanced=True,
                    tooltip="What a concept's LoRA sees around its own area. plain: the picture of the prompt with class words"
                    " alone. It is made first, and each concept is drawn at one object in it, so that no LoRA redraws another's"
                    " subject or draws its own twice. composed (paper): the picture with all subjects; areas follow the"
                    " attention of each step.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The model that samples all branches. It works only with this node's conditioning."
                ),
                io.Conditioning.Output(
                    display_name="positive",
                    tooltip="The prompt for every branch. ControlNet and mask nodes may follow.",
                ),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt for every branch."),
            ],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # the live view is this node's: another of the same inputs has one of its own
        )

    @classmethod
    def execute(
        cls,
        model,
        clip,
        concepts,
        prompt,
        negative,
        update_strength,
        update_unit,
        update_start,
        update_end,
        refine_steps,
        refine_repeats,
        temperature,
        mask_threshold,
        mask_morphology,
        first_masked_step,
        gradient_memory,
        live_view=True,
        mask_overlap: Overlap = "strongest",
        surroundings: clora.Surroundings = "plain",
    ) -> io.NodeOutput:
        settings = clora.Settings(
            *(update_strength, update_unit, update_start, update_end, _steps(refine_steps), refine_repeats),
            *(temperature, mask_threshold, mask_morphology, first_masked_step, gradient_memory),
            overlap=mask_overlap,
            surroundings=surroundings,
        )
        view = _view(cls.hidden.unique_id, concepts) if live_view else None
        node_id = cls.hidden.unique_id
        found = prompts.compose(
            model, clip, concepts, prompt, negative, settings, view, say=lambda text: page.say(text, node_id)
        )
        return io.NodeOutput(*found)


def _view(node_id: str, concepts: list[Concept]) -> LiveView:
    """Frames for this node on the page, while one is open (web/clora_view.js)."""
    return LiveView(
        [concept.name for concept in concepts],
        lambda frame: page.send("loraclr.clora", {"node": node_id, **frame}),
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
            display_name="CLoRA Attention Maps",
            category=CATEGORY,
            description="What CLoRA Attention Contrast Sampler looked at while it sampled a latent: masks, heat maps, loss.",
            search_aliases=["clora", "attention map", "heat map", "lora mask"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of CLoRA Attention Contrast Sampler."),
                io.Latent.Input("latent", tooltip="The LATENT that a sampler made with that model."),
                io.Int.Input(
                    "batch_index",
                    default=0,
                    min=0,
                    max=4096,
                    advanced=True,
                    tooltip="Which picture of a batch to look at, counted from 0.",
                ),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The decoded picture, to draw the heat maps over. Without it the latent's rough colours are used.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks",
                    tooltip="Where each concept was drawn in the last step; one per concept, in order.",
                ),
                io.Image.Output(
                    display_name="heat_maps", tooltip="Each concept's attention, mean over all steps, with its name."
                ),
                io.LossMap.Output(
                    display_name="loss",
                    tooltip="How alike the concepts' attention was, step by step. Connect to Plot Loss Graph.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, latent, batch_index, image=None) -> io.NodeOutput:
        method = model.get_attachment(clora.KEY)
        if method is None:
            raise ValueError(
                "This MODEL is not from CLoRA Attention Contrast Sampler; connect that node's MODEL output."
            )
        samples = latent["samples"]
        record = method.record_of(samples)
        if batch_index >= len(samples) or (image is not None and batch_index >= len(image)):
            raise ValueError(
                f"batch_index is {batch_index}, but the batch holds {len(samples)} latents"
                f"{'' if image is None else f' and {len(image)} pictures'}: choose a smaller one."
            )
        if image is None:
            picture = overlay.rough_picture(
                model.get_model_object("latent_format"), samples[batch_index : batch_index + 1]
            )
        else:
            picture = image[batch_index : batch_index + 1]
        heat = overlay.heat_over(picture, record.heat[batch_index].to(picture), record.concepts)
        losses = [float(loss[batch_index]) for _, loss in sorted(record.losses.items())]
        return io.NodeOutput(record.masks[batch_index], heat, {"loss": losses})
