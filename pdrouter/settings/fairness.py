"""The settings of how users take turns."""

from dataclasses import dataclass

from pdrouter.settings.choices import Fairness
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import enumeration, number, seconds


@dataclass(frozen=True)
class FairnessSettings:
    """Settings of how users take turns."""

    fairness: Fairness = declare(
        Fairness.OFF,
        "PDROUTER_FAIRNESS",
        enumeration(Fairness, *Fairness),
        "Whether users take turns while a model's pods have enough to do: `off`, or `tokens` (who "
        "has been served the fewest tokens is next).",
    )
    fairness_backlog_s: float = declare(
        0.1,
        "PDROUTER_FAIRNESS_BACKLOG",
        seconds(0.001, 3600),
        "Predicted time for what the least busy prefill pod has to do from which on requests wait "
        "for their turn. Less: who is next waits less. More: engines have more to form batches of.",
        advanced=True,
    )
    fairness_requests: int | None = declare(
        None,
        "PDROUTER_FAIRNESS_REQUESTS",
        number(int, "a whole number", 1, 1_000_000),
        "Requests that the least busy decode pod, or pod for whole requests, serves at a time "
        "from which on others wait for their turn. Unset: what its metrics say of KV memory and, "
        "for whole requests, of its queue.",
        advanced=True,
    )
    fairness_wait_s: float = declare(
        30.0,
        "PDROUTER_FAIRNESS_WAIT",
        seconds(0.001, 3600),
        "How long a request waits for its turn before it is refused (429); never more than half of "
        "AIBRIX_PREFILL_REQUEST_TIMEOUT, of which it is a part.",
    )
    fairness_queue: int = declare(
        1000,
        "PDROUTER_FAIRNESS_QUEUE",
        number(int, "a whole number", 1, 4096),
        "Requests of a model that wait for their turn. When there is one more, the newest of who "
        "has most of them is refused (429).",
        advanced=True,
    )
    input_token_weight: float = declare(
        1.0,
        "AIBRIX_ROUTER_VTC_BASIC_INPUT_TOKEN_WEIGHT",
        number(float, "a number", 0, 1_000_000),
        "What a token of a prompt counts for users' turns.",
        advanced=True,
    )
    output_token_weight: float = declare(
        2.0,
        "AIBRIX_ROUTER_VTC_BASIC_OUTPUT_TOKEN_WEIGHT",
        number(float, "a number", 0, 1_000_000),
        "What a token of an answer counts for users' turns.",
        advanced=True,
    )
