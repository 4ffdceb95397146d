# SPDX-License-Identifier: Apache-2.0
"""run: creates a VM for one program, and follows it in the foreground."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from types import FrameType

from hypemand.cli.attach import ChannelBroken, attach_program, report_detached
from hypemand.cli.client import ApiError, Client, StreamBroken, parse
from hypemand.cli.context import Context, explain
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import find_stop_deadline, report_run
from hypemand.cli.keyoptions import read_keys
from hypemand.cli.lifecycle import KILL_SIGNAL
from hypemand.cli.logs import ShownLine, build_log_query, parse_event
from hypemand.cli.names import generate_name
from hypemand.cli.pull import ensure_image
from hypemand.cli.terminal import print_error, print_json, write_raw
from hypemand.cli.watch import MAX_BREAKS, wait_for_state, wait_until_started
from hypemand.errors import HypemandError, InvalidRequest, StartFailed
from hypemand.model.answers.instance import Instance
from hypemand.model.state import State

NAME_ATTEMPTS = 5
NO_NETWORK = "none"
# From the last line of the console to the unit's end: QEMU exits, its helper reads the exit report.
END_SECONDS = 60.0
# Of the exit status of who is ended by a signal.
_SIGNAL_BASE = 128
# The program ended before anybody was attached.
_ENDED_BEFORE = frozenset({"invalid_state", "guest_error", "agent_not_ready"})


def run(context: Context) -> int:
    """Create and start a VM; then follow it until it ends, or with --detach leave it running."""
    args = context.args
    if args.rm and args.detach:
        raise InvalidRequest(
            "--rm cannot be combined with -d", hint="omit -d, or remove the VM later: hypemanctl rm"
        )
    if args.json and not args.detach:
        raise InvalidRequest(
            "--json requires -d", hint=("in the foreground, the output is that of the program")
        )
    if args.tty and args.interactive and not args.detach and not os.isatty(0):
        raise InvalidRequest("-t with -i requires a terminal as standard input", hint="omit -t")
    definition = build_definition(args)
    ensure_image(context.client, args.image, args.pull)
    if args.detach:
        instance = _create(context.client, definition)
        print_json(instance.document) if args.json else print(instance.name)
        return ExitCode.OK
    attached = args.interactive or args.tty
    try:
        with _Interrupts(context.client, attached=attached) as interrupts, contextlib.ExitStack() as stack:
            instance = _create(context.client, definition)
            if args.rm:
                stack.callback(_remove, context.client, instance)
            interrupts.attach(instance)
            if attached:
                return _attach(context.client, instance, stdin=args.interactive, keep=stack.pop_all)
            return _follow(context.client, instance.name)
    except _HungUpError:
        return _SIGNAL_BASE + signal.SIGHUP


def build_definition(args: Namespace) -> dict[str, object]:
    """The definition for the options, with the keys of a definition file."""
    asked = {
        "name": args.name,
        "image": args.image,
        "entrypoint": None if args.entrypoint is None else [args.entrypoint] if args.entrypoint else [],
        "cmd": args.command or None,
        "env": read_env_files(args.env_file) | dict(find_variables(args.env)) or None,
        "volumes": [parse_volume(word) for word in args.volume] or None,
        "image_pull": args.pull,
        "network": _build_network(args),
    }
    return {key: value for key, value in asked.items() if value is not None} | read_keys(args)


def _build_network(args: Namespace) -> str | dict[str, object] | None:
    """The key `network`; None for what the host has by default."""
    asked = {
        "name": args.network,
        **_sort_addresses(args.address),
        "publish": args.publish or None,
        "group": args.group,
    }
    keys: dict[str, object] = {key: value for key, value in asked.items() if value is not None}
    if keys.keys() <= {"name"}:
        return args.network  # type: ignore[no-any-return]
    if args.network == NO_NETWORK:
        word = next(word for word in ("publish", "address", "group") if getattr(args, word))
        raise InvalidRequest(f"--{word} requires a network", hint="omit --network=none")
    return keys


def _sort_addresses(words: list[str]) -> dict[str, str]:
    """The addresses by their keys: IPv6 has colons. That they are valid is the daemon's to say."""
    found: dict[str, str] = {}
    for word in words:
        key = "address6" if ":" in word else "address"
        if key in found:
            raise InvalidRequest(
                f"--address {word!r} is the second of its family",
                hint="a VM has one IPv4 and one IPv6 address",
            )
        found[key] = word
    return found


def find_variables(words: list[str]) -> Iterator[tuple[str, str]]:
    """`KEY=VALUE` as it is; `KEY` alone with its value here, and nothing where there is none."""
    for word in words:
        key, equals, value = word.partition("=")
        if not key:
            raise InvalidRequest(f"--env {word!r} has no name", hint="write KEY=VALUE or KEY")
        if equals:
            yield key, value
        elif key in os.environ:
            yield key, os.environ[key]


def read_env_files(paths: list[str]) -> dict[str, str]:
    """The variables of the caller's files; a later file wins. InvalidDefinition, InvalidRequest."""
    if not paths:
        return {}
    from hypemand.config.envfile import MAX_BYTES, parse_env_file

    found: dict[str, str] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise InvalidRequest(f"--env-file {path}: {error.strerror}") from None
        found |= parse_env_file(data, path)
    return found


def parse_volume(word: str) -> dict[str, object]:
    """NAME:PATH[:ro|rw], or DIR:PATH[:ro] for a directory of the host: absolute, or relative to this one if
    it begins with a dot."""
    source, _, rest = word.partition(":")
    path, colon, mode = rest.partition(":")
    if not source or not path.startswith("/") or (colon and mode not in ("ro", "rw")):
        raise InvalidRequest(
            f"--volume {word!r} is not valid", hint="write NAME:PATH, NAME:PATH:ro or DIR:PATH"
        )
    mount: dict[str, object] = {"mount_path": path}
    if source.startswith(("/", ".")):
        if mode == "rw":
            raise InvalidRequest(
                f"--volume {word!r}: a directory of the host is always read-only", hint="create a volume"
            )
        return {"source": os.path.abspath(source)} | mount
    return {"volume": source} | mount | ({"readonly": True} if mode == "ro" else {})


def _create(client: Client, definition: dict[str, object]) -> Instance:
    """Create and start. If a generated name is taken, another one is generated."""
    attempts = 1 if "name" in definition else NAME_ATTEMPTS
    while True:
        attempts -= 1
        named = {"name": generate_name()} | definition
        try:
            return parse(Instance, client.post("instances", body={"definition": named, "start": True}))
        except ApiError as error:
            if error.code != "already_exists" or not attempts:
                raise


def _attach(client: Client, instance: Instance, *, stdin: bool, keep: Callable[[], object]) -> int:
    """The program's input and output until it has ended; then its exit status. `keep` is called where it goes
    on. Of one that ends before anybody can be attached the console has the output."""
    name = instance.name
    try:
        if wait_until_started(client, instance, None).state != State.RUNNING:
            return _follow(client, name)
        if attach_program(client.path, name, stdin=stdin, replay=True) is None:
            keep()
            return report_detached(
                f"detached from {name}, which is kept; attach again: hypemanctl attach {name}"
            )
    except _HungUpError:
        keep()
        raise
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        # the output of the program has found the terminal gone before the signal came
        keep()
        raise _HungUpError from None
    except StartFailed:
        return _follow(client, name)
    except ChannelBroken:
        pass  # the VM has ended, and how is known there
    except ApiError as error:
        if error.code in _ENDED_BEFORE:
            return _follow(client, name)
        keep()
        raise
    return report_run(wait_for_state(client, name, State.STOPPED, END_SECONDS))


def _follow(client: Client, name: str) -> int:
    """The console on standard output until the run has ended; then the program's exit status."""
    shown = breaks = 0
    while True:
        try:
            for line in _read_console(client, name, skip=shown):
                shown, breaks = shown + 1, 0
                if line.missing:
                    print_error(line.data.decode("utf-8", "replace").removesuffix("\n"))
                    continue
                write_raw(line.data)
                sys.stdout.flush()
            break
        except StreamBroken:
            # The daemon was restarted: the VM goes on, and the socket waits for the new daemon.
            breaks += 1
            if breaks > MAX_BREAKS:
                raise
    return report_run(wait_for_state(client, name, State.STOPPED, END_SECONDS))


def _read_console(client: Client, name: str, *, skip: int) -> Iterator[ShownLine]:
    """All lines of the VM from its first, without the `skip` that were seen before."""
    with client.events("instances", name, "logs", query=build_log_query(tail=None, follow=True)) as events:
        for number, event in enumerate(events):
            if number >= skip:
                yield parse_event(event)


def _remove(client: Client, instance: Instance) -> None:
    """--rm. A failure is shown and does not change the exit status."""
    try:
        client.delete("instances", instance.name, timeout=find_stop_deadline(instance, None) + END_SECONDS)
    except HypemandError as error:
        print_error(f"{instance.name} was not removed: {explain(error)}")


class _HungUpError(Exception):
    """The terminal of somebody who is attached has gone."""


class _Interrupts:
    """While it is entered: the first SIGINT, SIGTERM or SIGHUP stops the VM, the next one kills it.

    What comes while the VM is being created counts once there is one. The console is followed meanwhile,
    so that the guest's last words are seen. A program that is `attached` to goes on without the terminal:
    SIGHUP raises _HungUpError then.
    """

    def __init__(self, client: Client, *, attached: bool) -> None:
        self._client = client
        self._attached = attached
        self._instance: Instance | None = None
        self._count = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._stack.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def attach(self, instance: Instance) -> None:
        """The VM is there now."""
        self._instance = instance
        if self._count:
            self._act(instance)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._attached:
            raise _HungUpError
        self._count += 1
        if self._instance is not None:
            self._act(self._instance)

    def _act(self, instance: Instance) -> None:
        work = self._stop if self._count == 1 else self._kill
        threading.Thread(target=work, args=(instance,), name="interrupt", daemon=True).start()

    def _stop(self, instance: Instance) -> None:
        name = instance.name
        if sys.stderr.isatty():
            print_error(f"stopping {name}; interrupt again to kill it")
        deadline = find_stop_deadline(instance, None)
        self._ask(
            lambda: self._client.post("instances", name, "stop", body={"timeout": None}, timeout=deadline)
        )

    def _kill(self, instance: Instance) -> None:
        name = instance.name
        self._ask(lambda: self._client.post("instances", name, "kill", body={"signal": KILL_SIGNAL}))

    def _ask(self, call: Callable[[], object]) -> None:
        try:
            call()
        except HypemandError as error:
            # A stop that finds the VM ended, or that a kill overtook, has nothing to tell.
            if error.code not in ("invalid_state", "not_found"):
                print_error(explain(error))
