# SPDX-License-Identifier: Apache-2.0
"""The API over TCP on a real host: the published client with its environment alone, and everybody else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.host.faults import Vm, ctl, define_vm, host_config
from tests.host.machine import TestHost

pytestmark = pytest.mark.one_release

REPOSITORY = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:7420"
URL = f"http://{ADDRESS}"
CURL = """
import sys, ssl, urllib.request, urllib.error
method, url, token = sys.argv[1:4]
headers = {"Authorization": f"Bearer {token}"} if token else {}
context = ssl._create_unverified_context()
try:
    request = urllib.request.Request(url, method=method, headers=headers)
    answer = urllib.request.urlopen(request, context=context)
except urllib.error.HTTPError as error:
    answer = error
headers = {key: value for key, value in answer.headers.items() if key != "Date"}
print(answer.status, headers, answer.read().decode())
"""


@pytest.fixture(scope="module")
def web(host: TestHost) -> Iterator[Vm]:
    """A VM that runs, on a host that listens."""
    with (
        host_config(host, listen={"address": ADDRESS}),
        define_vm(host, "web", cmd=["sleep", "infinity"]) as vm,
    ):
        vm.ctl("start", "--wait")
        yield vm


@contextmanager
def token(host: TestHost, name: str, *words: str) -> Iterator[str]:
    """A token, revoked at the end."""
    text = ctl(host, "token", "create", name, *words).stdout.strip()
    try:
        yield text
    finally:
        ctl(host, "token", "revoke", name, check=False)


def ask(host: TestHost, method: str, url: str, token: str = "") -> str:
    """Status, headers and body of an answer."""
    return host.run(["python3", "-c", CURL, method, url, token]).stdout.strip()


def run_client(host: TestHost, script: str, token: str) -> str:
    """Run a program of the published client in the host's network, with the tools of this machine."""
    network = host.run(["sh", "-c", "echo $$"]).stdout  # the host must be up to be entered
    assert network
    argv = ["nsenter", f"--net={host.root.parent}/ns/net", "--", sys.executable, "-c", script]
    environment = {
        "PATH": os.environ["PATH"],
        "HYPEMAN_BASE_URL": URL,
        "HYPEMAN_API_KEY": token,
    }
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


CLIENT = """
import hypeman
from hypeman.lib import exec as run
client = hypeman.Hypeman()
print([vm.name for vm in client.instances.list()])
print(run(client, "web", ["sh", "-c", "echo out; exit 3"]))
print(client.instances.stats("web").cpu_seconds > 0)
"""
TERMINAL = """
import hypeman
from hypeman.lib import exec as run
shows = 'n=0; until [ $((n+=1)) = 600 ] || stty size | grep "41 91"; do sleep 0.1; done'
result = run(hypeman.Hypeman(), "web", ["sh", "-c", shows], tty=True, rows=40, cols=90, resize=[(41, 91)])
print(result)
"""
COPY = """
import hashlib, os, pathlib, sys, tempfile
import hypeman
from hypeman.lib import cp_from_instance, cp_to_instance
client = hypeman.Hypeman()
with tempfile.TemporaryDirectory() as folder:
    source = pathlib.Path(folder, "source")
    (source / "sub").mkdir(parents=True)
    data = os.urandom(3_000_000)
    (source / "sub/data").write_bytes(data)
    (source / "sub/data").chmod(0o640)
    cp_to_instance(client, "web", source, "/root/in")
    assert client.instances.stat("web", path="/root/in/sub/data").size == len(data)
    cp_from_instance(client, "web", "/root/in", folder + "/out")
    back = pathlib.Path(folder, "out/in/sub/data")
    assert back.read_bytes() == data
    assert back.stat().st_mode & 0o777 == 0o640
print("whole")
"""


def test_the_published_client_works_with_its_environment_alone(host: TestHost, web: Vm) -> None:
    with token(host, "client") as text:
        lines = run_client(host, CLIENT, text).splitlines()
    assert lines == ["['web']", "ExecResult(output=b'out\\n', exit_code=3)", "True"]


def test_the_published_client_has_a_terminal_of_its_size(host: TestHost, web: Vm) -> None:
    with token(host, "client") as text:
        shown = run_client(host, TERMINAL, text)
    assert "41 91" in shown
    assert "exit_code=0" in shown


def test_the_published_client_copies_trees_both_ways(host: TestHost, web: Vm) -> None:
    with token(host, "client") as text:
        assert run_client(host, COPY, text) == "whole\n"


def test_without_a_good_token_nothing_is_learned(host: TestHost, web: Vm) -> None:
    since = time.time()
    with token(host, "short", "--expires", "1s") as expired, token(host, "gone") as revoked:
        ctl(host, "token", "revoke", "gone")
        assert ask(host, "GET", f"{URL}/health", revoked).startswith("401")
        host.wait_until(lambda: ask(host, "GET", f"{URL}/health", expired).startswith("401"))
        answers = {
            ask(host, method, f"{URL}{path}", text)
            for text in ("", "hm-wrong", expired, revoked)
            for path in ("/instances", "/nothing", "/tokens")
            for method in ("GET", "DELETE")
        }
    (answer,) = answers
    assert answer.startswith("401")
    assert "aiohttp" not in answer
    assert "Python" not in answer
    entries = host.journal("_SYSTEMD_UNIT=hypemand.service", since=since)
    refusals = [e["MESSAGE"] for e in entries if e["MESSAGE"].startswith("refused a request from 127.0.0.1")]
    assert 1 <= len(refusals) <= 4
    assert not any(revoked in e["MESSAGE"] or expired in e["MESSAGE"] for e in entries)


def test_a_read_only_token_looks_and_does_nothing(host: TestHost, web: Vm) -> None:
    with token(host, "looker", "--scope", "read") as text:
        assert ask(host, "GET", f"{URL}/instances", text).startswith("200")
        for method, path in (
            ("POST", "/instances/web/stop"), ("DELETE", "/instances/web"), ("GET", "/instances/web/exec"),
            ("GET", "/instances/web/archive?path=/etc"), ("GET", "/tokens"),
        ):  # fmt: skip
            assert ask(host, method, f"{URL}{path}", text).startswith("403"), path
    assert web.show()["state"] == "Running"


def test_tokens_are_hashed_in_a_file_of_root_and_last_over_a_restart(host: TestHost, web: Vm) -> None:
    with token(host, "lasting") as text:
        path = "/var/lib/hypemand/tokens.json"
        assert host.run(["stat", "--format=%a %U", path]).stdout == "600 root\n"
        assert text not in host.pull(path).decode()
        host.run(["systemctl", "restart", "hypemand"])
        assert ask(host, "GET", f"{URL}/instances/web", text).startswith("200")
        assert web.show()["state"] == "Running"


def test_a_reload_moves_the_place_and_takes_tls_and_vms_do_not_notice(host: TestHost, web: Vm) -> None:
    boot = web.show()["invocation_id"]
    make_certificate(host)
    cert, key = "/etc/hypemand/cert.pem", "/etc/hypemand/key.pem"
    tls = {"address": "127.0.0.1:7421", "certificate": cert, "key": key}
    with token(host, "mover") as text, dropin(host, yaml.safe_dump({"listen": tls})):
        assert ctl(host, "reload").ok
        assert ask(host, "GET", "https://127.0.0.1:7421/health", text).startswith("200")
        refused = host.run(["python3", "-c", CURL, "GET", f"{URL}/health", text], check=False)
        assert "Connection refused" in refused.stderr
        assert web.show()["invocation_id"] == boot


@contextmanager
def dropin(host: TestHost, text: str) -> Iterator[None]:
    """A file of the host config after the others, gone at the end. No reload before the block."""
    path = "/etc/hypemand/hypemand.yaml.d/90-more.yaml"
    host.push(path, text)
    try:
        yield
    finally:
        host.run(["rm", path])
        ctl(host, "reload")


def make_certificate(host: TestHost) -> None:
    """On this machine, since the host need not have openssl."""
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test", "-days", "2"]
    made = subprocess.run([*argv, "-keyout", "-", "-out", "-"], capture_output=True, text=True, check=True)
    for name in ("key", "cert"):
        host.push(f"/etc/hypemand/{name}.pem", made.stdout, 0o600)


def test_what_cannot_be_listened_on_is_told_and_stops_nothing(host: TestHost, web: Vm) -> None:
    elsewhere = "address: '192.0.2.1:7420'"
    with dropin(host, f"listen: {{{elsewhere}}}\n"):
        refused = ctl(host, "reload", check=False)
        assert refused.code == 8
        words = "90-more.yaml:1:9: listen: tokens could be read on their way to 192.0.2.1:7420"
        assert words in refused.stderr
    with dropin(host, f"listen: {{{elsewhere}, allow_plain_http: true}}\n"):
        refused = ctl(host, "reload", check=False)
        assert refused.code == 8
        words = "cannot listen on 192.0.2.1:7420: Cannot assign requested address"
        assert words in refused.stderr
        lines = [e["MESSAGE"] for e in host.journal("_SYSTEMD_UNIT=hypemand.service")]
        assert sum(words in line for line in lines) == 1, lines
        with token(host, "still") as text:
            assert ask(host, "GET", f"{URL}/health", text).startswith("200")
    assert web.show()["state"] == "Running"
