"""What each outcome of a leg means to the memory of failures."""

import logging
from random import Random

import pytest
from factories import MODEL, make_pod

from pdrouter.cluster.pods import Pod, Role
from pdrouter.cluster.ranks import Ranks
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.load.failures import EjectionRules, FailureMemory
from pdrouter.openai.usage import Usage
from pdrouter.serving.leg_outcome import Attempt, LegAnswer
from pdrouter.serving.pod_outcomes import PodOutcomes

PREFILL = make_pod("p")
OTHER = make_pod("o")
DECODE = make_pod("d", Role.DECODE, ip="10.0.0.2")
PATH = "/v1/completions"
ENGINE = {"server": "uvicorn"}


class Bench:
    """Outcomes whose first failure ejects."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.memory = FailureMemory(EjectionRules(after=1), lambda: self.now, Random(0))
        self.outcomes = PodOutcomes(self.memory)

    def attempt(
        self,
        status: int | None = None,
        failure: FailureKind | None = None,
        message: str = "",
        *,
        pod: object = PREFILL,
        retry_after_s: float | None = None,
    ) -> Attempt:
        attempt = Attempt(
            Leg.PREFILL,
            pod,  # type: ignore[arg-type]
            *("id", status, failure, message, 0.5, 0, retry_after_s),
        )
        self.outcomes.note_attempt(attempt, MODEL, PATH)
        return attempt

    def answer(
        self,
        status: int,
        *,
        pod: Pod = DECODE,
        path: str = PATH,
        split: bool = True,
        **attributes: str,
    ) -> None:
        named = {name.replace("__", "."): value for name, value in attributes.items()}
        sent = self.outcomes.send(pod, MODEL, path, split=split)
        self.outcomes.note_answer(sent, status, ENGINE, named)

    def is_out(self, leg: Leg, model: str = MODEL) -> bool:
        return bool(self.memory.look(model)[leg])


@pytest.mark.parametrize("failure", [kind for kind in FailureKind if kind != "status"])
def test_an_attempt_that_fails_is_a_failure(failure: FailureKind) -> None:
    bench = Bench()
    bench.attempt(failure=failure)
    assert bench.is_out(Leg.PREFILL)
    assert not bench.is_out(Leg.DECODE)


def test_no_rank_is_left_behind_an_address_that_takes_no_connections() -> None:
    ranks = Ranks(size=2).split(PREFILL)
    bench = Bench()
    bench.attempt(failure=FailureKind.CONNECT, pod=ranks[0])
    assert bench.memory.list_ejected() == {ranks[0].uid, ranks[1].uid}
    one = Bench()
    one.attempt(failure=FailureKind.TRANSPORT, pod=ranks[0])
    assert one.memory.list_ejected() == {ranks[0].uid}


@pytest.mark.parametrize("status", [500, 503, 408, 429])
def test_so_is_a_status_that_speaks_of_a_pod_in_trouble(status: int) -> None:
    bench = Bench()
    bench.attempt(status, FailureKind.STATUS if status >= 500 else None)
    assert bench.is_out(Leg.PREFILL)


@pytest.mark.parametrize("status", [200, 400, 413, 422, 401, 403, 404, 405])
def test_others_are_none(status: int) -> None:
    bench = Bench()
    bench.attempt(status)
    assert bench.memory.calm


def test_a_pod_without_the_model_is_left_out_for_it() -> None:
    bench = Bench()
    bench.attempt(
        404, message=f"the prefill engine answered 404: The model `{MODEL}` does not exist"
    )
    assert bench.is_out(Leg.PREFILL)
    assert not bench.is_out(Leg.PREFILL, "another")


def test_a_path_that_another_pod_has_served_lately_is_one_that_the_pod_lacks() -> None:
    bench = Bench()
    bench.attempt(200, pod=OTHER)
    bench.attempt(404)
    assert bench.is_out(Leg.PREFILL)
    late = Bench()
    late.attempt(200, pod=OTHER)
    late.now += 61
    late.attempt(404)
    assert late.memory.calm
    own = Bench()
    own.attempt(200)
    own.attempt(404)
    assert own.memory.calm


def test_a_key_that_another_pod_takes_is_one_that_the_pod_lacks() -> None:
    bench = Bench()
    refused = bench.attempt(401)
    assert bench.memory.calm
    bench.outcomes.note_refuted(refused, MODEL)
    assert bench.is_out(Leg.PREFILL)
    done = Bench()
    done.outcomes.note_refuted(done.attempt(200), MODEL)
    assert done.memory.calm


def test_a_pod_is_left_out_for_as_long_as_it_asks_for() -> None:
    bench = Bench()
    bench.attempt(503, FailureKind.STATUS, retry_after_s=200.0)
    bench.now += 199
    assert bench.is_out(Leg.PREFILL)


def make_side_answer(pod: Pod = PREFILL, tokens: int | None = 100) -> LegAnswer:
    usage = None if tokens is None else Usage(tokens, None)
    return LegAnswer(Leg.PREFILL, pod, "id", b"", usage)


@pytest.mark.parametrize(
    ("reason", "counts"),
    [
        ("incomplete-params", True),
        ("invalid-answer", True),
        ("null-params", False),
        ("empty-blocks", False),
        ("too-large", False),
    ],
)
def test_a_handle_that_is_wrong_is_a_failure_and_one_that_is_missing_may_be_none(
    reason: str, counts: bool
) -> None:
    bench = Bench()
    bench.outcomes.note_unusable(make_side_answer(), MODEL, reason)
    assert bench.is_out(Leg.PREFILL) == counts


@pytest.mark.parametrize("reason", ["null-params", "empty-blocks"])
@pytest.mark.parametrize(
    ("given", "missing", "counts"),
    [
        (100, 100, True),
        (100, 101, True),
        # That one may be too short.
        (100, 99, False),
        (100, None, False),
        (None, 100, False),
    ],
)
def test_a_missing_handle_is_a_failure_where_another_pod_has_given_one_for_no_longer_a_prompt(
    reason: str, given: int | None, missing: int | None, counts: bool
) -> None:
    bench = Bench()
    bench.outcomes.note_usable(make_side_answer(OTHER, given), MODEL)
    bench.outcomes.note_unusable(make_side_answer(PREFILL, missing), MODEL, reason)
    assert bench.is_out(Leg.PREFILL) == counts
    same = Bench()
    same.outcomes.note_usable(make_side_answer(PREFILL, given), MODEL)
    same.outcomes.note_unusable(make_side_answer(PREFILL, missing), MODEL, reason)
    assert same.memory.calm


def test_what_another_pod_has_given_long_ago_or_for_another_model_says_nothing() -> None:
    bench = Bench()
    bench.outcomes.note_usable(make_side_answer(OTHER), MODEL)
    bench.outcomes.note_unusable(make_side_answer(), "another", "null-params")
    bench.now += 61
    bench.outcomes.note_unusable(make_side_answer(), MODEL, "null-params")
    assert bench.memory.calm


def test_what_a_pod_of_another_namespace_has_says_nothing_of_a_model_of_the_same_name() -> None:
    bench, theirs = Bench(), make_pod("t", namespace="theirs")
    bench.outcomes.note_usable(make_side_answer(theirs), MODEL)
    bench.outcomes.note_unusable(make_side_answer(), MODEL, "null-params")
    bench.attempt(200, pod=theirs)
    bench.attempt(404)
    assert bench.memory.calm


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_an_answer_of_the_last_leg_counts_for_its_pod(status: int) -> None:
    bench = Bench()
    bench.answer(status)
    assert bench.is_out(Leg.DECODE)
    bench.now += 1
    bench.answer(200)
    assert bench.memory.calm


def test_an_answer_that_another_pod_gave_says_nothing_of_the_chosen_one() -> None:
    bench = Bench()
    bench.answer(500, upstream__address="10.9.9.9:8000")
    assert bench.memory.calm


@pytest.mark.parametrize("split", [True, False])
def test_a_model_that_only_the_decode_pod_lacks_is_its_fault(split: bool) -> None:
    bench = Bench()
    bench.answer(404, split=split)
    assert bench.is_out(Leg.DECODE) == split
    assert not bench.is_out(Leg.DECODE, "another")


@pytest.mark.parametrize(
    ("status", "path", "counts"),
    [
        (404, PATH, True),
        # No engine may have the path, the key is the client's, and so is the id of an answer.
        (404, "/v1/rerank", False),
        (401, PATH, False),
        (404, "/v1/responses", False),
    ],
)
def test_a_model_of_whole_requests_that_another_pod_has_served_is_what_the_pod_lacks(
    status: int, path: str, counts: bool
) -> None:
    bench = Bench()
    other = make_pod("other", Role.DECODE, ip="10.0.0.3")
    bench.answer(200, pod=other, split=False)
    bench.answer(200, pod=other, path="/v1/responses", split=False)
    bench.answer(status, path=path, split=False)
    assert bench.is_out(Leg.DECODE) == counts
    assert not bench.is_out(Leg.DECODE, "another")


@pytest.mark.parametrize(("seconds", "counts"), [(9.9, False), (10.0, True)])
def test_a_client_that_waits_long_for_a_pod_that_answers_nobody_tells_that_it_hangs(
    seconds: float, counts: bool
) -> None:
    bench = Bench()
    began = bench.now
    bench.now += seconds
    bench.outcomes.note_silence(DECODE, Leg.DECODE, began)
    assert bench.is_out(Leg.DECODE) == counts


def test_a_pod_that_answers_others_meanwhile_does_not_hang() -> None:
    bench = Bench()
    began = bench.now
    bench.now += 5
    bench.answer(200)
    bench.now += 55
    bench.outcomes.note_silence(DECODE, Leg.DECODE, began)
    assert bench.memory.calm


def test_it_is_said_who_is_ejected_and_who_is_let_in_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench()
    bench.answer(500)
    bench.answer(500)
    bench.now += 1
    bench.answer(200)
    said = [(each.message, each.__dict__["fields"].get("cause")) for each in caplog.records]
    assert said == [("pod is ejected", "status-500"), ("pod is let in again", None)]
    assert caplog.records[0].__dict__["fields"] == {
        "pod": "d",
        "namespace": "default",
        "address": "10.0.0.2:8000",
        "model": MODEL,
        "leg": "decode",
        "cause": "status-500",
    }
