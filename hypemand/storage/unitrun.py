# SPDX-License-Identifier: Apache-2.0
"""Runs a program in a transient unit of its own, to its end, by systemd-run(1): with its output, its exit
status, and a deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypemand.run import CommandFailed, Completed, run

_STOP_TIMEOUT = 60.0


def run_in_unit(
    unit: str,
    argv: Sequence[str],
    settings: Sequence[str],
    *,
    description: str,
    timeout: float,
    env: Mapping[str, str] | None = None,
    ok: Sequence[int] = (0,),
    through: tuple[int, int] | None = None,
) -> Completed:
    """What a program gives back; its path is absolute, since systemd-run would look for it with our eyes.
    `settings` as unit files have them; `through` as `hypemand.run.run` has it. Raises what that does, by the
    program's own words; nothing of the unit runs any more then."""
    words = ["systemd-run", "--quiet", "--wait", "--collect", "--pipe", "--no-ask-password"]
    words += ["--service-type=exec", f"--unit={unit}", f"--description={description}"]
    for setting in settings:
        words += ["-p", setting]
    words += [f"--setenv={key}={value}" for key, value in (env or {}).items()]
    try:
        return replace(run([*words, "--", *argv], timeout=timeout, ok=ok, through=through), argv=tuple(argv))
    except CommandFailed as error:
        raise CommandFailed(replace(error.result, argv=tuple(argv))) from None
    except BaseException:
        stop_units(unit)
        raise


def stop_units(*patterns: str) -> None:
    """Stop units, and wait for that."""
    run(["systemctl", "stop", "--quiet", *patterns], timeout=_STOP_TIMEOUT, ok=(0, 5))
