"""Training a concept's LoRA on a model in ComfyUI, and scoring its pictures."""
