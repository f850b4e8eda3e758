#!/bin/sh
# ComfyUI in a container: sh launch_comfyui.sh [OPTION]... [FLAG]...
set -u

help() {
    cat <<'END'
Draw with FLUX.1 and your LoRAs: ComfyUI in a container that is built when it is missing.

  sh launch_comfyui.sh                  then open http://127.0.0.1:8188 in a browser
  sh launch_comfyui.sh --lowvram        flags of ComfyUI go through to it

Options of this script:
  --port N        another port than 8188
  --listen        let other machines in too, or --listen=ADDRESS; ComfyUI asks nobody for a password
  --demo          with the small model that comes with the project, with or without a GPU
  --cpu           without a GPU
  --build         build the image anew (BASE=… chooses another base image, COMFYUI_DIR=… a local ComfyUI)
  --shell         a shell in the container
  --native        without a container: in the virtual environment that `make setup` makes
  --skip-checks   start even though something seems to be wrong
  --dry-run       print the command and do nothing
  --help          this text
  --              what follows is not for this script

Pictures go to output/, yours to load are in input/, settings and workflows in user/. Ctrl-C ends it.
DOCKER=podman uses podman.
END
}

root=$(cd "$(dirname "$0")" && pwd) || exit
role=comfyui
dockerfile=inference
# shellcheck source=containers/launch.sh
. "$root/containers/launch.sh"
port=8188
address=127.0.0.1

# Takes our options out of "$@" and leaves ComfyUI's: each word goes from the front to the back, or away.
left=$#
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case $word in
        --) break ;;
        --help | -h) help && exit ;;
        --port | --listen)
            case $word:${1:-} in
                --port:[0-9]* | --listen:[0-9]*)
                    [ "$left" -gt 0 ] || refuse "$word needs a value."
                    word=$word=$1
                    shift
                    left=$((left - 1))
                    ;;
            esac
            ;;
    esac
    case $word in
        --port=*) port=${word#*=} && continue ;;
        --port) refuse "--port needs a number." ;;
        --listen=*) address=${word#*=} && continue ;;
        --listen) address=0.0.0.0 && continue ;;
    esac
    common_option "$word" || set -- "$@" "$word"
done
while [ "$left" -gt 0 ]; do
    set -- "$@" "$1"
    shift
    left=$((left - 1))
done
case $port in '' | *[!0-9]* | ??????*) refuse "--port=$port is not a port." ;; esac

role_checks() {
    if [ -z "$shell" ]; then check_port "$port"; fi
    if [ -z "$native" ]; then check_writable models/loras user output input runs "$compiled"; fi
    if [ -n "$demo" ]; then
        check_small_model
    else
        check_models "$(one_of checkpoints flux1-dev)" "$(one_of vae ae)" \
            "$(one_of text_encoders clip_l)" "$(one_of text_encoders t5xxl_fp16)"
        check_memory 12 44
    fi
    check_disk "$root" 2 "pictures in output/"
}

# The usual file of a folder, or another of its family: flux1-schnell, t5xxl_fp8_e4m3fn.
one_of() {
    usual=models/$1/$2.safetensors
    for file in "$root/$usual" "$root/models/$1/${2%[-_]*}"[-_]*.safetensors; do
        if [ -e "$file" ]; then echo "${file#"$root"/}" && return; fi
    done
    echo "$usual"
}

say_where() {
    [ -z "$dry_run$shell" ] || return 0
    say "ComfyUI: http://127.0.0.1:$port"
    [ "$address" = 127.0.0.1 ] ||
        say "Warning: whoever reaches $address:$port can use this ComfyUI and its files; there is no password."
}

# What a browser that has not been here yet opens.
first_workflow=base_flux
[ -z "$demo" ] || first_workflow=mini_base

run_native() {
    install_comfyui
    [ -z "$cpu" ] || set -- --cpu "$@"
    PATH=$root/.venv/bin:$PATH
    say_where
    make_caches
    perform_last env "PATH=$PATH" "TORCHINDUCTOR_CACHE_DIR=$inductor_cache" "TRITON_CACHE_DIR=$triton_cache" \
        "FLUX_FIRST_WORKFLOW=$first_workflow" \
        sh "$root/containers/comfyui.sh" "$comfyui" "$root" "$root/workflows" \
        --listen "$address" --port "$port" "$@"
}

run_in_container() {
    set -- "$image" --listen 0.0.0.0 "$@"
    if [ -n "$shell" ]; then
        set -- --entrypoint bash "$image"
    elif [ -n "$cpu" ]; then
        set -- "$@" --cpu
    fi
    [ -n "$shell" ] || set -- --publish "$address:$port:8188" --env "FLUX_FIRST_WORKFLOW=$first_workflow" "$@"
    set -- --volume "$root/models:/flux/models:ro" --volume "$root/models/loras:/flux/models/loras" "$@"
    # runs is writable: `save` and `stop` are touched in folders that a training makes later, and what is not there
    # yet cannot be mounted on its own
    set -- --volume "$root/output:/flux/output" --volume "$root/input:/flux/input" \
        --volume "$root/user:/flux/user" --volume "$root/runs:/flux/runs" "$@"
    say_where
    run_linked models -- "$@"
}

run_checks comfyui
if [ -n "$native" ]; then
    if [ -n "$shell" ]; then refuse "--shell is for the container: .venv/bin/activate is the environment here."; fi
    run_native "$@"
else
    make_folders models/loras output input user runs
    make_caches
    build_if_wanted
    run_in_container "$@"
fi
