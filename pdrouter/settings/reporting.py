"""The settings of what is told of requests, and to whom."""

from dataclasses import dataclass

from pdrouter.settings.choices import FIRST_TOKEN, TokenObservation
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import BOOLEAN, OBSERVATION, choice, number


@dataclass(frozen=True)
class ReportingSettings:
    """Settings of answers, metrics and logs."""

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
        FIRST_TOKEN,
        "PDROUTER_OBSERVE_TOKENS",
        OBSERVATION,
        "What is known of the tokens of answers, and from whom (tokens.md). `first-token`: when "
        "the first came, from Envoy's access log, if it sends one. `access-log`: also how many "
        "there were, if Envoy has filters that count them. `all`, `sampled:SHARE`: that too, from "
        "the answers themselves, of which Envoy then sends every piece. `off`: what passes anyway.",
        "--observe-tokens",
    )
    wanted_prefill_use: float = declare(
        0.7,
        "PDROUTER_WANTED_PREFILL_USE",
        number(float, "a number", 0.05, 1.0),
        "For `pdrouter_pods_wanted`, the share of its time in which a prefill pod is to be busy. "
        "Lower: more pods, shorter queues.",
        advanced=True,
    )
    wanted_decode_use: float = declare(
        0.8,
        "PDROUTER_WANTED_DECODE_USE",
        number(float, "a number", 0.05, 1.0),
        "For `pdrouter_pods_wanted`, the share of its KV memory that a decode pod is to use.",
        advanced=True,
    )
    kept_decisions: int = declare(
        100,
        "PDROUTER_KEPT_DECISIONS",
        number(int, "a whole number", 0, 10_000),
        "How many decisions `/debug/decisions` shows.",
        advanced=True,
    )
    log_level: str = declare(
        "info",
        "PDROUTER_LOG_LEVEL",
        choice("debug", "info", "warning", "error"),
        "Least level of log lines.",
        "--log-level",
    )
