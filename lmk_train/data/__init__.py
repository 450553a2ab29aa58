"""How bytes become batches."""
