"""From stored chips to batches: sampler, gather, workers, loader; ``open_source``."""
