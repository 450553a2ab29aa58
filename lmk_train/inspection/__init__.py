"""What is suspicious in a dataset? Samples and classes, judged by the features of a network."""
