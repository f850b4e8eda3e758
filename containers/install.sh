#!/bin/sh
# install.sh train|comfyui PYTHON REPOSITORY [COMFYUI]: installs what a role needs into PYTHON's environment.
# The torch, torchvision and numpy that are already there stay as they are; the last step checks it.
set -eu

role=$1
python=$2
repository=$3
comfyui=${4:-}
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

dependencies() { "$python" "$here/dependencies.py" "$@"; }
pip() { PIP_CONSTRAINT='' "$python" -m pip "$@"; } # the base image sets it, and pins packages that we need newer

case $role in
    train) set -- "$repository/pyproject.toml" ;;
    comfyui) set -- "$comfyui/requirements.txt" "$here/requirements-comfyui.txt" ;;
    *) exit 2 ;;
esac
dependencies constraints "$repository/constraints.txt" "$here/constraints-comfyui.txt" >"$scratch/constraints"
dependencies requirements "$@" >"$scratch/requirements"
pip install --no-cache-dir --disable-pip-version-check \
    --constraint "$scratch/constraints" --requirement "$scratch/requirements"

# ComfyUI imports torchaudio when it starts, for resampling and spectrograms, which are plain Python. Its compiled part
# loads only with the torch that it was built for, and nothing here needs it.
if [ "$role" = comfyui ]; then
    pip install --no-cache-dir --disable-pip-version-check --no-deps 'torchaudio==2.11.0'
    "$python" - <<'END'
import importlib.util
import pathlib

folder = pathlib.Path(importlib.util.find_spec("torchaudio").origin).parent
for compiled in folder.rglob("*.so*"):
    compiled.unlink()
import torch, torchaudio

assert torchaudio.functional.resample(torch.ones(1, 160), 16000, 8000).shape == (1, 80)
END
fi
dependencies unchanged "$scratch/constraints"
