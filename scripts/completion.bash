# Completes tasks, options and values of scripts/inv, in bash and in zsh (docs/completion.md).
#
# Tasks and options are what Invoke says: 0.1 s. Values are names of files in profiles/ and of runs: no Python is started.

_kvm_kbuild_root=$(CDPATH= cd "$(dirname "${BASH_SOURCE[0]:-${(%):-%x}}")/.." && pwd -P)

# The names of the files with that ending in a folder of profiles/.
_kvm_kbuild_names() {
    find "$_kvm_kbuild_root/profiles/$1" -maxdepth 1 -name '*.toml' -printf '%f\n' 2>/dev/null | sed 's/\.toml$//'
}

# The ids of runs, of series too where $1 is given; the newest of each are the last.
_kvm_kbuild_runs() {
    local state=${XDG_STATE_HOME:-$HOME/.local/state}/kvm-kbuild
    printf '%s\n' latest
    find "$state/runs" ${1:+"$state/series"} -mindepth 1 -maxdepth 1 -type d -printf '%f\n' 2>/dev/null
}

# What may come behind an option, one a line; nothing: whatever files there are.
_kvm_kbuild_values() {
    case $1 in
        --profile) _kvm_kbuild_names . ;;
        --host) _kvm_kbuild_names hosts; echo all ;;
        --order) _kvm_kbuild_names orders; echo all ;;
        --rules) _kvm_kbuild_names rules ;;
        --flavour) sed -n '/^\[\[flavour\]\]/{n;s/^name = "\(.*\)".*/\1/p}' "$_kvm_kbuild_root"/profiles/*.toml | sort -u ;;
        --tree)
            sed -n 's/^\[series\."\(.*\)"\].*/debian:\1/p' "$_kvm_kbuild_root/kbuild/configure/debian.toml"
            compgen -d -- "$2"
            ;;
        --baseline) _kvm_kbuild_runs; compgen -f -- "$2" ;;
        --verdict) printf '%s\n' FAIL ERROR MISS PASS DONE SKIP ;;
        --format) printf '%s\n' text html junit ktap kcidb ;;
        --report) printf '%s\n' text= html= junit= ktap= kcidb= ;;
        --kind) printf '%s\n' trees builds packages artifacts others leftovers runs ;;
    esac
}

_kvm_kbuild() {
    local program=${1/#\~/$HOME} last=$COMP_CWORD word option='' cur start task='' candidates
    case $program in
        */*) [ "$(readlink -f "$program")" = "$_kvm_kbuild_root/scripts/inv" ] || return ;;
        *) case $PWD/ in "$_kvm_kbuild_root"/*) ;; *) return ;; esac ;;
    esac

    # A word as the user sees it: bash breaks it at each : and =.
    cur=${COMP_WORDS[last]}
    start=$last
    case $cur in : | =) cur= ;; esac
    while [ "$start" -gt 1 ]; do
        case ${COMP_WORDS[start - 1]} in
            :) cur=${COMP_WORDS[start - 2]}:$cur start=$((start - 2)) ;;
            *) break ;;
        esac
    done
    [ "${COMP_WORDS[last]}" != : ] || cur=${COMP_WORDS[last - 1]}: start=$((last - 1))
    option=${COMP_WORDS[start - 1]}
    [ "$option" != = ] || option=${COMP_WORDS[start - 2]}
    [ "${COMP_WORDS[last]}" != = ] || option=${COMP_WORDS[last - 1]}

    word=1
    while [ "$word" -lt "$start" ] && [ -z "$task" ]; do
        case ${COMP_WORDS[word]} in -* | = | :) ;; *) task=${COMP_WORDS[word]} ;; esac
        word=$((word + 1))
    done

    case $option in --*) candidates=$(_kvm_kbuild_values "$option" "$cur") ;; esac
    if [ -z "$candidates" ]; then
        case $cur:$task in
            -*:* | *:) candidates=$("$_kvm_kbuild_root/scripts/inv" --complete -- "inv ${task:+$task }$cur" 2>/dev/null) ;;
            *:report) candidates=$(_kvm_kbuild_runs series) ;;
            *:compare) candidates=$(_kvm_kbuild_runs) ;;
        esac
    fi
    local IFS=$'\n'
    COMPREPLY=($(compgen -W "$candidates" -- "$cur"))
    # What bash takes for words of their own is there already.
    case $cur in *:*) COMPREPLY=("${COMPREPLY[@]#"${cur%"${cur##*:}"}"}") ;; esac
    case ${COMPREPLY[0]} in *=) compopt -o nospace 2>/dev/null || : ;; esac
}

complete -o default -F _kvm_kbuild inv
