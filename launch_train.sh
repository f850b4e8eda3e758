#!/bin/sh
# Train in a container: sh launch_train.sh [OPTION]... [COMMAND] [FLAG]...
set -u

help() {
    cat <<'END'
Train a LoRA on your images, in a container. The image is built on first use.

  sh launch_train.sh                          train with flux_data/train.toml
  sh launch_train.sh --network_dim=16         the same; a flag overrides the file
  sh launch_train.sh check                    report problems, or print the plan; nothing is trained
  sh launch_train.sh --resume=runs/NAME       resume a run
  sh launch_train.sh --serve                  wait for jobs from the page in ComfyUI, and run them in turn

Options of this script; everything else is passed to `python -m trainer`:
  --serve         take jobs from runs/queue; next to ComfyUI, with which it shares the GPU in turn
  --demo          train the tiny FLUX that comes with the project; needs no GPU
  --cpu           run without a GPU
  --build         rebuild the image (BASE=... selects another base image)
  --shell         open a shell in the container
  --native        run without a container, in the environment that `make setup` creates
  --skip-checks   start even if a check finds a problem
  --dry-run       print the command and do nothing
  --help          this text; `sh launch_train.sh train --help` explains the flags
  --              pass everything after this to the program

Several GPUs or machines, with accelerate's names: --num_processes (the total over all machines),
--num_machines, --machine_rank, --main_process_ip, --main_process_port.

Paths are relative to this script's folder. Ctrl-C finishes the current step, saves a LoRA and a state,
and exits. DOCKER=podman uses podman.
END
}

root=$(cd "$(dirname "$0")" && pwd) || exit
role=train
dockerfile=train
folders='models/loras runs output flux_data'
links='models flux_data'
variables='WANDB_API_KEY NCCL_SOCKET_IFNAME NCCL_IB_HCA NCCL_IB_DISABLE NCCL_DEBUG GLOO_SOCKET_IFNAME'
# shellcheck source=containers/launch.sh
. "$root/containers/launch.sh"
serve='' num_processes='' num_machines=1 machine_rank='' main_process_ip='' main_process_port=''

takes_value() {
    case $1 in
        --num_processes | --num_machines | --machine_rank | --main_process_ip | --main_process_port) true ;;
        *) false ;;
    esac
}

own_option() {
    case $1 in
        --serve) serve=yes shares_gpu=yes ;;
        --num_processes=*) num_processes=${1#*=} ;;
        --num_machines=*) num_machines=${1#*=} ;;
        --machine_rank=*) machine_rank=${1#*=} ;;
        --main_process_ip=*) main_process_ip=${1#*=} ;;
        --main_process_port=*) main_process_port=${1#*=} ;;
        *) return 1 ;;
    esac
}

role_checks() {
    if [ "$num_machines" != 1 ] && { [ -z "$machine_rank" ] || [ -z "$main_process_ip" ]; }; then
        problem "With $num_machines machines, each needs its own number and the address of the first one." \
            "--machine_rank=0 on the first, 1, 2 ... on the others, and --main_process_ip=ADDRESS on all of them"
    fi
    [ "$1" != train ] || check_memory 8 64
}

main() {
    case ${1:-} in '' | -*) set -- train "$@" ;; esac
    if [ -n "$serve" ]; then
        [ -z "$demo" ] || refuse "--serve takes jobs, and --demo trains at once. --cpu --serve trains without a GPU."
        [ "$num_machines" = 1 ] || refuse "--serve trains on one machine."
        [ "$1" != train ] || shift
        set -- serve ${num_processes:+"--num_processes=$num_processes"} "$@"
        num_processes=''
    fi
    if [ -n "$demo" ]; then
        [ "$1" != train ] || shift
        set -- demo "$@"
    fi
    case "$1 $*" in
        *' --config_file='* | *' --config_file '*) ;;
        train\ * | check\ *)
            command=$1
            shift
            set -- "$command" --config_file=flux_data/train.toml "$@"
            ;;
    esac
    run_checks "$@"
    make_caches
    set -- python -m trainer "$@"
    if [ "${num_processes:-$num_machines}:$num_machines" != 1:1 ]; then
        set -- "--num_processes=${num_processes:-$num_machines}" "--num_machines=$num_machines" \
            ${machine_rank:+"--machine_rank=$machine_rank"} ${main_process_ip:+"--main_process_ip=$main_process_ip"} \
            ${main_process_port:+"--main_process_port=$main_process_port"} "$@"
    fi
    if [ -n "$native" ]; then run_native "$@"; else run_in_container "$@"; fi
}

run_native() {
    perform cd "$root" || exit
    PATH=$root/.venv/bin:$PATH
    set -- "$python" containers/init.py "$@"
    [ -z "$cpu" ] || set -- CUDA_VISIBLE_DEVICES= ACCELERATE_USE_CPU=true "$@"
    perform_last env "TORCHINDUCTOR_CACHE_DIR=$inductor_cache" "TRITON_CACHE_DIR=$triton_cache" "$@"
}

run_in_container() {
    # shellcheck disable=SC2086
    make_folders $folders
    build_if_needed
    set -- "$image" "$@"
    [ -z "$shell" ] || set -- --entrypoint bash "$image"
    [ -z "$cpu" ] || set -- --env CUDA_VISIBLE_DEVICES= --env ACCELERATE_USE_CPU=true "$@"
    [ -z "$serve" ] || set -- --network host "$@" # to reach ComfyUI, which listens on the loopback address
    if [ "$num_machines" != 1 ]; then
        [ ! -d /dev/infiniband ] || set -- --device /dev/infiniband "$@"
        set -- --network host "$@"
    fi
    run_launched "$@"
}

read_options "$@"
