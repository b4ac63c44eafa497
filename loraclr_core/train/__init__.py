"""Training a concept and scoring it, in torch alone."""
