"""How good a model is: predictions, metrics, evaluations and the report of a run."""
