"""How workers are started."""

from pathlib import Path

import pytest

from pdrouter.workers import process


def test_python_looks_in_the_directory_only_if_the_router_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = Path(process.__file__).parents[2]
    link = tmp_path / "link"
    link.symlink_to(checkout)
    for directory, options in ((checkout, ()), (link, ()), (tmp_path, ("-P",))):
        monkeypatch.chdir(directory)
        assert process.list_options() == options


def test_a_worker_can_be_started_where_the_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert process.list_options() == ("-P",)
