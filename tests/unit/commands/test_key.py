"""`pdrouter key`: the key goes to the user, its digest to the file, and neither to the other."""

import io

import pytest

from pdrouter.cli import main
from pdrouter.users.keys import PREFIX, digest_key
from pdrouter.users.roster import parse_roster


def test_a_new_key_is_shown_once_and_its_entry_goes_to_the_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["key", "ann", "--model", "llama31-8b", "--model", "demo-*"]) == 0
    shown = capsys.readouterr()
    [key] = [line for line in shown.err.splitlines() if line.startswith(PREFIX)]
    # What is redirected into the file has no key in it.
    assert key not in shown.out
    roster = parse_roster(shown.out)
    user = roster.by_digest[digest_key(key)]
    assert (user.name, user.models) == ("ann", ("llama31-8b", "demo-*"))


def test_names_are_written_so_that_they_are_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Ann O'Hara", "no", "12", 'a"b', "ann: b"):
        assert main(["key", name]) == 0
        assert [*parse_roster(capsys.readouterr().out).users] == [name]


def test_an_old_key_is_read_where_no_shell_remembers_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "an-old-key-of-enough-characters"
    for words, expected in (
        (["key", "--hash"], f"{digest_key(key)}\n"),
        (["key", "--hash", "ann"], f'- name: "ann"\n  keys: ["{digest_key(key)}"]\n'),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n"))
        assert main(words) == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize(
    ("words", "told"), [(["key"], "whose key"), (["key", "--hash"], "20 characters")]
)
def test_what_makes_no_key_is_said(
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("short\n"))
    assert main(words) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.out == ""
