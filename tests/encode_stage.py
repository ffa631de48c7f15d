"""An exchange with pods that encode, whose engines answer as a test has them."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

from exchanges import (
    CHAT,
    DECODE,
    PARAMS,
    PREFILL,
    Bench,
    request_body,
    request_headers,
    response_headers,
)

from pdrouter.cluster.pods import Pod, Role
from pdrouter.engine_http.answers import EngineAnswer
from pdrouter.engine_http.failures import FailureKind, PostFailed
from pdrouter.engine_http.progress import PostProgress
from pdrouter.extproc.messages import PhaseReply, ReplaceBody, Reply
from pdrouter.openai.pieces import Pieces
from pdrouter.serving.record import RequestRecord

ENCODERS = [
    Pod.create(
        uid=f"e{number}",
        name=f"encode-{number}",
        ip=f"10.0.1.{number}",
        port=8000,
        model="m",
        role=Role.ENCODE,
    )
    for number in range(3)
]
HANDLE = EngineAnswer(200, {}, b'{"kv_transfer_params": ' + PARAMS + b"}")


def picture(number: int) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"https://media.example/{number}.png"}}


def chat(*parts: dict[str, Any]) -> dict[str, Any]:
    return {**CHAT, "messages": [{"role": "user", "content": list(parts)}]}


class Stage:
    """An exchange whose engines answer as they are told.

    Attributes:
        bench: the exchange.
        encoded: bodies of encode legs, with the address and the id of each.
        prefilled: bodies of prefill legs.
        encode: gives the answer to an encode leg, by address and its number.
        prefill: gives that to a prefill leg.
        most: encode legs that have been under way at once.
    """

    def __init__(self, *pods: Pod, **settings: Any) -> None:
        self.bench = Bench(pods or (*ENCODERS, PREFILL, DECODE), **settings)
        self.bench.prefill.post = self.post  # type: ignore[method-assign]
        self.encoded: list[tuple[str, str, dict[str, Any]]] = []
        self.prefilled: list[dict[str, Any]] = []
        self.encode: Callable[[str, int], Any] = lambda *_: None
        self.prefill: Callable[[str, int], Any] = lambda *_: HANDLE
        self.under_way = self.most = 0

    async def post(
        self,
        address: str,
        path: str,
        headers: Mapping[str, str],
        body: Pieces,
        total_s: float,
        *,
        progress: PostProgress | None = None,
        once: bool = False,
        fresh: bool = False,
    ) -> EngineAnswer:
        del progress, once
        assert path == "/v1/chat/completions"
        assert 0 < total_s <= 60
        members, request_id = json.loads(bytes(body)), headers["x-request-id"]
        if address.startswith("10.0.1."):
            self.encoded.append((address, request_id, members))
            number = len(self.encoded)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            try:
                answer = self.encode(address, number)
                if asyncio.iscoroutine(answer):
                    answer = await answer
            finally:
                self.under_way -= 1
            answer = answer or describe(members, number)
        else:
            self.prefilled.append(members)
            answer = self.prefill(address, len(self.prefilled))
        if isinstance(answer, FailureKind):
            raise PostFailed(answer, "it broke")
        assert isinstance(answer, EngineAnswer)
        return answer

    async def ask(self, *parts: dict[str, Any], **members: Any) -> Reply | None:
        body = {**chat(*parts), **members}
        return (await self.bench.tell(request_headers(), request_body(body)))[-1]

    async def serve(self, *parts: dict[str, Any], **members: Any) -> dict[str, Any]:
        reply = await self.ask(*parts, **members)
        assert isinstance(reply, PhaseReply)
        if reply.body is None:
            return {**chat(*parts), **members}
        assert isinstance(reply.body, ReplaceBody)
        body: dict[str, Any] = json.loads(bytes(reply.body.body))
        return body

    def reopen(self) -> None:
        """Let another request come, after one that has ended."""
        self.bench.exchange = self.bench.open()

    async def end(self) -> RequestRecord:
        await self.bench.tell(response_headers())
        return self.bench.close()


def describe(members: dict[str, Any], number: int) -> EngineAnswer:
    """What an encode engine says; whose handles can be fetched once."""
    (part,) = members["messages"][0]["content"]
    said = {part["uuid"]: {"metadata": {"grid": [1]}, "handle": number}}
    return EngineAnswer(200, {}, json.dumps({"ec_transfer_params": said}).encode())


def list_handles(body: dict[str, Any]) -> set[int]:
    return {each["handle"] for each in body["ec_transfer_params"].values()}
