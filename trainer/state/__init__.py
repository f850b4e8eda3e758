"""The exact training state on disk."""
