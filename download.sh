#!/bin/sh
# Fetch the model files: sh download.sh [FLAG]...; sh download.sh --help lists the flags and exit statuses.
# Runs in the project's environment if there is one, else in the training image. The token is that of HF_TOKEN or of
# `hf auth login`; only its name or its file is handed on, so that it is in nobody's list of processes.
set -u

root=$(cd "$(dirname "$0")" && pwd) || exit
role=train
dockerfile=train
# shellcheck source=containers/launch.sh
. "$root/containers/launch.sh"
cpu=yes # the container needs no GPU

environment_is_there() {
    [ -x "$python" ] && "$python" -c '
import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, ("huggingface_hub", "torch"))))'
}

run_in_container() {
    for word; do
        case $word in
            --models[_-]dir*) refuse "The container writes into models/; --models_dir needs the environment (make setup)." ;;
        esac
    done
    make_folders models
    set -- "$image" python -m trainer download "$@"
    for variable in HF_TOKEN HF_ENDPOINT HF_HUB_DOWNLOAD_TIMEOUT HF_HUB_ETAG_TIMEOUT \
        HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy; do
        if eval "[ -n \"\${$variable:-}\" ]"; then set -- --env "$variable" "$@"; fi
    done
    login=${HF_TOKEN_PATH:-${HF_HOME:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/huggingface}/token}
    if [ -z "${HF_TOKEN:-}" ] && [ -r "$login" ]; then
        set -- --volume "$login:/home/flux/login:ro" --env HF_TOKEN_PATH=/home/flux/login "$@"
    fi
    # folders and files of models/ that are links to another disk
    for link in "$root"/models/* "$root"/models/*/*; do
        if [ -L "$link" ] && [ -e "$link" ]; then
            set -- --volume "$(readlink -f "$link"):$(place_of "$link")" "$@"
        fi
    done
    run_container --env "HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}" --volume "$root/models:/flux/models" "$@"
}

if environment_is_there; then
    cd "$root" || exit
    exec "$python" -m trainer download "$@"
fi
if command -v "$engine" >/dev/null 2>&1 && image_is_there; then
    run_in_container "$@"
else
    say "There is neither the project's environment nor the training image. Make one of them, then run this again:"
    say "    make -C $(quoted "$root") setup            with Python 3.11 or newer"
    say "    sh $(quoted "$root/launch_train.sh") --demo    with Docker: builds the image, and shows what it can do"
    exit 127
fi
