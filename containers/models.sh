# shellcheck shell=sh
# Model files: there, and whole. Only sizes and headers are read; `sh download.sh --verify` reads everything.

# check_models FILE...: paths relative to the repository.
check_models() {
    missing='' small=''
    for file; do
        place=$root/$file
        case $file:$native in
            /*:) fault "$file is not seen in a container." "link it into models/ and name it from there" && continue ;;
            /*) place=$file ;;
        esac
        flaw=$(flaw_of "$place")
        case $flaw:$file in
            :*) ;;
            *:models/mini/*) small="$small${small:+, }${file#models/mini/} $flaw" ;;
            *) missing="$missing${missing:+, }$file $flaw" ;;
        esac
    done
    [ -z "$missing" ] || fault "Model files: $missing." "sh download.sh"
    [ -z "$small" ] || fault "The small model in models/mini: $small." "git pull                 $small_remedy"
}

small_remedy="(it comes with the repository)"

# What --demo needs, and FILE... of the same folder.
check_small_model() {
    if [ ! -e "$root/models/mini/flux1-mini.safetensors" ]; then
        fault "There is no small model in models/mini yet." "git pull                 $small_remedy"
        return
    fi
    for file; do
        shift
        set -- "$@" "models/mini/$file"
    done
    for name in flux1 ae clip_l t5; do set -- "$@" "models/mini/$name-mini.safetensors"; done
    check_models "$@" models/mini/tokenizers/tokenizer models/mini/tokenizers/tokenizer_2
}

# "is missing", "cannot be read by you", "is cut short" or nothing.
flaw_of() {
    if [ ! -s "$1" ]; then
        echo 'is missing'
    elif [ ! -r "$1" ]; then
        echo 'cannot be read by you'
    elif [ "${1##*.}" = safetensors ] && ! is_whole "$1"; then
        echo 'is cut short'
    fi
}

# A safetensors file is 8 bytes of header length, the header, and the tensors up to the last one's end.
is_whole() {
    header=$(od -An -tu8 -N8 "$1" | tr -d ' ')
    size=$(($(wc -c <"$1")))
    if [ "${#header}" -gt 9 ] || [ "$header" -gt "$size" ]; then return 1; fi
    tensors=$(tail -c +9 "$1" | head -c "$header" | tr -d ' \n' | tr ']' '\n' |
        awk -F, '/"data_offsets":\[/ && $NF + 0 > end { end = $NF + 0 } END { printf "%.0f", end }')
    [ "$size" -eq $((8 + header + tensors)) ]
}

# value_of KEY FILE.toml: a setting of the form KEY = "value".
value_of() { sed -n "s/^$1[[:space:]]*=[[:space:]]*[\"']\([^\"']*\)[\"'].*/\1/p" "$2" 2>/dev/null | sed -n 1p; }

# check_listed_models LINES: one path a line, since paths may have spaces.
check_listed_models() {
    lines=$1
    set --
    while IFS= read -r model; do
        [ -z "$model" ] || set -- "$@" "$model"
    done <<END
$lines
END
    check_models "$@"
}
