# SPDX-License-Identifier: Apache-2.0
"""Files, secrets and variables of the host in a guest, also at starts that systemd makes alone; and that
secrets are nowhere else."""

from __future__ import annotations

import pytest

from tests.host.vms import Vms

pytestmark = pytest.mark.one_release

SESAME = "open-sesame-"
NAMES = ("plain", "store", "sealed", "inline")
NAME = "shop"
PROGRAM = "echo secrets: $(ls /run/secrets | wc -l); exec sleep infinity"
SHOW = (
    "cd /run/secrets; for i in *; do cat $i; echo; done; stat -c '%n %a %u:%g' * /etc/conf.d/app; echo $A-$B"
)
SITE = ("sh", "-c", "cat /www/index.html; echo $(stat -c %u /www/index.html) $(readlink /www/shadow)")
# Where a secret may not be: what lasts, what everybody may ask, and what the daemon keeps.
TRACES = """
LC_ALL=C grep -raslE 'open-sesame-(plain|PLAIN|store|sealed|inline)' /var/lib/hypemand /run/hypemand \\
    /run/systemd/transient /var/log/journal /run/log/journal
systemctl show "hypeman-vm-$1.service" | grep -c open-sesame
hypemanctl show --json "$1" | grep -c open-sesame
hypemanctl logs "$1" | grep -c open-sesame
exit 0
"""


def make_sources(vms: Vms) -> str:
    """On the host, plain and encrypted; the Base64 of one that is no file."""
    host = vms.host
    host.push("/etc/shop/plain", f"{SESAME}plain", 0o600)
    host.push("/etc/credstore/store", f"{SESAME}store", 0o600)
    seal = ["systemd-creds", "encrypt", "--with-key=host"]
    host.run([*seal, "--name=sealed", "-", "/etc/shop/sealed"], input=f"{SESAME}sealed")
    host.push("/etc/shop/a.env", "# of the shop\nA='of the file'\nB=file\n")
    host.push("/etc/shop/app.conf", "of the source")
    # what its users have: a link out of it is a link in the guest
    host.push("/srv/site/index.html", "one")
    host.run(
        ["sh", "-c", "ln -s /etc/shadow /srv/site/shadow; chown -R 1234:1234 /srv/site; chmod 777 /srv/site"]
    )
    return host.run([*seal, "--name=inline", "-", "-"], input=f"{SESAME}inline").stdout


def check_guest(vms: Vms, plain: str = f"{SESAME}plain") -> None:
    """All is there, with its owner and mode."""
    lines = vms.execute(NAME, "sh", "-c", SHOW).splitlines()
    assert lines[:4] == [f"{SESAME}inline", plain, f"{SESAME}sealed", f"{SESAME}store"]
    assert lines[4:] == [
        *("inline 400 0:0", "plain 440 5:6", "sealed 400 0:0", "store 400 0:0"),
        *("/etc/conf.d/app 600 1:1", "of the file-definition"),
    ]


def is_up(vms: Vms, times: int) -> bool:
    """The program has been started so often, each time with its secrets."""
    return vms.console(NAME).count(f"secrets: {len(NAMES)}") == times


def test_files_secrets_and_variables_of_the_host_reach_the_guest_and_secrets_nothing_else(vms: Vms) -> None:
    inline = make_sources(vms)
    vms.define(
        NAME,
        PROGRAM,
        env={"B": "definition"},
        env_file=["/etc/shop/a.env", "-/etc/shop/none"],
        restart="on-failure",
        volumes=[{"source": "/srv/site", "mount_path": "/www"}],
        files=[{"path": "/etc/conf.d/app", "source": "/etc/shop/app.conf", "mode": "0600", "owner": "1:1"}],
        secrets=[
            {"name": "plain", "source": "/etc/shop/plain", "mode": "0440", "owner": "5:6"},
            {"name": "store"},
            {"name": "sealed", "source": "/etc/shop/sealed", "encrypted": True},
            {"name": "inline", "encrypted_content": inline},
        ],
    )
    vms.start(NAME)
    check_guest(vms)
    # a start that systemd makes alone, from sources that have changed
    vms.host.push("/etc/shop/plain", "open-sesame-PLAIN", 0o600)
    with vms.without_daemon():
        vms.host.run(["systemctl", "kill", "--kill-whom=main", "--signal=KILL", f"hypeman-vm-{NAME}.service"])
        vms.host.wait_until(lambda: is_up(vms, 2), "a second boot, with its secrets")
    vms.host.wait_until(lambda: vms.state(NAME) == "Running", "Running")
    assert vms.unit(NAME, "NRestarts")["NRestarts"] == "1"
    check_guest(vms, plain="open-sesame-PLAIN")
    found = vms.host.run(["sh", "-uc", TRACES, "traces", NAME], timeout=300).stdout
    assert found.split() == ["0", "0", "0"]
    # a mistake is told before anything was stopped, and when systemd finds it, by the unit's end
    vms.host.push("/etc/shop/a.env", "A=1\nB\n")
    refused = vms.ctl("restart", NAME, check=False)
    assert "/etc/shop/a.env:2:1: has no '=' after 'B'" in refused.stderr
    assert vms.state(NAME) == "Running"
    vms.host.push("/etc/shop/a.env", "A=1\n")
    vms.host.push("/srv/site/index.html", "two")
    assert vms.execute(NAME, *SITE) == "one1234 /etc/shadow\n"
    vms.ctl("restart", "--wait", NAME)
    assert vms.execute(NAME, *SITE).startswith("two")
    vms.ctl("stop", NAME)
    vms.host.push("/etc/shop/sealed", "no ciphertext", 0o600)
    vms.ctl("start", NAME, check=False)
    words = "systemd could not load the VM's secrets"
    vms.host.wait_until(lambda: words in str(vms.show(NAME)), words)
