"""FLUX.1 DreamBooth-LoRA training: pictures and four model files in, one LoRA file out."""

__version__ = "0.2.0"
