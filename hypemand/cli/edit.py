# SPDX-License-Identifier: Apache-2.0
"""edit: change a definition file in an editor. What is written is valid, and reloaded."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hypemand.atomic import write_file
from hypemand.cli.check import load_config
from hypemand.cli.client import Client
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.host import reload_daemon
from hypemand.cli.instance import get_instance, list_instances
from hypemand.cli.terminal import print_error
from hypemand.config.names import is_name
from hypemand.config.templates import parse_file_name
from hypemand.config.vmfile import (
    find_template,
    list_links,
    list_templates,
    load_template,
    load_vm_file,
)
from hypemand.errors import Ambiguous, HypemandError, InvalidDefinition, NotFound, WrongState
from hypemand.model.answers.instance import Instance

# those of systemctl(1) edit
_VARIABLES = ("EDITOR", "VISUAL")
_EDITORS = ("editor", "nano", "vim", "vi")


def edit(context: Context) -> int:
    """Edit a copy of the file, check it, replace the file, and reload. What is not valid is kept as the copy,
    and the file stays as it is."""
    target = _find_target(context.client, context.args.name)
    file = target.file
    try:
        before = file.read_bytes()
        folder = Path(tempfile.mkdtemp(prefix="hypemanctl-edit-"))
    except OSError as error:
        raise _cannot_edit(file, error) from None
    copy, is_kept = folder / file.name, False
    try:
        write_file(copy, before, mode=0o600)
        _run_editor(copy)
        after = copy.read_bytes()
        if after == before:
            print(f"{file} has not been changed.")
            return ExitCode.OK
        is_kept = True
        _check(copy, target)
        _replace(file, before, after)
        is_kept = False
    except OSError as error:
        raise _cannot_edit(file, error) from None
    finally:
        if is_kept:
            print_error(f"{file} has not been changed; the edited text is in {copy}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return _apply(context, target.vms)


@dataclass(frozen=True, slots=True)
class _Target:
    """The file to edit and the VMs that it defines; `links`: those to it, if it is a template."""

    file: Path
    vms: frozenset[str]
    links: tuple[Path, ...] = ()


def _find_target(client: Client, ref: str) -> _Target:
    """What to edit. The file of an instance which is a link is its template."""
    if ref.endswith("@"):
        folder = load_config()[0].vm_dir
        file = find_template_file(ref, folder)
    else:
        instance = _get_instance(client, ref)
        of_vm = _find_file(instance)
        template = find_template(of_vm)
        if template is None:
            return _Target(of_vm, frozenset({instance.name}))
        file, folder = template, of_vm.parent
    links = list_links(file, folder)
    vms = [name.vm for name, _ in links]
    print(f"{file} is the template of {', '.join(vms) or 'no VM'}.")
    return _Target(file, frozenset(vms), tuple(link for _, link in links))


def _get_instance(client: Client, ref: str) -> Instance:
    """The VM, which may also be named as its file PREFIX@INSTANCE.yaml is."""
    name = parse_file_name(ref)
    if not name.instance or not is_name(name.vm):
        return get_instance(client, ref)
    instance = get_instance(client, name.vm)
    if instance.definition_file is None or Path(instance.definition_file).stem != ref:
        raise NotFound(f"VM {name.vm} is not defined by {ref}.yaml", hint=f"hypemanctl edit {name.vm}")
    return instance


def find_template_file(stem: str, folder: Path) -> Path:
    """The template of this name in a directory, or else elsewhere with instances there. Raises NotFound,
    Ambiguous, HypemandError if that cannot be read."""
    try:
        found = [file for file in list_templates(folder) if file.stem == stem]
    except OSError as error:
        raise _cannot_edit(folder, error) from None
    if not found:
        raise NotFound(
            f"there is no template {stem} in {folder}", hint="hypemanctl check shows the templates"
        )
    if len(found) > 1:
        files = " and ".join(str(file) for file in found)
        raise Ambiguous(f"{stem} is the name of several templates, {files}", hint="edit one of its VMs")
    return found[0]


def _find_file(instance: Instance) -> Path:
    """The file that defines it. Raises WrongState if there is none."""
    if instance.definition_file is not None:
        return Path(instance.definition_file)
    name = instance.name
    if instance.removed_from_config:
        raise WrongState(
            f"the definition file of {name} has been removed", hint="write it again, then reload"
        )
    file = load_config()[0].vm_dir / f"{name}.yaml"
    raise WrongState(
        f"{name} was created with the API, and has no definition file",
        hint=f"let a file define it: hypemanctl show --definition {name} >{file}; hypemanctl reload",
    )


def _cannot_edit(file: Path, error: OSError) -> HypemandError:
    return HypemandError(f"cannot edit {file}: {error.strerror or error}")


def _run_editor(copy: Path) -> None:
    """Wait for the editor, which has the terminal. Raises HypemandError if it fails."""
    said = next((value for name in _VARIABLES if (value := os.environ.get(name, "").strip())), None)
    found = said or next((name for name in _EDITORS if shutil.which(name)), None)
    if found is None:
        raise HypemandError("there is no editor", hint="set EDITOR to the command of one")
    try:
        argv = [*shlex.split(found), str(copy)]
    except ValueError as error:
        raise HypemandError(f"the editor {found!r} is no command: {error}") from None
    # Ctrl-C in an editor is its own
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pid = os.posix_spawnp(argv[0], argv, os.environ, setsigdef=(signal.SIGINT,))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except OSError as error:
        raise HypemandError(f"cannot run the editor {argv[0]}: {error.strerror}") from None
    finally:
        signal.signal(signal.SIGINT, before)
    if status:
        raise HypemandError(f"the editor {argv[0]} has failed with status {status}; nothing was changed")


def _check(copy: Path, target: _Target) -> None:
    """Raise InvalidDefinition for what the file would define."""
    config, networks = load_config()
    try:
        if not parse_file_name(copy.stem).is_template:
            load_vm_file(copy, config.defaults, networks)
            return
        for link in target.links:
            (copy.parent / link.name).symlink_to(copy.name)
        if problems := load_template(copy, copy.parent, config.defaults, networks).problems:
            raise InvalidDefinition(problems)
    except InvalidDefinition as error:
        raise InvalidDefinition(
            [replace(problem, file=str(target.file)) for problem in error.problems]
        ) from None


def _replace(file: Path, before: bytes, after: bytes) -> None:
    """Write the file, or what it is a link to, with its owner and mode, unless it is another one by now."""
    if file.read_bytes() != before:
        raise WrongState(f"{file} has been changed by another program meanwhile", hint="edit it again")
    about = file.stat()
    target = Path(os.path.realpath(file))
    write_file(target, after, mode=about.st_mode & 0o7777, uid=about.st_uid, gid=about.st_gid)


def _apply(context: Context, vms: frozenset[str]) -> int:
    """Reload, and say what of it needs a restart."""
    status = reload_daemon(context, quiet=False)
    for instance in list_instances(context.client):
        if instance.name in vms and instance.needs_restart:
            changes = ", ".join(instance.pending_changes)
            print(f"A restart applies {changes or 'the changes'}: hypemanctl restart {instance.name}")
    return status
