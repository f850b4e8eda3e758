# shellcheck shell=sh
# What has to be right before a container starts. Each check adds its fault; all are said in one message.

check_engine() {
    if ! command -v "$engine" >/dev/null 2>&1; then
        fault "$engine is not installed." "https://docs.docker.com/engine/install, or --native to do without"
        return 1
    fi
    answer=$("$engine" info 2>&1 >/dev/null) && return
    case $answer in
        *[Pp]ermission\ denied*)
            fault "You may not use $engine yet." "sudo usermod -aG docker ${USER:-$(id -un)}" \
                "newgrp docker                      (or log out and in again)"
            ;;
        *) fault "The daemon of $engine does not answer." "sudo systemctl start docker" "$(first_line "$answer")" ;;
    esac
    return 1
}

first_line() { printf '%s\n' "$1" | sed -n 1p; }

check_gpu() {
    [ -z "$cpu" ] || return 0
    if has_gpu; then return; fi
    if [ -n "$demo" ]; then
        say "No NVIDIA GPU can be used here: the demo runs on the processor."
        cpu=yes
    elif ! has_driver; then
        fault "No NVIDIA driver answers (nvidia-smi)." "install the driver, or --cpu to do without a GPU"
    else
        fault "$engine has no NVIDIA runtime." "sudo apt-get install -y nvidia-container-toolkit" \
            "$(runtime_remedy)" "or --cpu to do without a GPU"
    fi
}

has_driver() { nvidia-smi -L >/dev/null 2>&1; }
has_gpu() { has_driver && { [ -n "$native" ] || has_runtime; }; }

has_runtime() {
    if is_podman; then
        nvidia-ctk cdi list 2>/dev/null | grep -q nvidia.com/gpu
    else
        "$engine" info --format '{{json .Runtimes}}' 2>/dev/null | grep -q nvidia ||
            command -v nvidia-container-runtime-hook >/dev/null 2>&1
    fi
}

runtime_remedy() {
    if is_podman; then
        echo "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    else
        echo "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
    fi
}

check_other_containers() {
    [ -z "$cpu" ] || return 0
    others=$("$engine" ps --filter label=flux-dreambooth.gpu=yes --format '{{.Names}}' 2>/dev/null)
    for other in $others; do
        fault "$other is using the GPU." "$engine stop $other            (it saves what it has first)"
    done
}

check_port() {
    holder=$(port_holder "$1") || return 0
    free=$(($1 + 1))
    while port_holder "$free" >/dev/null; do free=$((free + 1)); done
    fault "Port $1 is taken by $holder." "stop that, or --port $free"
}

# Who listens on a port; fails when nobody does.
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

# check_memory GIB_WHERE_THE_GPU_HAS_ITS_OWN GIB_WHERE_IT_SHARES_THE_HOST'S
check_memory() {
    needed=$1
    if [ -z "$cpu" ] && shares_memory; then needed=$2; fi
    available=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' "${MEMINFO:-/proc/meminfo}" 2>/dev/null)
    [ "${available:-$needed}" -lt "$needed" ] || return 0
    fault "$available GiB of memory are free, about $needed are needed." "these hold most: $(largest_processes)" \
        "sync && echo 3 | sudo tee /proc/sys/vm/drop_caches      (file caches, where the GPU shares the memory)"
}

# DGX Spark and other machines whose GPU has no memory of its own.
shares_memory() { nvidia-smi --query-gpu=memory.total --format=csv,noheader 2>/dev/null | grep -qi 'n/a\|not supported'; }

largest_processes() {
    ps -eo rss=,pid=,comm= 2>/dev/null | sort -rn |
        awk 'NR <= 3 { printf "%s%s (process %s, %.1f GiB)", (NR > 1 ? ", " : ""), $3, $2, $1 / 1048576 }'
}

# check_disk FOLDER GIB WHAT_TO_FREE
check_disk() {
    [ -d "$1" ] || return 0
    free=$(df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "${free:-$2}" -lt "$2" ] || return 0
    fault "$1 has $free GiB free, about $2 are needed." "$3"
}

# Room for an image that is still to be built.
check_disk_for_image() {
    image_is_there && return
    place=$("$engine" info --format '{{.DockerRootDir}}' 2>/dev/null)
    check_disk "${place:-/var/lib/docker}" 40 "$engine system prune            (images and layers that nothing uses)"
}

# What earlier programs wrote as root cannot be written to by a container that is you.
check_writable() {
    for folder; do
        if [ ! -d "$root/$folder" ] || [ -w "$root/$folder" ]; then continue; fi
        fault "$folder cannot be written to by you." "sudo chown -R $(id -u):$(id -g) '$root/$folder'"
    done
}

check_place() {
    case $root in *:*) fault "The path $root has a colon, which a mount cannot." "move this folder" ;; esac
}
