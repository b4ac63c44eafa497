"""CLoRA inside the sampling of ComfyUI."""
