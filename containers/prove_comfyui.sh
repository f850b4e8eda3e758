#!/bin/sh
# prove_comfyui.sh COMFYUI: checks that ComfyUI starts on a CPU and imports all of its own nodes.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/custom_nodes"
python3 "$1/main.py" --cpu --quick-test-for-ci --base-directory "$folder" \
    --database-url "sqlite:///$folder/comfyui.db" >"$folder/log" 2>&1 || { cat "$folder/log" && exit 1; }
if grep -E 'Traceback|IMPORT FAILED|Cannot import|torchaudio missing' "$folder/log"; then
    cat "$folder/log"
    exit 1
fi
