#!/bin/bash
# Entry point of the training image: train.sh PROGRAM ARGUMENT..., with the options of init.py in front.
# bash, because NVIDIA's base image prepares CUDA in the file that bash reads when it starts (BASH_ENV).
set -eu
umask 022
export TOKENIZERS_PARALLELISM=false
exec python3 /flux/containers/init.py "$@"
