"""The methods, in torch alone. Nothing outside `loraclr_core.host` imports ComfyUI."""
