"""All that touches ComfyUI. merge/ and sampler/ build on lora/, and not on each other."""
