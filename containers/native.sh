# shellcheck shell=sh
# Without a container: the project's virtual environment.

python=$root/.venv/bin/python

check_native() {
    [ -x "$python" ] || fault "There is no virtual environment here." "make -C '$root' setup"
}

# The pinned ComfyUI beside the project, or the one of COMFYUI_DIR, and what it needs in the environment, once.
install_comfyui() {
    comfyui=$(absolute "${COMFYUI_DIR:-$root/.comfyui}")
    [ -n "${COMFYUI_DIR:-}" ] || perform sh "$root/containers/fetch_comfyui.sh" "$comfyui" || exit
    record=$root/.venv/.comfyui # goes with the environment that has it installed
    if [ -z "$dry_run" ] && [ "$(cat "$record" 2>/dev/null)" = "$(needs_of_comfyui)" ]; then return; fi
    perform sh "$root/containers/install.sh" comfyui "$python" "$root" "$comfyui" || exit
    [ -n "$dry_run" ] || needs_of_comfyui >"$record"
}

# All that decides what is installed, as one number.
needs_of_comfyui() {
    cat "$comfyui/requirements.txt" "$root"/containers/*comfyui.txt "$root/containers/install.sh" | cksum
}
