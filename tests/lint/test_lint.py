# SPDX-License-Identifier: Apache-2.0
"""Every linter is clean, and what is written twice says the same."""

import re
import sys
from pathlib import Path

import pytest

from hypemand.manual import render_page
from hypemand.version import VERSION
from tests.host.cache import CACHE, lock_file
from tests.host.command import ENVIRONMENT, CommandError, run_command
from tests.host.lab import DIST
from tests.lint.sources import TOP, find_scripts, list_sources
from tests.lint.verdicts import check, check_c, check_c_each, derive_key, list_c_sources, list_read

RUFF = [sys.executable, "-m", "ruff"]
# What it has found before is looked up by the content of each module, and by its own version.
MYPY_CACHE = CACHE / "mypy"
MYPY = [sys.executable, "-m", "mypy", f"--cache-dir={MYPY_CACHE}"]
C_TIMEOUT = 600.0


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param([*RUFF, "check", "--no-cache", "."], id="ruff-check"),
        pytest.param([*RUFF, "format", "--no-cache", "--check", "."], id="ruff-format"),
        pytest.param([*MYPY, "--strict", "hypemand", "tests", "bench"], id="mypy"),
    ],
)
def test_sources_are_clean(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)
    with lock_file(MYPY_CACHE.with_suffix(".lock")):
        run_command(argv, timeout=C_TIMEOUT)


@pytest.mark.parametrize("folder", ["guest", "nss", "launcher"])
def test_sources_in_c_are_clean(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)
    make = ["make", "--no-print-directory", "-C", folder]
    check_c([*make, "style"], timeout=C_TIMEOUT)
    names = run_command([*make, "list-tidy"], timeout=60).stdout.split()
    sources = [TOP / folder / name for name in names]
    assert sources
    check_c_each([*make, "tidy"], "TIDY", sources, timeout=C_TIMEOUT)


def test_a_verdict_is_of_the_linter_its_version_and_every_file() -> None:
    argv, sources = ["make", "-C", "guest", "style"], list_c_sources()
    named = {str(path.relative_to(TOP)) for path in sources}
    assert {"guest/init/main.c", "guest/shared/records.h", "guest/.clang-tidy", "guest/Makefile"} <= named
    assert {path.name for path in (TOP / "guest").rglob(".clang-*")} <= {path.name for path in sources}
    key = derive_key(argv, sources, "1")
    assert derive_key(argv, sources[::-1], "1") == key
    others = {
        derive_key([*argv, "-k"], sources, "1"),
        derive_key(argv, sources, "2"),
        *(derive_key(argv, sources[:n] + sources[n + 1 :], "1") for n in range(5)),
    }
    assert len(others | {key}) == 8


def test_a_verdict_of_one_source_is_of_all_that_it_includes() -> None:
    read = {str(path.relative_to(TOP)) for path in list_read(TOP / "launcher/tap.c")}
    assert read >= {"launcher/tap.c", "launcher/tap.h", "launcher/.clang-tidy", "launcher/Makefile"}
    assert not read & {"launcher/bootid.c", "launcher/bootid.h"}


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And all of it as long as anything of it is not clean."""
    monkeypatch.setattr("tests.lint.verdicts.CLEAN", tmp_path / "clean")
    monkeypatch.setattr("tests.lint.verdicts.TOP", tmp_path)
    monkeypatch.setattr("tests.lint.verdicts.list_c_sources", lambda: sorted(tmp_path.rglob("*.[ch]")))
    folder = tmp_path / "folder"
    folder.mkdir()
    texts = {
        "a.c": '#include "a.h"\n',
        "a.h": '#include "../deep.h"\n',
        "b.c": "#include <stdio.h>\n",
        "m.c": "#include M\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (tmp_path / "deep.h").write_text("")
    (folder / "Makefile").write_text("lint:\n\t@test ! -e bad && echo $(WHICH) >>lines\n")
    sources = sorted(folder.glob("*.c"))

    def read_again() -> list[str]:
        check_c_each(["make", "-C", str(folder), "lint"], "WHICH", sources, timeout=30)
        return (folder / "lines").read_text().splitlines()

    (folder / "bad").touch()
    with pytest.raises(CommandError):
        read_again()
    (folder / "bad").unlink()
    assert read_again() == ["a.c b.c m.c"]
    assert read_again() == ["a.c b.c m.c"]
    (tmp_path / "deep.h").write_text("int x;\n")
    assert read_again()[1:] == ["a.c m.c"]
    (folder / "b.c").write_text("#include <stdlib.h>\n")
    assert read_again()[2:] == ["b.c"]


def test_what_is_not_clean_is_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.lint.verdicts.CLEAN", tmp_path / "clean")
    marks = tmp_path / "marks"
    fails = ["sh", "-c", f"echo >>{marks}; test -e {tmp_path}/well"]
    for _ in range(2):
        with pytest.raises(CommandError):
            check_c(fails, timeout=10)
    (tmp_path / "well").touch()
    for _ in range(2):
        check_c(fails, timeout=10)
    assert len(marks.read_text().splitlines()) == 3


def test_shell_scripts_are_clean() -> None:
    scripts = find_scripts()
    assert TOP / "tools/setup" in scripts
    run_command(["shellcheck", *map(str, scripts)], timeout=120)


def test_completion_is_made_when_the_package_is_built() -> None:
    """A copy in the tree would have to be made again with each option."""
    kept = [
        path
        for path in list_sources()
        if path.suffix != ".py" and "hypemanctl()" in path.read_text("latin-1")
    ]
    assert kept == []


def test_packages_are_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)
    (changes,) = DIST.glob("*.changes")
    env = {**ENVIRONMENT, "LINTIAN_PROFILE": "debian"}
    argv = ["lintian", "--fail-on=error,warning", "--allow-root", str(changes.relative_to(TOP))]
    check(argv, [changes, *DIST.glob("*.deb"), *DIST.glob("*.buildinfo")], ["lintian"], timeout=600, env=env)


def find_man_pages() -> list[Path]:
    return sorted((TOP / "debian/man").glob("*.[1-8]"))


@pytest.mark.parametrize("page", find_man_pages(), ids=lambda page: page.name)
def test_man_pages_are_clean(page: Path, tmp_path: Path) -> None:
    whole = tmp_path / page.name
    whole.write_text(render_page(page.read_text()))
    env = {**ENVIRONMENT, "MANWIDTH": "80", "MANROFFSEQ": "", "LC_ALL": "C.UTF-8"}
    shown = run_command(
        ["man", "--warnings", "--encoding=UTF-8", "--local-file", str(whole)], env=env, timeout=60
    )
    assert shown.stderr == ""


def test_the_changelog_has_the_version_of_the_program() -> None:
    first = (TOP / "debian/changelog").read_text().splitlines()[0]
    assert first.startswith(f"hypemand ({VERSION}) ")


def test_blocking_work_has_a_pool_of_its_kind() -> None:
    """asyncio's default pool is one for all: five slow disks would hold up the check of a token."""
    strays = [
        f"{path.relative_to(TOP)}: {call}"
        for path in sorted((TOP / "hypemand").rglob("*.py"))
        if path != TOP / "hypemand/workers.py"
        for call in re.findall(r"\bto_thread\b|run_in_executor\(\s*None\b", path.read_text())
    ]
    assert strays == [], "use hypemand.workers.run_in"


def test_every_source_file_names_its_licence() -> None:
    kinds = {".py", ".c", ".h", ".sh", ".service", ".socket", ".slice"}
    sources = [path for path in list_sources() if path.suffix in kinds] + find_scripts()
    silent = [str(path) for path in sources if b"SPDX-License-Identifier: Apache-2.0" not in _head(path)]
    assert silent == []


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(200)
