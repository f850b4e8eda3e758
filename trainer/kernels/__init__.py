"""Kernels written in Triton, each behind a plain function that says what it computes and where it serves.

On the CPU, where Triton is not installed, and on sizes that a kernel is not made for, plain torch operations give
the same numbers; which of the two runs is decided by who calls. Modules named `triton_*` are imported where Triton
is there, and hold nothing but kernels and their launches.
"""
