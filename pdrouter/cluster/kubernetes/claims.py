"""Models that aibrix's ModelClaims have put on the pods of a warm pool, as annotations tell.

Several engines share such a pod, each for one model and at a port of its own. aibrix's controller
says in an annotation for each claim how far its engine is.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated

import msgspec

from pdrouter.cluster.pods import RANK_MARK, Inactive, Pod, format_address

log = logging.getLogger(__name__)

PREFIX = "modelclaim.aibrix.ai/"
SELECTOR = "!role-name,!model.aibrix.ai/name,pool.aibrix.ai/enabled"
"""Selects the pods of warm pools, which say of no model that it is theirs."""
_ACTIVE = "active"
_LONGEST_MODEL = 512
_LONGEST_TEXT = 8192
"""Bytes of an annotation, each of which Kubernetes lets have a quarter of a MiB."""
_MOST_CLAIMS = 64
_CACHED_TEXTS = 1024


class _Annotation(msgspec.Struct):
    model: Annotated[str, msgspec.Meta(max_length=_LONGEST_MODEL)] = ""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    state: str = ""


@dataclass(frozen=True, slots=True)
class ModelClaim:
    """An engine on a pod, as its annotation says.

    Attributes:
        name: name of the claim.
        model: name that requests use.
        port: port that the engine serves at; 0 while it serves nothing.
        inactive: why it does not; None if it does.
    """

    name: str
    model: str
    port: int
    inactive: Inactive | None

    def place(self, pod: Pod) -> Pod:
        """Return a pod as the one of this engine."""
        mark = f"{RANK_MARK}{self.name}"
        placed = replace(
            pod,
            uid=f"{pod.uid}{mark}",
            name=f"{pod.name}{mark}",
            port=self.port,
            metrics_port=self.port,
            address=format_address(pod.ip, self.port),
        )
        if self.inactive is None:
            return placed
        obstacle = pod.obstacle or f"the model is {self.inactive}"
        return replace(placed, ready=False, obstacle=obstacle, inactive=self.inactive)


def read_claims(annotations: Mapping[str, str]) -> Iterator[ModelClaim]:
    """Yield the claims that a pod's annotations tell of; what cannot be read is left out."""
    names = sorted(name for name in annotations if name.startswith(PREFIX) and name != PREFIX)
    for name in names[:_MOST_CLAIMS]:
        # What is cut off here is no JSON: it is left out, and not kept.
        claim = _read(name.removeprefix(PREFIX), annotations[name][: _LONGEST_TEXT + 1])
        if claim is not None:
            yield claim


@lru_cache(_CACHED_TEXTS)
def _read(name: str, text: str) -> ModelClaim | None:
    try:
        said = msgspec.json.decode(text, type=_Annotation)
        state = said.state or (_ACTIVE if said.port else Inactive.ACTIVATING)
        inactive = None if state == _ACTIVE else Inactive(state)
    except (ValueError, msgspec.MsgspecError) as error:
        problem = str(error)
    else:
        # One that is active has a port, the others have none.
        if said.model and (inactive is None) == (said.port > 0):
            return ModelClaim(name, said.model, said.port, inactive)
        problem = f"model {said.model!r} cannot be {state} at port {said.port}"
    log.warning("annotation %s%s is left out: %.200s", PREFIX, name, problem)
    return None
