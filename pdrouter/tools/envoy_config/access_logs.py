"""The access logs of Envoy: one for people, and one that tells the routers how requests went."""

from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.extensions.access_loggers.file import v3 as file_log
from envoy_data_plane.envoy.extensions.access_loggers.open_telemetry import v3 as otlp_log
from envoy_data_plane.google.protobuf import Any, Struct
from envoy_data_plane.opentelemetry.proto.common import v1 as otlp

from pdrouter.extproc.access_log.entries import FORMAT, FORMAT_WITH_USAGE
from pdrouter.tools.envoy_config.clusters import ROUTER_CLUSTER
from pdrouter.tools.envoy_config.options import EnvoyConfig

_LOG_NAME = "pdrouter"
_FIELDS = {
    "time": "%START_TIME%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "protocol": "%PROTOCOL%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "status": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "upstream": "%UPSTREAM_HOST%",
    "duration_ms": "%DURATION%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
}


def build_access_logs(config: EnvoyConfig) -> list[accesslog.AccessLog]:
    """Builds the logs that the configuration asks for."""
    logs = [_build_file_log(config.access_log)] if config.access_log else []
    if config.router_log:
        logs.append(_build_router_log(FORMAT_WITH_USAGE if config.token_accounting else FORMAT))
    return logs


def _build_file_log(path: str) -> accesslog.AccessLog:
    return accesslog.AccessLog(
        name="envoy.access_loggers.file",
        typed_config=Any.pack(
            file_log.FileAccessLog(
                path=path,
                log_format=core.SubstitutionFormatString(json_format=Struct.from_dict(_FIELDS)),
            )
        ),
    )


def _build_router_log(line: str) -> accesslog.AccessLog:
    """Builds the log that tells the routers of each request that has ended, a second later."""
    return accesslog.AccessLog(
        name="envoy.access_loggers.open_telemetry",
        typed_config=Any.pack(
            otlp_log.OpenTelemetryAccessLogConfig(
                log_name=_LOG_NAME,
                grpc_service=core.GrpcService(
                    envoy_grpc=core.GrpcServiceEnvoyGrpc(cluster_name=ROUTER_CLUSTER)
                ),
                disable_builtin_labels=True,
                body=otlp.AnyValue(string_value=line),
            )
        ),
    )
