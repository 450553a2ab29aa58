"""How bytes become batches: order, cache, reader, stream, augmentation, cached features."""
