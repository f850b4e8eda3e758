"""Adapters that act only where their words attend: prompts, attention maps, masks and masked adapters.

For the trainer (`trainer.sampling.routed`) and the ComfyUI nodes alike: nothing here knows diffusers' or ComfyUI's
modules. This package imports the standard library, torch and itself, by relative imports. `tools/pack_nodes.py` copies
the folder into the node pack, which works without the trainer.
"""
