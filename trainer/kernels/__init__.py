"""Kernels written in Triton, behind plain functions that state what is computed and when a kernel is used.

PyTorch operations compute the same on the CPU, without Triton, for sizes that a kernel does not support, and on a
machine where the kernel fails its trial (`trainer.kernels.trial`). Modules named `triton_*` contain only kernels and
their launches. They are imported when a kernel first runs.
"""
