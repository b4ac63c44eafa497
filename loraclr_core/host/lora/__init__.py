"""What a LoRA file is, and what it does to the weights of a model that ComfyUI has loaded."""
