"""Checks of vLLM's P2P tiers, by which engines give each other KV blocks."""

import re
from collections.abc import Iterator

import msgspec

from pdrouter.cluster.kubernetes.objects import BOOTSTRAP_PORT
from pdrouter.cluster.pods import Role
from pdrouter.engines.registry import Splits
from pdrouter.engines.vllm.nixl import is_unusable_host
from pdrouter.engines.vllm.p2p import DEFAULT_PORT
from pdrouter.settings import Settings
from pdrouter.tools.doctor.engines import Engine
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation

_TIER = re.compile(r'\{[^{}]*"type"\s*:\s*"p2p"[^{}]*\}')
"""A tier as it stands among an engine's arguments, in JSON."""
_PORT = "VLLM_P2P_SIDE_CHANNEL_PORT"
_VLLM_PORT, _VLLM_HOST = 5710, "localhost"
"""Where a tier is that says nothing else."""
_FIRST_RANK = "--data-parallel-start-rank"


class _Tier(msgspec.Struct):
    host: str = ""
    port: int | None = None


def _find_misplaced(installation: Installation) -> Iterator[Defect]:
    settings = installation.routers[0].settings if installation.routers else Settings()
    splits = Splits(settings.kv_connector, settings.nixl_means)
    for engine in installation.engines:
        pod = engine.pod
        # Nobody asks the others.
        if pod is None or pod.obstacle or pod.role is not Role.PREFILL:
            continue
        if not splits.find(pod.engine, pod.kv_connector).takes_source:
            continue
        expected = pod.bootstrap_port or DEFAULT_PORT
        for where, tier in _read_tiers(engine):
            port = _find_port(engine, tier)
            if port is not None and port != expected:
                yield Defect(
                    engine.ref,
                    where,
                    f"its P2P tier is at port {port}, and other engines are sent to {expected}",
                    f'set "port": {expected} in the tier, or the label {BOOTSTRAP_PORT}: "{port}"',
                )
            if is_unusable_host(tier.host or _VLLM_HOST):
                yield Defect(
                    engine.ref,
                    where,
                    f"the host of its P2P tier is {tier.host or _VLLM_HOST}, and other engines are "
                    "sent to the pod's address",
                    'set "host" in the tier to the pod\'s address (status.podIP)',
                )


def _read_tiers(engine: Engine) -> Iterator[tuple[str, _Tier]]:
    """Yield the tiers that can be read, and where each stands."""
    for container in engine.spec.containers:
        words = [*container.command, *container.args]
        if any(_FIRST_RANK in word for word in words):
            continue  # Its ports begin before those of its pod.
        for found in _TIER.finditer(" ".join(words)):
            try:
                tier = msgspec.json.decode(found[0], type=_Tier)
            except (msgspec.MsgspecError, UnicodeEncodeError):
                continue
            yield f"{engine.prefix}spec.containers[{container.name}].args", tier


def _find_port(engine: Engine, tier: _Tier) -> int | None:
    """Return the port of a tier; None if it is not known."""
    variable = engine.variable(_PORT)
    if tier.port is not None:
        return tier.port
    if variable is not None:
        value = variable.value or ""
        return int(value) if value.isascii() and value.isdecimal() else None
    if any(container.env_from for container in engine.spec.containers):
        return None
    return _VLLM_PORT


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "p2p-tier-elsewhere",
        Severity.ERROR,
        "The P2P tier of a prefill engine is not where other engines are told to ask it.",
        "Decode waits 30 s for blocks, and then computes the prompt itself; what a source has "
        "cached is computed again.",
        _find_misplaced,
    ),
)
