# SPDX-License-Identifier: Apache-2.0
"""Images from folders, tars and OCI layouts: whole in the guest, refused where they must be, nothing left."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.host.faults import SMALL, compile_static, ctl, define_vm, start_vm
from tests.host.machine import TestHost

pytestmark = pytest.mark.one_release

HERE = "/srv/images-test"
STORE = "/var/lib/hypemand/images"

# A guest's own eyes: `probe stat PATH...`, `probe xattr PATH NAME`, `probe euid`, `probe wait`.
PROBE = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    unsigned char value[256];
    struct stat about;
    if (argc > 1 && strcmp(argv[1], "wait") == 0) {
        char folder[256];
        printf("%s %s\n", getcwd(folder, sizeof folder), getenv("COLOUR"));
        fflush(stdout);
        for (;;)
            pause();
    }
    if (argc > 1 && strcmp(argv[1], "euid") == 0)
        return printf("%u\n", geteuid()) < 0;
    if (argc > 3 && strcmp(argv[1], "xattr") == 0) {
        ssize_t length = lgetxattr(argv[2], argv[3], value, sizeof value);
        for (ssize_t i = 0; i < length; i++)
            printf("%02x", value[i]);
        return printf("\n") < 0 || length < 0;
    }
    for (int i = 2; i < argc; i++) {
        if (lstat(argv[i], &about) != 0)
            return 1;
        printf("%s %o ", argv[i], about.st_mode);
        printf("%u:%u %lld\n", about.st_uid, about.st_gid, (long long)about.st_mtime);
    }
    return argc < 3;
}
"""

# argv: the folder; makes root/, root.tar, oci/ (tag v1; arm for another architecture) and docker.tar
MAKE_SOURCES = """
cd "$1"
mkdir -p root/bin root/srv/deep root/tmp
cp probe root/bin/probe
cp probe root/bin/setuid-probe
chmod 4755 root/bin/setuid-probe
echo owned >root/srv/owned; chown 1234:2345 root/srv/owned; chmod 640 root/srv/owned
chmod 1777 root/tmp
ln -s ../srv/owned root/srv/deep/link; chown -h 77:88 root/srv/deep/link
mkfifo root/srv/fifo
mknod root/srv/null c 1 3; chmod 666 root/srv/null
python3 -c 'import os; os.setxattr("root/srv/owned", "user.note", b"kept")'
python3 -c 'import os; os.setxattr("root/bin/probe", "security.capability",
    bytes.fromhex("0100000200040000000000000000000000000000"))'
touch -h -d @1000000000 root/srv/owned root/srv/deep/link root/srv/null root/srv/fifo root/bin/* root/tmp
tar --xattrs --xattrs-include='*' --numeric-owner -C root -cf root.tar .
umoci init --layout oci
umoci new --image oci:v1
umoci raw add-layer --image oci:v1 root.tar
umoci config --image oci:v1 --config.entrypoint /bin/probe --config.cmd wait --config.env COLOUR=blue \
    --config.workingdir /srv --config.stopsignal SIGINT
umoci tag --image oci:v1 arm
umoci config --image oci:arm --architecture arm64
skopeo --insecure-policy copy -q oci:oci:v1 docker-archive:docker.tar:app:v1
gzip -k root.tar
"""


@pytest.fixture(scope="module")
def sources(host: TestHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder in the host with one root file system in every form that can be imported."""
    host.push(f"{HERE}/probe", compile_static(PROBE, tmp_path_factory.mktemp("probe") / "probe"), 0o755)
    host.run(["sh", "-euc", MAKE_SOURCES, "make", HERE])
    yield HERE
    host.run(["rm", "-rf", HERE])
    assert list_store(host) == []


def list_store(host: TestHost) -> list[str]:
    """What is in the store, and what an import left in its staging folder."""
    words = ["-mindepth", "1", "-maxdepth", "2", "-not", "-name", ".staging", "-not", "-name", "names.json"]
    found = host.run(["find", STORE, *words]).stdout
    return found.splitlines()


def show_probe(host: TestHost, image: str) -> str:
    """What a guest of the image sees of what must have come through."""
    with start_vm(host, "probed", "/bin/probe", "wait", options=("--entrypoint=",), image=image) as vm:
        vm.wait("Running")
        paths = ("owned", "deep/link", "fifo", "null", "../tmp", "../bin/setuid-probe")
        seen = vm.exec("/bin/probe", "stat", *(f"/srv/{path}" for path in paths)).stdout
        seen += vm.exec("/bin/probe", "xattr", "/srv/owned", "user.note").stdout
        seen += vm.exec("/bin/probe", "xattr", "/bin/probe", "security.capability").stdout
        for program in ("probe", "setuid-probe"):
            seen += ctl(host, "exec", "-u", "1234:2345", "probed", "--", f"/bin/{program}", "euid").stdout
        return seen


SEEN = """\
/srv/owned 100640 1234:2345 1000000000
/srv/deep/link 120777 77:88 1000000000
/srv/fifo 10644 0:0 1000000000
/srv/null 20666 0:0 1000000000
/srv/../tmp 41777 0:0 1000000000
/srv/../bin/setuid-probe 104755 0:0 1000000000
6b657074
0100000200040000000000000000000000000000
1234
0
"""


@pytest.mark.both_releases
@pytest.mark.parametrize("source", ["root", "root.tar.gz", "oci:v1", "docker.tar"])
def test_owners_modes_links_devices_and_attributes_come_through(
    host: TestHost, sources: str, source: str
) -> None:
    imported = ctl(host, "image", "import", "app:v2", f"{sources}/{source}")
    assert imported.stdout.startswith("app:v2 sha256:")
    try:
        assert show_probe(host, "app:v2") == SEEN
        inspected = json.loads(ctl(host, "image", "inspect", "app:v2").stdout)
        assert (inspected["status"], inspected["platform"]) == ("ready", "linux/amd64")
    finally:
        ctl(host, "image", "rm", "app:v2")
    assert list_store(host) == []


def test_an_images_own_words_are_followed(host: TestHost, sources: str) -> None:
    ctl(host, "image", "import", "app", f"{sources}/oci:v1")
    try:
        inspected = json.loads(ctl(host, "image", "inspect", "app").stdout)
        assert (inspected["entrypoint"], inspected["cmd"]) == (["/bin/probe"], ["wait"])
        assert inspected["working_dir"] == "/srv"
        listed = json.loads(ctl(host, "image", "list", "--json").stdout)
        assert [image["name"] for image in listed] == ["app", "builtin:busybox"]
        assert ctl(host, "image", "list", "-q").stdout == "app\nbuiltin:busybox\n"
        with define_vm(host, "own-words", image="app") as vm:
            refused = ctl(host, "image", "rm", "app", check=False)
            assert (refused.code, "the image app is used by own-words" in refused.stderr) == (11, True)
            vm.ctl("start", "--wait")
            host.wait_until(lambda: vm.logs() == ["/srv blue"])
            vm.ctl("stop")
            assert vm.end()["exit_code"] == 128 + 2, "SIGINT, as the image says"
            again = ctl(host, "image", "import", "app", f"{sources}/oci:v1")
            assert again.stdout.split()[1] == inspected["digest"]
            other = ctl(host, "image", "import", "app", f"{sources}/root", check=False)
            assert (other.code, "another content" in other.stderr) == (11, True)
    finally:
        ctl(host, "image", "rm", "app:latest")
    assert ctl(host, "image", "inspect", "app", check=False).code == 10


def test_an_image_of_a_package_is_not_removed(host: TestHost) -> None:
    refused = ctl(host, "image", "rm", "builtin:busybox", check=False)
    assert (refused.code, "belongs to a Debian package" in refused.stderr) == (11, True)
    assert ctl(host, "run", "--rm", *SMALL, "builtin:busybox", "true").ok


def test_an_image_of_another_architecture_is_refused(host: TestHost, sources: str) -> None:
    refused = ctl(host, "image", "import", "arm", f"{sources}/oci:arm", check=False)
    assert refused.code == 8
    assert "is for arm64, this host is amd64; use the image for amd64" in refused.stderr
    assert list_store(host) == []


@pytest.mark.parametrize(
    "damage",
    [
        "head -c $(($(stat -c %s root.tar) / 2)) root.tar >bad",
        "head -c $(($(stat -c %s root.tar.gz) / 2)) root.tar.gz >bad",
        "echo no image >bad",
        "mkdir bad",
        "cp -r oci bad; find bad/blobs -size +4k -exec dd if=root.tar of={} conv=notrunc seek=5 ';'",
        "cp -r oci bad; echo '{' >bad/index.json",
        "true",
    ],
    ids=["cut tar", "cut gzip", "no archive", "empty folder", "blob", "index", "missing"],
)
def test_a_damaged_source_leaves_nothing(host: TestHost, sources: str, damage: str) -> None:
    host.shell(f"cd {sources}; {damage}")
    try:
        refused = ctl(host, "image", "import", "bad", f"{sources}/bad", check=False)
        assert (refused.code, f"{sources}/bad" in refused.stderr) == (8, True), refused.describe()
        assert "internal error of hypemand" not in refused.stderr
        assert ctl(host, "image", "inspect", "bad", check=False).code == 10
        assert list_store(host) == []
    finally:
        host.run(["rm", "-rf", f"{sources}/bad"])


@pytest.mark.parametrize("name", ["builtin:mine", "Upper", "../up", ""])
def test_a_bad_image_name_is_refused(host: TestHost, sources: str, name: str) -> None:
    refused = ctl(host, "image", "import", name, f"{sources}/root", check=False)
    assert refused.code == 8
    assert list_store(host) == []


def test_only_root_may_let_the_daemon_read_a_path(host: TestHost, sources: str) -> None:
    host.run(["useradd", "--groups=hypemand", "member"])
    try:
        member = ["runuser", "-u", "member", "--", "hypemanctl"]
        refused = host.run([*member, "image", "import", "mine", f"{sources}/root"], check=False)
        assert (refused.code, "only root may import an image" in refused.stderr) == (1, True)
        assert list_store(host) == []
        assert host.run([*member, "image", "list", "-q"]).stdout == "builtin:busybox\n"
    finally:
        host.run(["userdel", "member"])
