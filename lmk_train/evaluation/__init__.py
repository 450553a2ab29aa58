"""How good a model is: predictions, metrics and the report of a run."""
