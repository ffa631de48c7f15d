"""Asks the engines of an endpoints file: what they are, and whether pairs of them work."""

import asyncio
import dataclasses
import os
import socket
import ssl
import uuid
from collections.abc import Mapping, Sequence
from typing import TypeVar

import aiohttp
import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engines.leg_bodies import TRANSFER_MEMBERS
from pdrouter.engines.registry import Splits
from pdrouter.engines.split import HandoffInvalid, Leg, Placement
from pdrouter.openai.paths import ENDPOINTS, MODELS_PATH
from pdrouter.openai.request import InferenceRequest, parse_request
from pdrouter.serving.leg_outcome import LegAnswer
from pdrouter.tools.doctor.survey import Answers, ModelCard, PairTrial, Survey, choose_pairs

_T = TypeVar("_T")

_CONNECT_S = 3.0
_ASK_S = 10.0
_TRIAL_S = 60.0
_AT_ONCE = 16
_LARGEST = 16 * 1024 * 1024
_SHOWN = 300
_COMPLETIONS = "/v1/completions"
_OK = 200

_SENTENCES = ["Say whether the blocks of this prompt arrive."] * 8
"""Longer than a block: older engines hand over whole blocks only."""

_SOFTWARE = {b"vllm:": "vllm", b"sglang:": "sglang", b"trtllm_": "trtllm"}
"""How the names of an engine's metrics begin."""


class _Version(msgspec.Struct, frozen=True):
    version: str = ""


class _PromptTokens(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens_details: _PromptTokens | None = None


class _Completion(msgspec.Struct, frozen=True):
    usage: _Usage | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[ModelCard] = []


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


async def ask_engines(pods: Sequence[Pod], splits: Splits) -> Survey:
    """Ask each engine what it serves, then try pairs of them.

    Args:
        pods: the engines.
        splits: how the legs of a request are written.
    """
    slots = asyncio.Semaphore(_AT_ONCE)
    # A proxy of the environment is not what the router uses, and cookies are none of its business.
    timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_S)
    async with aiohttp.ClientSession(
        timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def ask(address: str) -> Answers:
            async with slots:
                return await _ask(session, address)

        async def attempt(prefill: Pod, decode: Pod) -> PairTrial:
            async with slots:
                return await _try_pair(session, splits, prefill, decode)

        addresses = list(dict.fromkeys(pod.address for pod in pods))
        answers = await asyncio.gather(*map(ask, addresses))
        survey = Survey(tuple(pods), dict(zip(addresses, answers, strict=True)))
        trials = await asyncio.gather(*(attempt(*pair) for pair in choose_pairs(survey)))
    return dataclasses.replace(survey, trials=tuple(trials))


async def _ask(session: aiohttp.ClientSession, address: str) -> Answers:
    try:
        models = await _send(session, address, MODELS_PATH)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Answers(_describe(error), speaks_tls=await _speaks_tls(address))
    version = await _ask_further(session, address, "/version")
    metrics = await _ask_further(session, address, "/metrics")
    return Answers(
        status=models.status,
        cards=tuple(_decode(models.body, _Models, _Models()).data),
        version=_decode(version, _Version, _Version()).version,
        software=next((name for sign, name in _SOFTWARE.items() if b"\n" + sign in metrics), ""),
    )


async def _ask_further(session: aiohttp.ClientSession, address: str, path: str) -> bytes:
    """Return what an engine that answers says under a path; nothing if it says nothing there."""
    try:
        answer = await _send(session, address, path)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return b""
    return answer.body if answer.status == _OK else b""


async def _try_pair(
    session: aiohttp.ClientSession, splits: Splits, prefill: Pod, decode: Pod
) -> PairTrial:
    """Send a request of one token over two engines."""
    split = splits.find(prefill.engine, prefill.kv_connector)
    request = _write_request(prefill.model)
    request_id = f"doctor-{uuid.uuid4()}"
    placement = Placement({Leg.PREFILL: prefill, Leg.DECODE: decode}, request_id)
    body = bytes(split.side_body(Leg.PREFILL, request, placement))
    headers = {"content-type": "application/json", "x-request-id": request_id}
    trial = PairTrial(prefill, decode)
    leg = prefill
    try:
        answer = await _send(session, prefill.address, _COMPLETIONS, body, headers)
        if answer.status != _OK:
            return dataclasses.replace(trial, failed=prefill, problem=_show(answer), handed=False)
        answers = [LegAnswer(Leg.PREFILL, prefill, request_id, answer.body, None)]
        decode_body = bytes(split.last_body(request, placement, answers))
        leg = decode
        answer = await _send(session, decode.address, _COMPLETIONS, decode_body, headers)
    except HandoffInvalid as error:
        swapped = await _gives_handle(session, splits, decode)
        return PairTrial(prefill, decode, prefill, str(error), handed=False, swapped=swapped)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return dataclasses.replace(
            trial, failed=leg, problem=_describe(error), handed=leg is decode
        )
    if answer.status != _OK:
        return dataclasses.replace(trial, failed=decode, problem=_show(answer))
    return dataclasses.replace(trial, proven=_count_fetched(answer) > 0)


async def _gives_handle(session: aiohttp.ClientSession, splits: Splits, pod: Pod) -> bool:
    """Return whether an engine that the file calls a decode engine works as a prefill engine."""
    split = splits.find(pod.engine, pod.kv_connector)
    request = _write_request(pod.model)
    request_id = f"doctor-{uuid.uuid4()}"
    placement = Placement({Leg.PREFILL: pod, Leg.DECODE: pod}, request_id)
    headers = {"content-type": "application/json", "x-request-id": request_id}
    body = bytes(split.side_body(Leg.PREFILL, request, placement))
    try:
        answer = await _send(session, pod.address, _COMPLETIONS, body, headers)
        answers = [LegAnswer(Leg.PREFILL, pod, request_id, answer.body, None)]
        split.last_body(request, placement, answers)
    except (HandoffInvalid, aiohttp.ClientError, OSError, TimeoutError):
        return False
    return answer.status == _OK


def _count_fetched(answer: _Answer) -> int:
    """Return how many tokens of the prompt an engine says that it did not compute.

    None proves nothing: most engines do not tell, some tell what the prefill engine had cached.
    """
    usage = _decode(answer.body, _Completion, _Completion()).usage
    details = usage.prompt_tokens_details if usage is not None else None
    return (details.cached_tokens or 0) if details is not None else 0


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


async def _send(
    session: aiohttp.ClientSession,
    address: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> _Answer:
    """Send a GET, or a POST with a body.

    Raises:
        aiohttp.ClientError, OSError, TimeoutError: there is no answer.
    """
    method, seconds = ("GET", _ASK_S) if body is None else ("POST", _TRIAL_S)
    async with (
        asyncio.timeout(seconds),
        session.request(
            method, f"http://{address}{path}", data=body, headers=headers, allow_redirects=False
        ) as response,
    ):
        content = bytearray()
        async for piece in response.content.iter_any():
            content += piece
            if len(content) > _LARGEST:
                raise aiohttp.ClientPayloadError(f"{path} is larger than {_LARGEST} bytes")
        return _Answer(response.status, bytes(content))


async def _speaks_tls(address: str) -> bool:
    """Return whether there is TLS at an address; whose it is does not matter."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_CONNECT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _decode(data: bytes, kind: type[_T], default: _T) -> _T:
    """Return an answer, or a default if it is no such thing."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError:
        return default


def _show(answer: _Answer) -> str:
    text = " ".join(answer.body[:_SHOWN].decode(errors="replace").split())
    return f"it answers {answer.status}: {text}"


def _describe(error: Exception) -> str:
    """Say why there was no answer, without what the libraries put around it."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, socket.gaierror):
            return f"the name is not resolved: {error.os_error.strerror}"
        number = error.os_error.errno
        return os.strerror(number) if number else str(error.os_error)
    return str(error) or type(error).__name__
