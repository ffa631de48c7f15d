"""What the engines of an endpoints file have answered."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from pdrouter.cluster.pods import Pod, Role


class ModelCard(msgspec.Struct, frozen=True):
    """A model that an engine says it serves.

    Attributes:
        id: name by which requests ask for it.
        root: what the engine has loaded under the name.
        max_model_len: longest prompt plus output, in tokens.
    """

    id: str
    root: str | None = None
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """What one engine has answered.

    Attributes:
        problem: why it could not be asked; empty if it answered.
        speaks_tls: whether it speaks TLS where plain HTTP is expected.
        status: HTTP status of its list of models; None without an answer.
        cards: the models that it lists.
        version: its version; empty if it does not say.
        software: what it is, by the names of its metrics; empty if they do not tell.
    """

    problem: str = ""
    speaks_tls: bool = False
    status: int | None = None
    cards: tuple[ModelCard, ...] = ()
    version: str = ""
    software: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models that it lists."""
        return tuple(card.id for card in self.cards)

    def find(self, model: str) -> ModelCard | None:
        """Return what it says of a model; None if it does not list it."""
        return next((card for card in self.cards if card.id == model), None)


@dataclass(frozen=True, slots=True)
class PairTrial:
    """A request of one token over a prefill and a decode engine, as the router sends it.

    Attributes:
        prefill: the prefill engine.
        decode: the decode engine.
        failed: the engine that failed; None if both legs went well.
        problem: what it answered.
        handed: whether the prefill engine gave something that a decode engine can fetch.
        swapped: whether the decode engine gave that, asked for a prefill, where the other did not.
        proven: whether the decode engine says that it has not computed the prompt itself.
    """

    prefill: Pod
    decode: Pod
    failed: Pod | None = None
    problem: str = ""
    handed: bool = True
    swapped: bool = False
    proven: bool = False


@dataclass(frozen=True, slots=True)
class Survey:
    """The engines of an endpoints file, and what they have answered.

    Attributes:
        pods: the engines as the file names them.
        answers: what they have answered, by address.
        trials: requests over pairs of them.
    """

    pods: tuple[Pod, ...]
    answers: Mapping[str, Answers]
    trials: tuple[PairTrial, ...] = field(default=())

    def serves(self, pod: Pod) -> bool:
        """Return whether an engine lists the model that the file gives it."""
        return self.answers[pod.address].find(pod.model) is not None

    def groups(self) -> Iterator[tuple[str, tuple[Pod, ...]]]:
        """Yield the groups whose engines must be alike, each with its name for people.

        Those that encode have no language model to be alike in.
        """
        groups: defaultdict[tuple[str, str], list[Pod]] = defaultdict(list)
        for pod in self.pods:
            if pod.role is not Role.ENCODE:
                groups[pod.model, pod.roleset].append(pod)
        for (model, roleset), members in groups.items():
            yield (f"roleset {roleset} of {model}" if roleset else model), tuple(members)


def choose_pairs(survey: Survey) -> list[tuple[Pod, Pod]]:
    """Return pairs to try: each prefill and each decode engine that answers occurs in one."""
    pairs = []
    for _, members in survey.groups():
        usable = [pod for pod in members if survey.serves(pod) and not pod.unsupported]
        for pairing in dict.fromkeys(pod.pairing for pod in usable):
            fitting = [pod for pod in usable if pod.pairing == pairing]
            prefill = [pod for pod in fitting if pod.role is Role.PREFILL]
            decode = [pod for pod in fitting if pod.role is Role.DECODE]
            if prefill and decode:
                pairs += [
                    (prefill[index % len(prefill)], decode[index % len(decode)])
                    for index in range(max(len(prefill), len(decode)))
                ]
    return pairs
