"""LoRA files of FLUX.1: headers, names, strengths, numbers and metadata, for the trainer and the ComfyUI nodes.

This package imports the standard library and itself, by relative imports. numpy and torch are imported inside the
functions that compute. `tools/pack_nodes.py` copies the folder into the node pack, which works without the trainer.
"""
