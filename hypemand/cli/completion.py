# SPDX-License-Identifier: Apache-2.0
"""Completion for bash and zsh, written from the table of commands.

`python3 -m hypemand.cli.completion bash|zsh` prints the file that the package installs.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Iterator

from hypemand.cli.commands import COMMANDS, list_groups, list_next
from hypemand.cli.options import COMMON_OPTIONS, GLOBAL_OPTIONS, STATES
from hypemand.cli.spec import Argument, Command, Completes, Option

_SIGNALS = ("HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "CONT", "STOP")
_WORDS = {
    Completes.STATE: STATES,
    Completes.SIGNAL: _SIGNALS,
}
_LISTERS = {
    Completes.VM: "list -q",
    Completes.IMAGE: "image list -q",
    Completes.VOLUME: "volume list -q",
    Completes.NETWORK: "network list -q",
    Completes.SNAPSHOT: "snapshot list -q",
    Completes.TEMPLATE: "template list -q",
}

_BASH_HEAD = """\
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
"""
_BASH_TAIL = """\
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
                elif [[ -n $(_hypemanctl_options "$command ${words[i]}") ]] ||
                    [[ $(_hypemanctl_argument "$command ${words[i]}") == below-* ]]; then
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
        _hypemanctl_offer < <(_hypemanctl_options "$command" | tr ' ' '\\n')
    else
        _hypemanctl_complete "$(_hypemanctl_argument "$command")"
    fi
}

complete -F _hypemanctl hypemanctl
"""


def format_bash() -> str:
    """The completion file for bash."""
    return "".join(
        [
            _BASH_HEAD,
            *_bash_kinds(),
            "    esac\n}\n\n",
            *_bash_function("options", "The options of a command.", "$1", _bash_options()),
            *_bash_function("value", "What is offered for the value of an option.", "$1 $2", _bash_values()),
            *_bash_function("argument", "What is offered for an argument.", "$1", _bash_arguments()),
            _BASH_TAIL,
        ]
    )


def _bash_kinds() -> Iterator[str]:
    for kind, words in _WORDS.items():
        yield f"        {kind}) _hypemanctl_offer < <(printf '%s\\n' {' '.join(words)}) ;;\n"
    for kind, lister in _LISTERS.items():
        yield f"        {kind}) _hypemanctl_offer < <(_hypemanctl_ask {lister}) ;;\n"
    for group in list_groups():
        below = " ".join(list_next(group))
        both = "; _hypemanctl_complete vm" if any(c.path == group for c in COMMANDS) else ""
        pattern = f"below-{'-'.join(group)}"
        yield f"        {pattern}) _hypemanctl_offer < <(printf '%s\\n' {below}){both} ;;\n"
    yield "        words\\ *) _hypemanctl_offer < <(tr ' ' '\\n' <<<\"${1#words }\") ;;\n"
    firsts = " ".join(_first_words())
    yield f"        command) _hypemanctl_offer < <(printf '%s\\n' {firsts}) ;;\n"
    yield '        file) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;\n'
    yield "        definition) _hypemanctl_complete file; _hypemanctl_complete vm ;;\n"


def _bash_function(name: str, comment: str, subject: str, cases: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f'# {comment}\n_hypemanctl_{name}() {{\n    case "{subject}" in\n'
    for pattern, words in cases:
        yield f"        {pattern}) echo {shlex.quote(words)} ;;\n"
    yield "    esac\n}\n\n"


def _bash_options() -> Iterator[tuple[str, str]]:
    yield "''", _flags(GLOBAL_OPTIONS)
    for command in COMMANDS:
        yield f"'{command.name}'", _flags((*command.all_options, *COMMON_OPTIONS))


def _bash_values() -> Iterator[tuple[str, str]]:
    for command in COMMANDS:
        for option in command.all_options:
            if option.metavar is not None:
                pattern = "|".join(f"'{command.name} {flag}'" for flag in option.flags)
                yield pattern, f"words {' '.join(option.choices)}" if option.choices else option.completes
    yield "*' --socket'", Completes.FILE


def _bash_arguments() -> Iterator[tuple[str, str]]:
    yield "''", "command"
    for group in list_groups():
        yield f"'{' '.join(group)}'", f"below-{'-'.join(group)}"
    for command in COMMANDS:
        if command.arguments and command.path not in list_groups():
            yield f"'{command.name}'", _main_argument(command).completes


def _main_argument(command: Command) -> Argument:
    """The argument that is worth an offer: the first that has one."""
    offering = (a for a in command.arguments if a.completes is not Completes.NOTHING)
    return next(offering, command.arguments[0])


def _flags(options: Iterable[Option]) -> str:
    return " ".join(flag for option in options for flag in option.flags)


def _first_words() -> list[str]:
    return list(dict.fromkeys(c.path[0] for c in COMMANDS))


_ZSH_HEAD = """\
#compdef hypemanctl
# SPDX-License-Identifier: Apache-2.0
# Completion of hypemanctl for zsh. Written by hypemand.cli.completion from the table of commands.

_hypemanctl_ask() {
    local -a found
    found=("${(@f)$(hypemanctl ${opt_args[--socket]:+--socket=${opt_args[--socket]}} "$@" 2>/dev/null)}")
    compadd -a found
}

"""
_ZSH_TAIL = """\
_hypemanctl() {
    local curcontext=$curcontext state line
    typeset -A opt_args
    local command
    _arguments -C \\
%s        '1: :->command' \\
        '*:: :->arguments' && return
    case $state in
        command) _hypemanctl_commands ;;
        arguments)
            command=$words[1]
            while (( $+functions[_hypemanctl-$command-$words[2]] )) && (( CURRENT > 2 )); do
                command+=-$words[2]
                shift words
                (( CURRENT-- ))
            done
            (( $+functions[_hypemanctl-$command] )) && _hypemanctl-$command
            ;;
    esac
}

_hypemanctl "$@"
"""


def format_zsh() -> str:
    """The completion file for zsh."""
    options = "".join(f"        {_zsh_option(o)} \\\n" for o in GLOBAL_OPTIONS)
    return "".join(
        [_ZSH_HEAD, *_zsh_commands(), *map(_zsh_command, COMMANDS), *_zsh_groups(), _ZSH_TAIL % options]
    )


def _zsh_commands() -> Iterator[str]:
    yield "_hypemanctl_commands() {\n    local -a commands=(\n"
    for word in _first_words():
        command = next((c for c in COMMANDS if c.path == (word,)), None)
        text = command.help if command else f"commands for a{'n' if word[0] in 'aeiou' else ''} {word}"
        yield f"        {shlex.quote(f'{word}:{text}')}\n"
    yield "    )\n    _describe command commands\n}\n\n"


def _zsh_command(command: Command) -> str:
    parts = [_zsh_option(option) for option in (*command.all_options, *COMMON_OPTIONS)]
    parts += [_zsh_argument(command, number, a) for number, a in enumerate(command.arguments, 1)]
    lines = " \\\n        ".join(parts)
    return f"_hypemanctl-{'-'.join(command.path)}() {{\n    _arguments -S \\\n        {lines}\n}}\n\n"


def _zsh_groups() -> Iterator[str]:
    """Functions for first words that are no command by themselves."""
    for group in list_groups():
        if not any(c.path == group for c in COMMANDS):
            words = " ".join(list_next(group))
            yield f"_hypemanctl-{'-'.join(group)}() {{\n    _values command {words}\n}}\n\n"


def _zsh_option(option: Option) -> str:
    flags = " ".join(option.flags)
    # Given once, an option and its other spelling are offered no more.
    exclusion = "'*'" if option.repeat else f"'({flags})'" if len(option.flags) > 1 else ""
    spelling = f"{{{','.join(option.flags)}}}" if len(option.flags) > 1 else option.flags[0]
    action = f"({' '.join(option.choices)})" if option.choices else _zsh_action(option.completes)
    value = f":{option.metavar}:{action}" if option.metavar else ""
    return f"{exclusion}{spelling}{shlex.quote(f'[{_zsh_escape(option.help)}]{value}')}"


def _zsh_argument(command: Command, number: int, argument: Argument) -> str:
    action = _zsh_action(argument.completes)
    below = " ".join(c.path[1] for c in COMMANDS if c.path[:-1] == command.path)
    if below:
        action = f"{{ compadd {below}; {action} }}"
    match argument.count:
        case "...":
            return "'*::program:_normal'"
        case "*" | "+":
            return shlex.quote(f"*:{argument.metavar}:{action}")
        case _:
            return shlex.quote(f"{number}:{argument.metavar}:{action}")


def _zsh_action(completes: Completes) -> str:
    if completes in _WORDS:
        return f"({' '.join(_WORDS[completes])})"
    if completes in _LISTERS:
        return f"_hypemanctl_ask {_LISTERS[completes]}"
    if completes is Completes.DEFINITION:
        return f"{{ _files; {_zsh_action(Completes.VM)} }}"
    return "_files" if completes is Completes.FILE else " "


def _zsh_escape(text: str) -> str:
    return text.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def main(argv: list[str]) -> int:
    """Print the file for a shell."""
    formats = {"bash": format_bash, "zsh": format_zsh}
    if len(argv) != 1 or argv[0] not in formats:
        sys.stderr.write("usage: python3 -m hypemand.cli.completion bash|zsh\n")
        return 2
    sys.stdout.write(formats[argv[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
