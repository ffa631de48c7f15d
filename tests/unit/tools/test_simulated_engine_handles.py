"""KV handles: single use, lease, identity."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.tools.simulation.kv_handles import FetchResult, HandleStore

LEASE_S = 30.0
HANDLE: dict[str, Any] = {
    "remote_block_ids": [[7, 8]],
    "remote_engine_id": "engine-a",
    "remote_host": "10.0.0.1",
    "remote_port": 5600,
    "remote_xfer_cookie": 2**53 + 1,
    "remote_blocks_expiry_time": None,
    "transfer_mode": "pull",
}


def store(on_expiry: Callable[[], None] = lambda: None) -> HandleStore:
    handles = HandleStore("engine-a", LEASE_S, on_expiry)
    handles.issue(HANDLE, "digest", tokens=20, now=0.0)
    return handles


def test_a_handle_is_good_for_one_fetch() -> None:
    handles = store()
    assert handles.outstanding(now=1.0) == 1
    assert handles.held_tokens(now=1.0) == 20
    assert handles.fetch(HANDLE, "digest", now=1.0) == "ok"
    assert handles.outstanding(now=1.0) == 0
    assert handles.held_tokens(now=1.0) == 0
    assert handles.fetch(HANDLE, "digest", now=1.0) == "reused"


def test_a_rewritten_remote_host_is_accepted() -> None:
    assert store().fetch(HANDLE | {"remote_host": "10.9.9.9"}, "digest", now=1.0) == "ok"


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"remote_xfer_cookie": 2**53}, "altered"),
        ({"remote_xfer_cookie": float(2**53)}, "altered"),
        ({"remote_port": "5600"}, "altered"),
        ({"remote_port": 5600.0}, "altered"),
        ({"transfer_mode": None}, "altered"),
        ({"something_new": None}, "altered"),
        ({"remote_block_ids": [[7]]}, "unknown"),
        ({"remote_engine_id": "engine-b"}, "wrong_engine"),
    ],
)
def test_a_handle_that_differs_is_refused_and_stays_good(
    change: dict[str, object], result: FetchResult
) -> None:
    handles = store()
    assert handles.fetch(HANDLE | change, "digest", now=1.0) == result
    assert handles.fetch(HANDLE, "digest", now=1.0) == "ok"


def test_a_member_left_out_is_refused() -> None:
    shortened = {name: value for name, value in HANDLE.items() if name != "transfer_mode"}
    assert store().fetch(shortened, "digest", now=1.0) == "altered"


def test_another_prompt_is_refused() -> None:
    assert store().fetch(HANDLE, "other digest", now=1.0) == "mismatch"


def test_the_lease_ends_and_is_counted_once() -> None:
    expiries: list[None] = []
    handles = store(lambda: expiries.append(None))
    assert handles.outstanding(now=LEASE_S - 0.1) == 1
    assert handles.outstanding(now=LEASE_S) == 0
    assert handles.fetch(HANDLE, "digest", now=LEASE_S + 1) == "expired"
    assert len(expiries) == 1


def test_a_fetched_handle_does_not_expire() -> None:
    expiries: list[None] = []
    handles = store(lambda: expiries.append(None))
    handles.fetch(HANDLE, "digest", now=1.0)
    assert handles.fetch(HANDLE, "digest", now=LEASE_S + 1) == "reused"
    assert not expiries


def test_a_legacy_handle_is_a_whole_answer_known_by_its_id() -> None:
    answer = {"id": "cmpl-1@10.0.0.1:8000", "choices": [{"text": "x"}], "created": 2**60 + 1}
    handles = HandleStore("engine-a", LEASE_S, lambda: None)
    handles.issue(answer, "digest", tokens=1, now=0.0)
    assert handles.fetch(answer | {"choices": []}, "digest", now=1.0) == "altered"
    assert handles.fetch(answer, "digest", now=1.0) == "ok"


def test_released_blocks_are_free_at_once() -> None:
    expiries: list[None] = []
    handles = store(lambda: expiries.append(None))
    assert handles.release(HANDLE | {"remote_host": "10.9.9.9"}, now=1.0) == "ok"
    assert handles.outstanding(now=1.0) == 0
    assert handles.held_tokens(now=1.0) == 0
    assert handles.outstanding(now=LEASE_S + 1) == 0
    assert not expiries


def test_what_was_released_can_be_neither_fetched_nor_released_again() -> None:
    handles = store()
    handles.release(HANDLE, now=1.0)
    assert handles.fetch(HANDLE, "digest", now=1.0) == "released"
    assert handles.release(HANDLE, now=1.0) == "released"


def test_what_was_fetched_cannot_be_released() -> None:
    handles = store()
    handles.fetch(HANDLE, "digest", now=1.0)
    assert handles.release(HANDLE, now=1.0) == "reused"


def test_a_release_after_the_lease_is_late() -> None:
    handles = store()
    assert handles.release(HANDLE, now=LEASE_S + 1) == "expired"


@pytest.mark.parametrize(
    ("change", "result"),
    [
        ({"tp_size": 2}, "altered"),
        ({"remote_block_ids": [[7]]}, "unknown"),
        ({"remote_engine_id": "engine-b"}, "wrong_engine"),
    ],
)
def test_a_release_of_another_handle_frees_nothing(
    change: dict[str, object], result: FetchResult
) -> None:
    handles = store()
    assert handles.release(HANDLE | change, now=1.0) == result
    assert handles.outstanding(now=1.0) == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["issue", "fetch", "release"]), st.integers(0, 4), st.floats(0, 20)
        ),
        max_size=40,
    )
)
def test_every_handle_is_fetched_or_released_at_most_once_and_ends_once(
    steps: list[tuple[str, int, float]],
) -> None:
    expiries: list[None] = []
    handles = HandleStore("engine-a", LEASE_S, lambda: expiries.append(None))
    now = 0.0
    issued: set[int] = set()
    results: list[tuple[int, FetchResult]] = []
    for action, block, elapsed in steps:
        now += elapsed
        handle = {"remote_block_ids": [[block]], "remote_engine_id": "engine-a"}
        if action == "issue" and block not in issued:
            handles.issue(handle, "digest", tokens=1, now=now)
            issued.add(block)
        elif action == "fetch":
            results.append((block, handles.fetch(handle, "digest", now)))
        elif action == "release":
            results.append((block, handles.release(handle, now)))
        ended = [block for block, result in results if result == "ok"]
        assert len(set(ended)) == len(ended)
        assert issued.issuperset(ended)
        assert len(ended) + handles.outstanding(now) + len(expiries) == len(issued)
