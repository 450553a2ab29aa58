"""How a model is trained: from putting its parts together to the end of the last epoch."""
