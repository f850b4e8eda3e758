# shellcheck shell=sh
# What must be right before a container starts. Each check records its problems; all are printed together.

check_engine() {
    if ! command -v "$engine" >/dev/null 2>&1; then
        problem "$engine is not installed." "https://docs.docker.com/engine/install, or --native to run without it"
        return 1
    fi
    answer=$("$engine" info 2>&1 >/dev/null) && return
    case $answer in
        *[Pp]ermission\ denied*)
            problem "You do not have permission to use $engine." "sudo usermod -aG docker ${USER:-$(id -un)}" \
                "newgrp docker                      (or log out and in again)"
            ;;
        *)
            problem "The $engine daemon does not answer." "sudo systemctl start docker" \
                "$(printf '%s\n' "$answer" | sed -n 1p)"
            ;;
    esac
    return 1
}

check_gpu() {
    [ -z "$cpu" ] || return 0
    if has_driver && { [ -n "$native" ] || has_runtime; }; then return; fi
    if [ -n "$demo" ]; then
        say "No usable NVIDIA GPU was found, so the demo runs on the CPU."
        cpu=yes
    elif ! has_driver; then
        problem "The NVIDIA driver does not answer (nvidia-smi)." "install the driver, or use --cpu to run without a GPU"
    elif is_podman; then
        problem "$engine has no NVIDIA runtime." "sudo apt-get install -y nvidia-container-toolkit" \
            "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml" "or use --cpu to run without a GPU"
    else
        problem "$engine has no NVIDIA runtime." "sudo apt-get install -y nvidia-container-toolkit" \
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker" \
            "or use --cpu to run without a GPU"
    fi
}

has_driver() { nvidia-smi -L >/dev/null 2>&1; }

has_runtime() {
    if is_podman; then
        nvidia-ctk cdi list 2>/dev/null | grep -q nvidia.com/gpu
    else
        "$engine" info --format '{{json .Runtimes}}' 2>/dev/null | grep -q nvidia ||
            command -v nvidia-container-runtime-hook >/dev/null 2>&1
    fi
}

check_other_containers() {
    [ -z "$cpu$shares_gpu" ] || return 0
    others=$("$engine" ps --filter label=flux-dreambooth.gpu=yes --format '{{.Names}}' 2>/dev/null)
    for other in $others; do
        problem "$other is using the GPU." "$engine stop $other            (it saves its work first)"
    done
}

check_port() {
    holder=$(port_holder "$1") || return 0
    free=$(($1 + 1))
    while port_holder "$free" >/dev/null; do free=$((free + 1)); done
    problem "Port $1 is already in use by $holder." "stop it, or use --port $free"
}

# Prints who listens on a port; fails if nobody does.
port_holder() {
    container=$("$engine" ps --filter "publish=$1" --format '{{.Names}}' 2>/dev/null | sed -n 1p)
    [ -z "$container" ] || { echo "the container $container" && return; }
    if command -v ss >/dev/null 2>&1; then
        line=$(ss -ltnpH "sport = :$1" 2>/dev/null | sed -n 1p)
        [ -n "$line" ] || return 1
        name=$(printf '%s\n' "$line" | sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1 (process \2)/p')
        echo "${name:-a program of another user (sudo ss -ltnp shows it)}"
    else
        cat /proc/net/tcp /proc/net/tcp6 2>/dev/null |
            awk -v port="$(printf ':%04X' "$1")" '$4 == "0A" && index($2, port) { found = 1 } END { exit !found }' || return 1
        echo "another program"
    fi
}

# check_memory GIB GIB_UNIFIED: host memory needed with a GPU that has its own, and with one that shares the host's.
check_memory() {
    needed=$1
    if [ -z "$cpu" ] && has_unified_memory; then needed=$2; fi
    available=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' "${MEMINFO:-/proc/meminfo}" 2>/dev/null)
    [ "${available:-$needed}" -lt "$needed" ] || return 0
    problem "Only $available GiB of memory is free, but about $needed GiB is needed." \
        "the largest processes: $(largest_processes)" \
        "sync && echo 3 | sudo tee /proc/sys/vm/drop_caches      (frees file caches, if the GPU shares the memory)"
}

# DGX Spark and other machines whose GPU has no memory of its own.
has_unified_memory() {
    nvidia-smi --query-gpu=memory.total --format=csv,noheader 2>/dev/null | grep -qi 'n/a\|not supported'
}

largest_processes() {
    ps -eo rss=,pid=,comm= 2>/dev/null | sort -rn |
        awk 'NR <= 3 { printf "%s%s (process %s, %.1f GiB)", (NR > 1 ? ", " : ""), $3, $2, $1 / 1048576 }'
}

# check_disk FOLDER GIB FIX
check_disk() {
    [ -d "$1" ] || return 0
    free=$(df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "${free:-$2}" -lt "$2" ] || return 0
    problem "$1 has only $free GiB free, but about $2 GiB is needed." "$3"
}

# Space for an image that has not been built yet.
check_disk_for_image() {
    ! has_image || return 0
    storage=$("$engine" info --format '{{.DockerRootDir}}' 2>/dev/null)
    check_disk "${storage:-/var/lib/docker}" 40 "$engine system prune            (removes unused images and layers)"
}

# Folders that belong to root, left by an earlier program: our containers run as the caller.
check_writable() {
    for folder in $folders "$compiled"; do
        if [ ! -d "$root/$folder" ] || [ -w "$root/$folder" ]; then continue; fi
        problem "You cannot write to $folder." "sudo chown -R $(id -u):$(id -g) '$root/$folder'"
    done
}

# Paths on the command line that exist here but not in the container.
check_visible() {
    for argument; do
        path=${argument#--*=}
        case $path in
            /*) [ ! -e "$path" ] || problem "The container cannot see $path." \
                "move or link it into this folder, and give its path from here, such as models/vae/ae.safetensors" ;;
        esac
    done
}

check_path() {
    case $root in *:*) problem "The path $root contains a colon, so it cannot be mounted." "move this folder" ;; esac
}
