"""Clear Captures: deletes the captures that merges have kept on disk."""

import logging

from comfy_api.latest import io

from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.host.merge import store
from . import page
from .types import CATEGORY

log = logging.getLogger("loraclr")


class ClearCaptures(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_ClearCaptures",
            display_name="Clear Captures",
            category=CATEGORY,
            description="Deletes all captures that LoRACLR Merge has kept on disk, every time it runs. Add it, run it"
            " once, then remove it.",
            search_aliases=["loraclr", "clear cache", "captures"],
            is_output_node=True,
            inputs=[],
            outputs=[io.String.Output(display_name="report", tooltip="How much space was freed, and in which folder.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls) -> float:
        return float("nan")  # unequal to itself, so the node runs every time

    @classmethod
    @plain_errors()
    def execute(cls) -> io.NodeOutput:
        count, freed = store.clear()
        report = f"Deleted {count} files of captures ({freed / 2**20:.1f} MiB) from {store.folder()}."
        log.info(report)
        page.show_text(report, cls.hidden.unique_id)
        return io.NodeOutput(report, ui={"text": (report,)})
