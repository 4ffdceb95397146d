# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# Completion of hypemanctl for bash. Written by hypemand.cli.completion from the table of commands.

# What is asked of hypemanctl itself, as `list -q`, with the socket that the command line names.
_hypemanctl_ask() {
    hypemanctl ${_hypemanctl_socket:+--socket "$_hypemanctl_socket"} "$@" 2>/dev/null
}

# Offers the words on standard input that begin with the current one. Colons are part of a word.
_hypemanctl_offer() {
    local word
    while read -r word; do
        [[ $word == "$cur"* ]] && COMPREPLY+=("$word")
    done
    __ltrim_colon_completions "$cur"
}

_hypemanctl_complete() {
    case $1 in
        state) _hypemanctl_offer < <(printf '%s\n' Created Initializing Running Paused Shutdown Stopped Standby Unknown) ;;
        source) _hypemanctl_offer < <(printf '%s\n' app vmm hypeman) ;;
        scope) _hypemanctl_offer < <(printf '%s\n' read operate admin) ;;
        mode) _hypemanctl_offer < <(printf '%s\n' auto exec systemd) ;;
        restart) _hypemanctl_offer < <(printf '%s\n' no on-failure always) ;;
        pull) _hypemanctl_offer < <(printf '%s\n' missing always never) ;;
        signal) _hypemanctl_offer < <(printf '%s\n' HUP INT QUIT KILL USR1 USR2 TERM CONT STOP) ;;
        vm) _hypemanctl_offer < <(_hypemanctl_ask list -q) ;;
        image) _hypemanctl_offer < <(_hypemanctl_ask image list -q) ;;
        volume) _hypemanctl_offer < <(_hypemanctl_ask volume list -q) ;;
        network) _hypemanctl_offer < <(_hypemanctl_ask network list -q) ;;
        below-analyze) _hypemanctl_offer < <(printf '%s\n' plot); _hypemanctl_complete vm ;;
        below-volume) _hypemanctl_offer < <(printf '%s\n' create list inspect rm resize import export) ;;
        below-network) _hypemanctl_offer < <(printf '%s\n' list inspect) ;;
        below-image) _hypemanctl_offer < <(printf '%s\n' list inspect pull tag prune export rm import) ;;
        below-token) _hypemanctl_offer < <(printf '%s\n' create list revoke) ;;
        command) _hypemanctl_offer < <(printf '%s\n' list status top show start stop restart kill pause resume rm wait run exec shell cp logs analyze volume df network image token check reload version) ;;
        file) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
        definition) _hypemanctl_complete file; _hypemanctl_complete vm ;;
    esac
}

# The options of a command.
_hypemanctl_options() {
    case "$1" in
        '') echo '-h --help --version --socket' ;;
        'list') echo '-q --quiet --no-legend --state --json -h --help --socket' ;;
        'status') echo '-n --lines --json -h --help --socket' ;;
        'top') echo '-d --delay -n --count --once --json -h --help --socket' ;;
        'show') echo '-p --property --value --json -h --help --socket' ;;
        'start') echo '--wait --timeout --pull --json -h --help --socket' ;;
        'stop') echo '--timeout --result --json -h --help --socket' ;;
        'restart') echo '--wait --timeout --pull --json -h --help --socket' ;;
        'kill') echo '-s --signal --json -h --help --socket' ;;
        'pause') echo '--json -h --help --socket' ;;
        'resume') echo '--json -h --help --socket' ;;
        'rm') echo '-f --force --json -h --help --socket' ;;
        'wait') echo '--for --timeout --json -h --help --socket' ;;
        'run') echo '--name -d --detach --rm -e --env -m --memory --vcpus --disk -w --workdir -u --user --entrypoint --pull --network -p --publish --mode --restart --boot-timeout --stop-timeout --tag --no-agent --no-kernel-headers --json -h --help --socket' ;;
        'exec') echo '-e --env -w --workdir -u --user -i --interactive -t --tty --timeout -h --help --socket' ;;
        'shell') echo '-e --env -w --workdir -u --user -h --help --socket' ;;
        'cp') echo '-a --archive -L --follow-link --json -h --help --socket' ;;
        'logs') echo '-f --follow -n --lines --all --source --timestamps --raw --json -h --help --socket' ;;
        'analyze') echo '--json -h --help --socket' ;;
        'analyze plot') echo '-h --help --socket' ;;
        'volume create') echo '--size --tag --json -h --help --socket' ;;
        'volume list') echo '-q --quiet --no-legend --json -h --help --socket' ;;
        'volume inspect') echo '--json -h --help --socket' ;;
        'volume rm') echo '--json -h --help --socket' ;;
        'volume resize') echo '--json -h --help --socket' ;;
        'volume import') echo '--size --tag --json -h --help --socket' ;;
        'volume export') echo '-h --help --socket' ;;
        'df') echo '--no-legend --json -h --help --socket' ;;
        'network list') echo '-q --quiet --no-legend --json -h --help --socket' ;;
        'network inspect') echo '--json -h --help --socket' ;;
        'image list') echo '-q --quiet --no-legend --json -h --help --socket' ;;
        'image inspect') echo '--json -h --help --socket' ;;
        'image pull') echo '-q --quiet --json -h --help --socket' ;;
        'image tag') echo '--json -h --help --socket' ;;
        'image prune') echo '-a --all --dry-run --json -h --help --socket' ;;
        'image export') echo '-h --help --socket' ;;
        'image rm') echo '--json -h --help --socket' ;;
        'image import') echo '--json -h --help --socket' ;;
        'token create') echo '--expires --scope --vm --tag --json -h --help --socket' ;;
        'token list') echo '--no-legend --json -h --help --socket' ;;
        'token revoke') echo '--json -h --help --socket' ;;
        'check') echo '--json -h --help --socket' ;;
        'reload') echo '-q --quiet --json -h --help --socket' ;;
        'version') echo '--json -h --help --socket' ;;
    esac
}

# What is offered for the value of an option.
_hypemanctl_value() {
    case "$1 $2" in
        'list --state') echo state ;;
        'status -n'|'status --lines') echo nothing ;;
        'top -d'|'top --delay') echo nothing ;;
        'top -n'|'top --count') echo nothing ;;
        'show -p'|'show --property') echo nothing ;;
        'start --timeout') echo nothing ;;
        'start --pull') echo pull ;;
        'stop --timeout') echo nothing ;;
        'restart --timeout') echo nothing ;;
        'restart --pull') echo pull ;;
        'kill -s'|'kill --signal') echo signal ;;
        'wait --for') echo state ;;
        'wait --timeout') echo nothing ;;
        'run --name') echo nothing ;;
        'run -e'|'run --env') echo nothing ;;
        'run -m'|'run --memory') echo nothing ;;
        'run --vcpus') echo nothing ;;
        'run --disk') echo nothing ;;
        'run -w'|'run --workdir') echo nothing ;;
        'run -u'|'run --user') echo nothing ;;
        'run --entrypoint') echo nothing ;;
        'run --pull') echo pull ;;
        'run --network') echo network ;;
        'run -p'|'run --publish') echo nothing ;;
        'run --mode') echo mode ;;
        'run --restart') echo restart ;;
        'run --boot-timeout') echo nothing ;;
        'run --stop-timeout') echo nothing ;;
        'run --tag') echo nothing ;;
        'exec -e'|'exec --env') echo nothing ;;
        'exec -w'|'exec --workdir') echo nothing ;;
        'exec -u'|'exec --user') echo nothing ;;
        'exec --timeout') echo nothing ;;
        'shell -e'|'shell --env') echo nothing ;;
        'shell -w'|'shell --workdir') echo nothing ;;
        'shell -u'|'shell --user') echo nothing ;;
        'logs -n'|'logs --lines') echo nothing ;;
        'logs --source') echo source ;;
        'volume create --size') echo nothing ;;
        'volume create --tag') echo nothing ;;
        'volume import --size') echo nothing ;;
        'volume import --tag') echo nothing ;;
        'token create --expires') echo nothing ;;
        'token create --scope') echo scope ;;
        'token create --vm') echo vm ;;
        'token create --tag') echo nothing ;;
        *' --socket') echo file ;;
    esac
}

# What is offered for an argument.
_hypemanctl_argument() {
    case "$1" in
        '') echo command ;;
        'analyze') echo below-analyze ;;
        'volume') echo below-volume ;;
        'network') echo below-network ;;
        'image') echo below-image ;;
        'token') echo below-token ;;
        'list') echo vm ;;
        'status') echo vm ;;
        'top') echo vm ;;
        'show') echo vm ;;
        'start') echo vm ;;
        'stop') echo vm ;;
        'restart') echo vm ;;
        'kill') echo vm ;;
        'pause') echo vm ;;
        'resume') echo vm ;;
        'rm') echo vm ;;
        'wait') echo vm ;;
        'run') echo image ;;
        'exec') echo vm ;;
        'shell') echo vm ;;
        'cp') echo file ;;
        'logs') echo vm ;;
        'analyze plot') echo vm ;;
        'volume create') echo nothing ;;
        'volume inspect') echo volume ;;
        'volume rm') echo volume ;;
        'volume resize') echo volume ;;
        'volume import') echo file ;;
        'volume export') echo volume ;;
        'network inspect') echo network ;;
        'image inspect') echo image ;;
        'image pull') echo image ;;
        'image tag') echo image ;;
        'image export') echo image ;;
        'image rm') echo image ;;
        'image import') echo file ;;
        'token create') echo nothing ;;
        'token revoke') echo nothing ;;
        'check') echo definition ;;
    esac
}

_hypemanctl() {
    local cur prev words cword command="" _hypemanctl_socket="" i
    _get_comp_words_by_ref -n := cur prev words cword
    COMPREPLY=()
    for ((i = 1; i < cword; i++)); do
        case ${words[i]} in
            --socket) _hypemanctl_socket=${words[++i]} ;;
            --socket=*) _hypemanctl_socket=${words[i]#*=} ;;
            -*) ;;
            *)
                if [[ -z $command ]]; then
                    command=${words[i]}
                elif [[ -n $(_hypemanctl_options "$command ${words[i]}") ]]; then
                    command+=" ${words[i]}"
                fi
                ;;
        esac
    done
    local kind
    kind=$(_hypemanctl_value "$command" "$prev")
    if [[ -n $kind ]]; then
        _hypemanctl_complete "$kind"
    elif [[ $cur == -* ]]; then
        _hypemanctl_offer < <(_hypemanctl_options "$command" | tr ' ' '\n')
    else
        _hypemanctl_complete "$(_hypemanctl_argument "$command")"
    fi
}

complete -F _hypemanctl hypemanctl
