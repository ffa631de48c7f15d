"""What Envoy's access log says is read exactly, and nothing that it says can do harm."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.data.accesslog import v3 as accesslog
from envoy_data_plane.envoy.service.accesslog import v3 as service
from envoy_data_plane.google.protobuf import Struct
from exchanges import DECODE, PREFILL
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.cluster.view import PodCache
from pdrouter.extproc.access_log import access_log_pb2 as pb
from pdrouter.extproc.access_log.entries import (
    PLAIN_USAGE_PATHS,
    EntryInvalid,
    read_entry,
    read_message,
)
from pdrouter.extproc.access_log.service import AccessLogService
from pdrouter.load.failures import EjectionRules, FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.output_length import OutputLengths
from pdrouter.openai.usage import Usage
from pdrouter.serving.answers import AnswerReport, AnswerReports
from pdrouter.serving.pod_outcomes import PodOutcomes
from pdrouter.telemetry.requests import RequestTelemetry

LOG_TYPE = accesslog.AccessLogType
START = datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)
ROUTED: dict[str, Any] = {
    "request_id": "r",
    "model": "m",
    "endpoint": DECODE.address,
    "stream": True,
    "generates": True,
    "split": False,
}
STREAM_USAGE = {"usage": json.dumps({"prompt_tokens": 9, "completion_tokens": 5})}


def microseconds(after_s: float) -> str:
    return str(int((START + timedelta(seconds=after_s)).timestamp() * 1_000_000))


def make_entry(
    routed: dict[str, Any] | None = None,
    noted: dict[str, Any] | None = None,
    *,
    served_by: str = DECODE.ip,
    **common: Any,
) -> accesslog.HttpAccessLogEntry:
    metadata = {"other.filter": Struct.from_dict({"x": 1.0})}
    if routed is not None:
        metadata["pdrouter"] = Struct.from_dict(routed)
    if noted is not None:
        metadata["pdrouter.usage"] = Struct.from_dict(noted)
    properties: dict[str, Any] = {
        "start_time": START,
        "time_to_first_upstream_rx_byte": timedelta(seconds=0.5),
        "time_to_last_upstream_rx_byte": timedelta(seconds=2),
        "upstream_remote_address": core.Address(
            socket_address=core.SocketAddress(address=served_by, port_value=8000)
        ),
        "metadata": core.Metadata(filter_metadata=metadata),
    }
    return accesslog.HttpAccessLogEntry(
        common_properties=accesslog.AccessLogCommon(**(properties | common)),
        response=accesslog.HttpResponseProperties(response_code=200),
    )


def spell(*entries: accesslog.HttpAccessLogEntry) -> bytes:
    return bytes(
        service.StreamAccessLogsMessage(
            http_logs=service.StreamAccessLogsMessageHttpAccessLogEntries(log_entry=list(entries))
        )
    )


def read(entry: accesslog.HttpAccessLogEntry) -> AnswerReport | None:
    (one,) = read_message(spell(entry))
    return read_entry(one)


def must_read(entry: accesslog.HttpAccessLogEntry) -> AnswerReport:
    report = read(entry)
    assert report is not None
    return report


class TestEntries:
    def test_a_stream_has_tokens_and_times(self) -> None:
        noted = STREAM_USAGE | {"first_body_us": microseconds(1.2)}
        report = must_read(make_entry(ROUTED, noted))

        assert report.usage == Usage(9, None, 5)
        assert report.served_by == DECODE.address
        assert report.first_token_s == pytest.approx(1.2)
        assert report.stream_s == pytest.approx(0.8)
        assert report.inter_token_s == pytest.approx(0.2)
        assert (report.status, report.flags, report.misrouted) == (200, (), False)

    def test_without_the_script_the_first_byte_counts(self) -> None:
        report = must_read(make_entry(ROUTED, STREAM_USAGE))

        assert report.first_token_s == 0.5
        assert report.stream_s == 1.5

    def test_a_plain_answer_has_no_time_of_a_first_token(self) -> None:
        noted = {"usage.prompt_tokens": 9.0, "usage.completion_tokens": 5.0}
        report = must_read(make_entry(ROUTED | {"stream": False}, noted))

        assert report.usage == Usage(9, None, 5)
        assert (report.first_token_s, report.stream_s, report.inter_token_s) == (None, None, None)

    @pytest.mark.parametrize(
        ("noted", "usage"),
        [
            (
                {
                    "usage.prompt_tokens": 9.0,
                    "usage.completion_tokens": 5.0,
                    "usage.prompt_tokens_details.cached_tokens": 4.0,
                },
                Usage(9, 4, 5),
            ),
            (
                {
                    "usage.input_tokens": 5.0,
                    "usage.output_tokens": 6.0,
                    "usage.cache_read_input_tokens": 4.0,
                },
                Usage(9, 4, 6),
            ),
            (
                {
                    "message.usage": '{"input_tokens": 5, "cache_read_input_tokens": 4}',
                    "usage": '{"output_tokens": 6}',
                },
                Usage(9, 4, 6),
            ),
            ({"response.usage": '{"input_tokens": 9, "output_tokens": 6}'}, Usage(9, None, 6)),
            ({}, None),
            ({"usage": "{"}, None),
            ({"usage": 7.0}, None),
            ({"usage.prompt_tokens": "many"}, None),
            ({"usage.prompt_tokens": 1e300}, None),
            ({"usage.prompt_tokens": 1.5}, None),
            ({"usage.prompt_tokens": -3.0}, None),
            ({"usage.prompt_tokens": 9.0, "usage.completion_tokens": 1e15}, Usage(9, None, None)),
        ],
    )
    def test_usage_is_read_where_it_makes_sense(
        self, noted: dict[str, Any], usage: Usage | None
    ) -> None:
        assert must_read(make_entry(ROUTED, noted)).usage == usage

    @pytest.mark.parametrize(("cached", "told"), [({"cached_tokens": 3.0}, 3), ({}, None)])
    def test_of_a_split_request_the_prefill_leg_says_what_was_cached(
        self, cached: dict[str, float], told: int | None
    ) -> None:
        noted = {"usage.prompt_tokens": 9.0, "usage.prompt_tokens_details.cached_tokens": 8.0}
        report = must_read(make_entry(ROUTED | {"split": True} | cached, noted))

        assert report.usage == Usage(9, told, None)

    def test_a_request_that_went_elsewhere_is_told(self) -> None:
        assert must_read(make_entry(ROUTED, {}, served_by="10.0.0.9")).misrouted
        assert not must_read(make_entry(ROUTED, {}, served_by="")).misrouted
        assert not must_read(make_entry(ROUTED | {"endpoint": ""}, {})).misrouted

    def test_flags_have_envoys_names(self) -> None:
        flags = accesslog.ResponseFlags(
            upstream_connection_failure=True, downstream_connection_termination=True
        )
        report = must_read(make_entry(ROUTED, {}, response_flags=flags))

        assert report.flags == (
            "upstream_connection_failure",
            "downstream_connection_termination",
        )

    @pytest.mark.parametrize(
        "entry",
        [
            accesslog.HttpAccessLogEntry(),
            make_entry(None, STREAM_USAGE),
            make_entry(ROUTED, STREAM_USAGE, access_log_type=LOG_TYPE.DownstreamStart),
        ],
        ids=["empty", "foreign", "intermediate"],
    )
    def test_what_no_router_has_routed_is_passed_over(
        self, entry: accesslog.HttpAccessLogEntry
    ) -> None:
        assert read(entry) is None

    @pytest.mark.parametrize(
        "wrong",
        [
            {"model": 7.0},
            {"model": "m" * 5000},
            {"stream": "yes"},
            {"split": 1.0},
            {"cached_tokens": "3"},
            {"cached_tokens": -3.0},
            {"cached_tokens": True},
        ],
    )
    def test_a_mark_that_is_not_the_routers_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(EntryInvalid):
            read(make_entry(ROUTED | wrong))

    @pytest.mark.parametrize("text", ["", "-5", "now", "9" * 30, "1", "٣"])
    def test_times_that_make_no_sense_are_left_out(self, text: str) -> None:
        report = must_read(make_entry(ROUTED, STREAM_USAGE | {"first_body_us": text}))

        assert report.inter_token_s is None or report.inter_token_s == pytest.approx(1.5 / 4)


class Receiver:
    """A service with all that follows behind it."""

    def __init__(self) -> None:
        cache = PodCache()
        cache.replace((PREFILL, DECODE))
        self.lengths = OutputLengths(100)
        self.results: Counter[str] = Counter()
        self.telemetry = RequestTelemetry(cache, Ledger(), log_entries=self.results)
        self.failures = FailureMemory(EjectionRules(after=1))
        outcomes = PodOutcomes(self.failures)
        answers = AnswerReports(cache, self.lengths, self.telemetry, outcomes.note_cut)
        self.service = AccessLogService(answers.receive, self.results)

    def page(self) -> str:
        return self.telemetry.metrics.render().decode()


class TestService:
    async def test_entries_are_counted_for_their_model_and_pod(self) -> None:
        receiver = Receiver()
        entries = [make_entry(ROUTED, STREAM_USAGE) for _ in range(40)]
        await receiver.service.receive_message(spell(*entries, make_entry(None)))

        assert receiver.results == {"counted": 40, "foreign": 1}
        labels = f'{{model="m",namespace="{DECODE.namespace}",pod="{DECODE.name}"}}'
        assert f"pdrouter_output_tokens_total{labels} 200.0" in receiver.page()
        assert f"pdrouter_prompt_tokens_total{labels} 360.0" in receiver.page()
        assert receiver.lengths.expect("m") < 100

    async def test_a_request_that_went_elsewhere_is_counted_and_logged(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        receiver = Receiver()
        await receiver.service.receive_message(spell(make_entry(ROUTED, {}, served_by="10.9.9.9")))

        assert 'pdrouter_misrouted_total{model="m"} 1.0' in receiver.page()
        (line,) = [record for record in caplog.records if record.message == "served elsewhere"]
        assert line.__dict__["fields"] == {
            "request_id": "r",
            "model": "m",
            "chosen": DECODE.address,
            "served_by": "10.9.9.9:8000",
        }

    async def test_a_pod_that_breaks_an_answer_off_has_failed(self) -> None:
        receiver = Receiver()
        flags = accesslog.ResponseFlags(upstream_connection_termination=True)
        await receiver.service.receive_message(spell(make_entry(ROUTED, {}, response_flags=flags)))

        assert DECODE.uid in receiver.failures.list_ejected()
        (said,) = receiver.failures.describe(DECODE.uid)
        assert (said["leg"], said["last_cause"]) == ("decode", "upstream_connection_termination")

    @pytest.mark.parametrize(
        "flags",
        [
            accesslog.ResponseFlags(),
            accesslog.ResponseFlags(downstream_connection_termination=True),
            accesslog.ResponseFlags(stream_idle_timeout=True),
        ],
    )
    async def test_other_ends_of_an_answer_are_no_failures(
        self, flags: accesslog.ResponseFlags
    ) -> None:
        receiver = Receiver()
        await receiver.service.receive_message(spell(make_entry(ROUTED, {}, response_flags=flags)))

        assert receiver.failures.calm

    async def test_unknown_models_make_no_series(self) -> None:
        receiver = Receiver()
        before = receiver.page()
        await receiver.service.receive_message(
            spell(*(make_entry(ROUTED | {"model": f"evil-{n}"}, STREAM_USAGE) for n in range(20)))
        )

        assert receiver.results == {"unknown-model": 20}
        added = set(receiver.page().splitlines()) - set(before.splitlines())
        assert added == {'pdrouter_access_log_entries_total{result="unknown-model"} 20.0'}

    async def test_one_bad_entry_costs_no_other(self) -> None:
        receiver = Receiver()
        await receiver.service.receive_message(b"\xff\xff\xff")
        await receiver.service.receive_message(
            spell(make_entry(ROUTED | {"stream": "?"}), make_entry(ROUTED, STREAM_USAGE))
        )

        assert receiver.results == {"invalid": 2, "counted": 1}


VALUES = st.one_of(
    st.none(), st.booleans(), st.floats(), st.text(max_size=20), st.just(1e300), st.just("{}")
)
KEYS = st.sampled_from(
    [
        *(*ROUTED, "cached_tokens", "usage", "message.usage", "response.usage", "first_body_us"),
        *(".".join(path) for path in PLAIN_USAGE_PATHS),
    ]
)


@given(
    st.dictionaries(KEYS, VALUES),
    st.dictionaries(KEYS, VALUES),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**31), 2**31 - 1),
)
def test_no_values_break_the_reading(
    routed: dict[str, Any], noted: dict[str, Any], seconds: int, nanos: int
) -> None:
    entry = pb.HTTPAccessLogEntry()
    common = entry.common_properties
    common.metadata.filter_metadata["pdrouter"].update({**ROUTED, **routed})
    common.metadata.filter_metadata["pdrouter.usage"].update(noted)
    for moment in (common.start_time, common.time_to_last_upstream_rx_byte):
        moment.seconds, moment.nanos = seconds, nanos
    try:
        report = read_entry(entry)
    except EntryInvalid:
        return
    assert report is not None
    assert report.stream_s is None or report.stream_s >= 0
    assert report.usage is None or 0 < report.usage.prompt_tokens <= 10**9


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reading(data: bytes) -> None:
    try:
        entries = list(read_message(data))
    except EntryInvalid:
        return
    for entry in entries:
        read_entry(entry)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_changed_byte_breaks_the_reading(place: int, value: int) -> None:
    data = bytearray(spell(make_entry(ROUTED, STREAM_USAGE)))
    data[place % len(data)] = value
    try:
        for entry in read_message(bytes(data)):
            read_entry(entry)
    except EntryInvalid:
        return
