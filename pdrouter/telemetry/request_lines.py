"""Log lines of requests and of their answers, written many at once."""

import logging
import time
from itertools import groupby
from operator import itemgetter

from pdrouter.cluster.pods import Pod
from pdrouter.serving.answers import AnswerReport
from pdrouter.serving.record import Outcome, RequestRecord
from pdrouter.telemetry.descriptions import describe_answer, describe_choice, describe_request
from pdrouter.telemetry.logs import Fields, write_lines

log = logging.getLogger("pdrouter.request")

_LOUD = frozenset({Outcome.FAILED, Outcome.PROTOCOL_ERROR})
_PREFLIGHT = "cors_response"
"""What Envoy calls its answer to a browser's question whether a page may ask: it is no request."""
_HEAD = itemgetter(0, 1)


class RequestLines:
    """Describes requests and answers, and writes what it has described when it is told to.

    What a record says is taken down at once: it may change.
    """

    def __init__(self) -> None:
        """Begin without lines."""
        self._waiting: list[tuple[int, str, Fields, float]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def tell_choice(self, record: RequestRecord) -> None:
        """Write at debug level what was chosen for a request."""
        if log.isEnabledFor(logging.DEBUG):
            log.debug("routed", extra={"fields": describe_choice(record)})

    def tell_request(self, record: RequestRecord) -> None:
        """Describe a request that has ended: its line has the time at which it did."""
        level = logging.WARNING if record.outcome in _LOUD else logging.INFO
        if record.local_reply == _PREFLIGHT:
            level = logging.DEBUG
        if log.isEnabledFor(level):
            try:
                fields = describe_request(record)
            except Exception:
                # It may cost neither the others, nor the request whose end has begun this.
                log.exception("a request cannot be described", extra=record.log_fields)
                return
            if log.isEnabledFor(logging.DEBUG):
                fields["steps_ms"] = record.steps.describe()
            ended = time.time() - record.elapsed_s + record.total_s
            self._waiting.append((level, "request", fields, ended))

    def tell_answer(self, report: AnswerReport, pod: Pod | None) -> None:
        """Describe an answer of which the line of its request does not tell, if it says anything.

        Args:
            report: what was seen of it.
            pod: the pod that gave it, if it is a known one.
        """
        told = report.usage is not None or report.first_token_s is not None
        if told and log.isEnabledFor(logging.INFO):
            fields = describe_answer(report, pod)
            self._waiting.append((logging.INFO, "answer", fields, time.time()))

    def write(self) -> None:
        """Write what was described, in that order."""
        waiting, self._waiting = self._waiting, []
        for (level, event), group in groupby(waiting, _HEAD):
            _, _, lines, times = zip(*group, strict=True)
            write_lines(log, level, event, lines, times)
