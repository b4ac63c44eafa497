"""Composing concepts while sampling: CLoRA (arXiv 2403.19776)."""
