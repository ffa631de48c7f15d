"""The gRPC service to which Envoy sends its access log."""

import asyncio
import logging
from collections.abc import Callable, MutableMapping

from pdrouter.extproc.access_log.entries import EntryInvalid, read_entry, read_message
from pdrouter.extproc.server import Read
from pdrouter.serving.answers import AnswerReport

log = logging.getLogger(__name__)

EXPORT_PATH = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"

_ENTRIES_AT_ONCE = 16


class AccessLogService:
    """Receives the access log of Envoys, as OpenTelemetry's logs over gRPC.

    An Envoy sends its entries to any router. Nothing is remembered of a request to read its entry.
    """

    def __init__(
        self,
        receive: Callable[[AnswerReport], bool],
        results: MutableMapping[str, int],
        *,
        counts: bool = True,
    ) -> None:
        """Set up.

        Args:
            receive: takes what an entry says; False if it is of a model that is not served.
            results: counts entries by what became of them: `counted`; `foreign`, of requests that
                no router has routed; `unknown-model`; `invalid`, messages among them.
            counts: whether the tokens count that entries tell.
        """
        self._receive = receive
        self._results = results
        self._counts = counts
        self._taking = asyncio.Lock()

    async def receive_call(self, read: Read, end: object) -> bytes:
        """Take the entries of one call, which is a message; return the answer."""
        while (message := await read()) is not end:
            await self.receive_message(message)
        return b""  # An ExportLogsServiceResponse without members says that all were taken.

    async def receive_message(self, data: bytes) -> None:
        """Take one message of the log, and let others run between its entries.

        In a burst, an Envoy sends many at once: they are taken one after the other.
        """
        async with self._taking:
            await self._take_message(data)

    async def _take_message(self, data: bytes) -> None:
        try:
            entries = read_message(data)
        except EntryInvalid as invalid:
            self._note_invalid(invalid)
            return
        for number, entry in enumerate(entries, 1):
            try:
                report = read_entry(entry, counts=self._counts)
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
