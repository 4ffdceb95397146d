# SPDX-License-Identifier: Apache-2.0
"""Commands and options of docker, virsh, machinectl and systemctl for what hypemanctl calls otherwise.

No aliases: a script that was written for another program expects its output too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hypemand.cli.commands import list_group
from hypemand.unitnames import handle_name, unit_name

# What to type instead, by what was typed; a word that is a command has no row.
COMMAND_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("ps", "ls", "list-units", "list-machines"), "hypemanctl list"),
    **dict.fromkeys(("info", "inspect", "dumpxml", "dominfo", "cat"), "hypemanctl show NAME"),
    **dict.fromkeys(("stats", "monitor"), "hypemanctl top"),
    **dict.fromkeys(("log", "journal", "journalctl"), "hypemanctl logs NAME"),
    **dict.fromkeys(("create", "launch", "spawn"), "hypemanctl run -d IMAGE"),
    **dict.fromkeys(("define", "up", "daemon-reload"), "hypemanctl reload"),
    **dict.fromkeys(("domrename", "mv", "move"), "hypemanctl rename NAME NEW"),
    **dict.fromkeys(("delete", "remove", "undefine"), "hypemanctl rm NAME"),
    **dict.fromkeys(("shutdown", "poweroff", "down", "halt"), "hypemanctl stop NAME"),
    **dict.fromkeys(("destroy", "terminate"), "hypemanctl kill NAME"),
    "managedsave-remove": "hypemanctl start --cold NAME",
    "reboot": "hypemanctl restart NAME",
    **dict.fromkeys(("suspend", "freeze"), "hypemanctl pause NAME"),
    **dict.fromkeys(("managedsave", "hibernate"), "hypemanctl standby NAME"),
    **dict.fromkeys(("unpause", "thaw"), "hypemanctl resume NAME"),
    **dict.fromkeys(("console", "enter", "login", "ssh"), "hypemanctl shell NAME"),
    **dict.fromkeys(("copy", "copy-to", "copy-from", "scp"), "hypemanctl cp SRC DST"),
    "images": "hypemanctl image list",
    "pull": "hypemanctl image pull IMAGE",
    "rmi": "hypemanctl image rm IMAGE",
    "load": "hypemanctl image import IMAGE PATH",
    "save": "hypemanctl image export IMAGE FILE",
    "tag": "hypemanctl image tag IMAGE NAME",
    **dict.fromkeys(("prune", "clean"), "hypemanctl image prune"),
    "system": "hypemanctl df",
    "volumes": "hypemanctl volume list",
    "networks": "hypemanctl network list",
    "tokens": "hypemanctl token list",
    "verify": "hypemanctl check",
    **dict.fromkeys(
        ("enable", "disable", "is-enabled", "mask", "unmask"), f"systemctl {{word}} {handle_name('NAME')}"
    ),
    **dict.fromkeys(("is-active", "is-failed"), f"systemctl {{word}} {unit_name('NAME')}"),
}
# The same behind the first word of a group.
SUBCOMMAND_HINTS: Mapping[str, str] = {
    **dict.fromkeys(("ls", "ps"), "list"),
    **dict.fromkeys(("remove", "delete"), "rm"),
    **dict.fromkeys(("show", "info"), "inspect"),
    "load": "import",
    "save": "export",
    "grow": "resize",
}
_IN_A_DEFINITION = "write {key} in a definition, see hypemand.vm(5)"
_ALL = "hypemanctl list shows all VMs"
# What to do instead, by the command and its option.
OPTION_HINTS: Mapping[str, Mapping[str, str]] = {
    "run": {
        "--mount": "use --volume",
        **dict.fromkeys(
            ("-c", "--cpus", "--cpu", "--smp"), "use --vcpus: --cpu-limit is the limit of CPU time"
        ),
        **dict.fromkeys(("--mem", "--ram"), "use --memory"),
        **dict.fromkeys(("--hostname", "--container-name"), "use --name: the VM has it as its host name"),
        **dict.fromkeys(("-l", "--label"), "use --tag KEY=VALUE"),
        **dict.fromkeys(("--net", "--bridge"), "use --network"),
        **dict.fromkeys(("--ip", "--ip6"), "use --address"),
        "--mac-address": _IN_A_DEFINITION.format(key="network.mac"),
        "--expose": "use --publish",
        "--storage-opt": "use --disk",
        "--stop-grace-period": "use --stop-timeout",
    },
    "list": dict.fromkeys(("-a", "--all"), _ALL),
    "logs": {
        "--tail": "use --lines",
        "-t": "use --timestamps",
        **dict.fromkeys(("--until", "-u"), f"use: journalctl -u {unit_name('NAME')}"),
    },
    "exec": {"--workingdir": "use --workdir"},
    "stop": dict.fromkeys(("-t", "--time"), "use --timeout"),
    "restart": dict.fromkeys(("-t", "--time"), "use hypemanctl stop --timeout TIME NAME, then start it"),
    "start": {
        **dict.fromkeys(("-a", "-i", "--attach"), "use hypemanctl start NAME, then: hypemanctl attach NAME"),
        "--force-boot": "use --cold",
    },
    "rm": dict.fromkeys(("-v", "--volumes"), "volumes are kept: hypemanctl volume rm VOLUME"),
}


def find_command_hint(words: Sequence[str]) -> str:
    """What to type instead of `words`, a command or a group and its command, which there is not; or ""."""
    if len(words) == 1:
        return COMMAND_HINTS.get(words[0], "").replace("{word}", words[0])
    *group, word = words
    right = (*group, SUBCOMMAND_HINTS.get(word, ""))
    return f"hypemanctl {' '.join(right)}" if right in {c.path for c in list_group(*group)} else ""


def find_option_hints(command: str, words: Sequence[str]) -> Iterator[str]:
    """What to do instead of options among `words` that the command has not, each once."""
    hints = OPTION_HINTS.get(command, {})
    found: dict[str, None] = {}
    for word in words:
        # -l and --label with a value behind it
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        if hint := hints.get(word) or hints.get(name):
            found[hint] = None
    yield from found
