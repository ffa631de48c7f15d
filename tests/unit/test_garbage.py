import asyncio
import gc

from pdrouter.garbage import (
    FEW_REQUESTS,
    GROWN_BYTES,
    INTERVAL_S,
    PATIENCE_S,
    FullCollections,
)


async def test_python_searches_nothing_by_itself_meanwhile() -> None:
    searches = FullCollections(lambda: 0, lambda: 0, lambda: None)
    running = asyncio.create_task(searches.run())
    await asyncio.sleep(0)
    assert not gc.isenabled()
    running.cancel()
    await asyncio.wait((running,))
    assert gc.isenabled(), "or a process without these searches would never be searched"


def test_all_objects_are_searched_when_few_requests_are_open() -> None:
    now, requests, searches = 0.0, FEW_REQUESTS + 1, list[float]()
    collections = FullCollections(
        lambda: requests, lambda: 0, lambda: searches.append(now), lambda: now
    )

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds
        collections.look()

    wait(INTERVAL_S - 1)
    wait(2.0)
    assert searches == []
    requests = FEW_REQUESTS
    wait(0.0)
    assert searches == [INTERVAL_S + 1]
    wait(INTERVAL_S - 1)
    assert len(searches) == 1
    wait(1.0)
    assert len(searches) == 2


def test_a_search_is_not_put_off_for_ever() -> None:
    now, searches = 0.0, list[float]()
    collections = FullCollections(
        lambda: 5000, lambda: 0, lambda: searches.append(now), lambda: now
    )
    for _ in range(int(PATIENCE_S)):
        now += 1.0
        collections.look()
    assert searches == [PATIENCE_S]


def test_a_process_that_grows_is_searched_however_many_requests_are_open() -> None:
    size, searched = 100, list[int]()
    collections = FullCollections(
        lambda: 5000, lambda: size, lambda: searched.append(size), lambda: 0.0
    )
    for grown, count in [(GROWN_BYTES - 1, 0), (1, 1), (GROWN_BYTES - 1, 1), (1, 2), (-5, 2)]:
        size += grown
        collections.look()
        assert len(searched) == count
