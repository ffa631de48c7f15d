"""What an operator decides about the answers to requests."""

from dataclasses import dataclass

from pdrouter.extproc.header_limits import ENVOYS_DEFAULTS, HeaderLimits
from pdrouter.settings.choices import FIRST_TOKEN, TokenObservation


@dataclass(frozen=True, slots=True)
class ExchangePolicy:
    """What an operator may decide about the answers.

    Attributes:
        expose_pods: whether clients are told names and addresses of pods.
        explain_decisions: whether a client may ask for a decision in detail.
        bearer_token: the key that clients must present; None to let everybody in.
        observation: who counts the tokens of answers.
        header_limits: Envoy's limits for headers.
        dropped_headers: headers of clients that no engine gets, beside those that none ever gets.
        trust_user: whether who asks is whom the header `user` names.
    """

    expose_pods: bool
    explain_decisions: bool
    bearer_token: str | None
    observation: TokenObservation = FIRST_TOKEN
    header_limits: HeaderLimits = ENVOYS_DEFAULTS
    dropped_headers: tuple[str, ...] = ()
    trust_user: bool = False
