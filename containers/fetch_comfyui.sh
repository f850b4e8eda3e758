#!/bin/sh
# fetch_comfyui.sh FOLDER: fetches ComfyUI at exactly the commit that the image contains.
# COMFYUI_REPOSITORY and COMFYUI_COMMIT select another source.
set -eu

folder=$1
repository=${COMFYUI_REPOSITORY:-https://github.com/comfyanonymous/ComfyUI}
commit=${COMFYUI_COMMIT:-2f35f4a08176d993cded35dac3332be4f7287f41} # v0.33.0

current_commit() { git -C "$folder" rev-parse --verify --quiet HEAD; }

case $commit in
    *[!0-9a-f]*) commit='' ;;
esac
[ "${#commit}" -eq 40 ] || { echo "COMFYUI_COMMIT must be a full commit id: 40 digits 0-9a-f." >&2 && exit 1; }

mkdir -p "$folder"
if [ ! -e "$folder/.git" ] || [ "$(current_commit)" != "$commit" ]; then
    git -C "$folder" init --quiet
    if ! git -C "$folder" fetch --quiet --depth 1 "$repository" "$commit"; then
        echo "ComfyUI could not be fetched from $repository. Check the network connection and proxy settings." >&2
        exit 1
    fi
    git -C "$folder" -c advice.detachedHead=false checkout --quiet --force "$commit"
fi
# git computes every id from the content, so the right id and a clean tree mean the right content
if [ "$(current_commit)" != "$commit" ] || [ -n "$(git -C "$folder" status --porcelain --untracked-files=no)" ]; then
    echo "$folder is not ComfyUI at $commit, or it was changed. Delete it and try again." >&2
    exit 1
fi
echo "ComfyUI $commit"
