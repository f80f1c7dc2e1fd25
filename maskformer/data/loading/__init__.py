"""From records to batches: loaders, samplers and repeat factors."""
