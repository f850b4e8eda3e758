# shellcheck shell=sh
# Without a container: the project's virtual environment.

python=$root/.venv/bin/python

check_native() {
    [ -x "$python" ] || fault "There is no virtual environment here." "make -C '$root' setup"
}

# The pinned ComfyUI beside the project, and what it needs in the environment, once.
install_comfyui() {
    comfyui=$root/.comfyui
    perform sh "$root/containers/fetch_comfyui.sh" "$comfyui" || exit
    if [ -z "$dry_run" ] && [ -f "$comfyui/.installed" ]; then return; fi
    perform sh "$root/containers/install.sh" comfyui "$python" "$root" "$comfyui" || exit
    [ -n "$dry_run" ] || touch "$comfyui/.installed"
}
