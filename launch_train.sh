#!/bin/sh
# Train in a container: sh launch_train.sh [OPTION]... [VERB] [FLAG]...
set -u

help() {
    cat <<'END'
Train a LoRA on your pictures, in a container that is built when it is missing.

  sh launch_train.sh                          train with flux_data/train.toml
  sh launch_train.sh --network_dim=16         the same, with a flag that wins over the file
  sh launch_train.sh check                    what is wrong, and the plan; nothing is trained
  sh launch_train.sh --resume=runs/NAME       go on

Options of this script; everything else goes to `python -m trainer`:
  --demo          train the small model that comes with the project, with or without a GPU
  --cpu           without a GPU
  --build         build the image anew (BASE=… chooses another base image)
  --shell         a shell in the container
  --native        without a container: in the virtual environment that `make setup` makes
  --skip-checks   start even though something seems to be wrong
  --dry-run       print the command and do nothing
  --help          this text; `sh launch_train.sh train --help` explains the flags
  --              what follows is not for this script

Several GPUs and machines, in accelerate's words: --num_processes (of all machines together),
--num_machines, --machine_rank, --main_process_ip, --main_process_port.

Paths are relative to this script's folder. Ctrl-C finishes the step, saves a LoRA and a state, and ends.
DOCKER=podman uses podman.
END
}

root=$(cd "$(dirname "$0")" && pwd) || exit
role=train
dockerfile=train
# shellcheck source=containers/launch.sh
. "$root/containers/launch.sh"
num_processes='' num_machines='' machine_rank='' main_process_ip='' main_process_port=''

distributed_option() {
    case $1 in
        --num_processes=*) num_processes=${1#*=} ;;
        --num_machines=*) num_machines=${1#*=} ;;
        --machine_rank=*) machine_rank=${1#*=} ;;
        --main_process_ip=*) main_process_ip=${1#*=} ;;
        --main_process_port=*) main_process_port=${1#*=} ;;
        *) return 1 ;;
    esac
}

# Takes our options out of "$@" and leaves the program's: each word goes from the front to the back, or away.
left=$#
verb_is_open=yes
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case $word in
        --) break ;;
        --help | -h) [ -z "$verb_is_open" ] || { help && exit; } ;;
        --num_processes | --num_machines | --machine_rank | --main_process_ip | --main_process_port)
            [ "$left" -gt 0 ] || refuse "$word needs a value."
            word=$word=$1
            shift
            left=$((left - 1))
            ;;
    esac
    if common_option "$word" || distributed_option "$word"; then continue; fi
    case $word in -*) ;; *) verb_is_open='' ;; esac
    set -- "$@" "$word"
done
while [ "$left" -gt 0 ]; do
    set -- "$@" "$1"
    shift
    left=$((left - 1))
done

several_machines() { [ "${num_machines:-1}" != 1 ]; }

role_checks() {
    if several_machines && { [ -z "$machine_rank" ] || [ -z "$main_process_ip" ]; }; then
        fault "Of $num_machines machines each has to know its own number and the first one's address." \
            "--machine_rank=0 there, 1, 2 … on the others, and --main_process_ip=ADDRESS on all of them"
    fi
    if [ -z "$native" ]; then check_writable models/loras runs output flux_data "$compiled"; fi
    if [ "$1" = train ]; then
        check_training_models "$@"
        check_memory 8 64
        check_disk "$root" 30 "earlier runs in runs/, and flux_data/.cache"
    fi
    if [ "$1" = demo ]; then
        check_small_model judge.safetensors prompts.json
        check_disk "$root" 2 "earlier runs in runs/, and flux_data/.cache"
    fi
}

# The four files that the flags name, or else the settings file.
check_training_models() {
    settings=$root/$(setting config_file "$@")
    [ -f "$settings" ] || { fault "There is no ${settings#"$root"/} here." "name a file of this folder" && return; }
    models=''
    for flag in pretrained_model_name_or_path ae clip_l t5xxl; do
        model=$(setting "$flag" "$@")
        models="$models${model:-$(value_of "$flag" "$settings")}
"
    done
    check_listed_models "$models"
    if [ -n "$(setting tokenizer_dir "$@")$(value_of tokenizer_dir "$settings")" ]; then return; fi
    clip_l=$(setting clip_l "$@")
    check_tokenizers "${clip_l:-$(value_of clip_l "$settings")}"
}

# Where the program looks too: at and beside the folder of clip_l.
check_tokenizers() {
    beside=${1%/*}
    for folder in "$beside/tokenizers" "$beside/../tokenizers" "$beside"; do
        case $folder in /*) ;; *) folder=$root/$folder ;; esac
        if [ -d "$folder/tokenizer" ] && [ -d "$folder/tokenizer_2" ]; then return; fi
    done
    fault "The tokenizers are missing (models/tokenizers)." "sh download.sh"
}

# One accelerate process for each GPU, or simply Python.
launched() {
    processes=${num_processes:-${num_machines:-1}}
    if [ "$processes" = 1 ] && ! several_machines; then
        "$@"
        return
    fi
    then_run=$1
    shift 4 # the function, python, -m, trainer
    set -- -m trainer "$@"
    [ -z "$main_process_port" ] || set -- "--main_process_port=$main_process_port" "$@"
    [ -z "$main_process_ip" ] || set -- "--main_process_ip=$main_process_ip" "$@"
    [ -z "$machine_rank" ] || set -- "--machine_rank=$machine_rank" "$@"
    # --multi_gpu: accelerate sees only its own machine's GPUs and would start one process where there is one
    "$then_run" python containers/several.py "--num_processes=$processes" "--num_machines=${num_machines:-1}" \
        --mixed_precision=no --dynamo_backend=no --multi_gpu "$@"
}

run_native() {
    perform cd "$root" || exit
    PATH=$root/.venv/bin:$PATH
    [ -z "$cpu" ] || set -- env CUDA_VISIBLE_DEVICES= ACCELERATE_USE_CPU=true "$@"
    make_caches
    perform_last env "TORCHINDUCTOR_CACHE_DIR=$inductor_cache" "TRITON_CACHE_DIR=$triton_cache" \
        "$python" containers/init.py "$@"
}

run_in_container() {
    set -- "$image" "$@"
    [ -z "$shell" ] || set -- --entrypoint bash "$image"
    for variable in WANDB_API_KEY NCCL_SOCKET_IFNAME NCCL_IB_HCA NCCL_IB_DISABLE NCCL_DEBUG GLOO_SOCKET_IFNAME; do
        # the name alone: the value is in nobody's list of processes
        if eval "[ -n \"\${$variable:-}\" ]"; then set -- --env "$variable" "$@"; fi
    done
    [ -z "$cpu" ] || set -- --env CUDA_VISIBLE_DEVICES= --env ACCELERATE_USE_CPU=true "$@"
    if several_machines; then
        [ ! -d /dev/infiniband ] || set -- --device /dev/infiniband "$@"
        set -- --network host "$@"
    fi
    set -- --volume "$root/models:/flux/models:ro" --volume "$root/models/loras:/flux/models/loras" "$@"
    set -- --volume "$root/flux_data:/flux/flux_data" --volume "$root/runs:/flux/runs" \
        --volume "$root/output:/flux/output" "$@"
    run_linked models flux_data -- "$@"
}

case ${1:-} in '' | -*) set -- train "$@" ;; esac
if [ -n "$demo" ]; then
    [ "$1" != train ] || shift
    set -- demo "$@"
fi
case $1 in
    train | check)
        if [ -z "$(setting config_file "$@")" ]; then
            verb=$1
            shift
            set -- "$verb" --config_file=flux_data/train.toml "$@"
        fi
        ;;
esac

run_checks "$@"
if [ -n "$native" ]; then
    if [ -n "$shell" ]; then refuse "--shell is for the container: .venv/bin/activate is the environment here."; fi
    launched run_native python -m trainer "$@"
else
    make_folders models/loras runs output
    make_caches
    build_if_wanted
    launched run_in_container python -m trainer "$@"
fi
