"""Training a concept's LoRA so that the model without its trigger stays as it is, and scores that say so."""
