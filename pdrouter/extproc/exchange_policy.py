"""What an operator decides about the answers to requests."""

from dataclasses import dataclass

from pdrouter.extproc.header_changes import UNCHANGED, HeaderChanges
from pdrouter.extproc.header_limits import ENVOYS_DEFAULTS, HeaderLimits
from pdrouter.openai.header_values import KEY_HEADERS
from pdrouter.serving.identities import Identity
from pdrouter.settings.choices import FIRST_TOKEN, TokenObservation


@dataclass(frozen=True, slots=True)
class ExchangePolicy:
    """What an operator may decide about the answers.

    Attributes:
        expose_pods: whether clients are told names and addresses of pods.
        explain_decisions: whether a client may ask for a decision in detail.
        observation: who counts the tokens of answers.
        header_limits: Envoy's limits for headers.
        dropped_headers: headers of clients that no engine gets, beside those that none ever gets.
        forward_keys: whether engines get keys that are users' own.
        engine_key: the key that engines get in place of a client's; empty for none.
    """

    expose_pods: bool
    explain_decisions: bool
    observation: TokenObservation = FIRST_TOKEN
    header_limits: HeaderLimits = ENVOYS_DEFAULTS
    dropped_headers: tuple[str, ...] = ()
    forward_keys: bool = False
    engine_key: str = ""

    def change_headers(self, identity: Identity) -> HeaderChanges:
        """Return how a client's headers are changed for all engines."""
        withholds = bool(self.engine_key) or (identity.by_key and not self.forward_keys)
        if not withholds and not self.dropped_headers:
            return UNCHANGED
        removed = (*self.dropped_headers, *(KEY_HEADERS if withholds else ()))
        added = (("authorization", f"Bearer {self.engine_key}"),) if self.engine_key else ()
        return HeaderChanges(removed, added)
