"""How a model is trained, from its parts to the end of the last epoch."""
