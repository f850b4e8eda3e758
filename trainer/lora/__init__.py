"""The adapter: on the model, on disk, in other layouts."""
