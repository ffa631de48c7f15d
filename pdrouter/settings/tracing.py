"""The standard variables of OpenTelemetry that the router reads; its SDK reads the others."""

from dataclasses import dataclass

from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import BOOLEAN, TEXT, choice, number

_PROTOCOLS = ("grpc", "http/protobuf", "http")
_SAMPLERS = ("always-on", "always-off", "traceidratio")

_MILLISECONDS = number(int, "milliseconds", 1, 600_000)


@dataclass(frozen=True)
class TracingSettings:
    """Settings of traces."""

    traces_exporter: str | None = declare(
        None,
        "OTEL_TRACES_EXPORTER",
        choice("otlp", "none"),
        "`otlp` exports traces, `none` does not. Unset: they are exported if an endpoint is named. "
        "Needs `pdrouter[tracing]`.",
        advanced=True,
    )
    otlp_endpoint: str | None = declare(
        None,
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        TEXT,
        "URL of the collector, such as `http://otel-collector:4317`; over HTTP, `/v1/traces` is "
        "appended.",
    )
    otlp_traces_endpoint: str | None = declare(
        None,
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        TEXT,
        "URL for traces, used as it is; wins over `OTEL_EXPORTER_OTLP_ENDPOINT`.",
        advanced=True,
    )
    otlp_protocol: str = declare(
        "grpc",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
        choice(*_PROTOCOLS),
        "How the collector is spoken to: `http` is `http/protobuf`.",
        advanced=True,
    )
    otlp_traces_protocol: str | None = declare(
        None,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        choice(*_PROTOCOLS),
        "The same for traces; wins over `OTEL_EXPORTER_OTLP_PROTOCOL`.",
        advanced=True,
    )
    otlp_timeout_ms: int = declare(
        10_000,
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        _MILLISECONDS,
        "How long spans may take to the collector, all tries together. In milliseconds, as "
        "OpenTelemetry says; its SDK for Python takes seconds.",
        advanced=True,
    )
    otlp_traces_timeout_ms: int | None = declare(
        None,
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
        _MILLISECONDS,
        "The same for traces; wins over `OTEL_EXPORTER_OTLP_TIMEOUT`.",
        advanced=True,
    )
    traces_sampler: str = declare(
        "parentbased-always-on",
        "OTEL_TRACES_SAMPLER",
        choice(*_SAMPLERS, *(f"parentbased-{name}" for name in _SAMPLERS)),
        "Which requests are traced; those with `parentbased` decide only for requests whose "
        "`traceparent` has not decided yet. Written with `_`, as OpenTelemetry does, or with `-`.",
    )
    traces_sampler_share: float = declare(
        1.0,
        "OTEL_TRACES_SAMPLER_ARG",
        number(float, "a share", 0, 1),
        "The share of requests that a `traceidratio` sampler takes.",
        advanced=True,
    )
    otel_disabled: bool = declare(
        False,
        "OTEL_SDK_DISABLED",
        BOOLEAN,
        "Whether there are no traces, whatever else is set.",
        advanced=True,
    )

    @property
    def exports_traces(self) -> bool:
        """Whether traces are exported."""
        if self.otel_disabled or self.traces_exporter == "none":
            return False
        endpoints = self.otlp_endpoint, self.otlp_traces_endpoint
        return self.traces_exporter is not None or any(endpoints)
