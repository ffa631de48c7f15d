"""Memories whose changes are noted in a journal, and made by all workers."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from msgspec.structs import astuple

from pdrouter.cluster.pods import Pod
from pdrouter.journal.holder import Holder
from pdrouter.journal.holders import SharedFailures, SharedLedger, SharedPlaces
from pdrouter.journal.journal import Journal
from pdrouter.journal.language import Change, Verb
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.users.places import Places

_M = TypeVar("_M")


_HOLDERS: dict[type[Any], type[Any]] = {
    Ledger: SharedLedger,
    FailureMemory: SharedFailures,
    Places: SharedPlaces,
}


def share(memory: type[_M], journal: Journal) -> type[_M]:
    """Return a class of memories whose changes are noted, and of which all workers have the same.

    What changes them is called as ever: it is done here, noted, and then called by the others, for
    whom it is the time at which it was done here. What a change changes by the way is no change of
    its own. There can be one memory of the class.

    Args:
        memory: what is to be shared; the journal's language must know what changes it.
        journal: where that is noted.
    """
    verbs = journal.language.verbs[memory]
    base: type[Any] = _HOLDERS.get(memory, memory)
    members: dict[str, Any] = {"__slots__": (), "journal": journal}
    for verb in verbs:
        members[verb.call.name] = _note_calls(getattr(base, verb.call.name), verb, journal)

    def create(self: Holder, *given: object, **named: object) -> None:
        base.__init__(self, *given, **named)
        for verb in verbs:
            journal.bind(verb.change, _repeat_calls(self, base, verb, journal))
        if memory in _HOLDERS:
            journal.bind_holder(self)

    members["__init__"] = create
    found: type[_M] = type(f"Shared{memory.__name__}", (base,), members)
    return found


def _note_calls(method: Callable[..., Any], verb: Verb, journal: Journal) -> Callable[..., Any]:
    """Return a method that does the same as another one, and notes it."""
    change, matters, pods = verb.change, verb.call.matters, verb.pods
    names = verb.positional

    def noted(self: object, *given: object, **named: object) -> object:
        if journal.at is not None:
            return method(self, *given, **named)  # Part of another change.
        at = journal.begin()
        try:
            result = method(self, *given, **named)
        finally:
            journal.at = None
        if matters is None or matters(result):
            if pods:
                named = {**dict(zip(names, given, strict=False)), **named}
                given = ()
                named |= {name: cast(Pod, named[name]).uid for name in pods}
            journal.note(change(at, *given, **named))
        return result

    return noted


def _repeat_calls(
    memory: object, base: type[Any], verb: Verb, journal: Journal
) -> Callable[[int, Any], object]:
    """Return what calls a memory's method as another worker has called it."""
    method = getattr(base, verb.call.name)
    if not (verb.keywords or verb.pods):

        def repeat_simply(worker: int, change: Change) -> None:
            del worker
            method(memory, *astuple(change)[1:])

        return repeat_simply

    positional, keywords, pods = verb.positional, verb.keywords, verb.pods

    def repeat(worker: int, change: Change) -> None:
        del worker
        given = [*astuple(change)[1 : 1 + len(positional)]]
        for name in pods:
            found = journal.find_pod(getattr(change, name))
            if found is None:
                return
            given[positional.index(name)] = found
        method(memory, *given, **{name: getattr(change, name) for name in keywords})

    return repeat
