"""Captions for a concept's images: what a vision model sees, in words that leave the concept itself to its trigger.

Imports neither torch nor transformers, except `load`. Only captions that are missing are written, and with --redo those
that this program wrote and nobody has edited.
"""
