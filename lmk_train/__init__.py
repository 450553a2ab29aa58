"""lmk_train: streams a dataset of shards into mixed-precision training of long-tailed classifiers."""
