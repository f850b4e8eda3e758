#!/bin/sh
# standin_base.sh NAME: builds a small base image in place of NVIDIA's, to build and run both Dockerfiles in tests:
# Debian, Python, a CPU build of torch, and a numpy older than ours. Needs root, buildah and debootstrap.
set -eu

name=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
root=$folder/root

debootstrap --variant=minbase --include=python3,python3-pip,python3-venv,ca-certificates,git bookworm "$root"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/"
cp /etc/resolv.conf "$root/etc/"
mkdir "$root/wheels"
[ ! -d "${PIP_FIND_LINKS:-}" ] || cp "$PIP_FIND_LINKS"/torch-*.whl "$root/wheels/"
pip() { chroot "$root" python3 -m pip install --break-system-packages --no-cache-dir "$@"; }
pip --find-links /wheels torch==2.13.0 numpy==1.26.4 pillow
pip --no-deps torchvision==0.28.0
rm -rf "$root/wheels"

# torchvision's compiled part needs CUDA; with these two operators declared it can be imported without
cat >>"$root/usr/local/lib/python3.11/dist-packages/torchvision/extension.py" <<'END'


import torch

for _name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
END

container=$(buildah from scratch)
buildah copy --quiet "$container" "$root" /
buildah commit --quiet "$container" "$name"
buildah rm "$container"
