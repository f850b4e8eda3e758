"""Base models: what is known of them, their files and weights, their modules, one forward pass."""
