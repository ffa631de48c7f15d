"""Engines: what they say of themselves, and whether they form pairs."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pdrouter.cluster.kubernetes.objects import ENGINE, KV_CONNECTOR, MODEL, PORT, ROLE
from pdrouter.cluster.pods import Role
from pdrouter.engines.registry import WIRES, Splits
from pdrouter.engines.vllm.nixl import NixlPull, is_unusable_host
from pdrouter.engines.vllm.nixl_push import NixlPush
from pdrouter.nearest import find_nearest
from pdrouter.settings import Settings
from pdrouter.settings.choices import CONNECTOR_NAMES, RemoteHostRewrite
from pdrouter.tools.doctor.engines import Engine, read_running_pods
from pdrouter.tools.doctor.findings import Check, Defect, Severity
from pdrouter.tools.doctor.installation import Installation
from pdrouter.tools.doctor.objects.base import ObjectRef

_NIXL_HOST = "VLLM_NIXL_SIDE_CHANNEL_HOST"
_TRTLLM_KEY = "internal_request_auth_key"


def _find_nameless(installation: Installation) -> Iterator[Defect]:
    for engine in installation.engines:
        if engine.role is not None and engine.pod is None:
            yield Defect(
                engine.ref,
                f"{engine.prefix}metadata.labels",
                f"{ROLE} is {engine.role}, but there is no {MODEL}",
                f"add the label {MODEL} with the model's name",
            )


def _find_roleless(installation: Installation) -> Iterator[Defect]:
    split = {
        (engine.pod.namespace, engine.pod.model)
        for engine in installation.engines
        if engine.pod is not None and engine.role is not None
    }
    for engine in installation.engines:
        pod = engine.pod
        if pod is not None and pod.role is Role.BOTH and (pod.namespace, pod.model) in split:
            yield Defect(
                engine.ref,
                f"{engine.prefix}metadata.labels",
                f"there is no {ROLE}, while other pods of {pod.model} have one",
                f"add the label {ROLE}: prefill or decode",
            )


def _find_refused(installation: Installation) -> Iterator[Defect]:
    for engine in installation.engines:
        if engine.pod is not None and engine.pod.obstacle:
            yield Defect(
                engine.ref,
                f"{engine.prefix}metadata",
                engine.pod.obstacle,
                _advise(engine),
            )


def _advise(engine: Engine) -> str:
    """Say which engine or connector may have been meant."""
    for key, names in ((ENGINE, tuple(WIRES)), (KV_CONNECTOR, CONNECTOR_NAMES)):
        value = engine.metadata.get(key)
        near = find_nearest(value, names) if value else None
        if near is not None and near != (value or "").lower():
            return f"did you mean {near} in {key}?"
    return "correct the label or annotation"


def _find_undeclared_ports(installation: Installation) -> Iterator[Defect]:
    for engine in installation.engines:
        declared = {port.container_port for port in engine.ports}
        pod = engine.pod
        if pod is None or pod.obstacle or not declared or pod.port in declared:
            continue
        assumed = "" if engine.metadata.get(PORT) else f" (no {PORT}, so the default)"
        yield Defect(
            engine.ref,
            f"{engine.prefix}metadata.annotations",
            f"the port is {pod.port}{assumed}; its containers declare "
            + ", ".join(str(port) for port in sorted(declared)),
            f"set the annotation {PORT} to the port that the engine serves on",
        )


def _find_halves(installation: Installation) -> Iterator[Defect]:
    for roleset, members in _rolesets(installation).items():
        roles = {engine.role for engine in members}
        if len(roles) == 1:
            present = next(iter(roles))
            absent = Role.DECODE if present is Role.PREFILL else Role.PREFILL
            first = members[0]
            yield Defect(
                first.ref,
                f"{first.prefix}metadata.labels",
                f"{roleset} has {present} pods, but no {absent} pods",
                f"deploy {absent} pods with the same namespace, model and roleset-name",
            )


def _find_mixed_engines(installation: Installation) -> Iterator[Defect]:
    for roleset, members in _rolesets(installation).items():
        names = sorted({engine.pod.engine for engine in members if engine.pod})
        if len(names) > 1:
            yield Defect(
                members[0].ref,
                f"{members[0].prefix}metadata.labels",
                f"{roleset} has the engines {', '.join(names)}",
                "give each engine a roleset of its own (label roleset-name)",
            )


def _find_mixed_connectors(installation: Installation) -> Iterator[Defect]:
    settings = _settings(installation)
    splits = Splits(settings.kv_connector, settings.nixl_means)
    for roleset, members in _rolesets(installation).items():
        names = set()
        for engine in members:
            pod = engine.pod
            # The prefill pod's connector counts for the pair; a decode pod need not name any.
            if pod and not pod.obstacle and (engine.role is Role.PREFILL or pod.kv_connector):
                names.add(splits.find(pod.engine, pod.kv_connector).name)
        if len(names) > 1:
            yield Defect(
                members[0].ref,
                f"{members[0].prefix}metadata.labels",
                f"{roleset} has the KV connectors {', '.join(sorted(names))}",
                "let all its pods have the same model.aibrix.ai/kv-connector-type",
            )


def _find_local_nixl_hosts(installation: Installation) -> Iterator[Defect]:
    if _settings(installation).rewrite_remote_host is not RemoteHostRewrite.NEVER:
        yield from _judge_nixl_hosts(installation)


def _find_unusable_nixl_hosts(installation: Installation) -> Iterator[Defect]:
    if _settings(installation).rewrite_remote_host is RemoteHostRewrite.NEVER:
        yield from _judge_nixl_hosts(installation)


def _judge_nixl_hosts(installation: Installation) -> Iterator[Defect]:
    settings = _settings(installation)
    splits = Splits(settings.kv_connector, settings.nixl_means)
    for engine in installation.engines:
        pod = engine.pod
        if pod is None or pod.obstacle or engine.role is not Role.PREFILL:
            continue
        if not isinstance(splits.find(pod.engine, pod.kv_connector), NixlPull | NixlPush):
            continue
        variable = engine.variable(_NIXL_HOST)
        if variable is None and any(container.env_from for container in engine.spec.containers):
            continue
        fix = "fill it from the pod's address (valueFrom.fieldRef.fieldPath: status.podIP)"
        if variable is None:
            problem = "it is not set: localhost"
            names = [each.name for container in engine.spec.containers for each in container.env]
            near = find_nearest(_NIXL_HOST, names)
            fix = f"call {near} {_NIXL_HOST}" if near else fix
        elif variable.value_from is None and is_unusable_host(variable.value or ""):
            problem = f"it is {variable.value!r}, which means the decode pod itself over there"
        else:
            continue
        yield Defect(
            engine.ref,
            f"{engine.prefix}spec.containers[].env[{_NIXL_HOST}]",
            problem,
            fix,
        )


def _find_unsigned(installation: Installation) -> Iterator[Defect]:
    if not installation.routers or _settings(installation).trtllm_auth_key_file is not None:
        return
    for engine in installation.engines:
        if engine.pod is None or engine.pod.engine != "trtllm":
            continue
        for container in engine.spec.containers:
            if any(_TRTLLM_KEY in word for word in (*container.command, *container.args)):
                yield Defect(
                    engine.ref,
                    f"{engine.prefix}spec.containers[{container.name}]",
                    f"it sets {_TRTLLM_KEY}, and the router has no PDROUTER_TRTLLM_AUTH_KEY_FILE",
                    "mount the Secret with the key in the router's pods, and name its file there",
                )


def _find_unreachable(installation: Installation) -> Iterator[Defect]:
    for pod in read_running_pods(installation.snapshot):
        reason = installation.snapshot.unreachable.get(pod.address)
        if pod.ready and reason is not None:
            yield Defect(
                ObjectRef("Pod", pod.namespace, pod.name),
                "status.podIP",
                f"no connection to {pod.address} from here: {reason}",
                f"check that the engine listens on the port of {PORT} on all interfaces, and that "
                "no NetworkPolicy is in the way",
            )


@dataclass(frozen=True, slots=True)
class _Roleset:
    """Names a group of pods within which pairs are formed."""

    namespace: str
    model: str
    name: str

    def __str__(self) -> str:
        name = f"roleset {self.name} of {self.model}" if self.name else self.model
        return f"{name} in namespace {self.namespace}"


def _rolesets(installation: Installation) -> dict[_Roleset, list[Engine]]:
    """Return the engines that take part in disaggregation."""
    rolesets: defaultdict[_Roleset, list[Engine]] = defaultdict(list)
    for engine in installation.engines:
        pod = engine.pod
        if pod is not None and engine.role is not None and engine.replicas > 0:
            rolesets[_Roleset(pod.namespace, pod.model, pod.roleset)].append(engine)
    return rolesets


def _settings(installation: Installation) -> Settings:
    return installation.routers[0].settings if installation.routers else Settings()


CHECKS: tuple[Check[Installation], ...] = (
    Check(
        "pod-without-model",
        Severity.ERROR,
        "A pod has a role but names no model.",
        "The router does not know what it serves, and never sends it a request.",
        _find_nameless,
    ),
    Check(
        "pod-without-role",
        Severity.WARNING,
        "A pod of a disaggregated model has no role.",
        "It serves requests whole only, when there is no pair.",
        _find_roleless,
    ),
    Check(
        "pod-refused",
        Severity.ERROR,
        "A label or annotation has a value that the router cannot work with.",
        "The pod gets no requests.",
        _find_refused,
    ),
    Check(
        "port-undeclared",
        Severity.WARNING,
        "A pod's port is none that its containers declare.",
        "If the engine listens elsewhere, every request to the pod fails to connect.",
        _find_undeclared_ports,
    ),
    Check(
        "roleset-half",
        Severity.ERROR,
        "A roleset has prefill pods only, or decode pods only.",
        "Pairs are formed within a roleset: these pods never get a two-leg request, and a model "
        "that has no other roleset answers 503.",
        _find_halves,
    ),
    Check(
        "engines-mixed",
        Severity.ERROR,
        "A roleset has pods of several engines.",
        "A prefill engine's KV blocks are of no use to another engine: such pods never form pairs.",
        _find_mixed_engines,
    ),
    Check(
        "connectors-mixed",
        Severity.ERROR,
        "A roleset has pods with several KV connectors.",
        "The connector of the prefill pod decides how both legs are written; a decode pod that "
        "speaks another one cannot fetch the blocks.",
        _find_mixed_connectors,
    ),
    Check(
        "nixl-host-local",
        Severity.WARNING,
        "Prefill pods tell decode pods to fetch KV blocks from localhost or 0.0.0.0.",
        "Only the router's rewriting of remote_host makes it work, and nothing else that pairs "
        "these pods does that.",
        _find_local_nixl_hosts,
    ),
    Check(
        "nixl-host-unusable",
        Severity.ERROR,
        "Prefill pods tell decode pods to fetch KV blocks from localhost or 0.0.0.0, and "
        "PDROUTER_REWRITE_REMOTE_HOST is never.",
        "Decode pods look for the blocks on their own machine, and fail or prefill again.",
        _find_unusable_nixl_hosts,
    ),
    Check(
        "trtllm-key-missing",
        Severity.ERROR,
        "TensorRT-LLM engines want hand-overs signed, and the router has no key.",
        "They refuse every generation leg: requests of two legs end in a 401.",
        _find_unsigned,
    ),
    Check(
        "pod-unreachable",
        Severity.ERROR,
        "A ready pod does not accept connections (with --probe).",
        "Requests to it fail, if the router sees what this machine sees.",
        _find_unreachable,
    ),
)
