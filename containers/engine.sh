# shellcheck shell=sh
# docker or podman: what it is, how it builds our images and how it runs them.
# Uses from the launcher: root, role (train or comfyui), dry_run, cpu, DOCKER.

engine=${DOCKER:-docker}
image=flux-dreambooth-$role
seconds_to_stop=900 # the state of a rank-256 run is 25 GB; a slow disk needs minutes for it

is_podman() {
    case ${engine##*/} in podman*) true ;; *) false ;; esac
}

is_rootless_docker() {
    "$engine" info --format '{{.SecurityOptions}}' 2>/dev/null | grep -q rootless
}

# Who the files will belong to: the caller, also under sudo. The root of a rootless docker is the caller.
owner() {
    if ! is_podman && is_rootless_docker; then
        echo 0:0
    else
        echo "${SUDO_UID:-$(id -u)}:${SUDO_GID:-$(id -g)}"
    fi
}

# A folder that is mounted has to be there first, or the daemon makes it and it belongs to root.
make_folders() {
    [ -n "$dry_run" ] && return
    for folder; do
        [ -d "$root/$folder" ] && continue
        mkdir -p "$root/$folder"
        [ -z "${SUDO_UID:-}" ] || chown "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$root/$folder"
    done
}

absolute() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

# What torch.compile makes outlives the container here, where the trainer keeps it too, unless the caller has folders for it.
compiled=flux_data/.cache/compiled
inductor_cache=$(absolute "${TORCHINDUCTOR_CACHE_DIR:-$root/$compiled/inductor}")
triton_cache=$(absolute "${TRITON_CACHE_DIR:-$root/$compiled/triton}")

make_caches() {
    make_folders flux_data flux_data/.cache "$compiled" "$compiled/inductor" "$compiled/triton"
    [ -n "$dry_run" ] || mkdir -p "$inductor_cache" "$triton_cache"
}

image_is_there() { "$engine" image inspect "$image" >/dev/null 2>&1; }

# What the image is made of, as one number: tells whether it is older than the files.
sources_sum() {
    (
        cd "$root" || exit
        find "Dockerfile.$dockerfile" containers trainer mini custom_nodes workflows models/mini \
            pyproject.toml constraints.txt -type f ! -name '*.pyc' 2>/dev/null |
            LC_ALL=C sort | while IFS= read -r file; do cksum "$file"; done | cksum | cut -d' ' -f1
    )
}

image_is_current() {
    label=$("$engine" image inspect --format '{{index .Config.Labels "flux-dreambooth.sources"}}' "$image" 2>/dev/null)
    [ "$label" = "$(sources_sum)" ]
}

# BASE chooses another base image, COMFYUI_DIR a local ComfyUI for a build without network.
build_image() {
    set -- --tag "$image" --file "$root/Dockerfile.$dockerfile" "$root"
    [ -z "${BASE:-}" ] || set -- --build-arg "BASE=$BASE" "$@"
    [ "$role" != comfyui ] || [ -z "${COMFYUI_DIR:-}" ] || set -- --build-context "comfyui=$COMFYUI_DIR" "$@"
    revision=$(git -C "$root" rev-parse HEAD 2>/dev/null) || revision=unknown
    set -- --build-arg "REVISION=$revision" --build-arg "SOURCES=$(sources_sum)" "$@"
    ! is_podman || set -- --format docker "$@" # podman's own format has no HEALTHCHECK
    perform "$engine" build "$@" || refuse "The image could not be built; the lines above say why."
}

build_if_wanted() {
    if [ -n "$build" ]; then
        build_image
    elif [ -z "$dry_run" ] && ! image_is_there; then
        say "Building the image $image. The base image is large: the first time takes a while."
        build_image
    elif [ -z "$dry_run" ] && ! image_is_current; then
        say "Note: the image is older than the files here. --build renews it, in seconds when only code changed."
    fi
}

# Large files often lie on another disk and are linked here: what a link leads to is mounted where it points.
# run_linked FOLDER... -- ARGUMENT...: adds those mounts and the compiler's, then goes on to run_container.
run_linked() {
    folders=''
    while [ "$1" != -- ]; do folders="$folders $1" && shift; done
    shift
    for folder in $folders; do
        for link in "$root/$folder"/* "$root/$folder"/*/*; do
            # loras has a mount of its own
            if [ -L "$link" ] && [ -e "$link" ] && [ "$link" != "$root/models/loras" ]; then
                set -- --volume "$(readlink -f "$link"):$(place_of "$link"):ro" "$@"
            fi
        done
    done
    set -- --volume "$inductor_cache:/flux/.cache/compile/inductor" \
        --volume "$triton_cache:/flux/.cache/compile/triton" "$@"
    run_container "$@"
}

# Where a link under the repository leads to, as seen from /flux in the container.
place_of() {
    pointed=$(readlink "$1")
    inside=/flux${1#"$root"}
    case $pointed in
        /*) printf '%s' "$pointed" ;;
        *) printf '%s/%s' "${inside%/*}" "$pointed" ;;
    esac
}

# run_container OPTION... IMAGE PROGRAM...: what every container of ours is run with.
run_container() {
    set -- --env "HOME=/home/flux" --env "USER=${USER:-flux}" "$@"
    set -- --label "flux-dreambooth=$role" --name "flux-$role-$$" --user "$(owner)" "$@"
    set -- --ipc=host --init --ulimit memlock=-1 --ulimit stack=67108864 --stop-timeout "$seconds_to_stop" "$@"
    if is_podman; then
        set -- --security-opt label=disable "$@"
        [ "$(id -u)" -eq 0 ] || set -- --userns=keep-id "$@"
    fi
    if [ -z "$cpu" ]; then
        if is_podman; then set -- --device nvidia.com/gpu=all "$@"; else set -- --gpus all "$@"; fi
        set -- --label flux-dreambooth.gpu=yes "$@"
    fi
    if [ -t 0 ] && [ -t 1 ]; then set -- --interactive --tty "$@"; fi
    perform_last "$engine" run --rm "$@"
}
