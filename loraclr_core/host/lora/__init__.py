"""LoRA files, and their effect on the weights of a model that ComfyUI has loaded."""
