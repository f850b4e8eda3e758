"""Kernels written in Triton, each behind plain functions that say what is computed and when the kernel serves.

On the CPU, where Triton is missing, on sizes that a kernel is not made for, and on a machine where it fails its trial
(`trainer.kernels.trial`), plain torch operations give the same numbers. Modules named `triton_*` hold nothing but
kernels and their launches, and are imported where one runs.
"""
