"""Sends a request of one token over pairs of engines, as the router would."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace

import aiohttp
import msgspec

from pdrouter.cluster.pods import Pod, format_address
from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import HandoffInvalid, Leg, Order, PeerFacts, Placement, Split
from pdrouter.openai.paths import ENDPOINTS
from pdrouter.openai.request import InferenceRequest, parse_request
from pdrouter.serving.engine_client import address_rank
from pdrouter.serving.leg_outcome import LegAnswer
from pdrouter.tools.doctor.survey import PairTrial
from pdrouter.tools.doctor.talking import OK, Asker, EngineReply, decode, describe, show

_COMPLETIONS = "/v1/completions"
_NO_ANSWER = (aiohttp.ClientError, OSError, TimeoutError)
_SENTENCES = ["Say whether the blocks of this prompt arrive."] * 8
"""Longer than a block: older engines hand over whole blocks only."""
_LONG_S = 20.0
"""So long no engine takes for such a prompt, unless it waits for something in vain."""


class _PromptTokens(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens_details: _PromptTokens | None = None


class _Completion(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


class _LegFailed(Exception):
    """An engine has not carried out its leg.

    Attributes:
        pod: the engine.
    """

    def __init__(self, pod: Pod, problem: str) -> None:
        super().__init__(problem)
        self.pod = pod


@dataclass(frozen=True, slots=True)
class _Trial:
    """One request over two engines."""

    asker: Asker
    split: Split
    request: InferenceRequest
    prefill: Pod
    decode: Pod
    request_id: str
    peer: PeerFacts | None

    @property
    def placement(self) -> Placement:
        pods = {Leg.PREFILL: self.prefill, Leg.DECODE: self.decode}
        return Placement(pods, self.request_id, self.peer)

    async def run(self) -> EngineReply:
        """Carry out both legs; return what the decode engine answers.

        Raises:
            _LegFailed: one of them fails.
            HandoffInvalid: the prefill engine hands nothing over.
        """
        if self.split.order is Order.SERIAL or self.peer is None:
            return await self._send_decode([await self.send_prefill()])
        side = asyncio.create_task(self.send_prefill())
        last = asyncio.create_task(self._send_decode([]))
        try:
            # The one that fails first says why: the other waits for it.
            await asyncio.wait((side, last), return_when=asyncio.FIRST_EXCEPTION)
            for leg in (side, last):
                if leg.done():
                    leg.result()
            return await last
        finally:
            side.cancel()
            last.cancel()
            await asyncio.gather(side, last, return_exceptions=True)

    async def send_prefill(self) -> LegAnswer:
        """Carry out the prefill leg."""
        body = bytes(self.split.side_body(Leg.PREFILL, self.request, self.placement))
        headers = self.split.side_headers(self.placement)
        reply = await self._send(self.prefill, body, headers)
        return LegAnswer(Leg.PREFILL, self.prefill, self.request_id, reply.body, None)

    async def _send_decode(self, answers: list[LegAnswer]) -> EngineReply:
        body = bytes(self.split.last_body(self.request, self.placement, answers))
        headers = self.split.last_headers(self.placement, answers)
        return await self._send(self.decode, body, headers)

    async def _send(self, pod: Pod, body: bytes, more: Mapping[str, str]) -> EngineReply:
        headers = {
            "content-type": "application/json",
            **more,
            **address_rank(pod),
            "x-request-id": self.request_id,
        }
        try:
            reply = await self.asker.send(pod.address, _COMPLETIONS, body, headers)
        except _NO_ANSWER as error:
            raise _LegFailed(pod, describe(error)) from error
        if reply.status != OK:
            raise _LegFailed(pod, show(reply))
        return reply


async def try_pair(asker: Asker, splits: Splits, prefill: Pod, decode: Pod) -> PairTrial:
    """Send a request of one token over two engines."""
    split = splits.find(prefill.engine, prefill.kv_connector)
    trial = PairTrial(prefill, decode)
    began = time.monotonic()
    try:
        peer = await _meet(asker, split, prefill)
        reply = await _create_trial(asker, split, prefill, decode, peer).run()
    except HandoffInvalid as error:
        swapped = await _gives_handle(asker, splits, decode)
        return replace(trial, failed=prefill, problem=str(error), handed=False, swapped=swapped)
    except _LegFailed as failed:
        handed = failed.pod is decode
        return replace(trial, failed=failed.pod, problem=str(failed), handed=handed)
    fetched = _count_fetched(reply)
    if split.recomputes and (fetched == 0 or time.monotonic() - began > _LONG_S):
        problem = "it waits for them in vain, and computes the prompt itself"
        return replace(trial, failed=decode, problem=problem)
    return replace(trial, proven=bool(fetched))


def _create_trial(
    asker: Asker, split: Split, prefill: Pod, decode: Pod, peer: PeerFacts | None
) -> _Trial:
    request = _write_request(prefill.model)
    return _Trial(asker, split, request, prefill, decode, f"doctor-{uuid.uuid4()}", peer)


async def _meet(asker: Asker, split: Split, pod: Pod) -> PeerFacts | None:
    """Return what the wire must know of a prefill engine; None if its answer is to tell it."""
    if not split.needs_peer:
        return {}
    inquiry = split.inquire(pod)
    if inquiry is None:
        return None
    address = format_address(pod.ip, inquiry.port) if inquiry.port else pod.address
    try:
        reply = await asker.send(address, inquiry.path, plain=inquiry.port is not None)
    except _NO_ANSWER as error:
        raise _LegFailed(pod, f"at {address}{inquiry.path}: {describe(error)}") from error
    return split.read_peer(pod, reply.body)


async def _gives_handle(asker: Asker, splits: Splits, pod: Pod) -> bool:
    """Return whether an engine that the file calls a decode engine works as a prefill engine."""
    split = splits.find(pod.engine, pod.kv_connector)
    trial = _create_trial(asker, split, pod, pod, None)
    try:
        answer = await trial.send_prefill()
        split.last_body(trial.request, trial.placement, [answer])
    except (HandoffInvalid, _LegFailed):
        return False
    return True


def _count_fetched(reply: EngineReply) -> int | None:
    """Return how many tokens of the prompt an engine says that it did not compute; None if nothing.

    Most engines do not tell, and some tell what the prefill engine had cached: so 0 may be wrong.
    """
    usage = decode(reply.body, _Completion, _Completion()).usage
    details = usage.prompt_tokens_details if usage is not None else None
    return None if details is None else details.cached_tokens


def _write_request(model: str) -> InferenceRequest:
    # No engine has seen it before: what it does not compute has come from the other one.
    prompt = " ".join([str(uuid.uuid4()), *_SENTENCES])
    members = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    return parse_request(
        ENDPOINTS[_COMPLETIONS],
        "",
        msgspec.json.encode(members),
        transfer_members=TRANSFER_MEMBERS,
        split_multimodal=False,
    )
