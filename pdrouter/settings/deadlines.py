"""The settings of targets for the first token, and of what engines are told of them."""

from dataclasses import dataclass

from pdrouter.settings.choices import Priority
from pdrouter.settings.declaration import declare
from pdrouter.settings.kinds import (
    BOOLEAN,
    CLASSES,
    LONGEST_TARGET_S,
    enumeration,
    number,
    seconds,
)


@dataclass(frozen=True)
class DeadlineSettings:
    """Settings of the times at which requests are due."""

    classes: tuple[tuple[str, float], ...] = declare(
        (),
        "PDROUTER_CLASSES",
        CLASSES,
        "Classes that a client may name in `x-priority`, each with the time in which its first "
        "token is to come, as in `interactive=500ms,batch=5m`. Unset: the header means nothing.",
    )
    refuse_late: bool = declare(
        True,
        "PDROUTER_REFUSE_LATE",
        BOOLEAN,
        "Whether a request whose first token cannot come in the time that it asks for is refused "
        "(429), or served late.",
        advanced=True,
    )
    priority: Priority = declare(
        Priority.OFF,
        "PDROUTER_ENGINE_PRIORITY",
        enumeration(Priority, *Priority),
        "Whether engines are told when each request is due, so that they take first what is due "
        "first (vLLM with `--scheduling-policy priority`): `off`, `auto` (those that take it: they "
        "are asked), or `on` (all but those that have refused it).",
    )
    trust_priority: bool = declare(
        False,
        "PDROUTER_TRUST_PRIORITY",
        BOOLEAN,
        "Whether a client's own `priority`, or `x-vllm-priority`, goes before what the router "
        "tells engines. Who can set it goes before all others.",
        advanced=True,
    )
    default_target_s: float = declare(
        1.0,
        "PDROUTER_DEFAULT_TARGET",
        seconds(0, LONGEST_TARGET_S),
        "When a request without a target is due, for `PDROUTER_ENGINE_PRIORITY`: so long after it "
        "came, and `PDROUTER_DEFAULT_TARGET_FACTOR` times what its own prompt takes.",
        advanced=True,
    )
    default_target_factor: float = declare(
        2.0,
        "PDROUTER_DEFAULT_TARGET_FACTOR",
        number(float, "a number", 0, 1000),
        "How many times what its own prompt takes on an idle pod a request without a target may "
        "take beside `PDROUTER_DEFAULT_TARGET`.",
        advanced=True,
    )
