"""The device, the precision, the ranks, and requests to stop."""
