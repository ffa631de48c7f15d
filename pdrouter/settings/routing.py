"""The settings that decide which pods are chosen."""

from dataclasses import dataclass

from pdrouter.settings.choices import (
    DECODE_ALGORITHM_NAMES,
    DECODE_POLICY_NAMES,
    PREFILL_ALGORITHM_NAMES,
    PREFILL_POLICY_NAMES,
    STRATEGY_NAMES,
    Aggregation,
)
from pdrouter.settings.combination import fold, parse_combination, parse_strategy
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import (
    BOOLEAN,
    BUCKETS,
    FILES,
    MIB,
    TEXT,
    ValueKind,
    enumeration,
    number,
    seconds,
    size,
    time_in,
)

_LISTS = "or several with weights from 0 to 1000000, as in `a:2,b`"


def _combination(*policies: str) -> ValueKind:
    """Return the kind of texts that name a policy, or several with weights."""

    def parse(text: str) -> str:
        weights = parse_combination(text, policies)
        if len(weights) == 1:
            return weights[0][0]
        return ",".join(name if weight == 1 else f"{name}:{weight}" for name, weight in weights)

    return ValueKind(parse, f"one of {', '.join(policies)}, {_LISTS}")


def _parse_strategy(text: str) -> str:
    parse_strategy(text)
    return fold(text)


@dataclass(frozen=True)
class RoutingSettings:
    """Settings of the choice of pods."""

    routing_algorithm: str | None = declare(
        None,
        "ROUTING_ALGORITHM",
        ValueKind(_parse_strategy, f"one of {', '.join(STRATEGY_NAMES)}, {_LISTS}"),
        "Strategy for requests without a `routing-strategy` header, or several of the algorithms "
        "for one pod with weights. Unset or empty: such requests pass with a `model` header and no "
        "endpoint.",
        "--routing-algorithm",
    )
    prefill_policy: str = declare(
        "ttft",
        "AIBRIX_PREFILL_SCORE_POLICY",
        _combination(*PREFILL_POLICY_NAMES, *PREFILL_ALGORITHM_NAMES),
        "How `pd` chooses a prefill pod. `ttft` predicts the time to the first token; the others "
        "are aibrix's, those for this leg and the algorithms for one pod.",
        "--prefill-policy",
    )
    decode_policy: str = declare(
        "kv_capacity",
        "AIBRIX_DECODE_SCORE_POLICY",
        _combination(*DECODE_POLICY_NAMES, *DECODE_ALGORITHM_NAMES),
        "How `pd` chooses a decode pod. `kv_capacity` looks for room first, then for the least "
        "load; the others are aibrix's, those for this leg and the algorithms for one pod.",
        "--decode-policy",
    )
    prefill_buckets: tuple[int, ...] = declare(
        (),
        "PDROUTER_PREFILL_BUCKETS",
        BUCKETS,
        "Prompt lengths that prefill engines of static shapes (Neuron) are compiled for: `ttft` "
        "rounds prompts up to them, and takes longer ones for passes of the largest. Unset: what "
        "the metrics of each engine say.",
    )
    prefill_tokens_per_s: float = declare(
        8000.0,
        "PDROUTER_PREFILL_TOKENS_PER_S",
        number(float, "tokens per second,", 1, 10_000_000),
        "Speed of a prefill pod until it has been measured.",
        advanced=True,
    )
    tokenizers: tuple[tuple[str, str], ...] = declare(
        (),
        "PDROUTER_TOKENIZERS",
        FILES,
        "`tokenizer.json` of each model, to count the tokens of prompts; that of `*` is for all "
        "other models. Needs `pdrouter[tokenizer]`. Without one, lengths follow from bytes per "
        "token, learnt from the engines' `usage`.",
    )
    tokenizer_timeout_s: float = declare(
        0.1,
        "PDROUTER_TOKENIZER_TIMEOUT",
        seconds(0.001, 10),
        "How long a request waits for its tokens to be counted before they are estimated.",
        advanced=True,
    )
    tokenizer_threads: int = declare(
        1,
        "PDROUTER_TOKENIZER_THREADS",
        number(int, "a whole number", 1, 64),
        "How many prompts are counted at a time, each on a core of its own.",
        advanced=True,
    )
    expected_output_tokens: int = declare(
        512,
        "PDROUTER_EXPECTED_OUTPUT_TOKENS",
        number(int, "a whole number of tokens", 1, 1_000_000),
        "Length of an answer for which KV memory is reserved, unless the client sets a lower "
        "limit. Where answers are counted (`PDROUTER_OBSERVE_TOKENS`), their mean length takes its "
        "place, model by model.",
    )
    aggregation: Aggregation = declare(
        Aggregation.WHEN_FASTER,
        "PDROUTER_AGGREGATE",
        enumeration(Aggregation, *Aggregation),
        "When a decode pod serves a request whole that could be split: `never`, `fallback` (no "
        "prefill pod is ready), or `when-faster` (that, and whenever it is predicted to be faster "
        "on a decode pod that can compute prompts, without slowing down what it decodes: short "
        "prompts, busy prefill pods, conversations that the decode pod knows).",
        "--aggregate",
    )
    handover_s: float | None = declare(
        None,
        "PDROUTER_HANDOVER",
        seconds(0, 60),
        "Time from the end of prefill to the first token, for `when-faster`. Unset: what the first "
        "tokens of 20 streamed answers show; until then, requests go two legs.",
        advanced=True,
    )
    gap_s: float | None = declare(
        None,
        "PDROUTER_INTER_TOKEN_TARGET",
        seconds(0.001, 60),
        "Mean time between two tokens beyond which `when-faster` must not slow decoding down. "
        "Unset: a little above what it takes without such requests, by the metrics of the pod.",
        advanced=True,
    )
    max_wait_s: float | None = declare(
        None,
        "PDROUTER_MAX_WAIT",
        seconds(0, 86400, above=True),
        "Predicted time in a prefill queue that a request may have to wait. Pods with longer ones "
        "get none; if all have, it is refused (429) before any work is done. Unset: no limit.",
    )
    source_tokens: int = declare(
        256,
        "PDROUTER_KV_SOURCE_TOKENS",
        number(int, "a number of tokens,", 1, 10_000_000),
        "For engines with a P2P tier (`offloading`, `nixl-p2p`): tokens of a prompt that another "
        "prefill pod must have cached beyond what the chosen one has, for that to fetch them there "
        "instead of computing them. Measure where fetching begins to be faster with your model: "
        "about 2,000 tokens have been seen with one of 8 billion parameters.",
        advanced=True,
    )
    prefix_index_bytes: int = declare(
        64 * MIB,
        "PDROUTER_PREFIX_INDEX_BYTES",
        size(MIB, 16 * 1024 * MIB),
        "Memory for what is known of the prefixes that prefill pods have cached.",
        advanced=True,
    )
    prefix_ttl_minutes: float = declare(
        20.0,
        "AIBRIX_PREFIX_CACHE_EVICTION_DURATION_MINS",
        time_in(60, "minutes, or a time such as 2h,", 0, 100_000, above=True),
        "Time after which a prefix that nobody uses is forgotten.",
        advanced=True,
    )
    compute_weight: float = declare(
        4.0,
        "PDROUTER_COMPUTE_WEIGHT",
        number(float, "a number", 0.1, 100),
        "How many times a second of computing counts as much as one of waiting, for `ttft`, while "
        "all prefill pods are busy; less as more of them are idle (routing.md). Higher: prompts go "
        "where they are cached, even if they wait.",
        advanced=True,
    )
    others_weight: float = declare(
        0.35,
        "PDROUTER_OTHERS_WEIGHT",
        number(float, "a number", 0.0, 1.0),
        "How much of the prefill work that others have sent counts in a choice, for `ttft`. "
        "Lower: routers that see the same metrics crowd less onto the pod that looks idle.",
        advanced=True,
    )
    away_cost: float = declare(
        0.4,
        "PDROUTER_AWAY_COST",
        number(float, "a number", 0.0, 10.0),
        "How much more a prefill pod costs that is another router's home, as a part of its score, "
        "for `ttft`. 0: all pods are the same to all routers. No difference with one router.",
        advanced=True,
    )
    replicas: int = declare(
        1,
        "PDROUTER_REPLICAS",
        number(int, "a whole number", 1, 1000),
        "Replicas of the router that send to the same pods, each with its workers: they part "
        "the pods among them (routing.md). In Kubernetes, those of PDROUTER_SERVICE are found.",
    )
    replica: int | None = declare(
        None,
        "PDROUTER_REPLICA",
        number(int, "a whole number", 0, 999),
        "Which of PDROUTER_REPLICAS this one is, from 0 on. Unset: the number at the end of the "
        "host's name, as a StatefulSet gives it.",
        advanced=True,
    )
    router_service: str = declare(
        "",
        "PDROUTER_SERVICE",
        TEXT,
        "Service before the replicas of the router, in their own namespace: its endpoints part the "
        "pods among them. Not looked at where PDROUTER_REPLICAS is set. Unset: none.",
        advanced=True,
    )
    locality_weight: float = declare(
        0.02,
        "PDROUTER_LOCALITY_WEIGHT",
        number(float, "a number", 0.0, 10.0),
        "How much the distance between the pods of a pair counts, where pods say where they are: "
        "the longest as much as this part of a leg's highest score. 0: nothing.",
        advanced=True,
    )
    metrics_interval_ms: float = declare(
        1000.0,
        "AIBRIX_POD_METRIC_REFRESH_INTERVAL_MS",
        time_in(0.001, "milliseconds, or a time such as 2s,", 10, 60_000),
        "Time between two looks at an engine's metrics; longer with many pods.",
        advanced=True,
    )
    bucketing: bool = declare(
        False,
        "AIBRIX_PROMPT_LENGTH_BUCKETING",
        BOOLEAN,
        "Whether pods say in `model.aibrix.ai/config` which prompt lengths they are for.",
    )
    prefill_imbalance_spread: int = declare(
        16,
        "AIBRIX_PREFILL_LOAD_IMBALANCE_MIN_SPREAD",
        number(int, "a whole number", 0, 1_000_000),
        "For aibrix's prefill policies: prefill legs by which pods may differ before one with the "
        "fewest is taken.",
        advanced=True,
    )
    decode_imbalance_spread: float = declare(
        16.0,
        "AIBRIX_DECODE_LOAD_IMBALANCE_MIN_SPREAD",
        number(float, "a number", 0, 1_000_000),
        "For aibrix's decode policies: requests by which pods differ when one with the fewest is "
        "taken.",
        advanced=True,
    )
    decode_throughput_spread: float = declare(
        2048.0,
        "AIBRIX_DECODE_THROUGHPUT_IMBALANCE_MIN_SPREAD",
        number(float, "tokens per second,", 0, 1e9),
        "For aibrix's decode policies: tokens per second by which pods may differ before the one "
        "that generates least is taken.",
        advanced=True,
    )
    decode_score_ratio: float = declare(
        1.5,
        "AIBRIX_DECODE_SCORE_RATIO_THRESHOLD",
        number(float, "a number", 1, 1_000_000),
        "For aibrix's decode policies: ratio that the times to complete all requests may have.",
        advanced=True,
    )
    standard_deviation_factor: float = declare(
        1.0,
        "AIBRIX_PREFIX_CACHE_STANDARD_DEVIATION_FACTOR",
        number(float, "a number", 0, 1_000_000),
        "For aibrix's prefill policies and `prefix-cache`: standard deviations above the mean that "
        "a pod's requests may lie.",
        advanced=True,
    )
    weight_running: float = declare(
        1.0,
        "AIBRIX_DECODE_LB_WEIGHT_RUNNING",
        number(float, "a number", 0, 1_000_000),
        "For `load_balancing`: weight of the requests that run.",
        advanced=True,
    )
    weight_throughput: float = declare(
        1.0,
        "AIBRIX_DECODE_LB_WEIGHT_THROUGHPUT",
        number(float, "a number", 0, 1_000_000),
        "For `load_balancing`: weight of the throughput that is idle.",
        advanced=True,
    )
