#!/bin/bash
# comfyui.sh COMFYUI BASE WORKFLOWS ARGUMENT...: ComfyUI over the folders of BASE, our workflows in its left panel.
# bash, because NVIDIA's base image prepares CUDA in what bash reads at its start (BASH_ENV).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
comfyui=$1
base=$2
workflows=$3
shift 3

umask 022
mkdir -p "$base/user/default/workflows" "$base/input" "$base/output"
python3 "$here/seed_user.py" "$workflows" "$base/user/default"
exec python3 "$here/init.py" --as SIGINT python3 "$comfyui/main.py" \
    --base-directory "$base" --temp-directory "$base/user/.temp" \
    --database-url "sqlite:///$base/user/comfyui.db" --disable-auto-launch "$@"
