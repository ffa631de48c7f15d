"""The command `pdrouter envoy-config`: prints a bootstrap for Envoy."""

import argparse
import sys

from pdrouter.quantities import parse_size, parse_time
from pdrouter.settings.choices import EngineEncryption, Routing
from pdrouter.tools.envoy_config.bootstrap import build_bootstrap, to_yaml
from pdrouter.tools.envoy_config.options import Address, EnvoyConfig, ResponseBodyMode
from pdrouter.tools.envoy_config.pod_tls import PodTls

_DEFAULT = EnvoyConfig(routers=(Address("127.0.0.1", 50052),))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options; their defaults are those of `EnvoyConfig`."""
    _add_addresses(parser.add_argument_group("addresses"))
    _add_engine_tls(parser.add_argument_group("TLS to engines"))
    _add_behaviour(parser.add_argument_group("behaviour"))
    add_cors(parser.add_argument_group("web pages"))
    _add_reports(parser.add_argument_group("reports"))


def run(args: argparse.Namespace) -> int:
    """Prints the bootstrap; returns the exit code, 2 where options contradict each other."""
    try:
        config = EnvoyConfig(
            routers=tuple(
                worker
                for router in args.router or _DEFAULT.routers
                for worker in router.list_workers(args.workers)
            ),
            listen=args.listen,
            admin=args.admin,
            routing=Routing(args.routing),
            decode=tuple(args.decode),
            response_body=ResponseBodyMode(args.response_body),
            max_message_bytes=args.max_message_bytes,
            prefill_timeout_s=args.prefill_timeout,
            decode_silence_timeout_s=args.decode_silence_timeout,
            max_concurrent_requests=args.max_requests,
            router_ca_file=args.router_ca_file,
            pod_tls=_choose_pod_tls(args),
            router_health_checks=args.router_health_checks,
            router_log=args.router_log,
            token_accounting=args.token_accounting,
            access_log=args.access_log,
            trace_collector=args.trace_collector,
            trace_percent=args.trace_percent,
            cors_origins=tuple(args.cors_origin),
            cors_credentials=args.cors_credentials,
        )
    except ValueError as error:
        sys.stderr.write(f"pdrouter envoy-config: error: {error}\n")
        return 2
    sys.stdout.write(to_yaml(build_bootstrap(config)))
    return 0


def _choose_pod_tls(args: argparse.Namespace) -> PodTls | None:
    if EngineEncryption(args.engine_tls) is EngineEncryption.OFF:
        return None
    return PodTls(
        verified=EngineEncryption(args.engine_tls) is EngineEncryption.ON,
        ca_file=args.engine_ca_file,
        server_name=args.engine_server_name,
        certificate_file=args.engine_client_certificate,
        key_file=args.engine_client_key,
    )


def _add_engine_tls(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--engine-tls",
        choices=[each.value for each in EngineEncryption],
        default=EngineEncryption.OFF.value,
        help="whether engines serve HTTPS, and whether certificates are checked (default: that of "
        "PDROUTER_ENGINE_TLS, as those below are of the router's settings)",
    )
    for option, metavar, what in (
        ("--engine-ca-file", "PATH", "who signs engines' certificates, as Envoy sees the files"),
        ("--engine-server-name", "NAME", "the name in the certificates of all engines"),
        ("--engine-client-certificate", "PATH", "what Envoy shows to engines that want it"),
        ("--engine-client-key", "PATH", "its private key"),
    ):
        group.add_argument(option, metavar=metavar, help=what)


def _add_addresses(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--router",
        type=_parse_address,
        action="append",
        metavar="HOST:PORT",
        help=f"gRPC address of a router, repeatable (default: {_DEFAULT.routers[0]})",
    )
    group.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="workers of each router, on ports counted up from its address (default: %(default)s)",
    )
    group.add_argument(
        "--router-ca-file",
        metavar="PATH",
        help="speak TLS to the routers, trusting this PEM file (default: plain text)",
    )
    group.add_argument(
        "--listen",
        type=_parse_address,
        default=_DEFAULT.listen,
        metavar="IP:PORT",
        help="where clients connect (default: %(default)s)",
    )
    group.add_argument(
        "--admin",
        type=_parse_address,
        metavar="IP:PORT",
        help="Envoy's admin server, on loopback only (default: none)",
    )
    group.add_argument(
        "--decode",
        type=_parse_address,
        action="append",
        default=[],
        metavar="IP:PORT",
        help="a decode pod, repeatable; for override-host routing",
    )
    group.add_argument(
        "--trace-collector",
        type=_parse_address,
        metavar="HOST:PORT",
        help="send Envoy's spans there, over OTLP/HTTP, usually port 4318 (default: none)",
    )


def _add_behaviour(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--routing",
        choices=[routing.value for routing in Routing],
        default=_DEFAULT.routing.value,
        help="how Envoy reaches the chosen pod (default: %(default)s)",
    )
    group.add_argument(
        "--response-body",
        choices=[mode.value for mode in ResponseBodyMode],
        default=_DEFAULT.response_body.value,
        help="whether response bodies pass through the router (default: %(default)s)",
    )
    group.add_argument(
        "--max-message-bytes",
        type=_parse_size,
        default=_DEFAULT.max_message_bytes,
        metavar="SIZE",
        help="largest gRPC message of the router; bodies may be a little smaller "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--prefill-timeout",
        type=_parse_seconds,
        default=_DEFAULT.prefill_timeout_s,
        metavar="SECONDS",
        help="the router's deadline for the prefill leg (default: %(default)s)",
    )
    group.add_argument(
        "--decode-silence-timeout",
        type=_parse_seconds,
        default=_DEFAULT.decode_silence_timeout_s,
        metavar="SECONDS",
        help="longest time in which a decode engine may send nothing (default: %(default)s)",
    )
    group.add_argument(
        "--max-requests",
        type=int,
        default=_DEFAULT.max_concurrent_requests,
        metavar="N",
        help="requests in flight, above which Envoy answers 503 (default: %(default)s)",
    )
    group.add_argument(
        "--router-health-checks",
        action=argparse.BooleanOptionalAction,
        default=_DEFAULT.router_health_checks,
        help="send no new request to a router that drains (default: %(default)s)",
    )


def add_cors(group: argparse._ArgumentGroup) -> None:
    """Adds the options that say which web pages may call."""
    group.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin call, such as https://chat.example.com, "
        "https://*.example.com or *; repeatable (default: none)",
    )
    group.add_argument(
        "--cors-credentials",
        action="store_true",
        help="let them call with cookies and the like (default: off)",
    )


def _add_reports(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--router-log",
        action=argparse.BooleanOptionalAction,
        default=_DEFAULT.router_log,
        help="tell the routers of each request that has ended, and when its first token came, for "
        "PDROUTER_OBSERVE_TOKENS=first-token (default: %(default)s)",
    )
    group.add_argument(
        "--token-accounting",
        action="store_true",
        help="count the tokens of answers and tell them too, for "
        "PDROUTER_OBSERVE_TOKENS=access-log (default: off)",
    )
    group.add_argument(
        "--access-log",
        metavar="PATH",
        help="file for a JSON line per request, such as /dev/stdout (default: none)",
    )
    group.add_argument(
        "--trace-percent",
        type=float,
        default=_DEFAULT.trace_percent,
        metavar="PERCENT",
        help="how many requests are traced whose traceparent has not decided it "
        "(default: %(default)s)",
    )


def _parse_address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parse_seconds(text: str) -> float:
    try:
        return parse_time(text, 1)
    except ValueError:
        message = f"{text!r} is no time: write seconds, or a time such as 500ms or 1m30s"
        raise argparse.ArgumentTypeError(message) from None


def _parse_size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError:
        message = f"{text!r} is no size: write bytes, or a size such as 64Mi"
        raise argparse.ArgumentTypeError(message) from None
