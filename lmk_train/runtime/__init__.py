"""On which device, in which precision, with how many ranks, and how a training is stopped."""
