"""What may stand in a journal: calls of methods that change a memory, and a few words more."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import count
from operator import or_
from types import GenericAlias, MappingProxyType
from typing import Any, TypeAlias, get_type_hints

import msgspec
import xxhash

from pdrouter import __version__
from pdrouter.cluster.pods import Pod
from pdrouter.engines.split import Leg

Change: TypeAlias = msgspec.Struct
"""Something that a worker has changed. Its first member, `at`, says when."""
Batch: TypeAlias = tuple[int, Sequence[Any]]
"""Changes that are told together, with a number that is higher than those of all batches which
their worker had read by then: of changes at one time, those of the lower number came first."""
_Memory: TypeAlias = type[Any]

_CARRIED_AS: Mapping[Any, Any] = MappingProxyType({Iterable[int]: list[int], Pod: str})
"""How values are carried that cannot be as they are: of a pod, its UID."""


class _Word(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What every change has.

    Attributes:
        at: when it was made, on the clock of the machine.
    """

    at: float


class Began(_Word, frozen=True, array_like=True, gc=False, tag=1):
    """A worker has begun: what it held before is held no more."""


class Wanted(_Word, frozen=True, array_like=True, gc=False, tag=2):
    """A worker has lost part of another one's journal, and wants to know what that one holds.

    Attributes:
        worker: which one.
    """

    worker: int


class LegHeld(_Word, frozen=True, array_like=True, gc=False, kw_only=True, tag=3):
    """A worker has a leg in flight. Said again, it means the same.

    Attributes:
        number: by which the worker lets it go.
        uid: the pod.
        leg: what the pod does.
        tokens: what that costs.
        due: when its request is due.
        cached: tokens that the pod has cached.
    """

    number: int
    uid: str
    leg: Leg
    tokens: int
    due: float | None
    cached: int


class LegLetGo(_Word, frozen=True, array_like=True, gc=False, kw_only=True, tag=4):
    """A leg is in flight no more.

    Attributes:
        number: which one.
        completed: tokens that were computed; None if it was not carried out.
        cached: tokens that were cached.
    """

    number: int
    completed: int | None
    cached: int


class TrialHeld(_Word, frozen=True, array_like=True, gc=False, kw_only=True, tag=5):
    """A worker tries a pod that has failed.

    Attributes:
        number: by which the worker lets it go.
        uid: the pod.
        leg: what the pod does.
    """

    number: int
    uid: str
    leg: Leg


class TrialLetGo(_Word, frozen=True, array_like=True, gc=False, kw_only=True, tag=6):
    """A trial is over.

    Attributes:
        number: which one.
    """

    number: int


class PlaceHeld(_Word, frozen=True, array_like=True, gc=False, kw_only=True, tag=7):
    """A request has a place, where only so many may run at a time.

    Attributes:
        name: name of the limit.
        holder: which request.
    """

    name: str
    holder: str


class PlaceLetGo(_Word, frozen=True, array_like=True, gc=False, kw_only=True, tag=8):
    """It has it no more.

    Attributes:
        name: name of the limit.
        holder: which request.
    """

    name: str
    holder: str


_WORDS: tuple[type[Change], ...] = (
    *(Began, Wanted, LegHeld),
    *(LegLetGo, TrialHeld, TrialLetGo),
    *(PlaceHeld, PlaceLetGo),
)


@dataclass(frozen=True, slots=True)
class Call:
    """A method that changes a memory.

    Attributes:
        name: its name.
        matters: whether a call has changed anything, by what it has returned; None if each has.
        types: of parameters whose annotation does not say how they are carried.
    """

    name: str
    matters: Callable[[Any], bool] | None = None
    types: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verb:
    """How a call is written.

    Attributes:
        memory: what is called.
        call: the method.
        change: what stands in the journal.
        pods: parameters that are pods.
        positional: parameters that are given by position.
        keywords: those that are given by name.
    """

    memory: _Memory
    call: Call
    change: type[Change]
    pods: tuple[str, ...]
    positional: tuple[str, ...]
    keywords: tuple[str, ...]


class Language:
    """All that journals may say: workers that differ in it do not understand each other.

    Attributes:
        verbs: the calls, by memory.
        dialect: a number by which languages are told apart.
        encode: writes a batch.
        decode: reads one.
    """

    def __init__(self, calls: Mapping[_Memory, Sequence[Call]]) -> None:
        """Work out how each call is written.

        Args:
            calls: the methods that change each memory.
        """
        tags = count(len(_WORDS) + 1)
        self.verbs: Mapping[_Memory, Sequence[Verb]] = {
            memory: [_form_verb(memory, call, next(tags)) for call in those]
            for memory, those in calls.items()
        }
        changes: list[Any] = [verb.change for verbs in self.verbs.values() for verb in verbs]
        described = [(one.__name__, msgspec.inspect.type_info(one)) for one in changes]
        self.dialect = xxhash.xxh3_64_intdigest(repr((__version__, described)).encode())
        self.encode: Callable[[Batch], bytes] = msgspec.msgpack.Encoder().encode
        word = reduce(or_, changes, reduce(or_, _WORDS))
        changes_of_a_batch = GenericAlias(list, (word,))
        self.decode: Callable[[bytes], Batch] = msgspec.msgpack.Decoder(
            GenericAlias(tuple, (int, changes_of_a_batch))
        ).decode


def _form_verb(memory: _Memory, call: Call, tag: int) -> Verb:
    method = getattr(memory, call.name)
    hints = get_type_hints(method)
    parameters = list(inspect.signature(method).parameters.values())[1:]
    fields: list[Any] = [("at", float)]
    for parameter in parameters:
        hint = call.types.get(parameter.name, hints[parameter.name])
        member = (parameter.name, _CARRIED_AS.get(hint, hint))
        fields.append(
            member if parameter.default is parameter.empty else (*member, parameter.default)
        )
    change = msgspec.defstruct(
        f"{memory.__name__}_{call.name}", fields, tag=tag, array_like=True, frozen=True, gc=False
    )
    by_name = tuple(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)
    return Verb(
        memory,
        call,
        change,
        tuple(one.name for one in parameters if hints[one.name] is Pod),
        tuple(one.name for one in parameters if one.name not in by_name),
        by_name,
    )
