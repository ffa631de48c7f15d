"""The standard health service (grpc.health.v1)."""

import asyncio
from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from pdrouter.extproc.http2.grpc_messages import RpcFailed, Status
from pdrouter.extproc.http2.stream import END, Stream

CHECK_PATH: Final = "/grpc.health.v1.Health/Check"
WATCH_PATH: Final = "/grpc.health.v1.Health/Watch"

_Serving = health_pb2.HealthCheckResponse


class Health:
    """Says whether services are served: all of them are, or none."""

    def __init__(self, services: Iterable[str]) -> None:
        """Begin in service.

        Args:
            services: names that are known.
        """
        self._services = frozenset(services)
        self._stopping = asyncio.Event()

    def stop_serving(self) -> None:
        """Say from now on that nothing is served."""
        self._stopping.set()

    async def check(self, stream: Stream) -> None:
        """Answer once.

        Raises:
            RpcFailed: the service is unknown.
        """
        service = await self._read_service(stream)
        if service not in self._services:
            raise RpcFailed(Status.NOT_FOUND, "unknown service")
        await stream.write(self._describe(service))

    async def watch(self, stream: Stream) -> None:
        """Answer now, and at each change."""
        service = await self._read_service(stream)
        await stream.write(self._describe(service))
        if not self._stopping.is_set():
            await self._stopping.wait()
            await stream.write(self._describe(service))
        # The call lasts until its client ends it, as the protocol says.
        await asyncio.get_running_loop().create_future()

    async def _read_service(self, stream: Stream) -> str:
        message = await stream.read()
        if message is END:
            raise RpcFailed(Status.INTERNAL, "a request without a message")
        try:
            service: str = health_pb2.HealthCheckRequest.FromString(message).service
        except DecodeError as error:
            raise RpcFailed(Status.INTERNAL, "the request is no HealthCheckRequest") from error
        return service

    def _describe(self, service: str) -> bytes:
        if service not in self._services:
            status = _Serving.SERVICE_UNKNOWN
        else:
            status = _Serving.NOT_SERVING if self._stopping.is_set() else _Serving.SERVING
        answer: bytes = _Serving(status=status).SerializeToString()
        return answer
