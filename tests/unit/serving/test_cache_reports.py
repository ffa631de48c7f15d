"""What the index of prefixes learns from what engines say they had cached."""

import json
from typing import Any

import pytest
from exchanges import PARAMS, Bench, request_body, request_headers
from factories import make_pod, make_record

from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engines.split import Leg
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.openai.prompt_prefix import PromptPrefix
from pdrouter.openai.usage import Usage
from pdrouter.serving.cache_reports import CacheReports
from pdrouter.serving.leg_outcome import LegAnswer
from pdrouter.serving.record import RequestRecord

POD = make_pod("p")
PATH = "/v1/completions"


def make_prefix(first: int, blocks: int = 10) -> PromptPrefix:
    """A prompt of so many blocks of 100 bytes, each of 25 tokens, and a rest."""
    hashes = tuple(first * 1000 + number for number in range(blocks))
    return PromptPrefix(
        hashes, tuple(100 * (block + 1) for block in range(blocks)), blocks * 100 + 7
    )


class Told:
    """An index, engines that report to it, and what is told of its errors."""

    def __init__(self) -> None:
        self.index = PrefixIndex(1 << 20, 60, lambda: 0.0)
        self.reports = CacheReports(self.index, self)
        self.corrected: list[tuple[int, int]] = []

    def prefixes_corrected(self, record: RequestRecord) -> None:
        self.corrected.append((record.prefixes_gone, record.prefixes_found))

    def serve(self, prefix: PromptPrefix, cached: int | None, path: str = PATH) -> None:
        usage = Usage(251, cached)
        guess = self.reports.guess(prefix, POD.uid, 1)
        answer = LegAnswer(Leg.PREFILL, POD, "id", b"", usage)
        self.reports.take(guess, answer, path, make_record())


def test_what_is_gone_takes_along_what_was_not_used_since() -> None:
    told, (a, b, c) = Told(), (make_prefix(number) for number in range(3))
    for prefix in (a, b, c):
        told.serve(prefix, 0)
    assert told.index.match(a.hashes) == {POD.uid: 10}
    # Four blocks of the second prompt are left: the first, which is older, is gone.
    told.serve(b, 100)
    assert told.index.match(a.hashes) == {}
    assert told.index.match(b.hashes) == told.index.match(c.hashes) == {POD.uid: 10}
    assert told.corrected == [(10, 0)]


@pytest.mark.parametrize("cached", [251, 250, 240, 235, 224])
def test_what_is_about_as_expected_is_no_surprise(cached: int) -> None:
    """The last token is computed in any case, and tokens are not spread evenly."""
    told, (a, b) = Told(), (make_prefix(number) for number in range(2))
    told.serve(a, 0)
    told.serve(b, 0)
    told.serve(b, cached)
    assert told.index.match(a.hashes) == {POD.uid: 10}
    assert not told.corrected


def test_what_others_have_sent_there_is_found() -> None:
    told = Told()
    told.serve(make_prefix(1), 200)
    assert told.corrected == [(0, 7)]
    assert told.index.match(make_prefix(1).hashes) == {POD.uid: 10}


def test_an_engine_that_says_nothing_of_its_cache_is_not_asked_to() -> None:
    told, (a, b) = Told(), (make_prefix(number) for number in range(2))
    for prefix in (a, b, b):
        told.serve(prefix, None)
    assert told.index.match(a.hashes) == {POD.uid: 10}
    assert not told.corrected


def test_nothing_means_none_once_an_engine_has_said_something_on_this_path() -> None:
    """vLLM leaves the number out where it is 0."""
    told, (a, b) = Told(), (make_prefix(number) for number in range(2))
    told.serve(a, 0)
    told.serve(b, 1)
    told.serve(b, None, "/v1/messages")
    assert told.index.match(a.hashes) == {POD.uid: 10}
    told.serve(b, None)
    assert told.index.match(a.hashes) == {}


def test_a_prompt_of_no_whole_block_teaches_nothing() -> None:
    told = Told()
    told.serve(PromptPrefix((), (), 40), 16)
    assert not told.corrected


def answer_with(cached: int) -> EngineAnswer:
    usage = {"prompt_tokens": 2000, "prompt_tokens_details": {"cached_tokens": cached}}
    body = b'{"kv_transfer_params": %b, "usage": %b}' % (PARAMS, json.dumps(usage).encode())
    return EngineAnswer(200, {}, body)


def make_prompt(word: str) -> dict[str, Any]:
    return {"model": "m", "prompt": word * 2000, "max_tokens": 9}


async def test_the_index_follows_what_the_prefill_pod_says() -> None:
    bench = Bench()

    async def serve(word: str, cached: int) -> RequestRecord:
        if bench.exchange.ended:
            bench.exchange = bench.open()
        bench.prefill.answer = lambda: answer_with(cached)
        await bench.tell(request_headers(PATH), request_body(make_prompt(word)))
        return bench.close()

    def known(record: RequestRecord) -> int:
        decision = record.decision
        assert decision is not None
        assert decision.prefill is not None
        return decision.prefill.tokens

    whole = known(await serve("aaaa", 0))
    await serve("bbbb", 0)
    assert known(await serve("aaaa", 1990)) < whole / 2
    # What the pod has used since the second prompt is not gone with it, and that is there anew.
    record = await serve("bbbb", 0)
    assert record.prefixes_gone == 0
    await serve("cccc", 0)
    gone = await serve("aaaa", 0)
    assert gone.prefixes_gone == 0
    gone = await serve("cccc", 0)
    assert gone.prefixes_gone > 10
    assert known(await serve("bbbb", 0)) == whole
