"""The gRPC service to which Envoy sends its access log."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

import grpc
import grpc.aio

from pdrouter.extproc.access_log.entries import EntryInvalid, read_entry, read_message
from pdrouter.serving.answers import AnswerReport

log = logging.getLogger(__name__)

SERVICE = "envoy.service.accesslog.v3.AccessLogService"

_ENTRIES_AT_ONCE = 16


class AccessLogService:
    """Receives the access log of Envoys, for as long as they are connected.

    An Envoy sends its entries to any router. Nothing is remembered of a request to read its entry.
    """

    def __init__(
        self, receive: Callable[[AnswerReport], bool], results: MutableMapping[str, int]
    ) -> None:
        """Set up.

        Args:
            receive: takes what an entry says; False if it is of a model that is not served.
            results: counts entries by what became of them: `counted`; `foreign`, of requests that
                no router has routed; `unknown-model`; `invalid`, messages among them.
        """
        self._receive = receive
        self._results = results

    def handler(self) -> grpc.GenericRpcHandler:
        """Return what a gRPC server needs to serve it."""
        handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
            SERVICE,
            {"StreamAccessLogs": grpc.stream_unary_rpc_method_handler(self._receive_stream)},
        )
        return handler

    async def receive_message(self, data: bytes) -> None:
        """Take one message of the log, and let others run between its entries."""
        try:
            entries = read_message(data)
        except EntryInvalid as invalid:
            self._note_invalid(invalid)
            return
        for number, entry in enumerate(entries, 1):
            try:
                report = read_entry(entry)
            except EntryInvalid as invalid:
                self._note_invalid(invalid)
            else:
                self._count(self._take(report))
            if number % _ENTRIES_AT_ONCE == 0:
                await asyncio.sleep(0)

    def _take(self, report: AnswerReport | None) -> str:
        if report is None:
            return "foreign"
        return "counted" if self._receive(report) else "unknown-model"

    def _count(self, result: str) -> None:
        self._results[result] = self._results.get(result, 0) + 1

    def _note_invalid(self, invalid: EntryInvalid) -> None:
        self._count("invalid")
        log.debug("access log: %s", invalid)

    async def _receive_stream(self, requests: AsyncIterator[bytes], context: Any) -> bytes:  # noqa: ANN401 - grpc has no types
        del requests  # The context's own reader costs less.
        while (message := await context.read()) is not grpc.aio.EOF:
            await self.receive_message(message)
        return b""  # A StreamAccessLogsResponse has no members.
