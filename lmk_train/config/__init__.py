"""What can be set: the options of `lmk-train` and of the other commands."""
