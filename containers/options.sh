# shellcheck shell=sh
# What both launchers are asked in the same words, and how they find their helpers.

demo='' cpu='' build='' shell='' native='' skip_checks='' dry_run=''

# common_option WORD: remembers it; fails when it is not one of these.
common_option() {
    case $1 in
        --demo) demo=yes ;;
        --cpu) cpu=yes ;;
        --build) build=yes ;;
        --shell) shell=yes ;;
        --native) native=yes ;;
        --skip-checks) skip_checks=yes ;;
        --dry-run) dry_run=yes ;;
        *) return 1 ;;
    esac
}

# setting KEY ARGUMENT...: the last --KEY=VALUE or --KEY VALUE among the arguments, or nothing.
setting() {
    key=$1 found='' before=''
    shift
    for argument; do
        case $argument in
            "--$key="*) found=${argument#*=} ;;
            *) [ "$before" != "--$key" ] || found=$argument ;;
        esac
        before=$argument
    done
    printf '%s' "$found"
}

# In order: what a launcher looks at before it starts. Its own checks are in `role_checks`.
run_checks() {
    if [ -n "$dry_run" ] || [ -n "$skip_checks" ]; then return; fi
    check_place
    if [ -n "$native" ]; then
        check_native
        check_gpu
    elif check_engine; then
        check_gpu
        check_other_containers
        check_disk_for_image
    fi
    role_checks "$@"
    stop_at_faults "(--skip-checks starts all the same)"
}
