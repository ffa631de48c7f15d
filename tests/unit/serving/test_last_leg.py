"""What the head of an answer says of the pod that it should come from."""

from collections.abc import Mapping

import pytest

from pdrouter.serving.last_leg import Judgement, Verdict, is_unseen, judge_answer

ENGINE = {"date": "today", "server": "uvicorn", "content-type": "application/json"}
ENVOY = {"content-length": "9", "content-type": "application/json"}
RESET = "upstream_reset_before_response_started"


@pytest.mark.parametrize(
    ("status", "verdict", "cause"),
    [
        (200, Verdict.ANSWERED, ""),
        (302, Verdict.ANSWERED, ""),
        (400, Verdict.ANSWERED, ""),
        (413, Verdict.ANSWERED, ""),
        (422, Verdict.ANSWERED, ""),
        (501, Verdict.ANSWERED, ""),
        (401, Verdict.LACKING, "status-401"),
        (404, Verdict.LACKING, "status-404"),
        (429, Verdict.FAILED, "status-429"),
        (408, Verdict.FAILED, "status-408"),
        (500, Verdict.FAILED, "status-500"),
        (503, Verdict.FAILED, "status-503"),
        (504, Verdict.FAILED, "status-504"),
    ],
)
@pytest.mark.parametrize("attributes", [{"response.code_details": "via_upstream"}, {}])
def test_an_engine_is_judged_by_its_status(
    status: int, verdict: Verdict, cause: str, attributes: Mapping[str, str]
) -> None:
    assert judge_answer(status, ENGINE, attributes) == Judgement(verdict, True, cause)


@pytest.mark.parametrize(
    ("details", "verdict", "cause"),
    [
        (
            RESET + "{remote_connection_failure|delayed_connect_error:_Connection_refused}",
            *(Verdict.FAILED, "connect"),
        ),
        (RESET + "{connection_timeout}", Verdict.FAILED, "connect"),
        (RESET + "{connection_termination}", Verdict.FAILED, "transport"),
        (RESET + "{remote_reset}", Verdict.FAILED, "transport"),
        (RESET + "{protocol_error}", Verdict.FAILED, "transport"),
        (RESET + "{overflow}", Verdict.NOTHING, ""),
        (RESET + "{local_reset}", Verdict.NOTHING, ""),
        ("upstream_response_timeout", Verdict.TIMED_OUT, "timeout"),
        ("stream_idle_timeout", Verdict.TIMED_OUT, "timeout"),
        ("no_healthy_upstream", Verdict.NOTHING, ""),
        ("request_payload_too_large", Verdict.NOTHING, ""),
        ("ext_proc_error_gRPC_error_14", Verdict.NOTHING, ""),
    ],
)
def test_envoys_own_answer_is_judged_by_why_it_gives_it(
    details: str, verdict: Verdict, cause: str
) -> None:
    found = judge_answer(503, ENVOY, {"response.code_details": details})
    assert found == Judgement(verdict, False, cause)


@pytest.mark.parametrize(
    ("status", "verdict", "cause"),
    [
        (503, Verdict.FAILED, "connect"),
        (504, Verdict.TIMED_OUT, "timeout"),
        (500, Verdict.NOTHING, ""),
        (404, Verdict.NOTHING, ""),
    ],
)
def test_without_attributes_the_headers_tell_that_no_engine_has_answered(
    status: int, verdict: Verdict, cause: str
) -> None:
    assert judge_answer(status, ENVOY, {}) == Judgement(verdict, False, cause)


def test_a_good_answer_is_an_engines_however_bare() -> None:
    assert judge_answer(200, {}, {}) == Judgement(Verdict.ANSWERED, True)


def test_it_is_read_when_the_engine_wants_to_be_asked_again() -> None:
    found = judge_answer(503, {**ENGINE, "retry-after": "7"}, {})
    assert found == Judgement(Verdict.FAILED, True, "status-503", 7.0)


CONNECTION_FAILED = RESET + "{remote_connection_failure|delayed_connect_error:_Connection_refused}"


@pytest.mark.parametrize(
    ("details", "attempts"),
    [
        (CONNECTION_FAILED, 1.0),
        (RESET + "{local_connection_failure}", 1.0),
        (RESET + "{connection_failure}", 1.0),
        (RESET + "{connection_timeout}", 1.0),
        (RESET + "{overflow}", 1.0),
        ("no_healthy_upstream", 0.0),
        ("request_payload_too_large", 0.0),
        ("cluster_not_found", 0.0),
    ],
)
def test_no_engine_has_got_what_envoy_could_not_send(details: str, attempts: float) -> None:
    assert is_unseen({"response.code_details": details, "upstream.request_attempt_count": attempts})


@pytest.mark.parametrize(
    ("details", "attempts"),
    [
        ("via_upstream", 1.0),
        # One that went before may have come to an engine.
        (CONNECTION_FAILED, 2.0),
        (RESET + "{overflow}", 3.0),
        (RESET + "{connection_termination}", 1.0),
        (RESET + "{remote_reset}", 1.0),
        (RESET + "{remote_refused_stream_reset}", 1.0),
        (RESET + "{protocol_error}", 1.0),
        (RESET + "{local_reset}", 1.0),
        (RESET + "{overload_manager}", 1.0),
        (RESET + "{remote_reset|connection_failure}", 1.0),
        ("upstream_response_timeout", 1.0),
        ("stream_idle_timeout", 1.0),
        ("something_new", 1.0),
        (CONNECTION_FAILED, None),
        (CONNECTION_FAILED, "1"),
        (None, 1.0),
        ("", 1.0),
    ],
)
def test_of_all_else_it_is_not_certain_that_no_engine_has_got_it(
    details: str | None, attempts: object
) -> None:
    attributes = {"response.code_details": details, "upstream.request_attempt_count": attempts}
    assert not is_unseen({name: value for name, value in attributes.items() if value is not None})
    assert not is_unseen({})
