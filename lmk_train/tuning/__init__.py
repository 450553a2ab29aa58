"""Which settings are best: the hyper-parameter search."""
