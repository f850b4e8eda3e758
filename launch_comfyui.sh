#!/bin/sh
# Run ComfyUI in a container: sh launch_comfyui.sh [OPTION]... [FLAG]...
set -u

help() {
    cat <<'END'
Generate images with FLUX.1 and your LoRAs: ComfyUI in a container. The image is built on first use.

  sh launch_comfyui.sh                  then open http://127.0.0.1:8188 in a browser
  sh launch_comfyui.sh --lowvram        ComfyUI's own flags are passed to it

Options of this script:
  --port N        another port than 8188
  --listen        allow other machines to connect, or --listen=ADDRESS; ComfyUI has no password
  --demo          use the tiny FLUX that comes with the project; needs no GPU
  --cpu           run without a GPU
  --build         rebuild the image (BASE=... selects another base image, COMFYUI_DIR=... a local ComfyUI)
  --shell         open a shell in the container
  --native        run without a container, in the environment that `make setup` creates
  --skip-checks   start even if a check finds a problem
  --dry-run       print the command and do nothing
  --help          this text
  --              pass everything after this to ComfyUI

Images are written to output/, images to load go into input/, settings and workflows are in user/.
Ctrl-C exits. DOCKER=podman uses podman.
END
}

root=$(cd "$(dirname "$0")" && pwd) || exit
role=comfyui
dockerfile=inference
# runs: the nodes write jobs, and ask a training to save or stop by a file in its folder; flux_data: images and captions
folders='models/loras output input user runs flux_data'
links='models'
variables=''
# shellcheck source=containers/launch.sh
. "$root/containers/launch.sh"
port=8188
address=127.0.0.1

takes_value() {
    case $1:$2 in --port:* | --listen:[0-9]*) true ;; *) false ;; esac
}

own_option() {
    case $1 in
        --port=*) port=${1#*=} ;;
        --listen=*) address=${1#*=} ;;
        --listen) address=0.0.0.0 ;;
        *) return 1 ;;
    esac
}

role_checks() {
    [ -n "$shell" ] || check_port "$port"
    [ -n "$demo" ] || check_memory 12 44
    check_disk "$root" 2 "delete images that you no longer need from output/"
}

main() {
    case $port in '' | *[!0-9]* | ??????*) refuse "--port=$port is not a port." ;; esac
    first_workflow=base_flux # opened by a browser that has not been here before
    [ -z "$demo" ] || first_workflow=mini_base
    run_checks "$@"
    make_caches
    unified=''
    if [ -z "$cpu$shell" ] && has_unified_memory; then
        unified=yes
        say "The GPU shares this computer's memory: ComfyUI will not keep model files mapped, so that weights are held once."
    fi
    if [ -n "$native" ]; then run_native "$@"; else run_in_container "$@"; fi
}

say_address() {
    [ -z "$dry_run$shell" ] || return 0
    say "ComfyUI: http://127.0.0.1:$port"
    [ "$address" = 127.0.0.1 ] ||
        say "Warning: anyone who can reach $address:$port can use this ComfyUI and its files. There is no password."
}

run_native() {
    install_comfyui
    PATH=$root/.venv/bin:$PATH
    [ -z "$cpu" ] || set -- --cpu "$@"
    set -- sh "$root/containers/comfyui.sh" "$comfyui" "$root" "$root/workflows" --listen "$address" --port "$port" "$@"
    [ -z "$skip_checks" ] || set -- FLUX_SKIP_CHECKS=yes "$@"
    [ -z "$unified" ] || set -- FLUX_UNIFIED_MEMORY=yes "$@"
    say_address
    perform_last env "PATH=$PATH" "TORCHINDUCTOR_CACHE_DIR=$inductor_cache" "TRITON_CACHE_DIR=$triton_cache" \
        "FLUX_FIRST_WORKFLOW=$first_workflow" "$@"
}

# ComfyUI at its pin in .comfyui, or in COMFYUI_DIR; its requirements are installed once into the environment.
install_comfyui() {
    comfyui=$(absolute "${COMFYUI_DIR:-$root/.comfyui}")
    [ -n "${COMFYUI_DIR:-}" ] || perform sh "$root/containers/fetch_comfyui.sh" "$comfyui" || exit
    record=$root/.venv/.comfyui # deleted together with the environment
    if [ -z "$dry_run" ] && [ "$(cat "$record" 2>/dev/null)" = "$(comfyui_requirements)" ]; then return; fi
    perform sh "$root/containers/install.sh" comfyui "$python" "$root" "$comfyui" || exit
    [ -n "$dry_run" ] || comfyui_requirements >"$record"
}

# A checksum of everything that decides what is installed.
comfyui_requirements() {
    cat "$comfyui/requirements.txt" "$root"/containers/*comfyui.txt "$root/containers/install.sh" | cksum
}

run_in_container() {
    # shellcheck disable=SC2086
    make_folders $folders
    build_if_needed
    if [ -n "$shell" ]; then
        set -- --entrypoint bash "$image"
    else
        [ -z "$cpu" ] || set -- "$@" --cpu
        set -- --env "FLUX_FIRST_WORKFLOW=$first_workflow" "$image" --listen 0.0.0.0 "$@"
        [ -z "$skip_checks" ] || set -- --env FLUX_SKIP_CHECKS=yes "$@"
        [ -z "$unified" ] || set -- --env FLUX_UNIFIED_MEMORY=yes "$@"
        set -- --publish "$address:$port:8188" "$@"
    fi
    say_address
    run_launched "$@"
}

read_options "$@"
