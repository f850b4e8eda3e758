# shellcheck shell=sh
# How the launchers speak: notices, faults gathered into one message, commands as they could be typed.

faults=''
number_of_faults=0

say() { printf '%s\n' "$*" >&2; }

# fault WHAT REMEDY...: remembered; `stop_at_faults` says all of them at once. A remedy is one line each.
fault() {
    number_of_faults=$((number_of_faults + 1))
    faults="$faults  $number_of_faults. $1
"
    shift
    for remedy; do
        faults="$faults         $remedy
"
    done
}

stop_at_faults() {
    [ "$number_of_faults" -eq 0 ] && return
    things=things
    [ "$number_of_faults" -eq 1 ] && things=thing
    say "$number_of_faults $things to mend before this can start:"
    printf '%s' "$faults" >&2
    [ -n "${1:-}" ] && say "$1"
    exit 1
}

refuse() {
    say "$1"
    exit 2
}

# The words as a shell would read them back.
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

# Run a command, or with --dry-run only show it.
perform() {
    if [ -n "$dry_run" ]; then quoted "$@"; else "$@"; fi
}

# As `perform`, in place of this shell: signals then reach the program and nothing in between.
perform_last() {
    if [ -n "$dry_run" ]; then quoted "$@"; else exec "$@"; fi
}
