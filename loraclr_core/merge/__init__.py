"""Merging concepts into one weight difference per layer: LoRACLR (arXiv 2412.09622)."""
