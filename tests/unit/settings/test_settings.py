"""Settings: what each may be, what the error says, and how they are shown."""

import dataclasses
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdrouter.quantities import parse_time
from pdrouter.routing.strategies import DECODE_POLICIES, PREFILL_POLICIES
from pdrouter.settings import SettingInvalid, Settings, declarations, describe_settings
from pdrouter.settings.choices import (
    STRATEGY_NAMES,
    Aggregation,
    BlockRelease,
    EngineEncryption,
    FailurePolicy,
    Fairness,
    LegOrder,
    OnFailure,
    Priority,
    RemoteHostRewrite,
    Routing,
    SessionAffinity,
    TokenIds,
    TokenObservation,
    Transport,
    TrtllmOrder,
    UserSource,
)
from pdrouter.settings.redis_url import RedisUrl

MIB = 1024 * 1024
_SECONDS_ABOVE_0 = [
    *(("0.001", 0.001), ("86400", 86400), ("1e2", 100), (" 30 ", 30)),
    *(("60s", 60), ("1ms", 0.001), ("1m30s", 90), ("1.5 h", 5400), ("1d", 86400), (".5S", 0.5)),
    *(("2min 5sec", 125), ("1h1m1s1ms", 3661.001), ("1m 30s ", 90)),
]
_NO_SECONDS = [
    *("0", "-1", "86400.1", "nan", "inf", "-inf", "x", "9" * 400),
    *("s", "0s", "-1s", "2d", "30s!", "1m30", "5 fortnights", "s5", "9" * 400 + "h"),
]
_BOOLEANS = [
    *((text, True) for text in ("1", "t", "T", "true", "True", "TRUE", "yes", "Y", "ON", "tRUE ")),
    *((text, False) for text in ("0", "f", "F", "false", "False", "FALSE", "no", "n", "Off")),
]
_NO_BOOLEANS = ["2", "null", "-1", "truee", "enabled"]
_BINDS = [
    ("127.0.0.1:80", ("127.0.0.1", 80)),
    ("localhost:0", ("localhost", 0)),
    (":65535", ("0.0.0.0", 65535)),
    ("8080", ("0.0.0.0", 8080)),
    ("[::1]:80", ("::1", 80)),
    ("[::]:80", ("::", 80)),
]
_NO_BINDS = [
    "65536",
    "127.0.0.1",
    "127.0.0.1:",
    "a:b",
    "a:-1",
    "a:65536",
    "::1:80",
    "[::1:80",
    "a:b:1",
]
_PATHS = [("/a/b.yaml", Path("/a/b.yaml")), ("b", Path("b"))]
_POLICIES = [
    *(("fail", FailurePolicy.FAIL), ("aggregate", FailurePolicy.AGGREGATE)),
    *(("FAIL", FailurePolicy.FAIL), (" Aggregate", FailurePolicy.AGGREGATE)),
]
_NO_POLICIES = ["failure", "retry", "0"]
_NAMES = [("a", ("a",)), ("X-A, x-b ,,", ("x-a", "x-b"))]
_NO_NAMES = [",", ",,"]
_TEXTS = [("x", "x"), (" x y ", "x y")]

_PROTOCOLS = [
    *(("grpc", "grpc"), ("HTTP/protobuf", "http/protobuf"), ("http", "http")),
]
_NO_PROTOCOLS = ["http/json", "tcp"]

_MILLISECONDS = ([("1", 1), ("10000", 10_000), ("600000", 600_000)], ["0", "-1", "1.5", "5s"])
_RULES: dict[str, tuple[list[tuple[str, Any]], list[str]]] = {
    "OTEL_TRACES_EXPORTER": ([("otlp", "otlp"), ("none", "none")], ["console", "otlp,zipkin"]),
    "OTEL_EXPORTER_OTLP_ENDPOINT": (_TEXTS, []),
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": (_TEXTS, []),
    "OTEL_EXPORTER_OTLP_PROTOCOL": (_PROTOCOLS, _NO_PROTOCOLS),
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": (_PROTOCOLS, _NO_PROTOCOLS),
    "OTEL_TRACES_SAMPLER": (
        [
            *(("always_on", "always-on"), ("parentbased_always_off", "parentbased-always-off")),
            *(("traceidratio", "traceidratio"), ("always-off", "always-off")),
            ("parentbased_traceidratio", "parentbased-traceidratio"),
        ],
        ["jaeger_remote", "on", "parentbased"],
    ),
    "OTEL_EXPORTER_OTLP_TIMEOUT": _MILLISECONDS,
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": _MILLISECONDS,
    "OTEL_TRACES_SAMPLER_ARG": ([("0", 0), ("0.01", 0.01), ("1", 1)], ["1.1", "-0.1", "nan", "1%"]),
    "OTEL_SDK_DISABLED": (_BOOLEANS, _NO_BOOLEANS),
    "ROUTING_ALGORITHM": (
        [
            *(("pd", "pd"), ("random", "random"), ("least-request", "least-request")),
            *(("PD", "pd"), (" Random ", "random"), ("least_request", "least-request")),
            ("prefix-cache:2, least_request", "prefix-cache:2, least-request"),
            ("pd,random", "pd,random"),
        ],
        ["p d", "round-robin", "random,least-request", "pd,", "pd:0", "pd:1:1", "pd:1000001"],
    ),
    "PDROUTER_ENDPOINTS": (_PATHS, []),
    "PDROUTER_KUBERNETES": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_MODEL_CLAIMS": (_BOOLEANS, _NO_BOOLEANS),
    "KUBECONFIG": (_PATHS, []),
    "PDROUTER_TRTLLM_AUTH_KEY_FILE": (_PATHS, []),
    "PDROUTER_TRTLLM_ORDER": (
        [
            ("context-first", TrtllmOrder.CONTEXT_FIRST),
            ("Generation_First", TrtllmOrder.GENERATION_FIRST),
        ],
        ["generation", "auto", "serial"],
    ),
    "AIBRIX_TRT_MACHINE_ID": ([("0", 0), ("1023", 1023)], ["-1", "1024", "1.0", "a"]),
    "PDROUTER_WORKERS": ([("1", 1), ("64", 64)], ["0", "65", "-1", "2.0", "auto"]),
    "PDROUTER_NAMESPACES": ([("*", ("*",)), *_NAMES], _NO_NAMES),
    "PDROUTER_MODEL_NAMESPACES": (
        [
            ("m=a", (("m", ("a",)),)),
            ("a/b=x, y; *-lora=*;", (("a/b", ("x", "y")), ("*-lora", ("*",)))),
        ],
        ["m", "m=", "=a", "m=a;m=b", "m=A", ";", "m=a/b"],
    ),
    "POD_NAMESPACE": (_TEXTS, []),
    "POD_NAME": (_TEXTS, []),
    "POD_IP": (
        [("10.0.0.1", ("10.0.0.1",)), ("10.0.0.1, fd00:0::1", ("10.0.0.1", "fd00::1"))],
        ["x", "10.0.0", "10.0.0.1:80", ","],
    ),
    "PDROUTER_POD_NETWORKS": (
        [
            ("10.8.0.0/14,fd00:1::/32", ("10.8.0.0/14", "fd00:1::/32")),
            ("10.0.0.1", ("10.0.0.1/32",)),
        ],
        ["10.8.0.1/14", "10.0.0.0/33", "all", ","],
    ),
    "PDROUTER_POD_SELECTORS": ([("a=b", ("a=b",)), ("a,b ; !c;", ("a,b", "!c"))], [";", ";;"]),
    "PDROUTER_MERGE_NAMESPACES": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_MATCH_REVISIONS": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_ROLLOUT_PATIENCE": ([("1", 1), ("30d", 30 * 86400)], ["0", "31d", "x"]),
    "PDROUTER_HTTPROUTE_NAMESPACE": (_TEXTS, []),
    "AIBRIX_HTTPROUTE_CACHE_TTL": (_SECONDS_ABOVE_0, _NO_SECONDS),
    "PDROUTER_ENDPOINTS_POLL": (
        [("0.01", 0.01), ("3600", 3600)],
        ["0", "0.009", "3601", "nan", "x"],
    ),
    "PDROUTER_GRPC_BIND": (_BINDS, _NO_BINDS),
    "PDROUTER_HTTP_BIND": (_BINDS, _NO_BINDS),
    "PDROUTER_MAX_HEADERS": ([("20", 20), ("256", 256)], ["19", "257", "1e2", "many"]),
    "PDROUTER_MAX_HEADER_BYTES": (
        [("8192", 8192), ("96Ki", 96 * 1024)],
        ["8191", "97Ki", "1.5"],
    ),
    "PDROUTER_MAX_HELD_BYTES": ([("400Mi", 400 * MIB), ("1048576", MIB)], ["0", "1023Ki", "-1"]),
    "AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES": (
        [
            *((str(MIB), MIB), (str(1024 * MIB), 1024 * MIB)),
            *(("16Mi", 16 * MIB), ("16MiB", 16 * MIB), ("0.5 gi", 512 * MIB)),
            *(("2000k", 2_000_000), ("16MB", 16_000_000), ("1G", 10**9)),
        ],
        [
            *(str(MIB - 1), str(1024 * MIB + 1), "2e6", "1048576.0", "9" * 400, "9" * 5000),
            *("2Gi", "1.1Ki", "16m", "16Mx", "Mi", "-16Mi", "16 M i", "9" * 400 + "Mi"),
        ],
    ),
    "PDROUTER_GRPC_KEEPALIVE": ([("1", 1), ("7200", 7200)], ["0", "0.9", "7201", "-5"]),
    "PDROUTER_TLS_CERTIFICATE": ([], []),
    "PDROUTER_TLS_KEY": ([], []),
    "PDROUTER_TLS_CLIENT_CA": ([], []),
    "PDROUTER_ENGINE_TLS": (
        [
            ("off", EngineEncryption.OFF),
            ("ON", EngineEncryption.ON),
            ("insecure", EngineEncryption.INSECURE),
        ],
        ["true", "1", "verify"],
    ),
    "PDROUTER_ENGINE_CA": ([], []),
    "PDROUTER_ENGINE_SERVER_NAME": (
        [],  # Alone, it is refused.
        ["10.0.0.1", "::1", "a..b", "*.prod", "-a", "a b", "https://a", "a:8000", "a" * 64],
    ),
    "PDROUTER_ENGINE_CLIENT_CERTIFICATE": ([], []),
    "PDROUTER_ENGINE_CLIENT_KEY": ([], []),
    "PDROUTER_LAME_DUCK": ([("0", 0), ("300", 300)], ["-0.1", "301", "nan"]),
    "AIBRIX_PREFILL_SCORE_POLICY": (
        [
            *((name, name) for name in PREFILL_POLICIES),
            *(("TTFT", "ttft"), ("ttft:7", "ttft")),
            ("ttft:3,Least-Request", "ttft:3,least_request"),
        ],
        ["magic", "ttft,magic", "ttft:-1", "ttft:0"],
    ),
    "AIBRIX_DECODE_SCORE_POLICY": (
        [
            *((name, name) for name in DECODE_POLICIES),
            *(("kv-capacity", "kv_capacity"), ("conductor,kv_capacity", "conductor,kv_capacity")),
        ],
        ["magic", "kv_capacity,ttft"],
    ),
    "PDROUTER_PREFILL_BUCKETS": (
        [("128", (128,)), ("1024,2048, 8192", (1024, 2048, 8192))],
        ["0", "-1", "2,1", "1,1", "a", "1,,2", "1.5"],
    ),
    "PDROUTER_PREFILL_TOKENS_PER_S": ([("1", 1), ("1e7", 1e7)], ["0", "1e8", "nan", "fast"]),
    "PDROUTER_EXPECTED_OUTPUT_TOKENS": ([("1", 1), ("1000000", 10**6)], ["0", "1000001", "1.5"]),
    "PDROUTER_TRANSPORT": (
        [*((each.value, each) for each in Transport), ("HTTP2", Transport.HTTP2)],
        ["grpc", "h2"],
    ),
    "PDROUTER_AGGREGATE": (
        [*((each.value, each) for each in Aggregation), ("When_Faster", Aggregation.WHEN_FASTER)],
        ["always"],
    ),
    "PDROUTER_HANDOVER": ([("0", 0), ("60", 60)], ["-1", "61"]),
    "PDROUTER_INTER_TOKEN_TARGET": ([("0.001", 0.001), ("50ms", 0.05)], ["0", "61", "x"]),
    "PDROUTER_DECISION_DETAIL": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_KEPT_DECISIONS": ([("0", 0), ("10000", 10_000)], ["-1", "10001", "x"]),
    "PDROUTER_COMPUTE_WEIGHT": ([("0.1", 0.1), ("100", 100)], ["0", "101", "x"]),
    "PDROUTER_AWAY_COST": ([("0", 0), ("0.5", 0.5), ("10", 10)], ["-1", "11", "x"]),
    "PDROUTER_SERVICE": ([("pdrouter", "pdrouter")], []),
    "PDROUTER_REPLICAS": ([("1", 1), ("1000", 1000)], ["0", "1001", "1.5", "x"]),
    "PDROUTER_REPLICA": ([("0", 0), ("999", 999)], ["-1", "1000", "x"]),
    "PDROUTER_HARDWARE_LABELS": (
        [("a.example/Type, gpu", ("a.example/Type", "gpu"))],
        ["a b", ",", "a/b/c", "-a", "a/"],
    ),
    "PDROUTER_TOPOLOGY_LABELS": (
        [("a.example/Rack, zone", ("a.example/Rack", "zone"))],
        ["a b", ",", "a/b/c", "-a", "a/"],
    ),
    "PDROUTER_LOCALITY_WEIGHT": ([("0", 0), ("0.5", 0.5), ("10", 10)], ["-1", "11", "x"]),
    "PDROUTER_OTHERS_WEIGHT": ([("0", 0), ("1", 1)], ["-0.1", "1.1", "x"]),
    "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS": (
        [("10", 10), ("10s", 10_000), ("0.1m", 6000)],
        ["9", "1.5", "9ms", "61s"],
    ),
    "AIBRIX_PROMPT_LENGTH_BUCKETING": (_BOOLEANS, _NO_BOOLEANS),
    "AIBRIX_PREFILL_LOAD_IMBALANCE_MIN_SPREAD": ([("0", 0), ("16", 16)], ["-1", "1.5"]),
    "AIBRIX_DECODE_LOAD_IMBALANCE_MIN_SPREAD": ([("0", 0), ("1.5", 1.5)], ["-1", "x"]),
    "AIBRIX_DECODE_THROUGHPUT_IMBALANCE_MIN_SPREAD": ([("2048", 2048)], ["-1", "nan"]),
    "AIBRIX_DECODE_SCORE_RATIO_THRESHOLD": ([("1", 1), ("1.5", 1.5)], ["0.9", "x"]),
    "AIBRIX_PREFIX_CACHE_STANDARD_DEVIATION_FACTOR": ([("0", 0), ("2", 2)], ["-1", "x"]),
    "AIBRIX_PREFIX_CACHE_POD_RUNNING_REQUEST_IMBALANCE_ABS_COUNT": (
        [("0", 0), ("16", 16)],
        ["-1", "1.5"],
    ),
    "AIBRIX_ROUTER_PREBLE_TARGET_GPU": ([("V100", "V100"), ("a6000", "A6000")], ["H100", "x"]),
    "AIBRIX_ROUTER_PREBLE_DECODING_LENGTH": ([("1", 1), ("45", 45)], ["0", "1.5"]),
    "AIBRIX_ROUTER_PREBLE_SLIDING_WINDOW_PERIOD": ([("3", 3), ("90s", 1.5)], ["0", "x"]),
    "AIBRIX_DECODE_LB_WEIGHT_RUNNING": ([("0", 0), ("0.5", 0.5)], ["-1", "x"]),
    "AIBRIX_DECODE_LB_WEIGHT_THROUGHPUT": ([("0", 0), ("2", 2)], ["-1", "x"]),
    "PDROUTER_MAX_WAIT": (_SECONDS_ABOVE_0, _NO_SECONDS),
    "PDROUTER_SESSION_AFFINITY": (
        [(each.value, each) for each in SessionAffinity],
        ["on", "true", "hard"],
    ),
    "PDROUTER_SESSION_KEYS": (
        [
            ("X-Chat-Id, body.user", ("x-chat-id", "body.user")),
            ("body.metadata.userId,body.metadata.userId", ("body.metadata.userId",)),
        ],
        ["x a", ",", "a,,b", "body.", "body.a.b.c", "body.a b", "x-a:x-b"],
    ),
    "PDROUTER_SESSION_LOAD_FACTOR": ([("1", 1), ("1.5", 1.5)], ["0.9", "101", "nan"]),
    "PDROUTER_SESSION_LOAD_SLACK": ([("0", 0), ("8", 8)], ["-1", "1.5", "10001"]),
    "PDROUTER_CLASSES": (
        [
            ("batch=5m", (("batch", 300.0),)),
            ("Fast=500ms, slow-1=24h", (("fast", 0.5), ("slow-1", 86400.0))),
        ],
        [
            "batch",
            "batch=",
            "=1",
            "a=0",
            "a=-1",
            "a=25h",
            "a=nan",
            "a=inf",
            "a=1,A=2",
            "a b=1",
            ",",
        ],
    ),
    "PDROUTER_REFUSE_LATE": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_ENGINE_PRIORITY": (
        [("off", Priority.OFF), ("Auto", Priority.AUTO), ("on", Priority.ON)],
        ["true", "always"],
    ),
    "PDROUTER_TRUST_PRIORITY": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_DEFAULT_TARGET": ([("0", 0), ("500ms", 0.5), ("24h", 86400)], ["-1", "25h", "x"]),
    "PDROUTER_DEFAULT_TARGET_FACTOR": ([("0", 0), ("2.5", 2.5)], ["-1", "1001", "x"]),
    "PDROUTER_KV_SOURCE_TOKENS": ([("1", 1), ("2000", 2000)], ["0", "-1", "1.5", "many"]),
    "PDROUTER_PREFIX_INDEX_BYTES": (
        [("1048576", 1 << 20), ("64M", 64_000_000)],
        ["1048575", "1e9", "64", "17Gi"],
    ),
    "AIBRIX_PREFIX_CACHE_EVICTION_DURATION_MINS": (
        [("20", 20), ("0.5", 0.5), ("2h", 120), ("30s", 0.5)],
        ["0", "x", "0s"],
    ),
    "PDROUTER_TOKENIZERS": (
        [
            ("llama=/models/tokenizer.json", (("llama", "/models/tokenizer.json"),)),
            ("a/b=one.json, *=two=2.json", (("a/b", "one.json"), ("*", "two=2.json"))),
        ],
        ["tokenizer.json", "llama=", "=tokenizer.json", "llama=a.json,llama=b.json", ","],
    ),
    "PDROUTER_TOKENIZER_TIMEOUT": ([("0.001", 0.001), ("10", 10)], ["0", "10.5", "nan"]),
    "PDROUTER_TOKENIZER_THREADS": ([("1", 1), ("64", 64)], ["0", "65", "1.5"]),
    "PDROUTER_DRAIN": ([("0", 0), ("86400", 86400)], ["-1", "86401", "inf"]),
    "AIBRIX_PREFILL_REQUEST_TIMEOUT": (_SECONDS_ABOVE_0, _NO_SECONDS),
    "PDROUTER_PREFILL_CONNECT_TIMEOUT": ([("0.1", 0.1), ("300", 300)], ["0", "300.5", "nan"]),
    "PDROUTER_PREFILL_RESPONSE_TIMEOUT": (_SECONDS_ABOVE_0, _NO_SECONDS),
    "PDROUTER_PREFILL_RETRIES": (
        [("0", 0), ("1", 1), ("100", 100)],
        ["-1", "101", "1.0", "one", "9" * 400, "9" * 5000],
    ),
    "PDROUTER_EJECT_AFTER": ([("0", 0), ("3", 3), ("100", 100)], ["-1", "101", "1.0"]),
    "PDROUTER_RETRY_BUDGET": ([("0", 0), ("0.2", 0.2), ("100", 100)], ["-0.1", "101", "nan"]),
    "PDROUTER_RETRY_BUDGET_PER_SECOND": ([("0", 0), ("2.5", 2.5)], ["-1", "inf", "nan"]),
    "PDROUTER_RETRY_BUDGET_WINDOW": ([("0.1", 0.1), ("1m", 60)], ["0", "3601", "nan"]),
    "PDROUTER_EJECT_TIME": ([("0.1", 0.1), ("3600", 3600)], ["0", "3601", "nan"]),
    "PDROUTER_EJECT_LONGEST": ([("0.1", 0.1), ("86400", 86400)], ["0", "86401", "nan"]),
    "PDROUTER_EJECT_SHARE": ([("0", 0), ("0.5", 0.5), ("1", 1)], ["-0.1", "1.1", "nan"]),
    "PDROUTER_EJECT_ASK": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_ON_PREFILL_FAILURE": (_POLICIES, _NO_POLICIES),
    "PDROUTER_ON_HANDOFF_FAILURE": (_POLICIES, _NO_POLICIES),
    "PDROUTER_FORWARD_HEADERS": (
        _NAMES,
        [
            *_NO_NAMES,
            "x-a,Content-Length",
            "host",
            "target-pod",
            "x-request-id",
            "upgrade",
            "x-data-parallel-b",
        ],
    ),
    "AIBRIX_KV_CONNECTOR_TYPE": (
        [("shfs", "shfs"), ("nixl", "nixl"), ("neuron-legacy", "neuron-legacy"), ("SHFS", "shfs")]
        + [(name, name) for name in ("nixl-push", "neuron-write", "mooncake")],
        ["lmcache"],
    ),
    "PDROUTER_NIXL_MEANS": (
        [("nixl", "nixl"), ("NIXL", "nixl"), ("neuron_legacy", "neuron-legacy")],
        ["shfs"],
    ),
    "PDROUTER_REWRITE_REMOTE_HOST": (
        [(policy.value, policy) for policy in RemoteHostRewrite],
        ["sometimes", "true"],
    ),
    "PDROUTER_LEG_ORDER": (
        [("auto", LegOrder.AUTO), ("SERIAL", LegOrder.SERIAL)],
        ["together", "true"],
    ),
    "PDROUTER_PASS_TOKEN_IDS": (
        [("auto", TokenIds.AUTO), ("OFF", TokenIds.OFF)],
        ["on", "true", "always"],
    ),
    "PDROUTER_RELEASE": (
        [("auto", BlockRelease.AUTO), ("OFF", BlockRelease.OFF)],
        ["on", "true", "reject"],
    ),
    "PDROUTER_RELEASE_TIMEOUT": ([("0.1", 0.1), ("300", 300)], ["0", "300.5", "nan"]),
    "PDROUTER_TRUST_EC_LOCATOR": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_KV_LEASE": (_SECONDS_ABOVE_0, _NO_SECONDS),
    "PDROUTER_POD_ROUTING": (
        [(routing.value, routing) for routing in Routing]
        + [("Override_Host", Routing.OVERRIDE_HOST)],
        ["header", "true"],
    ),
    "PDROUTER_ENCODE_ITEMS": ([("1", 1), ("10000", 10000)], ["0", "10001", "1.5"]),
    "PDROUTER_ENCODE_CONCURRENCY": ([("1", 1), ("10000", 10000)], ["0", "10001", "1.5"]),
    "PDROUTER_SPLIT_MULTIMODAL": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_SGLANG_SPLIT_N": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_EXPOSE_PODS": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_WANTED_PREFILL_USE": ([("0.05", 0.05), ("1", 1.0)], ["0", "1.1", "nan", "x"]),
    "PDROUTER_WANTED_DECODE_USE": ([("0.05", 0.05), ("1", 1.0)], ["0", "1.1", "nan", "x"]),
    "PDROUTER_OBSERVE_TOKENS": (
        [
            ("off", TokenObservation()),
            ("first-token", TokenObservation(access_log=True)),
            ("access-log", TokenObservation(access_log=True, counts=True)),
            ("all", TokenObservation(access_log=True, share=1.0)),
            ("Sampled:0.25", TokenObservation(access_log=True, share=0.25)),
            ("Access_Log", TokenObservation(access_log=True, counts=True)),
        ],
        ["on", "true", "sampled", "sampled:", "sampled:0", "sampled:-1", "sampled:1.1", "all:1"],
    ),
    "AIBRIX_ROUTER_VTC_TOKEN_TRACKER_WINDOW_SIZE": ([("5", 5), ("0.5", 0.5)], ["0", "-1", "5m"]),
    "AIBRIX_ROUTER_VTC_TOKEN_TRACKER_TIME_UNIT": (
        [("Seconds", "seconds"), ("milliseconds", "milliseconds")],
        ["hours", "s"],
    ),
    "AIBRIX_ROUTER_VTC_TOKEN_TRACKER_MIN_TOKENS": ([("1", 1), ("1e6", 1e6)], ["0", "x"]),
    "AIBRIX_ROUTER_VTC_TOKEN_TRACKER_MAX_TOKENS": ([("1", 1), ("1e6", 1e6)], ["0", "x"]),
    "AIBRIX_ROUTER_VTC_BASIC_MAX_POD_LOAD": ([("1", 1), ("250", 250)], ["0", "nan"]),
    "AIBRIX_ROUTER_VTC_BASIC_FAIRNESS_WEIGHT": ([("0", 0), ("1.5", 1.5)], ["-1", "nan"]),
    "AIBRIX_ROUTER_VTC_BASIC_UTILIZATION_WEIGHT": ([("0", 0), ("1.5", 1.5)], ["-1", "nan"]),
    "PDROUTER_FAIRNESS": (
        [("off", Fairness.OFF), ("Tokens", Fairness.TOKENS)],
        ["on", "true", "requests"],
    ),
    "PDROUTER_FAIRNESS_BACKLOG": ([("250ms", 0.25), ("3600", 3600)], ["0", "3601", "x"]),
    "PDROUTER_FAIRNESS_REQUESTS": ([("1", 1), ("1000000", 1_000_000)], ["0", "1.5", "x"]),
    "PDROUTER_FAIRNESS_WAIT": ([("30", 30), ("1m", 60)], ["0", "3601", "x"]),
    "PDROUTER_FAIRNESS_QUEUE": ([("1", 1), ("4096", 4096)], ["0", "4097", "1.5"]),
    "AIBRIX_ROUTER_VTC_BASIC_INPUT_TOKEN_WEIGHT": ([("0", 0), ("1.5", 1.5)], ["-1", "nan"]),
    "AIBRIX_ROUTER_VTC_BASIC_OUTPUT_TOKEN_WEIGHT": ([("0", 0), ("2", 2)], ["-1", "x"]),
    "AIBRIX_AUTH_BEARER_TOKEN": (_TEXTS, []),
    "PDROUTER_USERS": (
        [("keys", UserSource.KEYS), ("Header", UserSource.HEADER)],
        ["off", "true", "redis"],
    ),
    "PDROUTER_API_KEYS_FILE": (_PATHS, []),
    "PDROUTER_ENGINE_API_KEY_FILE": (_PATHS, []),
    "PDROUTER_FORWARD_API_KEYS": (_BOOLEANS, _NO_BOOLEANS),
    "PDROUTER_LIMITS_ON_FAILURE": (
        [("open", OnFailure.OPEN), ("Closed", OnFailure.CLOSED)],
        ["fail", "true"],
    ),
    # What is refused of these, and what goes together: test_redis_settings.py.
    "PDROUTER_REDIS_URL": ([("redis://r", RedisUrl((("r", 6379),)))], []),
    "PDROUTER_REDIS_PASSWORD_FILE": ([], []),
    "PDROUTER_REDIS_CA": ([], []),
    "PDROUTER_REDIS_CERTIFICATE": ([], []),
    "PDROUTER_REDIS_KEY": ([], []),
    "PDROUTER_REDIS_SENTINEL_PASSWORD_FILE": ([], []),
    "PDROUTER_REDIS_TIMEOUT": ([("50ms", 0.05), ("0.001", 0.001), ("10", 10)], ["0", "11", "x"]),
    "PDROUTER_REDIS_PREFIX": ([("a", "a"), ("team-1:x/y.z", "team-1:x/y.z")], ["{a}", "a b", "ä"]),
    "REDIS_HOST": (_TEXTS, []),
    "REDIS_PORT": (
        [("6379", 6379), ("1", 1), ("tcp://10.0.0.1:6380", 6380)],
        ["0", "65536", "x", "tcp://10.0.0.1", "udp://10.0.0.1:6379"],
    ),
    "REDIS_PASSWORD": (_TEXTS, []),
    "PDROUTER_LOG_LEVEL": (
        [
            *((level, level) for level in ("debug", "info", "warning", "error")),
            *((level.upper(), level) for level in ("debug", "info", "warning", "error")),
        ],
        ["trace", "10"],
    ),
}
"""For each variable, texts that are allowed with what they mean, and texts that are not."""

NAMES = {declaration.variable: name for name, declaration in declarations().items()}


def load(**environment: str) -> Settings:
    return Settings.load(environment, {})


@pytest.mark.parametrize("name", NAMES.values())
@given(text=st.text())
def test_whatever_is_written_is_a_value_or_is_refused(name: str, text: str) -> None:
    with suppress(ValueError):
        declarations()[name].kind.parse(text)


@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from([("ms", 0.001), ("S", 1), (" min ", 60)])),
        min_size=1,
    )
)
def test_a_time_with_units_is_the_sum_of_its_parts(parts: list[tuple[int, Any]]) -> None:
    text = "".join(f"{amount}{unit}" for amount, (unit, _) in parts)
    assert parse_time(text, 60) == pytest.approx(sum(n * unit for n, (_, unit) in parts) / 60)


def test_every_setting_has_rules_here() -> None:
    assert set(_RULES) == set(NAMES)


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [(variable, text, value) for variable, rule in _RULES.items() for text, value in rule[0]],
)
def test_good_values(variable: str, text: str, value: Any) -> None:
    got = getattr(load(**{variable: text}), NAMES[variable])
    assert got == value
    assert type(got) is type(value) or {type(got), type(value)} == {int, float}
    # What is shown of it can be given again.
    kind = declarations()[NAMES[variable]].kind
    assert kind.parse(kind.write(got)) == got


_LISTS = ("ROUTING_ALGORITHM", "AIBRIX_PREFILL_SCORE_POLICY", "AIBRIX_DECODE_SCORE_POLICY")


@pytest.mark.parametrize(
    ("variable", "text"),
    [(variable, text) for variable, rule in _RULES.items() for text in rule[1]],
)
def test_bad_values_are_refused_with_variable_value_and_what_is_allowed(
    variable: str, text: str
) -> None:
    with pytest.raises(SettingInvalid) as caught:
        load(**{variable: text})
    allowed = declarations()[NAMES[variable]].kind.allowed
    said, _, reason = str(caught.value).partition(f"{allowed}; ")
    assert said.removesuffix(allowed) == f"{variable}={text!r} is not allowed: it must be "
    # Of a list it is said what is wrong with it.
    assert bool(reason) == (variable in _LISTS and ("," in text or ":" in text))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("max_message_bytes", "bytes, or a size such as 64Mi, from 1048576 to 1073741824"),
        ("endpoints_poll_s", "seconds, or a time such as 500ms or 1m30s, from 0.01 to 3600"),
        ("prefill_timeout_s", "seconds, or a time such as 500ms or 1m30s, above 0 to 86400"),
        ("prefill_retries", "a whole number from 0 to 100"),
        (
            "routing_algorithm",
            (
                f"one of {', '.join(STRATEGY_NAMES)}, or several with weights from 0 to 1000000, "
                "as in `a:2,b`"
            ),
        ),
        ("on_prefill_failure", "one of fail, aggregate"),
        ("rewrite_remote_host", "one of auto, always, never"),
    ],
)
def test_what_is_allowed_is_said_exactly(name: str, allowed: str) -> None:
    assert declarations()[name].kind.allowed == allowed


@pytest.mark.parametrize("variable", _RULES)
@pytest.mark.parametrize("empty", ["", " ", "\t\n"])
def test_an_empty_variable_counts_as_unset(variable: str, empty: str) -> None:
    assert load(**{variable: empty}) == Settings()


def test_defaults_are_those_that_are_promised() -> None:
    settings = Settings()
    assert settings.max_message_bytes == 16 * MIB
    assert settings.drain_s == 600
    assert settings.prefill_retries == 2
    assert settings.retry_budget_share == 0.2
    assert settings.on_prefill_failure is FailurePolicy.FAIL
    assert settings.on_handoff_failure is FailurePolicy.AGGREGATE
    assert settings.grpc_bind == ("0.0.0.0", 50052)
    assert settings.http_bind == ("0.0.0.0", 8080)
    assert settings.rewrite_remote_host is RemoteHostRewrite.AUTO
    assert settings.routing_algorithm is None
    assert not list(settings.find_conflicts())


def test_variables_of_others_do_not_matter() -> None:
    assert load(PATH="/bin", PDROUTER_UNKNOWN="x") == Settings()


# --- Options of the command line ---


def test_an_option_wins_over_its_variable() -> None:
    settings = Settings.load({"ROUTING_ALGORITHM": "pd"}, {"routing_algorithm": "random"})
    assert settings.routing_algorithm == "random"


def test_an_option_that_is_not_given_leaves_the_variable() -> None:
    settings = Settings.load({"ROUTING_ALGORITHM": "pd"}, {"routing_algorithm": None, "run": None})
    assert settings.routing_algorithm == "pd"


def test_an_empty_option_undoes_its_variable() -> None:
    settings = Settings.load({"ROUTING_ALGORITHM": "pd"}, {"routing_algorithm": ""})
    assert settings.routing_algorithm is None


def test_a_bad_option_is_named_as_such() -> None:
    with pytest.raises(SettingInvalid, match=re.escape("--grpc-bind='x' is not allowed")):
        Settings.load({"PDROUTER_GRPC_BIND": ":1"}, {"grpc_bind": "x"})


def test_options_and_variables_are_unique() -> None:
    options = [d.option for d in declarations().values() if d.option]
    assert len(set(options)) == len(options)
    assert len(NAMES) == len(declarations())
    assert all(option.startswith("--") for option in options)


# --- What goes together ---


@pytest.mark.parametrize(
    "environment",
    [
        {"PDROUTER_TLS_CERTIFICATE": "c"},
        {"PDROUTER_TLS_KEY": "k"},
        {"PDROUTER_TLS_CLIENT_CA": "a"},
        {"PDROUTER_TLS_CLIENT_CA": "a", "PDROUTER_TLS_CERTIFICATE": "c"},
        {"PDROUTER_KUBERNETES": "true", "PDROUTER_ENDPOINTS": "f"},
        {"PDROUTER_ENGINE_CA": "a"},
        {"PDROUTER_ENGINE_SERVER_NAME": "engines"},
        {"PDROUTER_ENGINE_CA": "a", "PDROUTER_ENGINE_TLS": "insecure"},
        {"PDROUTER_ENGINE_CLIENT_CERTIFICATE": "c", "PDROUTER_ENGINE_CLIENT_KEY": "k"},
        {"PDROUTER_ENGINE_CLIENT_CERTIFICATE": "c", "PDROUTER_ENGINE_TLS": "on"},
        {"PDROUTER_ENGINE_CLIENT_KEY": "k", "PDROUTER_ENGINE_TLS": "on"},
    ],
)
def test_settings_that_do_not_go_together_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(SettingInvalid) as caught:
        load(**environment)
    assert any(variable in str(caught.value) for variable in environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"PDROUTER_TLS_CERTIFICATE": "c", "PDROUTER_TLS_KEY": "k"},
        {
            "PDROUTER_ENGINE_TLS": "on",
            "PDROUTER_ENGINE_CA": "a",
            "PDROUTER_ENGINE_SERVER_NAME": "vllm-1.prod.svc",
            "PDROUTER_ENGINE_CLIENT_CERTIFICATE": "c",
            "PDROUTER_ENGINE_CLIENT_KEY": "k",
        },
        {
            "PDROUTER_TLS_CERTIFICATE": "c",
            "PDROUTER_TLS_KEY": "k",
            "PDROUTER_TLS_CLIENT_CA": "a",
        },
        {"PDROUTER_KUBERNETES": "false", "PDROUTER_ENDPOINTS": "f"},
        # The deadline of the leg holds while it connects, too.
        {"AIBRIX_PREFILL_REQUEST_TIMEOUT": "1"},
    ],
)
def test_settings_that_go_together(environment: dict[str, str]) -> None:
    load(**environment)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingInvalid) as caught:
        load(PDROUTER_WORKERS="many", PDROUTER_DRAIN="-1", PDROUTER_TLS_KEY="k")
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [
        "PDROUTER_WORKERS='many'",
        "PDROUTER_DRAIN='-1'",
        "PDROUTER_TLS_CERTIFICATE",
    ]
    assert str(caught.value).splitlines() == list(caught.value.problems)


# --- Showing them ---


def test_values_are_shown_by_variable_and_can_be_logged() -> None:
    shown = load(
        PDROUTER_ENDPOINTS="/etc/pods.yaml",
        PDROUTER_ON_PREFILL_FAILURE="aggregate",
        PDROUTER_FORWARD_HEADERS="a,b",
    ).show()
    assert set(shown) == set(NAMES)
    logged = json.loads(msgspec.json.encode(shown))
    assert logged["PDROUTER_ENDPOINTS"] == "/etc/pods.yaml"
    assert logged["PDROUTER_ON_PREFILL_FAILURE"] == "aggregate"
    assert logged["PDROUTER_FORWARD_HEADERS"] == ["a", "b"]
    assert logged["AIBRIX_AUTH_BEARER_TOKEN"] is None


def test_secrets_are_hidden() -> None:
    settings = load(AIBRIX_AUTH_BEARER_TOKEN="hunter2")
    assert settings.bearer_token == "hunter2"
    assert settings.show()["AIBRIX_AUTH_BEARER_TOKEN"] == "(secret)"
    assert "hunter2" not in repr(settings)
    secrets = {"bearer_token", "redis_url", "redis_password"}
    assert {name for name, each in declarations().items() if each.secret} == secrets


def test_a_secret_that_is_not_allowed_is_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> str:
        raise ValueError(text)

    declared = declarations()
    secret = declared["bearer_token"]
    kind = dataclasses.replace(secret.kind, parse=refuse, allowed="another one")
    broken = declared | {"bearer_token": dataclasses.replace(secret, kind=kind)}
    monkeypatch.setattr("pdrouter.settings.combined.declarations", lambda: broken)
    with pytest.raises(SettingInvalid) as caught:
        load(AIBRIX_AUTH_BEARER_TOKEN="hunter2")
    assert "hunter2" not in str(caught.value)
    assert "(secret)" in str(caught.value)


def test_the_table_has_a_row_for_every_setting() -> None:
    lines = describe_settings().splitlines()
    assert sum(line.startswith("| `") for line in lines) == len(NAMES)
    for name, declaration in declarations().items():
        (row,) = (line for line in lines if line.startswith(f"| `{declaration.variable}`"))
        assert declaration.doc in row, name
        assert declaration.kind.allowed in row
        assert row.count(" | ") == 3
        assert not declaration.option or f"`{declaration.option}`" in row


def test_what_few_need_stands_apart() -> None:
    usual, advanced = describe_settings().split("## Advanced\n")
    shown = set(re.findall(r"^\| `(\w+)`", usual, re.MULTILINE))
    apart = set(re.findall(r"^\| `(\w+)`", advanced, re.MULTILINE))
    assert apart == {each.variable for each in declarations().values() if each.advanced}
    assert shown | apart == set(NAMES)
    assert 40 <= len(shown) <= 72
    # What is worth an option is worth a place among the others.
    assert not [each.option for each in declarations().values() if each.advanced and each.option]


@pytest.mark.parametrize(
    ("variable", "default"),
    [
        ("ROUTING_ALGORITHM", ""),
        ("PDROUTER_FORWARD_HEADERS", ""),
        ("PDROUTER_GRPC_BIND", "`0.0.0.0:50052`"),
        ("PDROUTER_POD_SELECTORS", "`role-name;!role-name,model.aibrix.ai/name`"),
        ("PDROUTER_EXPOSE_PODS", "`true`"),
        ("PDROUTER_DRAIN", "`600`"),
        ("AIBRIX_GRPC_MAX_MESSAGE_SIZE_BYTES", "`16777216`"),
        ("PDROUTER_ON_PREFILL_FAILURE", "`fail`"),
        ("PDROUTER_OBSERVE_TOKENS", "`first-token`"),
    ],
)
def test_the_table_shows_defaults_as_they_would_be_written(variable: str, default: str) -> None:
    (row,) = (
        line for line in describe_settings().splitlines() if line.startswith(f"| `{variable}`")
    )
    assert row.split(" | ")[1] == default
    if default:
        assert getattr(load(**{variable: default.strip("`")}), NAMES[variable]) == getattr(
            Settings(), NAMES[variable]
        )


@pytest.mark.parametrize(
    ("bind", "workers", "problem"),
    [
        ("0.0.0.0:0", "2", "needs a port"),
        ("0.0.0.0:65535", "2", "no 2 ports from 65535"),
        ("0.0.0.0:65500", "37", "no 37 ports from 65500"),
    ],
)
def test_each_worker_needs_a_port(bind: str, workers: str, problem: str) -> None:
    with pytest.raises(SettingInvalid, match=problem):
        load(PDROUTER_GRPC_BIND=bind, PDROUTER_WORKERS=workers)


def test_workers_count_up_from_the_port() -> None:
    settings = load(PDROUTER_GRPC_BIND="[::1]:65534", PDROUTER_WORKERS="2")
    ports = [settings.choose_worker(number).grpc_bind for number in range(2)]
    assert ports == [("::1", 65534), ("::1", 65535)]
    assert load(PDROUTER_GRPC_BIND="0.0.0.0:0").choose_worker(0).grpc_bind == ("0.0.0.0", 0)


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("ROUTING_ALGORITHM", "least-request,fastest", "'fastest' is none of these"),
        ("ROUTING_ALGORITHM", "least-request,", "'' is none of these"),
        ("ROUTING_ALGORITHM", "random,least-request", "random gives no scores: it cannot be in a"),
        ("ROUTING_ALGORITHM", "least-request:0", "all weights are 0"),
        ("AIBRIX_DECODE_SCORE_POLICY", "kv_capacity:1:1", "the weight of kv_capacity is no whole"),
        ("AIBRIX_PREFILL_SCORE_POLICY", "ttft,power-of-two", "power-of-two gives no scores"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(variable: str, text: str, reason: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        Settings.load({variable: text}, {})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{variable}={text!r} is not allowed: it must be one of")
    assert f"; {reason}" in problem
