# shellcheck shell=sh
# The shared part of launch_train.sh, launch_comfyui.sh and download.sh: options, messages and the order of a start.
#
# A script first sets: root, role (train or comfyui), dockerfile, folders (what the program writes, under root),
# links (folders whose symbolic links are mounted too) and variables (environment variables to pass on).
# A launcher then defines takes_value, own_option, role_checks and main, and ends with: read_options "$@"

: "${root:?}" "${role:?}" "${dockerfile:?}"
python=$root/.venv/bin/python
demo='' cpu='' build='' shell='' native='' skip_checks='' dry_run=''
shares_gpu='' # yes for a program that uses the GPU only now and then, and asks others first
problems='' num_problems=0

# shellcheck source=containers/engine.sh
. "$root/containers/engine.sh"
# shellcheck source=containers/preflight.sh
. "$root/containers/preflight.sh"

# Removes the launcher's own options from the arguments and calls `main` with the rest.
# Each word moves from the front of "$@" to the back, or is dropped.
read_options() {
    left=$#
    help_is_ours=yes # until a command such as `sample` has been named: `sample --help` is the program's
    while [ "$left" -gt 0 ]; do
        word=$1
        shift
        left=$((left - 1))
        [ "$word" != -- ] || break
        if takes_value "$word" "${1:-}"; then
            [ "$left" -gt 0 ] || refuse "$word needs a value."
            word=$word=$1
            shift
            left=$((left - 1))
        fi
        case $word in
            --help | -h) [ -z "$help_is_ours" ] || { help && exit; } ;;
            --demo) demo=yes && continue ;;
            --cpu) cpu=yes && continue ;;
            --build) build=yes && continue ;;
            --shell) shell=yes && continue ;;
            --native) native=yes && continue ;;
            --skip-checks) skip_checks=yes && continue ;;
            --dry-run) dry_run=yes && continue ;;
        esac
        if own_option "$word"; then continue; fi
        case $word in -*) ;; *) help_is_ours='' ;; esac
        set -- "$@" "$word"
    done
    while [ "$left" -gt 0 ]; do
        set -- "$@" "$1"
        shift
        left=$((left - 1))
    done
    if [ -n "$native" ] && [ -n "$shell" ]; then
        refuse "--shell opens a shell in the container. Without a container, use: . .venv/bin/activate"
    fi
    main "$@"
}

# All checks before a start. The program itself checks settings, images and model files.
run_checks() {
    [ -z "$dry_run$skip_checks" ] || return 0
    if [ -n "$native" ]; then
        [ -x "$python" ] || problem "There is no virtual environment in this folder." "make -C '$root' setup"
        check_gpu
    else
        check_path
        if check_engine; then
            check_gpu
            check_other_containers
            check_disk_for_image
        fi
        check_writable
        check_visible "$@"
    fi
    role_checks "$@"
    stop_at_problems
}

say() { printf '%s\n' "$*" >&2; }

refuse() {
    say "$1"
    exit 2
}

# problem WHAT FIX...: records a problem; `stop_at_problems` prints all of them together. Each FIX is one line.
problem() {
    num_problems=$((num_problems + 1))
    problems="$problems  $num_problems. $1
"
    shift
    for fix; do
        problems="$problems         $fix
"
    done
}

stop_at_problems() {
    case $num_problems in
        0) return ;;
        1) say "1 problem found:" ;;
        *) say "$num_problems problems found:" ;;
    esac
    printf '%s' "$problems" >&2
    say "(--skip-checks starts anyway)"
    exit 1
}

# Prints a command so that a shell reads the same words back.
quoted() {
    line=''
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        line="$line${line:+ }$word"
    done
    printf '%s\n' "$line"
}

# Runs a command; with --dry-run, prints it.
perform() {
    if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

# Like `perform`, but replaces this shell, so that signals reach the program directly.
perform_last() {
    if [ -n "$dry_run" ]; then quoted "$@"; else exec "$@"; fi
}
