# SPDX-License-Identifier: Apache-2.0
"""Tokens: what is kept of them, and what makes one good."""

import asyncio
import errno
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hypemand.api.tokens import MAX_TOKENS, Token, TokenExists, TokenStore, TooManyTokens
from hypemand.errors import HostNotReady, InvalidRequest, NotFound
from hypemand.model.tokens import Scope
from tests.unit.api.harness import NOBODY, Api, ask_as, drive

# a token but for its prefix, which is no text
WRONG = {
    "name": "a",
    "prefix": 1,
    "sha256": "",
    "read_only": False,
    "created_at": 1,
    "expires_at": None,
    "last_used_at": None,
}

NO_SCOPE = WRONG | {"prefix": "x", "scope": "all", "vms": [], "tags": [], "expired": False}


def use(folder: Path, scenario: Callable[[TokenStore], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(TokenStore(folder / "tokens.json"))

    asyncio.run(main())


def test_the_file_has_no_token_in_it_and_only_root_may_read_it(tmp_path: Path) -> None:
    async def scenario(store: TokenStore) -> None:
        token, text = await store.create("ci", scope=Scope.READ, expires_in=60)
        content = (tmp_path / "tokens.json").read_text()
        assert text not in content
        assert text[len(token.prefix) :] not in content
        assert (tmp_path / "tokens.json").stat().st_mode & 0o777 == 0o600
        assert len(text) >= 46
        again = TokenStore(tmp_path / "tokens.json")
        found = await again.find(text)
        assert found is not None
        assert (found.name, found.scope) == ("ci", Scope.READ)

    use(tmp_path, scenario)


def test_only_the_whole_token_is_good_and_only_until_it_is_revoked(tmp_path: Path) -> None:
    async def scenario(store: TokenStore) -> None:
        _, text = await store.create("a", expires_in=None)
        token, other = await store.create("b", expires_in=None)
        assert await store.find(text[:-1]) is None
        assert await store.find(text + "x") is None
        assert await store.find(token.sha256) is None
        assert await store.find("") is None
        await store.revoke("a")
        assert await store.find(text) is None
        assert await store.find(other) is not None
        assert [t.name for t in await store.list_tokens()] == ["b"]
        with pytest.raises(NotFound):
            await store.revoke("a")

    use(tmp_path, scenario)


def test_an_expired_token_is_good_no_more_and_still_listed(tmp_path: Path) -> None:
    async def scenario(store: TokenStore) -> None:
        token, text = await store.create("a", expires_in=60)
        assert await store.find(text) is not None
        path = tmp_path / "tokens.json"
        path.write_text(path.read_text().replace(json.dumps(token.expires_at), json.dumps(time.time())))
        later = TokenStore(path)
        assert await later.find(text) is None
        assert [t.name for t in await later.list_tokens()] == ["a"]

    use(tmp_path, scenario)


def test_the_last_use_is_written_once_an_hour(tmp_path: Path) -> None:
    async def scenario(store: TokenStore) -> None:
        _, text = await store.create("a", expires_in=None)
        assert (await store.list_tokens())[0].last_used_at is None
        await store.find(text)
        path = tmp_path / "tokens.json"
        first, inode = (await store.list_tokens())[0].last_used_at, path.stat().st_ino
        assert first is not None
        await store.find(text)
        assert ((await store.list_tokens())[0].last_used_at, path.stat().st_ino) == (first, inode)
        assert (await TokenStore(path).list_tokens())[0].last_used_at == first
        path.write_text(path.read_text().replace(json.dumps(first), json.dumps(first - 4000)))
        later = TokenStore(path)
        await later.find(text)
        assert (await later.list_tokens())[0].last_used_at != first - 4000

    use(tmp_path, scenario)


def test_a_token_that_has_expired_stays_so_whatever_the_clock_says(tmp_path: Path) -> None:
    async def scenario(store: TokenStore) -> None:
        token, text = await store.create("a", expires_in=60)
        _, other = await store.create("b", expires_in=None)
        path = tmp_path / "tokens.json"
        path.write_text(path.read_text().replace(json.dumps(token.expires_at), json.dumps(time.time())))
        assert await TokenStore(path).find(other) is not None  # by whatever token it was noticed
        later = json.dumps(time.time() + 1000)  # as for a clock that was set back
        kept = json.loads(path.read_text())
        kept["tokens"][0]["expires_at"] = json.loads(later)
        path.write_text(json.dumps(kept))
        assert await TokenStore(path).find(text) is None

    use(tmp_path, scenario)


def test_a_revoked_token_is_refused_at_once_also_where_that_cannot_be_written(tmp_path: Path) -> None:
    async def scenario(store: TokenStore) -> None:
        _, text = await store.create("a", expires_in=None)
        _, other = await store.create("b", expires_in=None)
        await store.find(other)
        ended: list[str] = []
        store.on_end = ended.append
        folder, away = tmp_path / "tokens", tmp_path / "away"
        (tmp_path / "tokens.json").rename(away)
        (tmp_path / "tokens.json").mkdir()  # nothing can be put in its place
        with pytest.raises(HostNotReady, match="a is revoked, but only until hypemand restarts"):
            await store.revoke("a")
        assert ended == ["a"]
        assert await store.find(text) is None
        assert not folder.exists()
        (tmp_path / "tokens.json").rmdir()
        away.rename(tmp_path / "tokens.json")
        assert store._retry_at is not None
        store._retry_at = time.monotonic()
        assert await store.find(other) is not None
        assert [t.name for t in await TokenStore(tmp_path / "tokens.json").list_tokens()] == ["b"]

    use(tmp_path, scenario)


def test_tokens_of_before_there_were_scopes_are_good_for_what_they_were(tmp_path: Path) -> None:
    old = {key: value for key, value in WRONG.items() if key != "prefix"} | {"prefix": "hm-xxxxx"}
    tokens = [old | {"name": "all", "read_only": False}, old | {"name": "looker", "read_only": True}]
    (tmp_path / "tokens.json").write_text(json.dumps({"version": 1, "tokens": tokens}))

    async def scenario(store: TokenStore) -> None:
        found = {token.name: token.scope for token in await store.list_tokens()}
        assert found == {"all": Scope.ADMIN, "looker": Scope.READ}
        await store.revoke("all")
        again = await TokenStore(tmp_path / "tokens.json").list_tokens()
        assert [token.scope for token in again] == [Scope.READ]

    use(tmp_path, scenario)


@pytest.mark.parametrize("name", ["", "a b", "-x", "x" * 65, "a/b", "ä", "a\n"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    async def scenario(store: TokenStore) -> None:
        with pytest.raises(InvalidRequest):
            await store.create(name, expires_in=None)

    use(tmp_path, scenario)


def test_a_name_is_taken_once_and_there_is_an_end_to_tokens(tmp_path: Path) -> None:
    async def scenario(store: TokenStore) -> None:
        await store.create("a", expires_in=None)
        with pytest.raises(TokenExists):
            await store.create("a", expires_in=None)
        kept = [Token(f"t{n}", "hm-xxxxx", "0" * 64, Scope.ADMIN, 0.0, None, None) for n in range(MAX_TOKENS)]
        await store._store({token.name: token for token in kept})
        with pytest.raises(TooManyTokens):
            await store.create("b", expires_in=None)

    use(tmp_path, scenario)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"version": 3, "tokens": []}',
        '{"version": 2, "tokens": [' + json.dumps(WRONG | {"prefix": "x"}) + "]}",
        '{"version": 2, "tokens": [' + json.dumps(NO_SCOPE) + "]}",
        '{"version": 1, "tokens": [{}]}',
        '{"version": 1, "tokens": [' + json.dumps(WRONG) + "]}",
        "\xff",
        "[" * 100_000,
    ],
)
def test_a_broken_file_makes_no_token_good_and_is_not_written_over(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(content, encoding="latin-1")

    async def scenario(store: TokenStore) -> None:
        for attempt in (
            store.find("hm-x"), store.list_tokens(), store.revoke("a"),
            store.create("a", expires_in=None),
        ):  # fmt: skip
            with pytest.raises(HostNotReady, match=r"tokens\.json"):
                await attempt
        assert path.read_text(encoding="latin-1") == content

    use(tmp_path, scenario)


def test_tokens_are_roots_to_make_and_revoke_and_not_the_groups(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.services.tokens.create("kept", expires_in=None)
        for method, path, body in (
            ("POST", "/tokens", {"name": "mine"}),
            ("DELETE", "/tokens/kept", None),
        ):
            answer = await ask_as(NOBODY, api.path, method, path, body)
            assert answer.startswith(b"HTTP/1.0 403")
            assert b"on the host's own socket" in answer
        assert (await ask_as(NOBODY, api.path, "GET", "/tokens")).startswith(b"HTTP/1.0 200")
        assert [t.name for t in await api.services.tokens.list_tokens()] == ["kept"]

    drive(tmp_path, scenario)


def test_tokens_are_made_listed_and_revoked_over_the_socket(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        made = await api.ask("POST", "/tokens", {"name": "ci", "expires": "30d", "scope": "read"})
        assert made.status == 201
        assert made.json["token"].startswith(made.json["prefix"])
        assert (await api.ask("POST", "/tokens", {"name": "ci"})).code == "already_exists"
        (listed,) = (await api.ask("GET", "/tokens")).json
        assert (listed["name"], listed["scope"], listed["expired"]) == ("ci", "read", False)
        assert made.json["token"] not in json.dumps(listed)
        for body in (
            {},
            {"name": "x", "expires": "0s"},
            {"name": "x", "scope": "all"},
            {"name": "x", "scope": "operate", "vms": ["A b"]},
            {"name": "x", "scope": "operate", "vms": "web"},
            {"name": "x", "scope": "operate", "tags": {"a": 1}},
            {"name": "x", "scope": "operate", "tags": {"!": "x"}},
            {"name": "x", "scope": "operate", "vms": ["a"] * 33},
            {"name": "x", "scope": "admin", "vms": ["web"]},
            {"name": "x", "vms": ["web"]},
            {"name": "x", "y": 1},
        ):
            assert (await api.ask("POST", "/tokens", body)).status == 400
        assert (await api.ask("DELETE", "/tokens/ci")).status == 204
        assert (await api.ask("DELETE", "/tokens/ci")).code == "not_found"
        assert (await api.ask("GET", "/tokens")).json == []

    drive(tmp_path, scenario)


def test_a_revoke_on_a_full_disk_counts_and_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario(store: TokenStore) -> None:
        _, text = await store.create("a", expires_in=None)
        _, other = await store.create("b", expires_in=None)
        monkeypatch.setattr("hypemand.api.tokens.write_file", full)
        await store.revoke("a")
        for after in (store, TokenStore(tmp_path / "tokens.json")):
            assert await after.find(text) is None
            assert await after.find(other) is not None

    use(tmp_path, scenario)


def test_a_revoke_that_cannot_be_written_counts_at_once_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object, **_options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async def scenario(store: TokenStore) -> None:
        _, text = await store.create("a", expires_in=None)
        with monkeypatch.context() as patched:
            patched.setattr("hypemand.api.tokens.write_file", broken)
            for _ in range(2):
                with pytest.raises(HostNotReady, match="the token a is revoked, but only until"):
                    await store.revoke("a")
                assert await store.find(text) is None
        await store.revoke("a")
        assert await TokenStore(tmp_path / "tokens.json").find(text) is None
        with pytest.raises(NotFound):
            await store.revoke("a")

    use(tmp_path, scenario)
