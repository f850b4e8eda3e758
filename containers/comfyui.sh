#!/bin/bash
# comfyui.sh COMFYUI BASE WORKFLOWS ARGUMENT...: starts ComfyUI on the folders of BASE, with our workflows in its sidebar.
# FLUX_FIRST_WORKFLOW names the workflow that a first visit opens; FLUX_SKIP_CHECKS=yes starts without model files;
# FLUX_UNIFIED_MEMORY=yes is for a GPU that shares the computer's memory.
# bash, because NVIDIA's base image prepares CUDA in the file that bash reads when it starts (BASH_ENV).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
comfyui=$1
base=$2
workflows=$3
shift 3

[ -n "${FLUX_SKIP_CHECKS:-}" ] ||
    python3 "$here/check_models.py" "$base/models" "${FLUX_FIRST_WORKFLOW:-base_flux}"
# There, a model file that stays mapped is held next to the copy that the GPU uses. ComfyUI's DynamicVRAM keeps files
# mapped whatever --disable-mmap says. A release that lacks a flag is started without it; a user's own flags come last.
if [ -n "${FLUX_UNIFIED_MEMORY:-}" ]; then
    flags=''
    for flag in --disable-mmap --disable-dynamic-vram; do
        if grep -q -e "\"$flag\"" "$comfyui/comfy/cli_args.py"; then flags="$flags $flag"; fi
    done
    echo "Unified memory: ComfyUI starts with$flags"
    # shellcheck disable=SC2086
    set -- $flags "$@"
fi
umask 022
mkdir -p "$base/user/default/workflows" "$base/input" "$base/output"
python3 "$here/../custom_nodes/flux_dreambooth/user_folder.py" "$workflows" "$base/user/default"
exec python3 "$here/init.py" --as SIGINT python3 "$comfyui/main.py" \
    --base-directory "$base" --temp-directory "$base/user/.temp" \
    --database-url "sqlite:///$base/user/comfyui.db" --disable-auto-launch "$@"
