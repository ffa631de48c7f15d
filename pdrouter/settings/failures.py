"""The settings of how long pods that fail are left out."""

from dataclasses import dataclass

from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import BOOLEAN, COUNT, number, seconds


@dataclass(frozen=True)
class FailureSettings:
    """Settings of the ejection of pods."""

    eject_after: int = declare(
        3,
        "PDROUTER_EJECT_AFTER",
        COUNT,
        "Failures of a pod in a row, on one leg, after which it gets no requests of that leg for a "
        "while; half of its recent ones are as bad. 0: pods that fail are never left out.",
    )
    eject_s: float = declare(
        30.0,
        "PDROUTER_EJECT_TIME",
        seconds(0.1, 3600),
        "Time until a pod that was left out gets a request again, one at a time. Each that fails "
        "doubles it.",
    )
    eject_longest_s: float = declare(
        300.0,
        "PDROUTER_EJECT_LONGEST",
        seconds(0.1, 86400),
        "What that time may come to, and the most that is waited if an engine asks for it "
        "(`retry-after`).",
        advanced=True,
    )
    eject_share: float = declare(
        0.5,
        "PDROUTER_EJECT_SHARE",
        number(float, "a share,", 0.0, 1.0),
        "Share of a model's pods of one role that may wait out a doubled time. If more have "
        "failed, the least bad of the others are tried sooner.",
        advanced=True,
    )
    eject_asks: bool = declare(
        True,
        "PDROUTER_EJECT_ASK",
        BOOLEAN,
        "Whether the router asks a pod that was left out with a request of its own, of one token, "
        "before a client's request tries it.",
    )
