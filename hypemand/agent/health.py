# SPDX-License-Identifier: Apache-2.0
"""The health check of a guest: the order to its agent, and the reports on that stream (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from hypemand.agent.session import Session, clean_message
from hypemand.budget import Turn
from hypemand.config.health import Health, health_fields
from hypemand.config.ready import Check
from hypemand.errors import GuestError
from hypemand.model.health import HealthState
from hypemand.protocol.configdisk import GuestConfig
from hypemand.protocol.frames import FrameParser, FrameType
from hypemand.protocol.records import ProtocolError, encode_fields, encode_records, parse_records

MAX_COUNT = 1000
_LEAST_CONFIRMATION = 10.0
_STATES = {state.value: state for state in (HealthState.STARTING, HealthState.HEALTHY, HealthState.UNHEALTHY)}


@dataclass(frozen=True, slots=True)
class HealthReport:
    """What an attempt has come to. `error`: of the last one that has failed."""

    state: HealthState
    passed: bool
    failures: int
    successes: int
    error: str | None


def derive_confirmation(health: Health) -> float:
    """Seconds after which a guest reports at the latest that nothing has changed."""
    return max(health.check.interval, _LEAST_CONFIRMATION)


def encode_order(health: Health, start_left: float, program: GuestConfig | None, *, loopback: bool) -> bytes:
    """The records of HEALTH. `start_left`: seconds of its start period that are left; `program`: what a
    command runs like; `loopback`: who listens on a loopback address alone counts."""
    pairs = [
        ("check", encode_fields(health_fields(health))),
        ("loopback", "1" if loopback else "0"),
        ("failures", str(health.failure_threshold)),
        ("successes", str(health.success_threshold)),
        ("start", str(_milliseconds(start_left))),
        ("confirm", str(_milliseconds(derive_confirmation(health)))),
    ]
    if health.check.check is Check.EXEC and program is not None:
        workdir = health.workdir or program.workdir
        pairs += program.settings
        pairs += [("env", f"{key}={value}") for key, value in program.env.items()]
        pairs += [("cwd", workdir)] if workdir is not None else []
        pairs += [("user", program.user)] if program.user is not None else []
    return encode_records(pairs)


def _milliseconds(seconds: float) -> int:
    return min(max(round(seconds * 1000), 0), 86_400_000)


async def read_reports(session: Session) -> AsyncIterator[HealthReport]:
    """Reports until the stream ends, which is a GuestError; so is what is no report."""
    parser = FrameParser()
    turn = Turn()
    async for _, data in session.output():
        for item in parser.feed(data):
            if item.type is not FrameType.HEALTH:
                raise ProtocolError(f"{item.type.name} among the reports of a health check")
            yield _parse_report(item.payload)
            await turn.pause()
    report = await session.wait()
    raise GuestError(f"the guest's agent ended the health check: {report.message}")


def _parse_report(payload: bytes) -> HealthReport:
    records = parse_records(payload)
    state = _STATES.get(records.get("status"))
    if state is None:
        raise ProtocolError("a report of a health that there is not")
    error = records.find("error")
    return HealthReport(
        state,
        records.get("passed") == "1",
        records.get_int("failures", 0, MAX_COUNT),
        records.get_int("successes", 0, MAX_COUNT),
        None if error is None else clean_message(error),
    )
