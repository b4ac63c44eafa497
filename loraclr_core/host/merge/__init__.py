"""LoRACLR on a model that ComfyUI has loaded: capture, solve, distil, save."""
