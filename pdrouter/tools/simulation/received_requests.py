"""What the engine received, kept for assertions."""

import base64
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

from pdrouter.tools.simulation.legs import SimulatedLeg

Outcome = Literal["running", "answered", "aborted", "dropped"]


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request as it came in, and what became of it.

    Attributes:
        number: Its place in the order of arrival, from 1.
        method: The HTTP method.
        path: Path with query, as on the wire.
        headers: By lower-case name; the values of a repeated header joined with `, `.
        body: The bytes received.
        leg: The half of a request that it asks for.
        status: The HTTP status of the answer, once there is one.
        outcome: `aborted` means that the client left, `dropped` that a fault cut the connection.
    """

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    leg: SimulatedLeg
    status: int | None = None
    outcome: Outcome = "running"

    def as_json(self) -> dict[str, object]:
        """Give the record for `GET /simulation/requests`.

        The body is text under `body`, or `body_base64` if it is not UTF-8.
        """
        try:
            body = {"body": self.body.decode()}
        except UnicodeDecodeError:
            body = {"body_base64": base64.b64encode(self.body).decode()}
        return {
            "number": self.number,
            "method": self.method,
            "path": self.path,
            "headers": dict(self.headers),
            **body,
            "leg": self.leg,
            "status": self.status,
            "outcome": self.outcome,
        }


_MAX_BODY_BYTES = 256 * 1024 * 1024


class RequestLog:
    """The last requests received, in order of arrival."""

    def __init__(self, size: int, max_body_bytes: int = _MAX_BODY_BYTES) -> None:
        """Start empty.

        Args:
            size: Requests to keep.
            max_body_bytes: Bytes of bodies to keep; beyond, the oldest requests go earlier.
        """
        self._size = size
        self._max_body_bytes = max_body_bytes
        self._body_bytes = 0
        self._numbers = count(1)
        self._records: OrderedDict[int, ReceivedRequest] = OrderedDict()

    def __iter__(self) -> Iterator[ReceivedRequest]:
        return iter(tuple(self._records.values()))

    def add(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, leg: SimulatedLeg
    ) -> int:
        """Keep a request that has just arrived, and give its number."""
        number = next(self._numbers)
        self._records[number] = ReceivedRequest(number, method, path, headers, body, leg)
        self._body_bytes += len(body)
        while len(self._records) > self._size or self._body_bytes > self._max_body_bytes:
            _, oldest = self._records.popitem(last=False)
            self._body_bytes -= len(oldest.body)
        return number

    def settle(self, number: int, outcome: Outcome, status: int | None = None) -> None:
        """Note what became of a request; the first note stands."""
        record = self._records.get(number)
        if record is not None and record.outcome == "running":
            self._records[number] = replace(record, outcome=outcome, status=status)

    def clear(self) -> None:
        """Forget all requests."""
        self._records.clear()
        self._body_bytes = 0
