"""The four model files: their names, their weights, their modules, one forward pass."""
