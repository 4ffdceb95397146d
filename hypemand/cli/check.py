# SPDX-License-Identifier: Apache-2.0
"""check: checks definitions, host configuration and host.

The daemon is asked how the networks are, and what can no longer be restored, if it is there.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from hypemand.cli.client import Client, parse_all
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import list_instances
from hypemand.cli.network import describe_trouble
from hypemand.cli.terminal import GREEN, RED, YELLOW, paint
from hypemand.cli.travel import describe_differences, describe_other_ids
from hypemand.cli.values import escape_controls
from hypemand.config.clashes import find_clashes
from hypemand.config.definition import Definition
from hypemand.config.host import DROPIN_DIRS, HOST_CONFIG, HostConfig, load_host_config
from hypemand.config.netdef import Networks
from hypemand.config.pacemaker import find_owned, find_start_problems
from hypemand.config.statedir import DEFAULT_STATE_DIR, find_uncovered_pools, find_uncovered_problem
from hypemand.config.templates import parse_file_name
from hypemand.config.vmfile import (
    SUFFIXES,
    VmDir,
    list_definition_files,
    list_links,
    list_templates,
    load_template,
    load_vm_dir,
    load_vm_file,
    say_how_to_link,
)
from hypemand.errors import HypemandError, InvalidDefinition, Problem
from hypemand.model.answers.instance import Instance
from hypemand.model.answers.network import HostNetwork
from hypemand.model.answers.snapshot import Snapshot
from hypemand.model.restores import cure_orphan, cure_snapshot, cure_standby
from hypemand.run import run
from hypemand.vmm.accel import find_accel
from hypemand.vmm.host import find_initrd, find_kernel, find_qemu, read_qemu_version

_SYSTEMD_TIME = 10.0
_SYSTEMD_BOOTED = Path("/run/systemd/system")
_MACHINED_PATHS = ("/usr/lib/systemd/systemd-machined", "/lib/systemd/systemd-machined")
_DEVICES = Path("/sys/class/net")
_OLDEST_SYSTEMD = 252
_SHOWN_VMS = 10
_SHOWN_LOST = 12
_NOTHING = VmDir({}, (), frozenset())


class Verdict(StrEnum):
    """What a finding means: fine, worth knowing, or VMs cannot run."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


_COLOURS = {Verdict.OK: GREEN, Verdict.NOTE: YELLOW, Verdict.MISSING: RED}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about the host."""

    what: str
    verdict: Verdict
    text: str


def check(context: Context) -> int:
    """Check the files that are named, or everything. Problems go to standard error, one a line."""
    files = context.args.file
    if files:
        problems, findings = _check_files(files)
    else:
        config, problems, found = _check_configuration()
        problems += _find_state_problems(config)
        in_cluster, resources = _inspect_cluster(found.definitions, config.vm_dir)
        problems += in_cluster
        findings = [*inspect_host(config), *inspect_definitions(config, found), *resources]
        findings += [*_inspect_networks(context.client, config.networks), *_inspect_saved(context.client)]
        findings += _inspect_identities(config, found.definitions, context.client)
    if context.wants_document:
        context.print_document(
            {"problems": [asdict(p) for p in problems], "host": [asdict(f) for f in findings]}
        )
    else:
        _print_findings(findings)
        for problem in problems:
            print(escape_controls(str(problem)), file=sys.stderr)
    if problems:
        return ExitCode.INVALID
    is_missing = any(f.verdict is Verdict.MISSING for f in findings)
    return ExitCode.HOST_REFUSES if is_missing else ExitCode.OK


def _check_files(words: list[str]) -> tuple[list[Problem], list[Finding]]:
    """Problems of every file, be it named by its path or by its VM, and what other definitions ask for too.
    VM definitions are checked with defaults and networks of this host's configuration."""
    problems: list[Problem] = []
    config, networks = load_config()
    checked: dict[str, Definition] = {}
    templates: dict[Path, tuple[str, ...]] = {}
    for word in words:
        try:
            file = resolve_file(word, config.vm_dir)
            if is_host_config(file):
                load_host_config(file, ())
            elif file.suffix in SUFFIXES and parse_file_name(file.stem).is_template:
                folder = _find_folder(file, config.vm_dir)
                found = load_template(file, folder, config.defaults, networks)
                problems += found.problems
                checked |= found.definitions
                templates |= found.templates
            else:
                definition = load_vm_file(file, config.defaults, networks)
                checked[definition.name] = definition
        except InvalidDefinition as error:
            problems += error.problems
    others = load_vm_dir(config.vm_dir, config.defaults, networks) if checked else _NOTHING
    clashes = _inspect_clashes({**others.definitions, **checked}, checked, {**others.templates, **templates})
    in_cluster, resources = _inspect_cluster(checked, config.vm_dir)
    findings = [*_inspect_templates(templates), *clashes, *resources]
    return list(dict.fromkeys([*problems, *in_cluster])), findings


def _find_folder(template: Path, vm_dir: Path) -> Path:
    """Where its instances are: `vm_dir` if there are any, or else beside it."""
    with contextlib.suppress(OSError):
        if list_links(template, vm_dir):
            return vm_dir
    return template.parent


def load_config() -> tuple[HostConfig, Networks | None]:
    """The host's configuration and networks; None where that has errors, which its own check reports."""
    with contextlib.suppress(InvalidDefinition):
        config = load_host_config()
        return config, config.networks
    return HostConfig(), None


def resolve_file(word: str, vm_dir: Path) -> Path:
    """The file that is meant: a path, or else the name of a VM or template of `vm_dir`. InvalidDefinition
    when it is neither."""
    path = Path(word)
    if "/" in word or path.suffix in SUFFIXES or os.path.isfile(word):
        return path
    with contextlib.suppress(OSError):
        for name, file in list_definition_files(vm_dir):
            if not name.is_template and word in (name.vm, file.stem):
                return file
        stem = word if word.endswith("@") else f"{word}@"
        found = [file for file in list_templates(vm_dir) if file.stem == stem]
        if stem != word and found:
            raise _unresolved(word, "is a template, which defines no VM of this name", f"use {stem}")
        if len(found) > 1:
            what = f"is the name of several templates, {' and '.join(str(file) for file in found)}"
            raise _unresolved(word, what, "use the path of one of them")
        if found:
            return found[0]
    message = f"is neither a file nor a VM that is defined in {vm_dir}"
    raise _unresolved(word, message, "use the path of a file, or the NAME of a VM in that directory")


def _unresolved(word: str, message: str, hint: str) -> InvalidDefinition:
    return InvalidDefinition([Problem(word, 0, 0, "", message, hint)])


def is_host_config(file: Path) -> bool:
    """Is it a host configuration or a drop-in of one, by its place? Everything else defines a VM."""
    return file.name == HOST_CONFIG.name or file.parent.name in {folder.name for folder in DROPIN_DIRS}


def _check_configuration() -> tuple[HostConfig, list[Problem], VmDir]:
    problems: list[Problem] = []
    config, networks = HostConfig(), None
    try:
        config = load_host_config()
        networks = config.networks
    except InvalidDefinition as error:
        problems += error.problems
    found = load_vm_dir(config.vm_dir, config.defaults, networks)
    return config, [*problems, *found.problems], found


def _find_state_problems(config: HostConfig) -> list[Problem]:
    """Are the state and the pools in places that the unit of the daemon may write to? Not known without
    systemd."""
    show = ["systemctl", "show", "--property=ReadWritePaths,StateDirectory", "hypemand.service"]
    try:
        lines = run(show, timeout=_SYSTEMD_TIME).stdout.decode(errors="replace").splitlines()
    except HypemandError:
        return []
    values = {name: value.split() for name, _, value in (line.partition("=") for line in lines)}
    if "StateDirectory" not in values:
        return []
    directories = [str(DEFAULT_STATE_DIR.parent / name) for name in values["StateDirectory"]]
    writable = [*directories, *values.get("ReadWritePaths", ())]
    problem = find_uncovered_problem(config.state_dir, HOST_CONFIG, writable)
    pools = find_uncovered_pools(config.pools, HOST_CONFIG, writable)
    return pools if problem is None else [problem, *pools]


def inspect_definitions(config: HostConfig, found: VmDir) -> Iterator[Finding]:
    """How many definitions there are: `ok` only if none has errors; and what several of them ask for."""
    good, bad = len(found.definitions), len(found.broken)
    if not found.readable:
        yield Finding("definitions", Verdict.NOTE, f"{config.vm_dir} cannot be read")
    elif bad:
        text = f"{bad} of {good + bad} in {config.vm_dir} have errors: VMs keep their last valid definition"
        yield Finding("definitions", Verdict.NOTE, text)
    else:
        yield Finding("definitions", Verdict.OK, f"{good} in {config.vm_dir}")
    yield from _inspect_templates(found.templates)
    yield from _inspect_clashes(found.definitions, found.definitions, found.templates)


def _inspect_templates(templates: Mapping[Path, tuple[str, ...]]) -> Iterator[Finding]:
    """The VMs that templates define."""
    for file, vms in templates.items():
        what = f"template {file.stem}"
        if not vms:
            yield Finding(what, Verdict.NOTE, f"has no instance; {say_how_to_link(file)}")
            continue
        more = f" and {len(vms) - _SHOWN_VMS} more" if len(vms) > _SHOWN_VMS else ""
        yield Finding(what, Verdict.OK, f"defines {', '.join(vms[:_SHOWN_VMS])}{more}")


def _inspect_cluster(
    definitions: Mapping[str, Definition], vm_dir: Path
) -> tuple[list[Problem], list[Finding]]:
    """What would start VMs that a cluster runs, and how many these are. Nothing where there is no cluster."""
    files: dict[str, Path] = {}
    with contextlib.suppress(OSError):
        files = {name.vm: file for name, file in list_definition_files(vm_dir)}
    try:
        owned = find_owned()
        problems = list(find_start_problems(definitions, files, owned))
    except HypemandError as error:
        return [], [Finding("Pacemaker", Verdict.NOTE, str(error))]
    count = len(owned.keys() & definitions.keys())
    finding = Finding("Pacemaker", Verdict.OK, f"runs {count} of these VMs, see hypemanctl cluster show")
    return problems, [finding] if count else []


def _inspect_clashes(
    definitions: Mapping[str, Definition], asked: Container[str], templates: Mapping[Path, tuple[str, ...]]
) -> Iterator[Finding]:
    """What several definitions ask for, one of the `asked` among them."""
    template_of = {vm: file for file, vms in templates.items() for vm in vms}
    for clash in find_clashes(definitions, platform.node()):
        if any(vm in asked for vm in clash.vms):
            common = {template_of.get(vm) for vm in clash.vms} if len(clash.vms) > 1 else {None}
            template = common.pop() if len(common) == 1 else None
            hint = f"; use %i in {template}" if template is not None else ""
            yield Finding("definitions", Verdict.NOTE, f"{clash}{hint}")


def inspect_host(config: HostConfig) -> Iterator[Finding]:
    """Everything that a VM needs of the host."""
    yield _look("accelerator", lambda: _describe_accelerator(config))
    yield _look("QEMU", lambda: _describe_qemu(config))
    yield _look("kernel", lambda: _describe_kernel(config))
    yield _look("guest files", lambda: str(find_initrd(config)))
    yield _inspect_systemd()
    yield _inspect_machined()


def _inspect_networks(client: Client, configured: Networks) -> Iterator[Finding]:
    """Findings about the networks of the host."""
    try:
        networks = parse_all(HostNetwork, client.get("networks"))
    except HypemandError as error:
        yield Finding(
            "networks",
            Verdict.NOTE,
            f"the state of networks is not known without the daemon: {error.message}",
        )
        yield from inspect_bridges(configured)
        return
    for network in networks:
        trouble = describe_trouble(network)
        verdict = Verdict.MISSING if network.problem else Verdict.NOTE if trouble else Verdict.OK
        subnets = ", ".join(subnet for subnet in (network.ipv4, network.ipv6) if subnet)
        where = f"{subnets or 'addresses by DHCP'} on {network.bridge}"
        text = "; ".join(trouble) or (where if network.managed else f"{where}, not managed by hypemand")
        yield Finding(f"network {network.name}", verdict, text)


def inspect_bridges(networks: Networks) -> Iterator[Finding]:
    """Bridges of the administrator's that are missing; others the daemon makes."""
    for network in networks.values():
        if not network.managed and not (_DEVICES / network.bridge / "bridge").is_dir():
            text = f"there is no bridge {network.bridge}; create it, as it is not managed by hypemand"
            yield Finding(f"network {network.name}", Verdict.MISSING, text)


def _inspect_identities(
    config: HostConfig, definitions: Mapping[str, Definition], client: Client
) -> Iterator[Finding]:
    """What of the VMs would differ on another host; nothing without a cluster. Without the daemon it is not
    known which ids they have."""
    if config.cluster is None:
        return
    words = [*describe_differences(definitions, config.networks, config.pools)]
    with contextlib.suppress(HypemandError):
        words += describe_other_ids(list_instances(client), config.cluster, definitions)
    for text in words:
        yield Finding("cluster", Verdict.NOTE, text)
    if not words:
        yield Finding("cluster", Verdict.OK, f"{config.cluster}: VMs are the same on all hosts")


def _inspect_saved(client: Client) -> Iterator[Finding]:
    """What can no longer be restored. Nothing without the daemon, which those of networks say."""
    try:
        instances = list_instances(client)
        snapshots = parse_all(Snapshot, client.get("snapshots"))
    except HypemandError:
        return
    found = [*_list_lost_vms(instances), *_list_lost_snapshots(snapshots, {vm.id for vm in instances})]
    yield from found[:_SHOWN_LOST]
    if len(found) > _SHOWN_LOST:
        more = f"{len(found) - _SHOWN_LOST} more cannot be restored"
        text = f"{more}: hypemanctl list and hypemanctl snapshot list show them"
        yield Finding("snapshots", Verdict.NOTE, text)


def _list_lost_vms(instances: Iterable[Instance]) -> Iterator[Finding]:
    for vm in instances:
        if vm.standby is not None and vm.standby.restore_error:
            text = f"cannot be restored: {vm.standby.restore_error}; {cure_standby(vm.name)}"
            yield Finding(f"VM {vm.name}", Verdict.NOTE, text)


def _list_lost_snapshots(snapshots: Iterable[Snapshot], vms: Container[str]) -> Iterator[Finding]:
    for one in snapshots:
        if one.restore_error:
            cure = cure_snapshot(one.id) if one.source_instance_id in vms else cure_orphan(one.id)
            text = f"of VM {one.source_instance_name} cannot be restored: {one.restore_error}; {cure}"
            yield Finding(f"snapshot {one.name or one.id}", Verdict.NOTE, text)


def _look(what: str, find: Callable[[], str]) -> Finding:
    try:
        return Finding(what, Verdict.OK, find())
    except HypemandError as error:
        return Finding(what, Verdict.MISSING, str(error))


def _describe_accelerator(config: HostConfig) -> str:
    accel = find_accel(config.accel)
    return f"{accel.kind}: {accel.reason}"


def _describe_qemu(config: HostConfig) -> str:
    binary = find_qemu(config)
    return f"{binary}, {read_qemu_version(binary)}"


def _describe_kernel(config: HostConfig) -> str:
    kernel = find_kernel(config.kernel_dir)
    return f"{kernel.path}, {kernel.release}"


def _inspect_systemd() -> Finding:
    if not _SYSTEMD_BOOTED.is_dir():
        return Finding(
            "systemd", Verdict.MISSING, "this host was not booted with systemd, which runs the VMs"
        )
    try:
        words = run(["systemctl", "--version"], timeout=_SYSTEMD_TIME).stdout.decode(errors="replace").split()
    except HypemandError as error:
        return Finding("systemd", Verdict.MISSING, str(error))
    version = words[1] if len(words) > 1 else "?"
    if version.isdecimal() and int(version) < _OLDEST_SYSTEMD:
        text = f"version {version} is too old, {_OLDEST_SYSTEMD} is required"
        return Finding("systemd", Verdict.MISSING, text)
    return Finding("systemd", Verdict.OK, f"version {version} on {platform.node()}")


def _inspect_machined() -> Finding:
    """machined only adds machinectl: VMs run without it."""
    if any(os.access(path, os.X_OK) for path in _MACHINED_PATHS):
        return Finding("machined", Verdict.OK, "installed: machinectl shows the VMs")
    text = "not installed: machinectl does not show the VMs; install the package systemd-container"
    return Finding("machined", Verdict.NOTE, text)


def _print_findings(findings: list[Finding]) -> None:
    width = max((len(f.what) for f in findings), default=0)
    for finding in findings:
        verdict = paint(f"{finding.verdict:<7}", _COLOURS[finding.verdict], sys.stdout)
        print(f"{verdict}  {finding.what:<{width}}  {escape_controls(finding.text)}")
