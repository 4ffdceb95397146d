# SPDX-License-Identifier: Apache-2.0
"""The programs in C, built with sanitizers in this checkout."""

import os
from pathlib import Path

import pytest

from tests.host.command import run_command
from tests.host.guestbuild import make_shared
from tests.lint import compiled
from tests.lint.compiled import find_place, keep_compiled, restore_compiled
from tests.lint.sources import TOP

TIMEOUT = 600.0


@pytest.mark.parametrize("folder", ["guest", "nss", "launcher"])
def test_programs_in_c_pass_their_own_tests_under_sanitizers(folder: str) -> None:
    if folder == "guest":
        make_shared()
    kept, target = find_place(folder), TOP / folder / "build/check"
    restore_compiled(kept, target)
    run_command(["make", "-C", str(TOP / folder), "check"], timeout=TIMEOUT)
    keep_compiled(target, kept)


def test_what_was_compiled_of_the_same_sources_is_not_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where a source is newer than that, or there is none of it."""
    monkeypatch.setattr(compiled, "COMPILED", tmp_path / "compiled")
    kept = tmp_path / "compiled/key"

    def make(checkout: Path) -> str:
        checkout.mkdir()
        (checkout / "a.c").touch()
        rule = "build/obj/a.o: a.c\n\t@mkdir -p $(@D) && echo made | tee $@\n"
        (checkout / "Makefile").write_text(f"build/a: build/obj/a.o\n\t@cp $< $@ && echo linked\n{rule}")
        restore_compiled(kept, checkout / "build")
        done = run_command(["make", "-s", "-C", str(checkout)], timeout=60)
        (checkout / "build/found").mkdir()
        keep_compiled(checkout / "build", kept)
        return done.stdout

    assert make(tmp_path / "first") == "made\nlinked\n"
    assert make(tmp_path / "second") == ""
    assert (tmp_path / "second/build/a").read_text() == "made\n"
    os.utime(tmp_path / "second/a.c")
    assert run_command(["make", "-s", "-C", str(tmp_path / "second")], timeout=60).stdout == "made\nlinked\n"
    assert sorted(path.name for path in kept.iterdir()) == ["a", "obj"]


def test_what_was_compiled_is_kept_by_its_folder_and_all_c(monkeypatch: pytest.MonkeyPatch) -> None:
    place = find_place("guest")
    assert place == find_place("guest") != find_place("nss")
    monkeypatch.setattr(compiled, "list_c_sources", lambda: [TOP / "guest/init/main.c"])
    assert find_place("guest") != place
    monkeypatch.undo()
    monkeypatch.setattr(compiled, "find_versions", lambda packages: "gcc 15")
    assert find_place("guest") != place


def test_no_more_than_some_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "COMPILED", tmp_path / "compiled")
    (tmp_path / "target").mkdir()
    for number in range(compiled.KEPT + 2):
        keep_compiled(tmp_path / "target", tmp_path / f"compiled/{number}")
        os.utime(tmp_path / f"compiled/{number}", (number, number))
    assert sorted(path.name for path in (tmp_path / "compiled").iterdir()) == ["2", "3", "4", "5", "6", "7"]
