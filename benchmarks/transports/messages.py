"""The ext_proc messages of one request, as Envoy sends them."""

import json

from benchmarks.transports.installation import MODEL
from pdrouter.extproc import ext_proc_pb2 as pb
from pdrouter.extproc.http2.grpc_messages import encode_prefix

_REQUEST_HEADERS = {
    ":method": "POST",
    ":path": "/v1/chat/completions",
    ":scheme": "http",
    ":authority": "localhost",
    "content-type": "application/json",
    "user-agent": "benchmark",
    "x-forwarded-proto": "http",
    "x-request-id": "00000000-0000-0000-0000-000000000000",
}
_RESPONSE_HEADERS = {":status": "200", "content-type": "text/event-stream"}
_CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'


def make_chat(size: int) -> bytes:
    """Return a chat request of about this size in bytes."""
    text = "The quick brown fox jumps over the lazy dog. " * 8
    messages = [{"role": "user", "content": text}] * max(1, size // len(text))
    return json.dumps({"model": MODEL, "messages": messages, "stream": True}).encode()


def encode_stream(body: bytes, chunks: int) -> bytes:
    """Return the messages of a request, and of so many chunks of its response.

    In gRPC's framing, one after the other: as the body of one HTTP/2 stream.
    """
    head = pb.ProcessingRequest()
    for name, value in _REQUEST_HEADERS.items():
        head.request_headers.headers.headers.append(
            pb.HeaderValue(key=name, raw_value=value.encode()).SerializeToString()
        )
    config = pb.ProtocolConfiguration(request_body_mode=pb.ProcessingMode.BUFFERED)
    head.protocol_config = config.SerializeToString()
    answer = pb.ProcessingRequest()
    for name, value in _RESPONSE_HEADERS.items():
        answer.response_headers.headers.headers.append(
            pb.HeaderValue(key=name, raw_value=value.encode()).SerializeToString()
        )
    chunk = pb.ProcessingRequest(response_body=pb.HttpBody(body=_CHUNK))
    messages = [
        head,
        pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True)),
        answer,
        *[chunk] * chunks,
    ]
    written = [message.SerializeToString() for message in messages]
    return b"".join(part for message in written for part in (encode_prefix(message), message))
