"""What Envoy's access log says is read exactly, and nothing that it says can do harm."""

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from exchanges import DECODE, PREFILL
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from pdrouter.cluster.view import PodCache
from pdrouter.extproc.access_log.entries import (
    FORMAT,
    FORMAT_WITH_USAGE,
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

ROUTED: dict[str, Any] = {
    "request_id": "r",
    "model": "m",
    "endpoint": DECODE.address,
    "stream": True,
    "generates": True,
}
STREAM_USAGE = {"usage": json.dumps({"prompt_tokens": 9, "completion_tokens": 5})}
USUAL = {
    "ACCESS_LOG_TYPE": "DownstreamEnd",
    "RESPONSE_CODE": "200",
    "RESPONSE_FLAGS": "-",
    "UPSTREAM_REMOTE_ADDRESS": DECODE.address,
    "FIRST": "1200000",
    "LAST": "2000000",
    "pod": "-",
    "first_token": "-",
}
COMMANDS = {
    "COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)": "FIRST",
    "COMMON_DURATION(DS_RX_BEG:US_RX_END:us)": "LAST",
    "DYNAMIC_METADATA(pdrouter:pod)": "pod",
    "DYNAMIC_METADATA(pdrouter:first_token)": "first_token",
    "DYNAMIC_METADATA(pdrouter:request)": "request",
    "DYNAMIC_METADATA(pdrouter.usage)": "usage",
}


def make_entry(
    routed: dict[str, Any] | None = None, noted: dict[str, Any] | None = None, **columns: str
) -> str:
    """An entry as Envoy writes it; without notes, of one that does not count tokens."""
    values = USUAL | columns
    values["request"] = "-" if routed is None else json.dumps(routed)
    values["usage"] = json.dumps(noted) if noted else "-"
    line = FORMAT if noted is None else FORMAT_WITH_USAGE
    written = [
        values[COMMANDS.get(column.strip("%"), column.strip("%"))] if "%" in column else column
        for column in line.split("\t")
    ]
    return "\t".join(written)


def spell(*entries: str) -> bytes:
    message = ExportLogsServiceRequest()
    records = message.resource_logs.add().scope_logs.add().log_records
    for entry in entries:
        records.add(time_unix_nano=1, severity_text="INFO").body.string_value = entry
    return message.SerializeToString()


def must_read(entry: str) -> AnswerReport:
    (one,) = read_message(spell(entry))
    report = read_entry(one)
    assert report is not None
    return report


class TestEntries:
    def test_a_stream_has_tokens_and_times(self) -> None:
        report = must_read(make_entry(ROUTED, STREAM_USAGE))

        assert report.usage == Usage(9, None, 5)
        assert report.served_by == DECODE.address
        assert report.first_token_s == pytest.approx(1.2)
        assert report.stream_s == pytest.approx(0.8)
        assert report.inter_token_s == pytest.approx(0.2)
        assert (report.status, report.flags, report.misrouted) == (200, (), False)

    def test_without_filters_that_count_there_are_times_only(self) -> None:
        report = must_read(make_entry(ROUTED))

        assert (report.first_token_s, report.counted, report.usage) == (1.2, False, None)
        assert must_read(make_entry(ROUTED, {})).counted

    def test_tokens_that_nobody_asks_for_do_not_count(self) -> None:
        report = read_entry(make_entry(ROUTED, STREAM_USAGE), counts=False)

        assert report is not None
        assert (report.counted, report.usage, report.first_token_s) == (False, None, 1.2)

    def test_what_the_router_has_seen_itself_is_not_told_again(self) -> None:
        report = must_read(make_entry(ROUTED, STREAM_USAGE, first_token="seen"))

        assert report.first_token_s is None
        assert report.stream_s == pytest.approx(0.8)
        elsewhere = make_entry(ROUTED, UPSTREAM_REMOTE_ADDRESS="10.0.0.9:8000", pod="seen")
        assert not must_read(elsewhere).misrouted

    @pytest.mark.parametrize("status", ["400", "503", "0", "-", "101"])
    def test_an_error_has_no_first_token(self, status: str) -> None:
        report = must_read(make_entry(ROUTED, RESPONSE_CODE=status))

        assert (report.first_token_s, report.stream_s) == (None, None)

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

    @pytest.mark.parametrize(("cached", "told"), [({"cached_tokens": 3}, 3), ({}, None)])
    def test_of_a_split_request_the_prefill_leg_says_what_was_cached(
        self, cached: dict[str, int], told: int | None
    ) -> None:
        noted = {"usage.prompt_tokens": 9.0, "usage.prompt_tokens_details.cached_tokens": 8.0}
        report = must_read(make_entry(ROUTED | {"split": True} | cached, noted))

        assert report.usage == Usage(9, told, None)

    def test_a_request_that_went_elsewhere_is_told(self) -> None:
        assert must_read(make_entry(ROUTED, {}, UPSTREAM_REMOTE_ADDRESS="10.0.0.9:8000")).misrouted
        assert not must_read(make_entry(ROUTED, {}, UPSTREAM_REMOTE_ADDRESS="-")).misrouted
        assert not must_read(make_entry(ROUTED | {"endpoint": ""}, {})).misrouted

    def test_flags_have_envoys_names(self) -> None:
        report = must_read(make_entry(ROUTED, {}, RESPONSE_FLAGS="UF,DC,NEW"))

        assert report.flags == (
            "upstream_connection_failure",
            "downstream_connection_termination",
        )

    @pytest.mark.parametrize(
        "entry",
        [
            "",
            "of another log",
            make_entry(None, STREAM_USAGE),
            make_entry(ROUTED, STREAM_USAGE, ACCESS_LOG_TYPE="DownstreamStart"),
        ],
        ids=["empty", "other", "foreign", "intermediate"],
    )
    def test_what_no_router_has_routed_is_passed_over(self, entry: str) -> None:
        assert read_entry(entry) is None

    @pytest.mark.parametrize(
        "wrong",
        [
            {"model": 7.0},
            {"model": "m" * 5000},
            {"stream": "yes"},
            {"split": 1.0},
            {"cached_tokens": "3"},
            {"cached_tokens": -3},
            {"cached_tokens": True},
        ],
    )
    def test_a_mark_that_is_not_the_routers_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(EntryInvalid):
            read_entry(make_entry(ROUTED | wrong))

    @pytest.mark.parametrize(
        "entry", ["pdrouter/1", make_entry(ROUTED, {}) + "\t", "pdrouter/1\t\t"]
    )
    def test_a_line_of_another_number_of_columns_is_refused(self, entry: str) -> None:
        with pytest.raises(EntryInvalid):
            read_entry(entry)

    @pytest.mark.parametrize("text", ["", "-5", "now", "9" * 30, "-", "٣"])
    def test_times_that_make_no_sense_are_left_out(self, text: str) -> None:
        report = must_read(make_entry(ROUTED, STREAM_USAGE, FIRST=text))

        assert (report.first_token_s, report.inter_token_s) == (None, None)


class Receiver:
    """A service with all that follows behind it."""

    def __init__(self) -> None:
        cache = PodCache()
        cache.replace((PREFILL, DECODE))
        self.lengths = OutputLengths(100)
        self.results: Counter[str] = Counter()
        self.settled: list[AnswerReport] = []
        self.telemetry = RequestTelemetry(cache, Ledger(), log_entries=self.results)
        self.failures = FailureMemory(EjectionRules(after=1))
        outcomes = PodOutcomes(self.failures)
        answers = AnswerReports(
            cache, self.lengths, self.telemetry, outcomes.note_cut, settle=self.settled.append
        )
        self.service = AccessLogService(answers.receive, self.results)

    def page(self) -> str:
        self.telemetry.flush()
        return self.telemetry.metrics.render().decode()


def spell_nested(empty: int, *, of: str) -> bytes:
    """A message of so many parts that have nothing in them."""
    message = ExportLogsServiceRequest()
    holder = message.resource_logs
    if of == "scopes":
        for _ in range(empty):
            holder.add().scope_logs.add()
    for _ in range(empty):
        holder.add()
    return message.SerializeToString()


class TestService:
    @pytest.mark.parametrize(
        "message",
        [
            pytest.param(spell(*(make_entry(ROUTED) for _ in range(8_000))), id="large"),
            pytest.param(spell_nested(1_000, of="resources"), id="of-empty-resources"),
            pytest.param(spell_nested(200, of="scopes"), id="of-empty-scopes"),
        ],
    )
    async def test_messages_that_would_keep_everybody_waiting_are_refused(
        self, message: bytes
    ) -> None:
        receiver = Receiver()
        await receiver.service.receive_message(message)
        await receiver.service.receive_message(spell(make_entry(ROUTED)))

        assert receiver.results == {"invalid": 1, "counted": 1}

    async def test_messages_that_come_at_once_take_no_more_of_a_turn_than_one(self) -> None:
        receiver = Receiver()
        message = spell(*(make_entry(ROUTED) for _ in range(40)))
        by_turn, before = [], 0
        calls = [asyncio.create_task(receiver.service.receive_message(message)) for _ in range(5)]
        while not all(call.done() for call in calls):
            await asyncio.sleep(0)
            counted = receiver.results["counted"]
            by_turn.append(counted - before)
            before = counted
            # The streams of the one that is taken and of one that waits are reset.
            calls[0].cancel()
            calls[2].cancel()
        await asyncio.gather(*calls, return_exceptions=True)

        assert receiver.results == {"counted": 16 + 3 * 40}
        assert max(by_turn) == 16

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
        await receiver.service.receive_message(
            spell(make_entry(ROUTED, {}, UPSTREAM_REMOTE_ADDRESS="10.9.9.9:8000"))
        )

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
        await receiver.service.receive_message(spell(make_entry(ROUTED, {}, RESPONSE_FLAGS="UC")))

        assert DECODE.uid in receiver.failures.list_ejected()
        (said,) = receiver.failures.describe(DECODE.uid)
        assert (said["leg"], said["last_cause"]) == ("decode", "upstream_connection_termination")

    @pytest.mark.parametrize("flags", ["-", "DC", "SI"])
    async def test_other_ends_of_an_answer_are_no_failures(self, flags: str) -> None:
        receiver = Receiver()
        await receiver.service.receive_message(spell(make_entry(ROUTED, {}, RESPONSE_FLAGS=flags)))

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
        *(*ROUTED, "split", "cached_tokens", "usage", "message.usage", "response.usage"),
        *(".".join(path) for path in PLAIN_USAGE_PATHS),
    ]
)
COLUMNS = st.dictionaries(st.sampled_from(sorted(USUAL)), st.text(max_size=20))


@given(st.dictionaries(KEYS, VALUES), st.dictionaries(KEYS, VALUES), COLUMNS)
def test_no_values_break_the_reading(
    routed: dict[str, Any], noted: dict[str, Any], columns: dict[str, str]
) -> None:
    try:
        report = read_entry(make_entry(ROUTED | routed, noted, **columns))
    except EntryInvalid:
        return
    assert report is None or report.stream_s is None or report.stream_s >= 0
    assert report is None or report.usage is None or 0 < report.usage.prompt_tokens <= 10**9


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reading(data: bytes) -> None:
    try:
        for entry in read_message(data):
            read_entry(entry)
    except EntryInvalid:
        return


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_no_changed_byte_breaks_the_reading(place: int, value: int) -> None:
    data = bytearray(spell(make_entry(ROUTED, STREAM_USAGE)))
    data[place % len(data)] = value
    try:
        for entry in read_message(bytes(data)):
            read_entry(entry)
    except EntryInvalid:
        return
