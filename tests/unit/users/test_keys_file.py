"""The file of keys is followed, also as Secrets are mounted, and what breaks it changes nothing."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from waiting import wait_until

from pdrouter.users.keys import digest_key
from pdrouter.users.keys_file import KeysFile
from pdrouter.users.roster import EMPTY, RosterInvalid


def write_user(name: str) -> str:
    return f"- name: {name}\n  keys: [{digest_key(f'key-of-{name}')}]\n"


@asynccontextmanager
async def follow(path: Path, reloads: list[bool]) -> AsyncIterator[KeysFile]:
    keys = KeysFile(path, reloads.append, poll_interval_s=0.01)
    await keys.load()
    watch = asyncio.create_task(keys.watch())
    yield keys
    watch.cancel()


async def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, reloads = tmp_path / "users.yaml", list[bool]()
    path.write_text(write_user("ann"))
    async with follow(path, reloads) as keys:
        assert [*keys.roster.users] == ["ann"]
        path.write_text(write_user("bob") + write_user("ann"))
        await wait_until(lambda: reloads == [True])
        assert [*keys.roster.users] == ["bob", "ann"]
        path.write_text("- name: joe\n  keys: [sk-pdr-a-plain-key-of-joes]\n")
        await wait_until(lambda: reloads == [True, False])
        path.unlink()
        await wait_until(lambda: reloads == [True, False, False])
        assert [*keys.roster.users] == ["bob", "ann"]
        path.write_text(write_user("joe"))
        await wait_until(lambda: reloads[-1])
        assert [*keys.roster.users] == ["joe"]
    errors = [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert "line 2: a key of user 'joe'" in errors[0]
    assert "a-plain-key" not in caplog.text


async def test_the_links_of_a_mounted_secret_are_followed(tmp_path: Path) -> None:
    for version, name in (("v1", "ann"), ("v2", "bob")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "users.yaml").write_text(write_user(name))
    data, file, reloads = tmp_path / "..data", tmp_path / "users.yaml", list[bool]()
    data.symlink_to("v1")
    file.symlink_to("..data/users.yaml")
    async with follow(file, reloads) as keys:
        assert [*keys.roster.users] == ["ann"]
        (tmp_path / "..next").symlink_to("v2")
        (tmp_path / "..next").rename(data)
        await wait_until(lambda: reloads == [True])
        assert [*keys.roster.users] == ["bob"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"- name: [", b"- 1"])
async def test_a_router_does_not_start_with_a_file_that_says_nothing(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "users.yaml"
    if content is not None:
        path.write_bytes(content)
    keys = KeysFile(path)
    with pytest.raises(RosterInvalid, match=r"users\.yaml"):
        await keys.load()
    assert keys.roster is EMPTY


async def test_without_a_file_there_are_no_users() -> None:
    keys = KeysFile()
    await keys.load()
    await keys.watch()
    assert (keys.roster, keys.given) == (EMPTY, False)
