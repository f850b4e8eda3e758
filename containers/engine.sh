# shellcheck shell=sh
# docker or podman: how our images are built and run.

engine=${DOCKER:-docker}
image=flux-dreambooth-$role
seconds_to_stop=900 # a rank-256 state is 25 GB, which a slow disk needs minutes to write

is_podman() {
    case ${engine##*/} in podman*) true ;; *) false ;; esac
}

# Who owns the files that a container writes: the caller, also under sudo. In rootless docker, root is the caller.
owner() {
    if ! is_podman && "$engine" info --format '{{.SecurityOptions}}' 2>/dev/null | grep -q rootless; then
        echo 0:0
    else
        echo "${SUDO_UID:-$(id -u)}:${SUDO_GID:-$(id -g)}"
    fi
}

# Creates folders before they are mounted; otherwise the daemon creates them as root.
make_folders() {
    [ -z "$dry_run" ] || return 0
    for folder; do
        [ ! -d "$root/$folder" ] || continue
        mkdir -p "$root/$folder"
        [ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$root/$folder"
    done
}

absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

# Compiled kernels outlive the container here, where the trainer keeps them too, unless the caller has folders for them.
compiled=flux_data/.cache/compiled
inductor_cache=$(absolute "${TORCHINDUCTOR_CACHE_DIR:-$root/$compiled/inductor}")
triton_cache=$(absolute "${TRITON_CACHE_DIR:-$root/$compiled/triton}")

make_caches() {
    make_folders flux_data flux_data/.cache "$compiled" "$compiled/inductor" "$compiled/triton"
    [ -n "$dry_run" ] || mkdir -p "$inductor_cache" "$triton_cache"
}

has_image() { "$engine" image inspect "$image" >/dev/null 2>&1; }

# A checksum of everything that the images contain. It is stored as a label and shows when an image is out of date.
sources_sum() {
    (
        cd "$root" || exit
        find "Dockerfile.$dockerfile" containers trainer benchmarks custom_nodes workflows models/mini \
            pyproject.toml constraints.txt -type f ! -name '*.pyc' 2>/dev/null |
            LC_ALL=C sort | while IFS= read -r file; do cksum "$file"; done | cksum | cut -d' ' -f1
    )
}

is_current() {
    label=$("$engine" image inspect --format '{{index .Config.Labels "flux-dreambooth.sources"}}' "$image" 2>/dev/null)
    [ "$label" = "$(sources_sum)" ]
}

# BASE names another base image, COMFYUI_DIR a local ComfyUI for a build without network.
build_image() {
    set -- --tag "$image" --file "$root/Dockerfile.$dockerfile" "$root"
    [ -z "${BASE:-}" ] || set -- --build-arg "BASE=$BASE" "$@"
    [ "$role" != comfyui ] || [ -z "${COMFYUI_DIR:-}" ] || set -- --build-context "comfyui=$COMFYUI_DIR" "$@"
    revision=$(git -C "$root" rev-parse HEAD 2>/dev/null) || revision=unknown
    set -- --build-arg "REVISION=$revision" --build-arg "SOURCES=$(sources_sum)" "$@"
    ! is_podman || set -- --format docker "$@" # podman's own format has no HEALTHCHECK
    perform "$engine" build "$@" || refuse "The image could not be built. The lines above say why."
}

build_if_needed() {
    if [ -n "$build" ]; then
        build_image
    elif [ -z "$dry_run" ] && ! has_image; then
        say "Building the image $image. The base image is large, so the first build takes a while."
        build_image
    elif [ -z "$dry_run" ] && ! is_current; then
        say "Note: the image is older than the files here. --build updates it, in seconds if only code has changed."
    fi
}

# What a symbolic link under the repository points to, as seen from /flux in the container.
target_inside() {
    target=$(readlink "$1")
    inside=/flux${1#"$root"}
    case $target in
        /*) printf '%s' "$target" ;;
        *) printf '%s/%s' "${inside%/*}" "$target" ;;
    esac
}

# run_launched ARGUMENT...: a launcher's container, with models read-only and the folders that the program writes.
run_launched() {
    set -- --volume "$root/models:/flux/models:ro" --volume "$inductor_cache:/flux/.cache/compile/inductor" \
        --volume "$triton_cache:/flux/.cache/compile/triton" "$@"
    for folder in $folders; do set -- --volume "$root/$folder:/flux/$folder" "$@"; done
    run_container :ro "$@"
}

# run_container MODE OPTION... IMAGE PROGRAM...: MODE (:ro or nothing) is for the targets of symbolic links, such as
# large files on another disk: they are mounted where the links point.
run_container() {
    mode=$1
    shift
    for folder in $links; do
        for link in "$root/$folder"/* "$root/$folder"/*/*; do
            if [ ! -L "$link" ] || [ ! -e "$link" ]; then continue; fi
            # a launcher mounts loras itself
            [ "$mode$link" != ":ro$root/models/loras" ] || continue
            set -- --volume "$(readlink -f "$link"):$(target_inside "$link")$mode" "$@"
        done
    done
    for variable in $variables; do
        # by name only, so that no list of processes shows the value
        if eval "[ -n \"\${$variable:-}\" ]"; then set -- --env "$variable" "$@"; fi
    done
    set -- --env "HOME=/home/flux" --env "USER=${USER:-flux}" "$@"
    set -- --label "flux-dreambooth=$role" --name "flux-$role-$$" --user "$(owner)" "$@"
    set -- --ipc=host --init --ulimit memlock=-1 --ulimit stack=67108864 --stop-timeout "$seconds_to_stop" "$@"
    if is_podman; then
        set -- --security-opt label=disable "$@"
        [ "$(id -u)" -eq 0 ] || set -- --userns=keep-id "$@"
    fi
    if [ -z "$cpu" ]; then
        if is_podman; then set -- --device nvidia.com/gpu=all "$@"; else set -- --gpus all "$@"; fi
        [ -n "$shares_gpu" ] || set -- --label flux-dreambooth.gpu=yes "$@"
    fi
    if [ -t 0 ] && [ -t 1 ]; then set -- --interactive --tty "$@"; fi
    perform_last "$engine" run --rm "$@"
}
