#!/bin/sh
# install.sh train|comfyui PYTHON REPOSITORY [COMFYUI]: what a role needs, into PYTHON's environment.
# torch, torchvision and numpy stay those that are there; the last step proves it.
set -eu

role=$1
python=$2
repository=$3
comfyui=${4:-}
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

dependencies() { "$python" "$here/dependencies.py" "$@"; }
pip() { PIP_CONSTRAINT='' "$python" -m pip "$@"; } # of a base image: it pins what we need newer

case $role in
    train) set -- "$repository/pyproject.toml" ;;
    comfyui) set -- "$comfyui/requirements.txt" "$here/requirements-comfyui.txt" ;;
    *) exit 2 ;;
esac
dependencies constraints "$repository/constraints.txt" "$here/constraints-comfyui.txt" >"$scratch/constraints"
dependencies requirements "$@" >"$scratch/requirements"
pip install --no-cache-dir --disable-pip-version-check \
    --constraint "$scratch/constraints" --requirement "$scratch/requirements"

# ComfyUI imports torchaudio at its start, for resampling and spectrograms, which are plain Python. Its compiled
# part loads with the one torch that it was built for, and nothing here needs it.
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
