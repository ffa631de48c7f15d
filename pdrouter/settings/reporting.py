"""The settings of what is told of requests, and to whom."""

from dataclasses import dataclass

from pdrouter.settings.choices import UNOBSERVED, TokenObservation
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
        advanced=True,
    )
    log_level: str = declare(
        "info",
        "PDROUTER_LOG_LEVEL",
        choice("debug", "info", "warning", "error"),
        "Least level of log lines.",
        "--log-level",
    )
