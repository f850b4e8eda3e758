"""LoRA and state files of a run: their names, writing in the background, the exact training state."""
