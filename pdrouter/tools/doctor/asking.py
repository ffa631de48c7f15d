"""Asks the engines of an endpoints file: what they are, and whether pairs of them work."""

import asyncio
import dataclasses
import ssl
from collections.abc import Sequence

import aiohttp
import msgspec

from pdrouter.cluster.pods import Pod
from pdrouter.engine_http.tls import EngineTls
from pdrouter.engines.registry import ENGINES, Splits, find_dialect
from pdrouter.openai.paths import MODELS_PATH
from pdrouter.tools.doctor.survey import Answers, ModelCard, PairTrial, Survey, choose_pairs
from pdrouter.tools.doctor.talking import OK, Asker, decode, describe
from pdrouter.tools.doctor.trying import try_pair

_CONNECT_S = 3.0
_AT_ONCE = 16

_METRICS_PATHS = tuple(dict.fromkeys(find_dialect(engine).path for engine in ENGINES))
_SOFTWARE = {b"vllm:": "vllm", b"sglang:": "sglang", b"trtllm_": "trtllm"}
"""How the names of an engine's metrics begin."""


class _Version(msgspec.Struct, frozen=True):
    version: str = ""


class _Models(msgspec.Struct, frozen=True):
    data: list[ModelCard] = []


async def ask_engines(pods: Sequence[Pod], splits: Splits, tls: EngineTls | None = None) -> Survey:
    """Ask each engine what it serves, then try pairs of them.

    Args:
        pods: the engines.
        splits: how the legs of a request are written.
        tls: how the router would speak to them; None for plain text.
    """
    slots = asyncio.Semaphore(_AT_ONCE)
    # A proxy of the environment is not what the router uses, and cookies are none of its business.
    timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT_S)
    async with aiohttp.ClientSession(
        timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        asker = Asker(session, tls)

        async def ask(address: str) -> Answers:
            async with slots:
                return await _ask(asker, address)

        async def attempt(prefill: Pod, decode: Pod) -> PairTrial:
            async with slots:
                return await try_pair(asker, splits, prefill, decode)

        addresses = list(dict.fromkeys(pod.address for pod in pods))
        answers = await asyncio.gather(*map(ask, addresses))
        survey = Survey(tuple(pods), dict(zip(addresses, answers, strict=True)))
        trials = await asyncio.gather(*(attempt(*pair) for pair in choose_pairs(survey)))
    return dataclasses.replace(survey, trials=tuple(trials))


async def _ask(asker: Asker, address: str) -> Answers:
    try:
        models = await asker.send(address, MODELS_PATH)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Answers(describe(error), speaks_tls=asker.tls is None and await _speaks_tls(address))
    version = await _ask_further(asker, address, "/version")
    return Answers(
        status=models.status,
        cards=tuple(decode(models.body, _Models, _Models()).data),
        version=decode(version, _Version, _Version()).version,
        software=await _find_software(asker, address),
    )


async def _find_software(asker: Asker, address: str) -> str:
    """Return what an engine is, by the names of its metrics; nothing if they do not tell."""
    for path in _METRICS_PATHS:
        metrics = await _ask_further(asker, address, path)
        for sign, name in _SOFTWARE.items():
            if b"\n" + sign in metrics:
                return name
    return ""


async def _ask_further(asker: Asker, address: str, path: str) -> bytes:
    """Return what an engine that answers says under a path; nothing if it says nothing there."""
    try:
        answer = await asker.send(address, path)
    except (aiohttp.ClientError, OSError, TimeoutError):
        return b""
    return answer.body if answer.status == OK else b""


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
