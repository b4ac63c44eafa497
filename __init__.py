"""LoRACLR: several independently trained concept LoRAs in one picture, for ComfyUI."""

from comfy_api.latest import ComfyExtension

# Here and not in the entrypoint: ComfyUI loses the traceback of errors inside it.
from .nodes import NODES

WEB_DIRECTORY = "./web"


class LoRACLRExtension(ComfyExtension):
    async def get_node_list(self):
        return NODES


async def comfy_entrypoint() -> LoRACLRExtension:
    return LoRACLRExtension()
