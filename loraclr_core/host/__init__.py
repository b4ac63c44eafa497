"""All code that touches ComfyUI. merge/ and sampler/ build on lora/, but not on each other."""
