"""Where Envoy goes by a list, it is told a second pod, and the router follows it there."""

from typing import Any

import pytest
from exchanges import (
    CHAT,
    DECODE,
    PREFILL,
    Bench,
    error_of,
    request_body,
    request_headers,
)

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engines.split import Leg
from pdrouter.extproc.ext_proc_pb2 import ProcessingRequest
from pdrouter.extproc.messages import PhaseReply, ResponseHeaders
from pdrouter.serving.answers import RoutedRequest
from pdrouter.serving.record import Outcome
from pdrouter.settings.choices import Routing

SECOND = Pod.create(uid="e", name="decode-1", ip="10.0.0.3", port=8000, model="m", role=Role.DECODE)
BY_LIST: dict[str, Any] = {"pod_routing": Routing.OVERRIDE_HOST}
CONNECT = "upstream_reset_before_response_started{remote_connection_failure}"


def answered(
    by: Pod, attempts: int | None, *, status: str = "200", details: str = "via_upstream"
) -> ResponseHeaders:
    """Return the head of an answer, with Envoy's attributes."""
    attributes: dict[str, Any] = {
        "upstream.address": by.address,
        "response.code_details": details,
    }
    if attempts is not None:
        attributes["upstream.request_attempt_count"] = float(attempts)
    return ResponseHeaders({":status": status}, attributes=attributes)


async def send(*pods: Pod, whole: bool = False, **settings: Any) -> tuple[Bench, dict[str, str]]:
    """Return an exchange whose request is on its way, and the headers that it got."""
    bench = Bench((PREFILL, *pods), **settings)
    body = request_body({**CHAT, "n": 2}) if whole else request_body()
    _, reply = await bench.tell(request_headers(), body)
    assert isinstance(reply, PhaseReply)
    return bench, dict(reply.set_headers)


def find_chosen(headers: dict[str, str]) -> tuple[Pod, Pod]:
    """Return the pod that a request goes to, and the other one."""
    pods = {pod.address: pod for pod in (DECODE, SECOND)}
    chosen = pods.pop(headers["target-pod"])
    (other,) = pods.values()
    return chosen, other


def count_decodes(bench: Bench) -> dict[str, int]:
    return {uid: load.requests for uid, load in bench.ledger.loads[Leg.DECODE].items()}


@pytest.mark.parametrize("whole", [False, True])
async def test_a_list_names_the_chosen_pod_and_then_the_other(whole: bool) -> None:
    bench, headers = await send(DECODE, SECOND, whole=whole, **BY_LIST)
    chosen, other = find_chosen(headers)
    assert headers["x-gateway-destination-endpoint"] == f"{chosen.address},{other.address}"
    assert headers.get("x-envoy-max-retries") == (None if whole else "1")
    bench.close()


async def test_a_pod_alone_is_named_twice_so_that_no_other_is_tried() -> None:
    bench, headers = await send(DECODE, **BY_LIST)
    assert headers["x-gateway-destination-endpoint"] == f"{DECODE.address},{DECODE.address}"
    assert headers["x-envoy-max-retries"] == "0"
    bench.close()


async def test_elsewhere_one_pod_is_named() -> None:
    bench, headers = await send(DECODE, SECOND)
    assert headers["x-gateway-destination-endpoint"] == headers["target-pod"]
    assert headers["x-envoy-max-retries"] == "0"
    bench.close()


@pytest.mark.parametrize("attempts", [None, 2])
@pytest.mark.parametrize("whole", [False, True])
async def test_the_request_counts_on_the_second_pod_once_that_has_answered(
    attempts: int | None, whole: bool
) -> None:
    bench, headers = await send(DECODE, SECOND, whole=whole, **BY_LIST)
    chosen, other = find_chosen(headers)
    assert count_decodes(bench) == {chosen.uid: 1}
    reply = await bench.exchange.handle(answered(other, attempts))
    assert count_decodes(bench) == {other.uid: 1}
    assert isinstance(reply, PhaseReply)
    told = dict(reply.set_headers)
    assert (told["target-pod"], told["target-pod-ip"]) == (other.name, other.address)
    record = bench.close()
    assert (record.outcome, record.unreached, record.served_by) == (Outcome.OK, chosen, "")
    assert record.decision is not None
    assert record.decision.last.pod is other
    assert record.decision.notes[-1].startswith(f"Envoy has not reached decode pod {chosen.name}")
    assert count_decodes(bench) == {}
    failures = bench.state.failures
    (failed,) = failures.describe(chosen.uid)
    assert failed["last_cause"] == "connect"
    assert failures.describe(other.uid) == []


async def test_a_gateway_may_name_the_pod_as_the_endpoint_picker_protocol_has_it() -> None:
    bench, headers = await send(DECODE, SECOND, **BY_LIST)
    chosen, other = find_chosen(headers)
    context = ProcessingRequest()
    served = {"x-gateway-destination-endpoint-served": other.address}
    context.metadata_context.filter_metadata["envoy.lb"].update(served)
    await bench.exchange.handle(ResponseHeaders({":status": "200"}, context=context))
    assert count_decodes(bench) == {other.uid: 1}
    assert bench.close().unreached is chosen


async def test_a_pod_that_envoy_does_not_know_has_not_failed() -> None:
    bench, headers = await send(DECODE, SECOND, **BY_LIST)
    chosen, other = find_chosen(headers)
    await bench.exchange.handle(answered(other, 1))
    assert bench.state.failures.describe(chosen.uid) == []
    assert bench.close().unreached is chosen


async def test_both_have_failed_if_the_second_cannot_be_connected_to_either() -> None:
    bench, headers = await send(DECODE, SECOND, **BY_LIST)
    _, other = find_chosen(headers)
    await bench.exchange.handle(answered(other, 2, status="503", details=CONNECT))
    record = bench.close()
    assert record.outcome is Outcome.LOCAL_REPLY
    for pod in (DECODE, SECOND):
        (failed,) = bench.state.failures.describe(pod.uid)
        assert failed["last_cause"] == "connect"
    assert count_decodes(bench) == {}


async def test_what_the_second_pod_answers_is_its_own() -> None:
    bench, headers = await send(DECODE, SECOND, **BY_LIST)
    _, other = find_chosen(headers)
    await bench.exchange.handle(answered(other, 2, status="500"))
    assert bench.close().outcome is Outcome.ENGINE_ERROR
    (failed,) = bench.state.failures.describe(other.uid)
    assert failed["last_cause"] == "status-500"


async def test_a_pod_that_nobody_named_is_told_as_before() -> None:
    bench, headers = await send(DECODE, SECOND, **BY_LIST)
    chosen, _ = find_chosen(headers)
    await bench.exchange.handle(answered(PREFILL, 1))
    record = bench.close()
    assert (record.served_by, record.unreached) == (PREFILL.address, None)
    assert record.decision is not None
    assert record.decision.last.pod is chosen


@pytest.mark.parametrize(("settings", "attempts"), [({}, 2), (BY_LIST, 3)])
async def test_an_answer_to_a_handle_that_was_sent_too_often_is_not_trusted(
    settings: dict[str, Any], attempts: int
) -> None:
    bench, headers = await send(DECODE, SECOND, **settings)
    chosen, _ = find_chosen(headers)
    reply = await bench.exchange.handle(answered(chosen, attempts))
    assert error_of(reply) == (502, "handle_reused")
    record = bench.close()
    assert (record.outcome, record.handoff) == (Outcome.FAILED, "sent-twice")


async def test_a_whole_request_may_be_sent_again() -> None:
    bench, headers = await send(DECODE, SECOND, whole=True)
    chosen, _ = find_chosen(headers)
    await bench.exchange.handle(answered(chosen, 3))
    assert bench.close().outcome is Outcome.OK


async def test_the_access_log_knows_the_second_pod_too() -> None:
    bench = Bench((PREFILL, DECODE, SECOND), **BY_LIST)
    _, reply = await bench.tell(request_headers(), request_body())
    assert isinstance(reply, PhaseReply)
    assert reply.dynamic_metadata is not None
    chosen, other = find_chosen(dict(reply.set_headers))
    noted = RoutedRequest.read(reply.dynamic_metadata["pdrouter"]["request"])
    assert (noted.endpoint, noted.second) == (chosen.address, other.address)
    bench.close()
