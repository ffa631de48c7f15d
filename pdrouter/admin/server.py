"""The HTTP port for operators: probes, metrics, models, and the state of things."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from aiohttp import web

from pdrouter import __version__
from pdrouter.admin.http_port import HttpPort, answer_json, answer_metrics
from pdrouter.admin.user_state import describe_users
from pdrouter.cluster.pods import Pod
from pdrouter.cluster.router_group import RouterGroup
from pdrouter.cluster.view import PodCache
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.priorities import PriorityKnowledge
from pdrouter.load.samples import EngineSample
from pdrouter.load.whole_serving import WholeServing
from pdrouter.openai.models import encode_models
from pdrouter.routing.aggregation import computes_prompts
from pdrouter.telemetry.descriptions import describe_request
from pdrouter.telemetry.requests import RequestTelemetry
from pdrouter.users.keys_file import KeysFile


class AdminServer(HttpPort):
    """Serves the admin port of one process."""

    def __init__(
        self,
        cache: PodCache,
        ledger: Ledger,
        telemetry: RequestTelemetry,
        settings: Mapping[str, Any],
        is_draining: Callable[[], bool],
        *,
        failures: FailureMemory | None = None,
        samples: Mapping[str, EngineSample] = MappingProxyType({}),
        priorities: PriorityKnowledge | None = None,
        describe_silence: Callable[[], Sequence[str]] = list,
        whole: WholeServing | None = None,
        group: RouterGroup | None = None,
        keys: KeysFile | None = None,
    ) -> None:
        """Set up the routes.

        Args:
            cache: the pods.
            ledger: work in flight.
            telemetry: metrics and open requests.
            settings: what `/debug/state` shows of the settings, without secrets.
            is_draining: tells whether the process is about to end.
            failures: which pods have failed of late.
            samples: what engines say of themselves, by UID.
            priorities: which engines take priorities.
            describe_silence: says of which models no engine answers, a line each.
            whole: how decode pods do with whole requests.
            group: which routers part the pods among them.
            keys: the users of the file.
        """
        self._cache = cache
        self._ledger = ledger
        self._telemetry = telemetry
        self._settings = settings
        self._is_draining = is_draining
        self._describe_silence = describe_silence
        self._failures = failures or FailureMemory()
        self._samples = samples
        self._whole = whole or WholeServing()
        self._group = group or RouterGroup()
        self._keys = keys or KeysFile()
        # One that knows nothing yet is empty.
        self._priorities = PriorityKnowledge() if priorities is None else priorities
        super().__init__(
            {
                "/healthz": self._show_health,
                "/readyz": self._show_readiness,
                "/metrics": self._show_metrics,
                "/v1/models": self._show_models,
                "/debug/state": self._show_state,
                "/debug/decisions": self._show_decisions,
            }
        )

    async def _show_health(self, request: web.Request) -> web.Response:
        del request
        return web.Response(text="ok\n")

    async def _show_readiness(self, request: web.Request) -> web.Response:
        del request
        if self._is_draining():
            return web.Response(status=503, text="draining\n")
        if not self._cache.synced:
            return web.Response(status=503, text="the pods are not known yet\n")
        # Said, but no reason to be left out: the other replicas have the same engines.
        left_out = self._cache.view.left_out
        lines = ["ok", *self._describe_silence()]
        lines += (f"model {name}: {reason}" for name, reason in left_out.items())
        return web.Response(text="".join(f"{line}\n" for line in lines))

    async def _show_metrics(self, request: web.Request) -> web.Response:
        del request
        self._telemetry.flush()
        page = await asyncio.to_thread(self._telemetry.metrics.render)
        return answer_metrics(page)

    async def _show_models(self, request: web.Request) -> web.Response:
        del request
        return answer_json(encode_models(self._cache.view.names))

    async def _show_state(self, request: web.Request) -> web.Response:
        del request
        return answer_json(await asyncio.to_thread(self._render_state))

    async def _show_decisions(self, request: web.Request) -> web.Response:
        wanted = request.query.get("id", "")
        decisions = await asyncio.to_thread(self._telemetry.decisions.describe, wanted)
        return answer_json(msgspec.json.encode({"decisions": decisions}))

    def _render_state(self) -> bytes:
        state = {
            "version": __version__,
            "synced": self._cache.synced,
            "draining": self._is_draining(),
            "routers": {"own": self._group.own, "all": sorted(self._group.members)},
            "left_out": dict(self._cache.view.left_out),
            "unmatched": [pod.name for pod in self._cache.view.unmatched],
            "pods": [self._describe_pod(pod) for pod in self._cache.view.pods],
            "ledger": {uid: self._ledger.describe(uid) for uid in self._ledger.snapshot()},
            "requests": [
                describe_request(record) for record in list(self._telemetry.open.values())
            ],
            "users": describe_users(self._keys.roster, list(self._telemetry.open.values())),
            "settings": self._settings,
        }
        return msgspec.json.encode(state)

    def _describe_pod(self, pod: Pod) -> dict[str, Any]:
        sample = self._samples.get(pod.uid)
        return {
            "uid": pod.uid,
            "name": pod.name,
            "namespace": pod.namespace,
            "address": pod.address,
            "model": pod.model,
            "role": pod.role,
            "roleset": pod.roleset,
            "engine": pod.engine,
            "kv_connector": pod.kv_connector,
            "revision": pod.pairing.revision,
            "rank": pod.number,
            "ready": pod.ready,
            "obstacle": pod.obstacle,
            **self._ledger.describe(pod.uid),
            "failures": self._failures.describe(pod.uid),
            "speed_factor": round(self._ledger.rates.speeds.factors.get(pod.uid, 1.0), 3),
            "takes_priority": self._priorities.find(pod),
            "prefill_buckets": self._ledger.rates.find_shapes(pod.uid).buckets,
            "padded_tokens": None if sample is None else sample.padded_tokens,
            "inter_token_s": None if sample is None else sample.gap_s,
            "computes_prompts": computes_prompts(pod, sample),
            "whole": self._whole.describe(pod.uid),
        }
