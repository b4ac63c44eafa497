"""Training a concept's LoRA on a model in ComfyUI."""
