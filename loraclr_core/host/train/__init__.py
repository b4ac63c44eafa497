"""Training a concept and scoring it in ComfyUI."""
