"""Which backbones, heads and losses there are."""
