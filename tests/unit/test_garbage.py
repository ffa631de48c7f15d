import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from pdrouter.garbage import (
    FEW_REQUESTS,
    GROWN_BYTES,
    INTERVAL_OF_ALL_S,
    INTERVAL_S,
    PATIENCE_S,
    GarbageSearches,
    search_all,
    search_new,
)


class Router:
    """What is known of a router, and the searches of its objects so far."""

    def __init__(self, requests: int = 0) -> None:
        self.now, self.size, self.requests = 0.0, 100, requests
        self.searches: list[tuple[str, float]] = []
        self._searches = GarbageSearches(
            lambda: self.requests,
            lambda: self.size,
            lambda: self.searches.append(("new", self.now)),
            lambda: self.searches.append(("all", self.now)),
            lambda: self.now,
        )

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self._searches.look()


async def test_python_searches_nothing_by_itself_meanwhile() -> None:
    searches = GarbageSearches(lambda: 0, lambda: 0)
    running = asyncio.create_task(searches.run())
    await asyncio.sleep(0)
    assert not gc.isenabled()
    running.cancel()
    await asyncio.wait((running,))
    assert gc.isenabled(), "or a process without these searches would never be searched"


def test_new_objects_are_searched_when_few_requests_are_open() -> None:
    router = Router(requests=FEW_REQUESTS + 1)
    router.wait(INTERVAL_S - 1)
    router.wait(2.0)
    assert router.searches == []
    router.requests = FEW_REQUESTS
    router.wait(0.0)
    assert router.searches == [("new", INTERVAL_S + 1)]
    router.wait(INTERVAL_S - 1)
    assert len(router.searches) == 1
    router.wait(1.0)
    assert len(router.searches) == 2


def test_a_search_is_not_put_off_for_ever() -> None:
    router = Router(requests=5000)
    for _ in range(int(PATIENCE_S)):
        router.wait(1.0)
    assert router.searches == [("new", PATIENCE_S)]


def test_all_objects_are_searched_after_long_when_few_requests_are_open() -> None:
    router = Router(requests=5000)
    router.wait(INTERVAL_OF_ALL_S)
    router.requests = FEW_REQUESTS
    router.wait(1.0)
    router.wait(INTERVAL_S)
    assert [kind for kind, _ in router.searches] == ["new", "all", "new"]


def test_all_are_searched_if_the_process_grows_however_many_requests_are_open() -> None:
    router = Router(requests=5000)
    for grown, count in [(GROWN_BYTES - 1, 0), (1, 1), (GROWN_BYTES - 1, 1), (1, 2), (-5, 2)]:
        router.size += grown
        router.wait(0.0)
        assert len(router.searches) == count
    assert {kind for kind, _ in router.searches} == {"all"}


@pytest.fixture
def no_other_searches() -> Iterator[None]:
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


class Circle:
    def __init__(self) -> None:
        self.me = self


@pytest.mark.usefixtures("no_other_searches")
def test_what_was_in_use_once_is_garbage_only_when_all_is_searched() -> None:
    old, new = Circle(), Circle()
    gone = weakref.ref(old), weakref.ref(new)
    del new
    search_new()
    assert gone[1]() is None
    del old
    search_new()
    assert gone[0]() is not None
    search_all()
    assert gone[0]() is None
