"""A gRPC server on `asyncio.Protocol`: HTTP/2 (RFC 9113) as far as a server of gRPC needs it."""
