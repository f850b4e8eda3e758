"""Checkpoints of a run: names of LoRA files and states, writing in the background, the exact training state."""
