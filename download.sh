#!/bin/sh
# Download the model files: sh download.sh [FLAG]...; sh download.sh --help lists the flags and exit statuses.
# Runs in the project's environment if there is one, otherwise in the training image. The token comes from HF_TOKEN or
# `hf auth login`. A container receives it by name or as a file, so that no list of processes shows it.
set -u

root=$(cd "$(dirname "$0")" && pwd) || exit
role=train
dockerfile=train
links='models'
variables='HF_TOKEN HF_ENDPOINT HF_HUB_DOWNLOAD_TIMEOUT HF_HUB_ETAG_TIMEOUT
    HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy'
# shellcheck source=containers/launch.sh
. "$root/containers/launch.sh"
cpu=yes # the container needs no GPU

has_environment() {
    [ -x "$python" ] && "$python" -c '
import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, ("huggingface_hub", "torch"))))'
}

run_in_container() {
    for word; do
        case $word in
            --models[_-]dir*) refuse "The container writes to models/. --models_dir needs the environment (make setup)." ;;
        esac
    done
    make_folders models
    set -- "$image" python -m trainer download "$@"
    login=${HF_TOKEN_PATH:-${HF_HOME:-${XDG_CACHE_HOME:-${HOME:-}/.cache}/huggingface}/token}
    if [ -z "${HF_TOKEN:-}" ] && [ -r "$login" ]; then
        set -- --volume "$login:/home/flux/login:ro" --env HF_TOKEN_PATH=/home/flux/login "$@"
    fi
    run_container '' --env "HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}" --volume "$root/models:/flux/models" "$@"
}

if has_environment; then
    cd "$root" || exit
    exec "$python" -m trainer download "$@"
fi
if command -v "$engine" >/dev/null 2>&1 && has_image; then
    run_in_container "$@"
else
    say "There is neither the project's environment nor the training image. Create one of them, then run this again:"
    say "    make -C $(quoted "$root") setup            needs Python 3.11 or newer"
    say "    sh $(quoted "$root/launch_train.sh") --demo    needs Docker; builds the image and runs the demo"
    exit 127
fi
