"""Whether a model has a route of its own: for requests that no strategy routes."""

import asyncio
import hashlib
import re
import time
from dataclasses import dataclass

import aiohttp
import msgspec

from pdrouter.bounded import make_room
from pdrouter.cluster.kubernetes.api import KubeApi, KubeConfigInvalid, KubeRefused
from pdrouter.cluster.kubernetes.objects import Condition
from pdrouter.cluster.source import RouteUnavailable

_GET_S = 5.0
_RETRY_S = 1.0
_MOST_MODELS = 4096
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


class _Parent(msgspec.Struct, frozen=True):
    conditions: list[Condition] = []


class _RouteStatus(msgspec.Struct, frozen=True):
    parents: list[_Parent] = []


class _Route(msgspec.Struct, frozen=True):
    status: _RouteStatus = _RouteStatus()


@dataclass(frozen=True, slots=True)
class _Verdict:
    problem: str
    expires: float


class _NoAnswer(Exception):
    """The API server does not say whether there is a route."""


class HttpRoutes:
    """Checks HTTPRoutes, and remembers what it found for a while."""

    def __init__(self, api: KubeApi, namespace: str, ttl_s: float) -> None:
        """Set up the check.

        Args:
            api: the API server.
            namespace: where the routes are; aibrix puts all of them into `aibrix-system`.
            ttl_s: seconds for which a finding is good.
        """
        self._api = api
        self._namespace = namespace
        self._ttl_s = ttl_s
        self._verdicts: dict[str, _Verdict] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def check(self, model: str) -> None:
        """Check the route of a model that is served; one look at a time per model.

        Raises:
            RouteUnavailable: the route is missing or not in force, or cannot be looked at.
        """
        verdict = self._recall(model)
        if verdict is None:
            make_room(self._locks, model, _MOST_MODELS)
            async with self._locks.setdefault(model, asyncio.Lock()):
                verdict = self._recall(model)
                if verdict is None:
                    make_room(self._verdicts, model, _MOST_MODELS)
                    verdict = self._verdicts[model] = await self._look(model)
        if verdict.problem:
            raise RouteUnavailable(verdict.problem)

    def _recall(self, model: str) -> _Verdict | None:
        verdict = self._verdicts.get(model)
        return verdict if verdict is not None and verdict.expires > time.monotonic() else None

    async def _look(self, model: str) -> _Verdict:
        ttl_s = self._ttl_s
        try:
            problem = await self._find_route(model)
        except _NoAnswer as error:
            last = self._verdicts.get(model)
            if last is None:
                problem, ttl_s = str(error), min(ttl_s, _RETRY_S)
            else:
                # An outage of the API server is none of the routes.
                problem = last.problem
        return _Verdict(problem, time.monotonic() + ttl_s)

    async def _find_route(self, model: str) -> str:
        problem = ""
        for name in name_routes(model):
            path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{self._namespace}/httproutes"
            try:
                async with self._api.get(
                    f"{path}/{name}", {}, total_s=_GET_S, silence_s=_GET_S
                ) as response:
                    route = msgspec.json.decode(await response.read(), type=_Route)
            except KubeRefused as refused:
                refusal = f"httproute {self._namespace}/{name}: {refused}"
                if refused.code != 404:
                    raise _NoAnswer(refusal) from refused
                problem = problem or refusal
                continue
            except (aiohttp.ClientError, KubeConfigInvalid, OSError, msgspec.MsgspecError) as error:
                message = f"httproute {self._namespace}/{name}: {type(error).__name__}"
                raise _NoAnswer(message) from error
            found = find_problem(route.status.parents)
            return f"httproute {self._namespace}/{name}: {found}" if found else ""
        return problem


def find_problem(parents: list[_Parent]) -> str:
    """Return why a route is not in force, from its status; nothing if it is."""
    if not parents:
        return "no gateway has accepted it"
    for parent in parents:
        conditions = {condition.type: condition for condition in parent.conditions}
        for name in ("Accepted", "ResolvedRefs"):
            condition = conditions.get(name)
            if condition is None:
                return f"{name} is unknown"
            if condition.reason != name:
                return f"{name}: {condition.reason} {condition.message}".strip()
    return ""


def name_routes(model: str) -> tuple[str, ...]:
    """Return the names that aibrix's controller may have given to the route of a model.

    A model whose name is no DNS label gets a sanitised name with a part of its SHA-256.
    """
    plain = f"{model}-router"
    if len(plain) <= 63 and _DNS_LABEL.fullmatch(plain):
        return (plain,)
    digest = hashlib.sha256(model.encode()).hexdigest()[:12]
    sanitised = re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")
    return (
        f"{sanitised[:43].rstrip('-')}-{digest}-router",
        f"{sanitised[:43].rstrip('-')}-router-{digest}",
    )
