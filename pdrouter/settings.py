"""All that an operator can set: one typed, validated object; nothing else reads the environment.

Each setting is declared once: its variable, its default, what is allowed and what it means. The
command line and `docs/configuration.md` are made from the same declarations.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdrouter.engines.registry import CONNECTOR_NAMES, NIXL_MEANINGS
from pdrouter.engines.vllm_nixl import RemoteHostRewrite
from pdrouter.extproc.answers import UNOBSERVED, TokenObservation
from pdrouter.extproc.dispatch_policy import DispatchPolicy, FailurePolicy
from pdrouter.extproc.limits import MESSAGE_OVERHEAD_BYTES
from pdrouter.routing.registry import STRATEGY_NAMES
from pdrouter.routing_settings import RoutingSettings
from pdrouter.setting_kinds import (
    BIND,
    BOOLEAN,
    COUNT,
    DURATION,
    HEADERS,
    MIB,
    NAMES,
    OBSERVATION,
    PATH,
    SELECTORS,
    TEXT,
    Declaration,
    choice,
    declare,
    enumeration,
    number,
    seconds,
)


class SettingInvalid(ValueError):
    """A setting has a value that is not allowed; the message names variable, value and rule."""


@dataclass(frozen=True, slots=True)
class Settings(RoutingSettings):
    """The settings of `pdrouter serve`. See `describe_settings` for what each of them means."""

    routing_algorithm: str | None = declare(
        None,
        "ROUTING_ALGORITHM",
        choice(*STRATEGY_NAMES),
        "Strategy for requests without a `routing-strategy` header. Unset or empty: such requests "
        "pass with a `model` header and no endpoint.",
        "--routing-algorithm",
    )
    endpoints: Path | None = declare(
        None,
        "PDROUTER_ENDPOINTS",
        PATH,
        "File that lists the pods. It is read again when it changes.",
        "--endpoints",
    )
    kubernetes: bool = declare(
        False,
        "PDROUTER_KUBERNETES",
        BOOLEAN,
        "Whether pods come from the Kubernetes API.",
        "--kubernetes",
    )
    kubeconfig: Path | None = declare(
        None,
        "KUBECONFIG",
        PATH,
        "Kubeconfig file for the API server. Unset: the service account of the router's own pod.",
        "--kubeconfig",
    )
    namespaces: tuple[str, ...] = declare(
        ("*",),
        "PDROUTER_NAMESPACES",
        NAMES,
        "Namespaces whose pods are watched. `*` is all, as in aibrix, and needs a ClusterRole.",
        "--namespaces",
    )
    pod_selectors: tuple[str, ...] = declare(
        ("role-name", "!role-name,model.aibrix.ai/name"),
        "PDROUTER_POD_SELECTORS",
        SELECTORS,
        "Label selectors of the pods; what any of them selects is watched.",
    )
    merge_namespaces: bool = declare(
        False,
        "PDROUTER_MERGE_NAMESPACES",
        BOOLEAN,
        "Whether the same model name in several namespaces is one model. Otherwise requests say "
        "`namespace/name` where the name alone is ambiguous. Pairs never cross namespaces.",
    )
    httproute_namespace: str = declare(
        "aibrix-system",
        "PDROUTER_HTTPROUTE_NAMESPACE",
        TEXT,
        "Where the models' own HTTPRoutes are, for requests without a strategy.",
    )
    httproute_ttl_s: float = declare(
        30.0,
        "AIBRIX_HTTPROUTE_CACHE_TTL",
        DURATION,
        "How long the status of such a route is remembered.",
    )
    endpoints_poll_s: float = declare(
        1.0,
        "PDROUTER_ENDPOINTS_POLL",
        seconds(0.01, 3600),
        "Time between two looks at the endpoints file.",
    )
    grpc_bind: tuple[str, int] = declare(
        ("0.0.0.0", 50052),
        "PDROUTER_GRPC_BIND",
        BIND,
        "Where Envoy connects.",
        "--grpc-bind",
    )
    http_bind: tuple[str, int] = declare(
        ("0.0.0.0", 8080),
        "PDROUTER_HTTP_BIND",
        BIND,
        "Where metrics, probes and debug pages are served.",
        "--http-bind",
    )
    workers: int = declare(
        1,
        "PDROUTER_WORKERS",
        number(int, "a whole number", 1, 64),
        "Processes that serve. Each has a gRPC port of its own, counted up from that of "
        "PDROUTER_GRPC_BIND; Envoy must know each of them (envoy.md). The HTTP port is common.",
        "--workers",
    )
    max_message_bytes: int = declare(
        16 * MIB,
        "AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES",
        number(int, "a whole number of bytes", MIB, 1024 * MIB),
        "Largest ext_proc message, and so about the largest request body. `pdrouter envoy-config` "
        "derives Envoy's buffer limits from it.",
        "--max-message-bytes",
    )
    grpc_keepalive_s: float = declare(
        30.0,
        "PDROUTER_GRPC_KEEPALIVE",
        seconds(1, 7200),
        "Idle time after which a connection from Envoy is probed, and time for the answer.",
    )
    tls_certificate: Path | None = declare(
        None,
        "PDROUTER_TLS_CERTIFICATE",
        PATH,
        "Certificate chain (PEM) for the gRPC port; followed when it changes. Unset: plain text.",
    )
    tls_key: Path | None = declare(
        None, "PDROUTER_TLS_KEY", PATH, "Private key (PEM) of the certificate."
    )
    tls_client_ca: Path | None = declare(
        None,
        "PDROUTER_TLS_CLIENT_CA",
        PATH,
        "Certificates (PEM) that sign Envoy's client certificate. Unset: any client may connect.",
    )
    lame_duck_s: float = declare(
        5.0,
        "PDROUTER_LAME_DUCK",
        seconds(0, 300),
        "After SIGTERM, time in which new requests are still served while health says NOT_SERVING.",
    )
    drain_s: float = declare(
        600.0,
        "PDROUTER_DRAIN",
        seconds(0, 86400),
        "After SIGTERM, time for open requests to finish; what is open then is cancelled.",
    )
    prefill_timeout_s: float = declare(
        60.0,
        "AIBRIX_PREFILL_REQUEST_TIMEOUT",
        seconds(0, 86400, above=True),
        "Deadline of the prefill leg, all attempts together. Envoy's `messageTimeout` must be "
        "longer.",
        "--prefill-timeout",
    )
    prefill_connect_timeout_s: float = declare(
        3.0,
        "PDROUTER_PREFILL_CONNECT_TIMEOUT",
        seconds(0, 300, above=True),
        "Deadline to connect to a prefill pod.",
    )
    prefill_response_timeout_s: float | None = declare(
        None,
        "PDROUTER_PREFILL_RESPONSE_TIMEOUT",
        seconds(0, 86400, above=True),
        "Deadline for one attempt to answer. Unset: the deadline of the leg, so that a pod that "
        "hangs leaves no time for another.",
    )
    prefill_retries: int = declare(
        1,
        "PDROUTER_PREFILL_RETRIES",
        COUNT,
        "How many further prefill pods are tried after a transport error, a 5xx or a timeout. Pods "
        "that say they are busy or lack the model are not counted, unless it is 0.",
    )
    on_prefill_failure: FailurePolicy = declare(
        FailurePolicy.FAIL,
        "PDROUTER_ON_PREFILL_FAILURE",
        enumeration(FailurePolicy, *FailurePolicy),
        "What to do when no prefill pod carries out the leg: `fail` gives the client an error "
        "(502, 503, 504), `aggregate` lets the decode pod serve the request whole.",
    )
    on_handoff_failure: FailurePolicy = declare(
        FailurePolicy.AGGREGATE,
        "PDROUTER_ON_HANDOFF_FAILURE",
        enumeration(FailurePolicy, *FailurePolicy),
        "What to do when a prefill answer holds no usable KV handle (engines give none for very "
        "short prompts): `aggregate` or `fail`, as above.",
    )
    forward_headers: tuple[str, ...] = declare(
        (),
        "PDROUTER_FORWARD_HEADERS",
        HEADERS,
        "Client headers to send to prefill pods beside the usual ones (authorization, traceparent, "
        "session headers).",
    )
    kv_connector: str = declare(
        "shfs",
        "AIBRIX_KV_CONNECTOR_TYPE",
        choice(*CONNECTOR_NAMES),
        "KV connector of pods that name none. `shfs` is aibrix's name for vLLM's NixlConnector.",
    )
    nixl_means: str = declare(
        "nixl",
        "PDROUTER_NIXL_MEANS",
        choice(*NIXL_MEANINGS),
        "What the connector name `nixl` stands for: vLLM's NixlConnector, or the older Neuron wire "
        "that aibrix calls by this name.",
    )
    rewrite_remote_host: RemoteHostRewrite = declare(
        RemoteHostRewrite.AUTO,
        "PDROUTER_REWRITE_REMOTE_HOST",
        enumeration(RemoteHostRewrite, *RemoteHostRewrite),
        "When `remote_host` in a KV handle becomes the prefill pod's address; `auto`: when it is a "
        "loopback or wildcard address, or empty.",
    )
    split_multimodal: bool = declare(
        False,
        "PDROUTER_SPLIT_MULTIMODAL",
        BOOLEAN,
        "Whether prompts with images, sound or files get two legs. Engines must support it.",
    )
    expose_pods: bool = declare(
        True,
        "PDROUTER_EXPOSE_PODS",
        BOOLEAN,
        "Whether responses carry names and addresses of pods, as aibrix's do, errors too.",
    )
    explain_decisions: bool = declare(
        False,
        "PDROUTER_DECISION_DETAIL",
        BOOLEAN,
        "Whether a client that sends `x-pd-decision-detail` gets the decision in detail in a "
        "response header of that name.",
    )
    observe_tokens: TokenObservation = declare(
        UNOBSERVED,
        "PDROUTER_OBSERVE_TOKENS",
        OBSERVATION,
        "Who counts the tokens of answers: `off`, nobody; `access-log`, Envoy, which must be "
        "configured for it and reports them at no cost per token; `all` or `sampled:SHARE`, the "
        "router, to which Envoy then sends every piece of these answers.",
        "--observe-tokens",
    )
    kept_decisions: int = declare(
        100,
        "PDROUTER_KEPT_DECISIONS",
        number(int, "a whole number", 0, 10_000),
        "How many decisions `/debug/decisions` shows.",
    )
    bearer_token: str | None = declare(
        None,
        "AIBRIX_AUTH_BEARER_TOKEN",
        TEXT,
        "Key that clients must present (`Authorization: Bearer`, or `x-api-key`). Unset: none.",
        secret=True,
    )
    log_level: str = declare(
        "info",
        "PDROUTER_LOG_LEVEL",
        choice("debug", "info", "warning", "error"),
        "Least level of log lines.",
        "--log-level",
    )

    @classmethod
    def load(cls, environment: Mapping[str, str], options: Mapping[str, str | None]) -> "Settings":
        """Read the settings.

        Args:
            environment: variables; an empty one counts as unset.
            options: values from the command line by name of the setting; they win.

        Raises:
            SettingInvalid: a value is not allowed, or two do not go together.
        """
        values: dict[str, Any] = {}
        for name, declaration in declarations().items():
            option = options.get(name)
            text = environment.get(declaration.variable, "").strip() if option is None else option
            if not text:
                continue
            source = declaration.variable if option is None else declaration.option
            try:
                values[name] = declaration.kind.parse(text)
            except ValueError:
                shown = "(secret)" if declaration.secret else repr(text)
                raise SettingInvalid(
                    f"{source}={shown} is not allowed: it must be {declaration.kind.allowed}"
                ) from None
        settings = cls(**values)
        settings.check()
        return settings

    def check(self) -> None:
        """Check what no setting can check alone.

        Raises:
            SettingInvalid: two settings do not go together.
        """
        if self.kubernetes and self.endpoints is not None:
            raise SettingInvalid("PDROUTER_KUBERNETES and PDROUTER_ENDPOINTS exclude each other")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingInvalid("PDROUTER_TLS_CERTIFICATE and PDROUTER_TLS_KEY go together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise SettingInvalid("PDROUTER_TLS_CLIENT_CA needs PDROUTER_TLS_CERTIFICATE")
        if self.workers > 1:
            self._check_worker_ports()

    def _check_worker_ports(self) -> None:
        first = self.grpc_bind[1]
        if first == 0:
            # A worker that is restarted must come back where Envoy looks for it.
            raise SettingInvalid("PDROUTER_WORKERS above 1 needs a port in PDROUTER_GRPC_BIND")
        if first + self.workers - 1 > 65535:
            raise SettingInvalid(f"there are no {self.workers} ports from {first} on")

    def choose_worker(self, number: int) -> "Settings":
        """Return the settings of one of the workers.

        Args:
            number: which one, from 0 on.
        """
        host, port = self.grpc_bind
        return dataclasses.replace(self, grpc_bind=(host, port + number))

    def choose_dispatch_policy(self) -> DispatchPolicy:
        """Return what the settings say of the way of a request."""
        return DispatchPolicy(
            self.routing_algorithm,
            self.split_multimodal,
            self.on_prefill_failure,
            self.on_handoff_failure,
            self.forward_headers,
            self.max_message_bytes - MESSAGE_OVERHEAD_BYTES,
            self.max_wait_s,
            self.aggregation,
            self.handover_s,
            self.expose_pods,
        )

    def show(self) -> dict[str, Any]:
        """Return the values by variable, for people; secrets are hidden."""
        shown: dict[str, Any] = {}
        for name, declaration in declarations().items():
            value = getattr(self, name)
            if declaration.secret and value is not None:
                value = "(secret)"
            plain = not isinstance(value, Path | TokenObservation)
            shown[declaration.variable] = value if plain else str(value)
        return shown


def declarations() -> dict[str, Declaration]:
    """Return the declarations by name of the setting."""
    return {each.name: each.metadata["declaration"] for each in dataclasses.fields(Settings)}


def describe_settings() -> str:
    """Return the table of all settings in Markdown."""
    lines = ["| Variable | Default | Allowed | Meaning |", "|---|---|---|---|"]
    for each in dataclasses.fields(Settings):
        declaration: Declaration = each.metadata["declaration"]
        variable = f"`{declaration.variable}`"
        if declaration.option:
            variable += f"<br>`{declaration.option}`"
        default = _show_default(each.default)
        lines.append(f"| {variable} | {default} | {declaration.kind.allowed} | {declaration.doc} |")
    return "\n".join(lines) + "\n"


def _show_default(value: Any) -> str:  # noqa: ANN401 - any setting's
    match value:
        case None | ():
            return ""
        case bool():
            return f"`{str(value).lower()}`"
        case (str(host), int(port)):
            return f"`{host}:{port}`"
        case tuple():
            return f"`{';'.join(value)}`"
        case float():
            return f"`{value:g}`"
        case _:
            return f"`{value}`"
