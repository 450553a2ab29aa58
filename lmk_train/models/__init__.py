"""The networks and the losses: backbones, heads, initial weights."""
