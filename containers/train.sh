#!/bin/bash
# Entry of the training image: PROGRAM ARGUMENT..., stopped cleanly.
# bash, because NVIDIA's base image prepares CUDA in what bash reads at its start (BASH_ENV).
set -eu
umask 022
export TOKENIZERS_PARALLELISM=false
exec python3 /flux/containers/init.py "$@"
