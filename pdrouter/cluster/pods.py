"""Pods: what the router knows of one engine and its address."""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

from pdrouter.cluster.pod_config import PodConfig
from pdrouter.nearest import find_nearest
from pdrouter.settings.choices import SPLIT_ONLY_ENGINES, WHOLE_ONLY_ENGINES

_NO_LABELS: Mapping[str, str] = MappingProxyType({})
_PORT = re.compile("[0-9]{1,5}")
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?"
# The last part of a name is not all digits: that would be a mistyped IP address.
_HOST_NAME = re.compile(rf"(?:{_LABEL}\.)*(?![0-9]+\.?$){_LABEL}\.?", re.IGNORECASE)


UNSAID_PORT = 0
"""The bootstrap port of a pod that says none: the one that its wire has."""


class Role(StrEnum):
    """What a pod does."""

    ENCODE = "encode"
    """Encodes images, sound and videos for the pods that compute prompts; nothing else."""
    PREFILL = "prefill"
    DECODE = "decode"
    BOTH = "both"
    """Serves requests whole; it takes no part in disaggregation."""
    OTHER = "other"
    """Is part of a deployment, but gets no requests."""


TERMINATING = "terminating"
"""The obstacle of a pod that is about to end."""


class Inactive(StrEnum):
    """Why an engine of a warm pod does not run; what is better for a request comes first."""

    ACTIVATING = "activating"
    SLEEPING = "sleeping"
    FAILED = "failed"


class Claim(IntEnum):
    """What a pod does for its namespace's claim to the name of its model."""

    NONE = 0
    """Nothing: it cannot serve."""
    HOLDS = 1
    """It has never been ready, but may be one day: it keeps a claim, and makes none."""
    MAKES = 2
    """It is ready, or has been."""


class PairingKey(NamedTuple):
    """What a prefill and a decode pod must have in common to be a pair."""

    namespace: str
    roleset: str
    engine: str
    revision: str = ""


RANK_MARK = "#"
"""Stands between the UID or the name of a pod and the number of its rank; neither can hold it."""


class Rank(NamedTuple):
    """One of several data-parallel ranks behind one address.

    Attributes:
        number: which one it is, from 0 on.
        size: how many there are.
    """

    number: int
    size: int


# Those of one roleset are one object: most comparisons end there.
_create_pairing = lru_cache(maxsize=1024)(PairingKey)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, or an address of an endpoints file.

    Attributes:
        uid: identity; a pod that is replaced under the same name has another one.
        name: name, for people.
        namespace: Kubernetes namespace.
        ip: IPv4 or IPv6 address, without brackets.
        port: port that the engine serves HTTP on.
        metrics_port: port that it serves its metrics on.
        model: name of the model that it serves.
        role: what it does.
        roleset: name of the group within which pairs are formed.
        engine: the software in it, such as `vllm`.
        kv_connector: name of its KV connector; None for the configured default.
        revision: the version that it says it has; empty if it says none.
        image: digest of the engine's image; empty if that is not known.
        places: where it is, the nearest around it first; each empty where that is not known.
        ready: whether it may get new requests.
        obstacle: why it may not, for people; empty where that is not known, or where it may.
        refused: whether it must never get any, nor count as a pod of its model.
        unsupported: why the router cannot speak to it, for people; empty if it can.
        claim: what it does for its namespace's claim to the model's name.
        address: `ip:port`, with IPv6 addresses in brackets.
        pairing: what its partner must have in common with it.
        labels: its labels in Kubernetes.
        config: what its model's owner asks of the router; None for nothing.
        bootstrap_port: port at which other engines meet it, on wires that have one; `UNSAID_PORT`
            for the wire's own, None where these engines are to take theirs.
        rank: which of the ranks behind its address it is; None where there is one.
        index: which of its engine's ranks it is, from 0 on, whether or not they share an address.
        hardware: what it runs on, as far as it says it: pods of the same are compared.
        started: what tells this start of its engine from others; empty where that is not known.
        computes_prompts: whether an engine that decodes can compute prompts, as its pod says; None
            where that is not said.
        neuron: whether its container has devices of AWS Neuron.
        inactive: why its engine does not run, where others of the pod may; None if it does.
    """

    uid: str
    name: str
    namespace: str
    ip: str
    port: int
    metrics_port: int
    model: str
    role: Role
    roleset: str
    engine: str
    kv_connector: str | None
    revision: str
    image: str
    places: tuple[str, ...]
    ready: bool
    obstacle: str
    refused: bool
    unsupported: str
    claim: Claim
    address: str
    pairing: PairingKey
    labels: Mapping[str, str] = field(hash=False)
    config: PodConfig | None = field(hash=False)
    rank: Rank | None = None
    index: int = 0
    started: str = ""
    bootstrap_port: int | None = UNSAID_PORT
    hardware: str = ""
    computes_prompts: bool | None = None
    neuron: bool = False
    inactive: Inactive | None = None

    @property
    def serves_whole(self) -> bool:
        """Whether it can compute a prompt and its answer, whatever else it does."""
        return self.role is not Role.DECODE or self.engine not in SPLIT_ONLY_ENGINES

    @property
    def encoding(self) -> PairingKey:
        """What a pod that encodes and the pod that takes what it has encoded have in common.

        Images say nothing here: encoders often have one of their own.
        """
        key = self.pairing
        return _create_pairing(key.namespace, key.roleset, key.engine, self.revision)

    @property
    def state(self) -> str:
        """`ready`, `refused`, `terminating`, `unsupported` or `unready`."""
        if self.ready:
            return "ready"
        if self.refused:
            return "refused"
        if self.obstacle == TERMINATING:
            return "terminating"
        return "unsupported" if self.unsupported else "unready"

    @property
    def own_name(self) -> str:
        """The name that it has in Kubernetes, with all its ranks."""
        return self.name.partition(RANK_MARK)[0]

    @property
    def number(self) -> int | None:
        """Its number among the ranks behind its address; None where it is the only one."""
        return None if self.rank is None else self.rank.number

    @property
    def ranks(self) -> int:
        """How many ranks are behind its address."""
        return 1 if self.rank is None else self.rank.size

    @property
    def same_address(self) -> tuple[str, ...]:
        """The UIDs of all ranks behind its address, its own among them."""
        if self.rank is None:
            return (self.uid,)
        own, mark, _ = self.uid.rpartition(RANK_MARK)
        return tuple(f"{own}{mark}{number}" for number in range(self.rank.size))

    def runs_the_engine_of(self, before: "Pod") -> bool:
        """Return whether the engine is the one that an earlier state of the pod had.

        An engine that has started again knows nothing of what it had cached, and may be well again.
        """
        known = self.started and before.started
        return self.address == before.address and not (known and self.started != before.started)

    @classmethod
    def create(
        cls,
        *,
        uid: str,
        name: str,
        ip: str,
        port: int,
        model: str,
        role: Role,
        namespace: str = "default",
        roleset: str = "",
        engine: str = "vllm",
        kv_connector: str | None = None,
        metrics_port: int | None = None,
        revision: str = "",
        image: str = "",
        places: tuple[str, ...] = (),
        ready: bool = True,
        obstacle: str = "",
        refused: bool = False,
        unsupported: str = "",
        claim: Claim | None = None,
        labels: Mapping[str, str] = _NO_LABELS,
        config: PodConfig | None = None,
        started: str = "",
        bootstrap_port: int | None = UNSAID_PORT,
        hardware: str = "",
    ) -> "Pod":
        """Return a pod: metrics at its port, and a claim only if it is ready, unless said."""
        ready = ready and not (obstacle or unsupported or refused)
        if engine in WHOLE_ONLY_ENGINES and role in (Role.PREFILL, Role.DECODE):
            role = Role.BOTH
        return cls(
            uid,
            name,
            namespace,
            ip,
            port,
            port if metrics_port is None else metrics_port,
            model,
            role,
            roleset,
            engine,
            kv_connector,
            revision,
            image,
            places,
            ready,
            obstacle or unsupported,
            refused,
            unsupported,
            (Claim.MAKES if ready else Claim.HOLDS) if claim is None else claim,
            format_address(ip, port),
            _create_pairing(namespace, roleset, engine, revision),
            labels,
            config,
            started=started,
            bootstrap_port=bootstrap_port,
            hardware=hardware,
        )

    def take_for(self, revision: str) -> "Pod":
        """Return the same pod, which forms pairs with those of this revision."""
        key = self.pairing
        pairing = _create_pairing(key.namespace, key.roleset, key.engine, revision)
        return self if pairing == key else replace(self, pairing=pairing)


Wires: TypeAlias = Mapping[str, Sequence[str]]
"""Engines whose wire is spoken, the default first, each with its KV connectors.

Without any, its wire is the same whatever its connector.
"""


def find_unsupported(engine: str, kv_connector: str | None, wires: Wires) -> str:
    """Return why the router cannot speak to an engine, for people; nothing if it can.

    Args:
        engine: the software.
        kv_connector: name of its KV connector; None for the configured default.
        wires: what is spoken.
    """
    if engine not in wires:
        return _describe_unknown("engine", engine, tuple(wires))
    connectors = wires[engine]
    if kv_connector is not None and connectors and kv_connector not in connectors:
        return _describe_unknown("KV connector", kv_connector, connectors)
    return ""


def _describe_unknown(what: str, name: str, known: Sequence[str]) -> str:
    near = find_nearest(name, known)
    hint = f"did you mean {near!r}?" if near else f"it is none of {', '.join(known)}"
    return f"{what} {name!r:.66} is not supported: {hint}"


def format_address(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ip(host: str) -> bool:
    """Return whether a host is an IP address, rather than a name."""
    try:
        # A zone (`fe80::1%eth0`) means something on one machine only.
        ipaddress.ip_address("" if "%" in host else host)
    except ValueError:
        return False
    return True


def parse_address(address: str) -> tuple[str, int]:
    """Return the host and the port of `ip:port`, `[ipv6]:port` or `name:port`.

    Raises:
        ValueError: the text is not such an address.
    """
    if "/" in address:
        raise ValueError(f"{address!r} must be host:port alone, without a scheme or a path")
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not colon:
        raise ValueError(f"{address!r} has no port: it must be host:port")
    if is_ip(bare):
        ip = ipaddress.ip_address(bare)
        if (ip.version == 6) != bracketed:
            raise ValueError(f"{address!r}: an IPv6 address stands in brackets, [::1]:8000")
        bare = str(ip)
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError(f"{address!r}: {host!r} is neither an IP address nor a host name")
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r}: the port must be from 1 to 65535")
    return bare.lower(), int(port)
