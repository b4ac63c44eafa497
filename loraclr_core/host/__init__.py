"""Everything that touches ComfyUI (`comfy.*`): LoRA files, adapters, capture, and the merge as a whole."""
