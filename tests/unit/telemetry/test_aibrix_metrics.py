"""The metrics of aibrix's dashboards: names, labels, words, and that nothing counts twice."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from factories import MODEL, make_attempt, make_decision, make_pod, make_record, make_steps
from prometheus_client.core import Metric

from pdrouter.cluster.pods import Role
from pdrouter.cluster.view import PodCache
from pdrouter.engine_http.failures import FailureKind
from pdrouter.engines.split import Leg
from pdrouter.load.ledger import Ledger
from pdrouter.serving.record import Outcome, RequestRecord, Retry
from pdrouter.telemetry.requests import RequestTelemetry

P = make_pod(
    "p0",
    Role.PREFILL,
    roleset="r0",
    labels={"stormservice.orchestration.aibrix.ai/role-replica-index": "3"},
)
D = make_pod("d0", Role.DECODE, namespace="ns", engine="sglang")
HERE = {"gateway_pod": "gw-0"}
TWICE = {"gateway_pod": "gw-0", "pod_name": "gw-0"}
P_LABELS = {
    "namespace": "default",
    "pod": "p0",
    "model": MODEL,
    "engine_type": "vllm",
    "roleset": "r0",
    "role": "prefill",
    "role_replica_index": "3",
    **HERE,
}
D_LABELS = {
    "namespace": "ns",
    "pod": "d0",
    "model": MODEL,
    "engine_type": "sglang",
    "roleset": "",
    "role": "decode",
    "role_replica_index": "",
    **HERE,
}
NO_POD_LABELS = dict.fromkeys(D_LABELS, "") | {"model": MODEL, **HERE}
PAIR = make_decision(P, D)
POD = frozenset(P_LABELS)
END = frozenset({"model", "status", "status_code", *HERE})


class Router:
    """Telemetry of a router that knows both pods."""

    def __init__(self) -> None:
        self.cache = PodCache()
        self.cache.replace([P, D])
        self.ledger = Ledger()
        self.telemetry = RequestTelemetry(self.cache, self.ledger, gateway_pod="gw-0")

    def run(self, *, decision: Any = PAIR, attempts: Any = (), **changes: Any) -> RequestRecord:
        """A request from its beginning to its end."""
        record = make_record()
        self.telemetry.request_started(record)
        details = {"outcome": Outcome.OK, "status": 200, "model": MODEL, "strategy": "pd"} | changes
        for name, value in details.items():
            setattr(record, name, value)
        if decision is not None:
            record.decision = decision
            self.telemetry.request_routed(record)
        for attempt in attempts:
            record.attempts.append(attempt)
            self.telemetry.leg_attempted(record, attempt)
        self.telemetry.request_finished(record)
        return record

    def families(self) -> Iterator[Metric]:
        self.telemetry.flush()
        for family in self.telemetry.metrics._registry.collect():
            if not family.name.startswith("pdrouter_"):
                yield family

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values that are shown under a name."""
        return [
            (sample.labels, sample.value)
            for family in self.families()
            for sample in family.samples
            if sample.name == name
        ]


@pytest.fixture
def router() -> Router:
    return Router()


# --- Names and labels ---


def test_every_metric_has_the_labels_that_aibrix_gives_it(router: Router) -> None:
    router.telemetry.request_started(make_record(request_id="open", model=MODEL))
    failed = make_attempt(P, status=500, failure=FailureKind.STATUS)
    router.run(attempts=[failed, make_attempt(P)], steps=make_steps(route=0.1))
    router.run(outcome=Outcome.REJECTED, status=400)
    shown = {
        sample.name: frozenset(sample.labels)
        for family in router.families()
        for sample in family.samples
    }
    assert shown == {
        "gateway_request_total": frozenset({"model", *TWICE}),
        "gateway_in_flight_requests": frozenset(HERE),
        "gateway_model_in_flight_requests": frozenset({"model", *HERE}),
        "gateway_request_model_success_total": END | {"pod_name"},
        "gateway_request_model_fail_total": END | {"pod_name"},
        "gateway_prefill_request_success_total": END,
        "gateway_prefill_request_fail_total": END,
        "gateway_prefill_outstanding_requests": frozenset(HERE),
        "pd_selected_prefill_pod_total": POD,
        "pd_selected_decode_pod_total": POD,
        "gateway_routing_time_bucket_total": POD | {"bucket"},
        "gateway_prefill_time_bucket_total": POD | {"bucket"},
        "gateway_total_time_bucket_total": POD | {"bucket"},
    }


def test_the_routers_pod_is_the_host_unless_it_is_named() -> None:
    telemetry = RequestTelemetry(PodCache(), Ledger())
    (sample,) = [
        sample
        for family in telemetry.metrics._registry.collect()
        for sample in family.samples
        if sample.name == "gateway_in_flight_requests"
    ]
    assert sample.labels == {"gateway_pod": socket.gethostname()}


# --- Requests ---


def test_requests_in_flight_are_those_that_have_not_ended(router: Router) -> None:
    records = [
        make_record(request_id="r1", model=MODEL),
        make_record(request_id="r2", model=MODEL),
        make_record(request_id="r3", outcome=Outcome.CLIENT_LEFT),
    ]
    for record in records:
        router.telemetry.request_started(record)
    assert router.samples("gateway_request_total") == [({"model": "", **TWICE}, 3)]
    assert router.samples("gateway_in_flight_requests") == [(HERE, 3)]
    assert router.samples("gateway_model_in_flight_requests") == [({"model": MODEL, **HERE}, 2)]
    for record in records:
        router.telemetry.request_finished(record)
    assert router.samples("gateway_request_total") == [({"model": "", **TWICE}, 3)]
    assert router.samples("gateway_in_flight_requests") == [(HERE, 0)]
    assert router.samples("gateway_model_in_flight_requests") == []


@pytest.mark.parametrize("model", ["", MODEL])
@pytest.mark.parametrize("outcome", Outcome)
def test_a_request_counts_once_however_it_ends(
    router: Router, outcome: Outcome, model: str
) -> None:
    router.run(outcome=outcome, model=model, status=None, decision=None)
    successes = router.samples("gateway_request_model_success_total")
    failures = router.samples("gateway_request_model_fail_total")
    ((labels, count),) = successes + failures
    assert count == 1
    assert labels["model"] == model
    assert bool(successes) == (outcome in (Outcome.OK, Outcome.ANSWERED))


REFUSAL = make_attempt(P, status=422)
DROPPED = make_attempt(P, status=None, failure=FailureKind.TRANSPORT)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"outcome": Outcome.REJECTED, "status": 401, "model": ""}, "gateway_req_headers", "401"),
        (
            {"outcome": Outcome.REJECTED, "status": 404, "model": "", "body_bytes": 9},
            "gateway_req_body",
            "404",
        ),
        (
            {"outcome": Outcome.FAILED, "status": 502, "body_bytes": 9, "attempts": [DROPPED]},
            "gateway_req_body",
            "502",
        ),
        (
            {"outcome": Outcome.ENGINE_ERROR, "status": 422, "attempts": [REFUSAL]},
            "gateway_req_body",
            "422",
        ),
        (
            {"outcome": Outcome.ENGINE_ERROR, "status": 503, "attempts": [make_attempt(P)]},
            "gateway_rsp_headers",
            "503",
        ),
        (
            {"outcome": Outcome.ENGINE_ERROR, "status": 500, "attempts": [DROPPED]},
            "gateway_rsp_headers",
            "500",
        ),
        ({"outcome": Outcome.ENGINE_ERROR, "status": 500}, "gateway_rsp_headers", "500"),
        ({"outcome": Outcome.LOCAL_REPLY, "status": 413}, "gateway_rsp_headers", "413"),
        ({"outcome": Outcome.LOCAL_REPLY, "status": None}, "gateway_rsp_headers", ""),
    ],
)
def test_a_failure_says_at_which_stage(
    router: Router, changes: dict[str, Any], status: str, code: str
) -> None:
    record = router.run(**changes)
    labels = {"model": record.model, "status": f"{status}_fail", "status_code": code, **TWICE}
    assert router.samples("gateway_request_model_fail_total") == [(labels, 1)]


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (Outcome.CLIENT_LEFT, "client_cancelled_eof", "499"),
        (Outcome.PROTOCOL_ERROR, "gateway_request_fail", "500"),
    ],
)
def test_an_end_without_an_answer_has_a_code_of_its_own(
    router: Router, outcome: Outcome, status: str, code: str
) -> None:
    router.run(outcome=outcome, status=None)
    labels = {"model": MODEL, "status": status, "status_code": code, **TWICE}
    assert router.samples("gateway_request_model_fail_total") == [(labels, 1)]


def test_a_success_has_the_status_of_its_answer(router: Router) -> None:
    router.run()
    router.run()
    labels = {
        "model": MODEL,
        "status": "gateway_request_success",
        "status_code": "200",
        **TWICE,
    }
    assert router.samples("gateway_request_model_success_total") == [(labels, 2)]


@pytest.mark.parametrize("status", [200, 204, 301])
def test_what_envoy_answers_itself_is_no_failure_unless_it_is_an_error(
    router: Router, status: int
) -> None:
    """It answers a web page's preflight, and sends who asks for another path elsewhere."""
    router.run(outcome=Outcome.LOCAL_REPLY, status=status, model="", decision=None)
    labels = {
        "model": "",
        "status": "gateway_request_success",
        "status_code": str(status),
        **TWICE,
    }
    assert router.samples("gateway_request_model_success_total") == [(labels, 1)]
    assert router.samples("gateway_request_model_fail_total") == []
    assert router.samples("gateway_total_time_bucket_total") == []


# --- The prefill leg ---


@pytest.mark.parametrize(
    ("code", "failure", "labels"),
    [
        (400, None, ("http_error", "400")),
        (503, FailureKind.STATUS, ("http_error", "503")),
        (None, FailureKind.TIMEOUT, ("deadline_exceeded", "504")),
        (None, FailureKind.CONNECT, ("error", "502")),
        (None, FailureKind.TRANSPORT, ("error", "502")),
        (None, FailureKind.TOO_LARGE, ("error", "502")),
    ],
)
def test_every_failed_try_of_the_prefill_leg_counts_once(
    router: Router, code: int | None, failure: FailureKind | None, labels: tuple[str, str]
) -> None:
    router.run(attempts=[make_attempt(P, status=code, failure=failure)])
    status, status_code = labels
    expected = {"model": MODEL, "status": status, "status_code": status_code, **HERE}
    assert router.samples("gateway_prefill_request_fail_total") == [(expected, 1)]
    assert router.samples("gateway_prefill_request_success_total") == []


def test_a_try_that_went_well_is_no_failure(router: Router) -> None:
    router.run(attempts=[make_attempt(P)])
    labels = {
        "model": MODEL,
        "status": "pd-prefill-request-success",
        "status_code": "200",
        **HERE,
    }
    assert router.samples("gateway_prefill_request_success_total") == [(labels, 1)]
    assert router.samples("gateway_prefill_request_fail_total") == []


def test_outstanding_prefill_requests_are_those_of_the_ledger(router: Router) -> None:
    gone = make_pod("gone", Role.PREFILL)
    scopes = [router.ledger.start(Leg.PREFILL, pod.uid, 5) for pod in (P, P, gone)]
    router.ledger.start(Leg.DECODE, D.uid)
    assert router.samples("gateway_prefill_outstanding_requests") == [(HERE, 3)]
    for scope in scopes:
        scope.release()
    assert router.samples("gateway_prefill_outstanding_requests") == [(HERE, 0)]


# --- Choices and times ---


def test_both_pods_of_a_pair_are_counted_as_chosen(router: Router) -> None:
    router.run()
    router.run(outcome=Outcome.FAILED, status=502)
    assert router.samples("pd_selected_prefill_pod_total") == [(P_LABELS, 2)]
    assert router.samples("pd_selected_decode_pod_total") == [(D_LABELS, 2)]


@pytest.mark.parametrize(
    ("retry", "strategy", "prefill", "decode"),
    [
        (Retry.SAME_ROLESET, "pd", 1, 0),
        (Retry.OTHER_PAIR, "pd", 1, 1),
        (Retry.OVER_BUDGET, "pd", 0, 0),
        (Retry.OTHER_PAIR, "random", 0, 0),
    ],
)
def test_pods_of_a_further_try_are_counted_as_chosen(
    router: Router, retry: Retry, strategy: str, prefill: int, decode: int
) -> None:
    record = make_record(model=MODEL, decision=PAIR, strategy=strategy, retries=(retry,))
    router.telemetry.leg_retried(record)
    chosen = [
        sum(count for _, count in router.samples(f"pd_selected_{leg}_pod_total"))
        for leg in ("prefill", "decode")
    ]
    assert chosen == [prefill, decode]


def test_a_pod_that_serves_the_request_whole_is_a_decode_pod(router: Router) -> None:
    router.run(decision=make_decision(None, D, "n"), aggregated="n")
    assert router.samples("pd_selected_prefill_pod_total") == []
    assert router.samples("pd_selected_decode_pod_total") == [(D_LABELS, 1)]


def test_only_choices_of_pd_are_counted_and_timed(router: Router) -> None:
    router.run(decision=make_decision(None, D), strategy="random", steps=make_steps(route=0.001))
    assert router.samples("pd_selected_decode_pod_total") == []
    assert router.samples("gateway_routing_time_bucket_total") == []
    assert router.samples("gateway_total_time_bucket_total") == [
        (D_LABELS | {"bucket": "0-100ms"}, 1)
    ]


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        (0.0, "0-1ms"),
        (0.00099, "0-1ms"),
        (0.001, "1-2ms"),
        (0.002, "2-5ms"),
        (0.005, "5-10ms"),
        (0.01, "10-20ms"),
        (0.02, "20-50ms"),
        (0.05, "50-100ms"),
        (0.1, "100-200ms"),
        (0.2, "200-500ms"),
        (0.5, "500-1000ms"),
        (1.0, "1000-2000ms"),
        (2.0, "2000-5000ms"),
        (4.999, "2000-5000ms"),
        (5.0, "5000ms+"),
        (600.0, "5000ms+"),
    ],
)
def test_parts_of_a_request_are_counted_by_bucket_of_time(
    router: Router, seconds: float, bucket: str
) -> None:
    router.run(steps=make_steps(route=seconds, prefill=seconds), attempts=[make_attempt(P)])
    expected = [(D_LABELS | {"bucket": bucket}, 1)]
    assert router.samples("gateway_routing_time_bucket_total") == expected
    assert router.samples("gateway_prefill_time_bucket_total") == expected


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [
        (0.099, "0-100ms"),
        (0.1, "100-250ms"),
        (0.25, "250-500ms"),
        (0.5, "500-1000ms"),
        (1.0, "1000-5000ms"),
        (5.0, "5000-20000ms"),
        (20.0, "20000-60000ms"),
        (60.0, "60000ms+"),
    ],
)
def test_whole_requests_are_counted_by_coarser_buckets(
    router: Router, seconds: float, bucket: str
) -> None:
    router.run(total_s=seconds)
    labels = D_LABELS | {"bucket": bucket}
    assert router.samples("gateway_total_time_bucket_total") == [(labels, 1)]


def test_only_requests_that_went_well_are_timed(router: Router) -> None:
    for outcome in set(Outcome) - {Outcome.OK}:
        router.run(outcome=outcome, steps=make_steps(route=0.1), attempts=[make_attempt(P)])
    for part in ("routing", "prefill", "total"):
        assert router.samples(f"gateway_{part}_time_bucket_total") == []


def test_a_prefill_leg_that_was_of_no_use_is_not_timed(router: Router) -> None:
    router.run(attempts=[DROPPED], aggregated="prefill-failed", steps=make_steps(prefill=9.0))
    assert router.samples("gateway_prefill_time_bucket_total") == []


def test_a_request_whose_pod_envoy_chooses_has_a_total_time_without_a_pod(router: Router) -> None:
    router.run(decision=None, strategy=None)
    labels = NO_POD_LABELS | {"bucket": "0-100ms"}
    assert router.samples("gateway_total_time_bucket_total") == [(labels, 1)]


def test_what_was_counted_for_a_pod_goes_with_it(router: Router) -> None:
    router.run(decision=None, strategy=None)
    router.run(steps=make_steps(route=0.1), attempts=[make_attempt(P)])
    router.cache.replace([P])
    names = [
        sample.labels.get("pod", "")
        for family in router.families()
        for sample in family.samples
        if "_pod_" in sample.name or "bucket" in sample.name
    ]
    assert sorted(names) == ["", "p0"]
    router.cache.replace([P, D])
    assert router.samples("pd_selected_decode_pod_total") == []
