"""A training run while it lasts: its model, steps, checkpoints, samples, log and requests."""
