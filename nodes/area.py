"""Concept Area: a simple part of the picture as a mask."""

from comfy_api.latest import io

from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.sampler import shares
from .types import CATEGORY

BOX = "box"


class ConceptArea(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_ConceptArea",
            display_name="Concept Area",
            category=CATEGORY,
            description="Makes a mask of a simple area: a half, a third or a box of the picture, whatever its size. Connect"
            " it to the mask of Load Concept LoRA, and the sampler draws that concept there.",
            search_aliases=["mask", "area", "left", "right", "loraclr"],
            inputs=[
                io.Combo.Input(
                    "area",
                    options=[*shares.AREAS, BOX],
                    tooltip="The part of the picture. For “box”, the advanced settings say which.",
                ),
                _side("left", 0.25, "where it begins, as a share of the picture's width. 0 is the left edge."),
                _side("top", 0.25, "where it begins, as a share of the picture's height. 0 is the top edge."),
                _side("width", 0.5, "its width, as a share of the picture's."),
                _side("height", 0.5, "its height, as a share of the picture's."),
            ],
            outputs=[
                io.Mask.Output(
                    tooltip="1 in the area, 0 elsewhere. Connect to the mask of Load Concept LoRA, or to any mask node."
                )
            ],
        )

    @classmethod
    @plain_errors()
    def execute(cls, area: str, left: float, top: float, width: float, height: float) -> io.NodeOutput:
        box = shares.Box(left, top, width, height) if area == BOX else shares.AREAS[area]
        return io.NodeOutput(shares.mask(box))


def _side(name: str, default: float, meaning: str) -> io.Float.Input:
    return io.Float.Input(
        name,
        display_name=f"{BOX} {name}",
        default=default,
        min=0.0,
        max=1.0,
        step=0.01,
        advanced=True,
        tooltip=f"Used by “{BOX}”: {meaning}",
    )
