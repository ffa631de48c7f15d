"""All that an operator can set: one typed, validated object; nothing else reads the environment."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdrouter.settings.algorithms import AlgorithmSettings
from pdrouter.settings.choices import TokenObservation, UserSource
from pdrouter.settings.combination import CombinationInvalid
from pdrouter.settings.deadlines import DeadlineSettings
from pdrouter.settings.declaration import Declaration
from pdrouter.settings.engine_tls import EngineTlsSettings
from pdrouter.settings.failures import FailureSettings
from pdrouter.settings.fairness import FairnessSettings
from pdrouter.settings.legs import LegSettings
from pdrouter.settings.pods import PodSettings
from pdrouter.settings.ports import PortSettings
from pdrouter.settings.redis import RedisSettings
from pdrouter.settings.reporting import ReportingSettings
from pdrouter.settings.routing import RoutingSettings
from pdrouter.settings.sessions import SessionSettings
from pdrouter.settings.tracing import TracingSettings
from pdrouter.settings.users import UserSettings


class SettingInvalid(ValueError):
    """Settings have values that are not allowed.

    Attributes:
        problems: one text for each, which names variable, value and rule.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Refusal:
    """A value that is not allowed, or values that do not go together.

    Attributes:
        variable: environment variable; empty where several do not go together.
        source: the variable or the option that has the value; empty as above.
        problem: what is wrong.
    """

    variable: str
    source: str
    problem: str

    def __str__(self) -> str:
        return f"{self.source}={self.problem}" if self.source else self.problem


@dataclass(frozen=True)
class Settings(
    TracingSettings,
    ReportingSettings,
    RedisSettings,
    PortSettings,
    UserSettings,
    FailureSettings,
    EngineTlsSettings,
    LegSettings,
    FairnessSettings,
    DeadlineSettings,
    SessionSettings,
    AlgorithmSettings,
    RoutingSettings,
    PodSettings,
):
    """The settings of `pdrouter serve`. See `describe_settings` for what each of them means."""

    @classmethod
    def load(cls, environment: Mapping[str, str], options: Mapping[str, str | None]) -> "Settings":
        """Read the settings.

        Args:
            environment: variables; an empty one counts as unset.
            options: values from the command line by name of the setting; they win.

        Raises:
            SettingInvalid: a value is not allowed, or two do not go together.
        """
        settings, refusals = cls.read(environment, options)
        if refusals:
            raise SettingInvalid(*map(str, refusals))
        return settings

    @classmethod
    def read(
        cls, environment: Mapping[str, str], options: Mapping[str, str | None]
    ) -> tuple["Settings", tuple[Refusal, ...]]:
        """Return the settings, with defaults for what is refused, and all that is refused.

        Args:
            environment: variables; an empty one counts as unset.
            options: values from the command line by name of the setting; they win.
        """
        values: dict[str, Any] = {}
        refusals: list[Refusal] = []
        for name, declaration in declarations().items():
            text, source = find_text(name, environment, options)
            if not text:
                continue
            try:
                values[name] = declaration.kind.parse(text)
            except ValueError as invalid:
                shown = "(secret)" if declaration.secret else repr(text)
                problem = f"{shown} is not allowed: it must be {declaration.kind.allowed}"
                if isinstance(invalid, CombinationInvalid) and invalid.reason:
                    problem += f"; {invalid.reason}"
                refusals.append(Refusal(declaration.variable, source, problem))
        settings = cls(**values)
        refusals += [Refusal("", "", conflict) for conflict in settings.find_conflicts()]
        return settings, tuple(refusals)

    def find_conflicts(self) -> Iterator[str]:
        """Yield what no setting can say alone: which of them do not go together, and why."""
        if self.kubernetes and self.endpoints is not None:
            yield "PDROUTER_KUBERNETES and PDROUTER_ENDPOINTS exclude each other"
        if (self.tls_certificate is None) != (self.tls_key is None):
            yield "PDROUTER_TLS_CERTIFICATE and PDROUTER_TLS_KEY go together"
        if self.tls_client_ca is not None and self.tls_certificate is None:
            yield "PDROUTER_TLS_CLIENT_CA needs PDROUTER_TLS_CERTIFICATE"
        yield from self.find_engine_tls_conflicts()
        first = self.grpc_bind[1]
        if self.workers > 1 and first == 0:
            # A worker that is restarted must come back where Envoy looks for it.
            yield "PDROUTER_WORKERS above 1 needs a port in PDROUTER_GRPC_BIND"
        elif first + self.workers - 1 > 65535:
            yield f"there are no {self.workers} ports from {first} on"
        yield from self.find_redis_conflicts()
        if self.user_source is UserSource.AIBRIX and self.redis is None:
            yield "PDROUTER_USERS=aibrix needs PDROUTER_REDIS_URL or REDIS_HOST"

    @property
    def user_source(self) -> UserSource:
        """How users are known."""
        if self.users is not None:
            return self.users
        # A router that takes the place of aibrix's plugin knows users as that did.
        replaces_aibrix = self.redis_host is not None and self.redis_url is None
        return UserSource.AIBRIX if replaces_aibrix and not self.keys_file else UserSource.KEYS

    def choose_worker(self, number: int) -> "Settings":
        """Return the settings of one of the workers.

        Args:
            number: which one, from 0 on.
        """
        host, port = self.grpc_bind
        return dataclasses.replace(self, grpc_bind=(host, port + number))

    def show(self) -> dict[str, Any]:
        """Return the values by variable, for people; secrets are hidden."""
        shown: dict[str, Any] = {}
        for name, declaration in declarations().items():
            value = getattr(self, name)
            if declaration.secret and value is not None:
                value = "(secret)"
            plain = not isinstance(value, Path | TokenObservation)
            shown[declaration.variable] = value if plain else str(value)
        return shown


def find_text(
    name: str, environment: Mapping[str, str], options: Mapping[str, str | None]
) -> tuple[str, str]:
    """Return what is given for a setting, and the variable or the option that gives it.

    Returns:
        Two empty texts if nothing is given.
    """
    declaration = declarations()[name]
    option = options.get(name)
    text = (environment.get(declaration.variable, "") if option is None else option).strip()
    source = declaration.variable if option is None else declaration.option
    return (text, source) if text else ("", "")


def declarations() -> dict[str, Declaration]:
    """Return the declarations by name of the setting."""
    return {each.name: each.metadata["declaration"] for each in dataclasses.fields(Settings)}
