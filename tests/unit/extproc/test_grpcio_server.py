"""What grpcio says by itself."""

import asyncio
import logging

import pytest

from pdrouter.extproc.grpcio_server import GrpcioServer
from pdrouter.extproc.server import ServerOptions


async def test_a_stream_that_was_cancelled_is_no_error_and_all_else_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """grpcio says so now and then, of streams that are cancelled as soon as they are opened."""
    options = ServerOptions(
        host="127.0.0.1", port=0, max_message_bytes=1000, keepalive_s=30.0, tls=None
    )
    server = GrpcioServer(lambda *_: pytest.fail("nobody calls"), options, {})
    grpcios = logging.getLogger("grpc._cython.cygrpc")
    for error in (asyncio.CancelledError(), ValueError("a fault")):
        try:
            raise error
        except (asyncio.CancelledError, ValueError):
            grpcios.exception("Exception not handled by _handle_exceptions")
    grpcios.error("without an exception")
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [
        ValueError,
        None,
    ]
    await server.stop()
