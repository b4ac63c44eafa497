"""Text that a model makes itself of a text encoder's (Anima), by layers that a LoRA may change.

ComfyUI makes it before the sampler starts, for all conditioning by the plain model.
"""

import comfy.samplers

from .branches import BranchAdapters
from .tags import KEY
from .tokens import TEXT_IDS


def encoded(guider: comfy.samplers.CFGGuider, adapters: BranchAdapters) -> dict[str, list[dict]]:
    """Return the guider's conditioning with each branch's text made anew, by its own LoRA. adapters: attached."""
    return {
        name: [_encoded(entry, guider, adapters) if TEXT_IDS in entry and KEY in entry else entry for entry in entries]
        for name, entries in guider.conds.items()
    }


def _encoded(entry: dict, guider: comfy.samplers.CFGGuider, adapters: BranchAdapters) -> dict:
    with adapters.routed((entry[KEY].branch,)):
        text = guider.inner_model.extra_conds(**entry, device=guider.model_patcher.load_device)["c_crossattn"]
    return {**entry, "model_conds": {**entry["model_conds"], "c_crossattn": text}}
