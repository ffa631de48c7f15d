"""What the printed configuration promises, read back from its YAML and judged by the real Envoy."""

import argparse
import subprocess
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.commands import envoy_config
from pdrouter.openai.headers import CONTROL_HEADERS
from pdrouter.tools.envoy_config import (
    Address,
    EnvoyConfig,
    ResponseBodyMode,
    Routing,
    build_bootstrap,
    command,
    to_yaml,
)
from pdrouter.tools.envoy_config.pod_tls import PodTls
from pdrouter.tools.envoy_process import find_envoy

ROUTER = Address("127.0.0.1", 50052)
MIB = 2**20


def read_back(**options: Any) -> dict[str, Any]:
    """The `static_resources` of the printed YAML."""
    config = EnvoyConfig(**{"routers": (ROUTER,), **options})
    resources: dict[str, Any] = yaml.safe_load(to_yaml(build_bootstrap(config)))["static_resources"]
    return resources


def connection_manager(resources: dict[str, Any]) -> dict[str, Any]:
    manager: dict[str, Any] = resources["listeners"][0]["filter_chains"][0]["filters"][0][
        "typed_config"
    ]
    return manager


def ext_proc(resources: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = connection_manager(resources)["http_filters"][0]["typed_config"]
    return settings


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


class TestEnvoyAccepts:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"response_body": ResponseBodyMode.STREAMED, "allow_mode_override": False},
            {"routers": tuple(Address("10.0.0.1", port) for port in (50052, 50053, 50054))},
            {"routers": (Address("pdrouter.default.svc", 50052),)},
            {"listen": Address("::", 10080), "routers": (Address("::1", 50052),)},
            {"admin": Address("::1", 9901), "access_log": "/dev/stdout"},
            {
                "routing": Routing.OVERRIDE_HOST,
                "decode": (Address("10.0.0.2", 8000), Address("fd00::2", 8000)),
            },
            {"token_accounting": True, "access_log": "/dev/stdout"},
            {"router_log": False},
            {"trace_collector": Address("otel-collector.observability", 4318)},
            {"trace_collector": Address("fd00::9", 4318), "trace_percent": 0.5},
            {
                "cors_origins": ("https://a.example", "http://*.b.example:8080"),
                "cors_credentials": True,
            },
            {"cors_origins": ("*",), "token_accounting": True},
            {"router_health_checks": False, "max_concurrent_requests": 2**31 - 2},
            {"max_message_bytes": MIB, "prefill_timeout_s": 0.001},
            {"max_message_bytes": 2**31 - 1, "prefill_timeout_s": 3595},
        ],
        ids=lambda options: " ".join(options) or "defaults",
    )
    def test_every_variant(self, options: dict[str, Any], tmp_path: Path) -> None:
        self.validate(EnvoyConfig(**{"routers": (ROUTER,), **options}), tmp_path)

    def test_tls_to_the_router(self, tmp_path: Path) -> None:
        routers = (ROUTER, Address("pdrouter.default.svc", 50052))
        self.validate(EnvoyConfig(routers=routers, router_ca_file=certifi.where()), tmp_path)

    @pytest.mark.parametrize("routing", Routing)
    @pytest.mark.parametrize(
        "pod_tls",
        [
            PodTls(server_name="engines"),
            PodTls(server_name="engines", ca_file=certifi.where()),
            PodTls(verified=False),
        ],
        ids=["system", "authority", "insecure"],
    )
    def test_tls_to_the_pods(self, pod_tls: PodTls, routing: Routing, tmp_path: Path) -> None:
        decode = (Address("10.0.0.2", 8000),) if routing is Routing.OVERRIDE_HOST else ()
        config = EnvoyConfig(routers=(ROUTER,), routing=routing, decode=decode, pod_tls=pod_tls)
        self.validate(config, tmp_path)

    @staticmethod
    def validate(config: EnvoyConfig, directory: Path) -> None:
        file = directory / "envoy.yaml"
        file.write_text(to_yaml(build_bootstrap(config)))
        result = subprocess.run(
            [find_envoy(), "--mode", "validate", "-c", file, "--log-level", "warning"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "deprecated" not in result.stderr


class TestTimeouts:
    @given(st.floats(0.001, 3595), st.floats(0.001, 86_400))
    def test_the_router_gives_up_before_envoy_does(self, prefill: float, silence: float) -> None:
        config = EnvoyConfig(
            routers=(ROUTER,), prefill_timeout_s=prefill, decode_silence_timeout_s=silence
        )
        assert prefill < config.message_timeout_s <= 3600
        assert config.message_timeout_s < config.stream_idle_timeout_s

    def test_messages_may_take_the_prefill_deadline_and_a_margin(self) -> None:
        settings = ext_proc(read_back(prefill_timeout_s=600))
        assert seconds(settings["message_timeout"]) == 605
        assert settings["max_message_timeout"] == settings["message_timeout"]

    def test_no_timeout_cuts_an_answer_that_flows(self) -> None:
        resources = read_back(prefill_timeout_s=60, decode_silence_timeout_s=300)
        manager = connection_manager(resources)
        (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
        assert route["route"]["timeout"] == "0s"
        assert route["route"]["idle_timeout"] == manager["stream_idle_timeout"] == "365s"
        assert "timeout" not in ext_proc(resources)["grpc_service"]

    def test_no_request_is_retried(self) -> None:
        manager = connection_manager(read_back())
        (host,) = manager["route_config"]["virtual_hosts"]
        assert "retry" not in str(host)

    def test_a_router_that_cannot_be_reached_is_replaced_by_another(self) -> None:
        retry = ext_proc(read_back())["grpc_service"]["retry_policy"]
        # Nothing that a router may have begun to work on.
        assert retry["retry_on"] == "connect-failure,refused-stream"
        (predicate,) = retry["retry_host_predicate"]
        assert predicate["name"] == "envoy.retry_host_predicates.previous_hosts"


class TestLimits:
    @pytest.mark.parametrize("limit", [MIB, 4 * MIB, 16 * MIB, 17 * MIB, 2**31 - 1])
    def test_envoy_refuses_a_body_before_the_router_refuses_its_message(self, limit: int) -> None:
        resources = read_back(max_message_bytes=limit)
        manager = connection_manager(resources)
        body_limit = manager["route_config"]["virtual_hosts"][0]["request_body_buffer_limit"]
        assert limit - 2**17 < int(body_limit) < limit
        # Flow control comes first: the body limit of the route can only raise these two.
        buffer = resources["listeners"][0]["per_connection_buffer_limit_bytes"]
        window = manager["http2_protocol_options"]["initial_stream_window_size"]
        assert 0 < buffer <= int(body_limit)
        assert 2**16 <= window <= int(body_limit)

    @pytest.mark.parametrize("routing", list(Routing))
    def test_concurrency_is_bounded_by_one_number(self, routing: Routing) -> None:
        decode = (Address("10.0.0.2", 8000),) if routing is Routing.OVERRIDE_HOST else ()
        resources = read_back(routing=routing, decode=decode, max_concurrent_requests=5000)
        for cluster in resources["clusters"]:
            (threshold,) = cluster["circuit_breakers"]["thresholds"]
            names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
            assert threshold == dict.fromkeys(names, 5000), cluster["name"]
        http2 = connection_manager(resources)["http2_protocol_options"]
        assert http2["max_concurrent_streams"] == 5000

    @pytest.mark.parametrize(
        ("requests", "message", "frames", "resets"),
        [
            (20_000, 16 * MIB, 20_000 * 1024, 40_000),
            (1, MIB, 10_000, 10_000),
            (2**31 - 2, 2**31 - 1, 2**32 - 1, 2**32 - 4),
        ],
    )
    def test_what_waits_for_a_router_that_is_busy_is_no_flood(
        self, requests: int, message: int, frames: int, resets: int
    ) -> None:
        resources = read_back(max_concurrent_requests=requests, max_message_bytes=message)
        (router,) = (each for each in resources["clusters"] if each["name"] == "pdrouter")
        (options,) = router["typed_extension_protocol_options"].values()
        http2 = options["explicit_http_config"]["http2_protocol_options"]
        assert http2["max_outbound_frames"] == frames
        assert http2["max_outbound_control_frames"] == resets


class TestContent:
    def test_control_headers_are_removed_first_of_all(self) -> None:
        (mutation,) = connection_manager(read_back())["early_header_mutation_extensions"]
        *named, matched = mutation["typed_config"]["mutations"]
        assert [rule["remove"] for rule in named] == list(CONTROL_HEADERS)
        assert matched == {"remove_on_match": {"key_matcher": {"prefix": "x-data-parallel-"}}}

    @pytest.mark.parametrize("mode", list(ResponseBodyMode))
    def test_the_router_sees_the_whole_request_and_the_response_headers(
        self, mode: ResponseBodyMode
    ) -> None:
        settings = ext_proc(read_back(response_body=mode))
        modes = settings["processing_mode"]
        assert modes["request_header_mode"] == modes["response_header_mode"] == "SEND"
        assert modes["request_body_mode"] == "BUFFERED"
        # Trailers may come in a body's place.
        assert modes["request_trailer_mode"] == "SEND"
        assert modes["response_trailer_mode"] == "SKIP"
        # NONE is the value that a message leaves out.
        assert modes.get("response_body_mode", "NONE") == mode.name
        assert "failure_mode_allow" not in settings

    def test_the_admin_server_is_off_unless_asked_for(self) -> None:
        assert "admin" not in yaml.safe_load(
            to_yaml(build_bootstrap(EnvoyConfig(routers=(ROUTER,))))
        )


class TestAddress:
    @pytest.mark.parametrize(
        ("text", "address"),
        [
            ("127.0.0.1:0", Address("127.0.0.1", 0)),
            ("[::1]:8000", Address("::1", 8000)),
            ("router.svc:65535", Address("router.svc", 65535)),
        ],
    )
    def test_is_read_and_written(self, text: str, address: Address) -> None:
        assert Address.parse(text) == address
        assert str(address) == text

    @pytest.mark.parametrize(
        "text",
        [
            *("", "host", ":80", "host:", "host:x", "host:-1", "host:65536", "host:\u0661"),
            *("::1:80", "[host]:80", "[127.0.0.1]:80"),
        ],
    )
    def test_refuses(self, text: str) -> None:
        with pytest.raises(ValueError, match="is not host:port"):
            Address.parse(text)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"routers": ()}, "router address"),
        ({"routing": Routing.OVERRIDE_HOST}, "need each other"),
        ({"decode": (ROUTER,)}, "need each other"),
        ({"listen": Address("localhost", 80)}, "listen address localhost:80 needs an IP"),
        ({"admin": Address("0.0.0.0", 9901)}, "not loopback"),
        ({"routers": (Address("router", 0),)}, "needs a port"),
        ({"max_message_bytes": MIB - 1}, "max message bytes"),
        ({"max_message_bytes": 2**31}, "max message bytes"),
        ({"max_concurrent_requests": 0}, "max concurrent requests"),
        *(
            ({"cors_origins": (origin,)}, "CORS origin")
            for origin in (
                "chat.example.com",
                "https://a.example/",
                "https://a.*.example",
                "null",
                "",
            )
        ),
        ({"cors_origins": ("*",), "cors_credentials": True}, "any page"),
        ({"cors_credentials": True}, "without an origin"),
        ({"trace_percent": 100.5}, "trace percent"),
        ({"trace_percent": float("nan")}, "trace percent"),
        ({"trace_collector": Address("10.0.0.9", 0)}, "needs a port"),
        ({"prefill_timeout_s": 0.0}, "prefill timeout"),
        ({"prefill_timeout_s": 3596.0}, "prefill timeout"),
        ({"prefill_timeout_s": float("nan")}, "prefill timeout"),
        ({"decode_silence_timeout_s": float("inf")}, "decode silence timeout"),
        (
            {"token_accounting": True, "router_log": False},
            "token accounting needs the routers' log",
        ),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        EnvoyConfig(**{"routers": (ROUTER,), **options})


class TestCommand:
    @staticmethod
    def run(*arguments: str) -> int:
        parser = argparse.ArgumentParser("pdrouter envoy-config")
        command.add_arguments(parser)
        return command.run(parser.parse_args(arguments))

    def test_prints_the_defaults(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run() == 0
        assert capsys.readouterr().out == to_yaml(build_bootstrap(EnvoyConfig(routers=(ROUTER,))))

    def test_every_option_reaches_the_configuration(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert (
            self.run(
                *("--router", "[::1]:50052", "--router", "router.svc:50053"),
                *("--router-ca-file", "/tls/ca.pem", "--no-router-health-checks"),
                *("--listen", "[::]:8080", "--admin", "127.0.0.1:9901"),
                *("--routing", "override-host", "--decode", "10.0.0.1:8000"),
                *("--response-body", "streamed", "--access-log", "/dev/stdout"),
                *("--max-message-bytes", "8Mi", "--max-requests", "64"),
                *("--prefill-timeout", "10m", "--decode-silence-timeout", "30.5"),
                *("--cors-origin", "https://a.example", "--cors-origin", "https://*.b.example"),
                "--cors-credentials",
                *("--trace-collector", "otel:4318", "--trace-percent", "2.5"),
                "--no-router-log",
                *("--engine-tls", "on", "--engine-ca-file", "/engines/ca.pem"),
                *("--engine-server-name", "engines.prod"),
                *("--engine-client-certificate", "/own/tls.crt"),
                *("--engine-client-key", "/own/tls.key"),
            )
            == 0
        )
        expected = EnvoyConfig(
            routers=(Address("::1", 50052), Address("router.svc", 50053)),
            router_ca_file="/tls/ca.pem",
            router_health_checks=False,
            listen=Address("::", 8080),
            admin=Address("127.0.0.1", 9901),
            routing=Routing.OVERRIDE_HOST,
            decode=(Address("10.0.0.1", 8000),),
            response_body=ResponseBodyMode.STREAMED,
            access_log="/dev/stdout",
            router_log=False,
            max_message_bytes=8 * MIB,
            max_concurrent_requests=64,
            prefill_timeout_s=600,
            decode_silence_timeout_s=30.5,
            trace_collector=Address("otel", 4318),
            trace_percent=2.5,
            cors_origins=("https://a.example", "https://*.b.example"),
            cors_credentials=True,
            pod_tls=PodTls(
                ca_file="/engines/ca.pem",
                server_name="engines.prod",
                certificate_file="/own/tls.crt",
                key_file="/own/tls.key",
            ),
        )
        assert capsys.readouterr().out == to_yaml(build_bootstrap(expected))

    def test_contradictions_are_usage_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run("--routing", "override-host") == 2
        assert "decode" in capsys.readouterr().err
        assert self.run("--engine-tls", "on") == 2
        assert "needs the name" in capsys.readouterr().err

    def test_engines_are_spoken_to_as_the_router_does(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "PDROUTER_ENGINE_TLS": "on",
            "PDROUTER_ENGINE_CA": "/engines/ca.pem",
            "PDROUTER_ENGINE_SERVER_NAME": "engines.prod",
        }.items():
            monkeypatch.setenv(name, value)
        parser = argparse.ArgumentParser("pdrouter envoy-config")
        envoy_config.add_arguments(parser)
        assert envoy_config.run(parser.parse_args([])) == 0
        (pods,) = (
            each
            for each in yaml.safe_load(capsys.readouterr().out)["static_resources"]["clusters"]
            if each["name"] == "pods"
        )
        context = pods["transport_socket"]["typed_config"]
        assert context["sni"] == "engines.prod"
        checks = context["common_tls_context"]["validation_context"]
        assert checks["trusted_ca"] == {"filename": "/engines/ca.pem"}
        (name,) = checks["match_typed_subject_alt_names"]
        assert name == {"san_type": "DNS", "matcher": {"exact": "engines.prod"}}

    @pytest.mark.parametrize(
        "decisions",
        [
            {},
            {"verified": False, "ca_file": "/ca.pem"},
            {"verified": False, "server_name": "engines"},
            {"verified": False, "certificate_file": "/tls.crt"},
        ],
    )
    def test_contradictions_of_tls_are_refused(self, decisions: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="pods"):
            PodTls(**decisions)

    @pytest.mark.parametrize(
        ("option", "value", "complaint"),
        [
            ("--listen", "10080", "'10080' is not host:port"),
            ("--prefill-timeout", "90x", "'90x' is no time: write seconds"),
            ("--max-message-bytes", "8Mx", "'8Mx' is no size: write bytes"),
        ],
    )
    def test_a_malformed_value_is_a_usage_error(
        self, option: str, value: str, complaint: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as stop:
            self.run(option, value)
        assert stop.value.code == 2
        assert complaint in capsys.readouterr().err
