"""What workers know together: which calls change it, and how a memory becomes theirs."""

import time
from collections.abc import Callable
from random import Random
from typing import TypeVar

from pdrouter.journal.journal import Journal
from pdrouter.journal.language import Call, Language
from pdrouter.journal.shared import share
from pdrouter.load.decoded_prompts import DecodedPrompts
from pdrouter.load.failures import FailureMemory
from pdrouter.load.ledger import Ledger
from pdrouter.load.output_length import OutputLengths
from pdrouter.load.peers import PeerKnowledge
from pdrouter.load.prefill_rates import PrefillRates
from pdrouter.load.prefix_index import PrefixIndex
from pdrouter.load.priorities import PriorityKnowledge
from pdrouter.load.prompt_length import TokenRatios
from pdrouter.load.proofs import Proofs
from pdrouter.load.recent_prompts import RecentPrompts
from pdrouter.load.retry_budget import RetryBudget
from pdrouter.load.samples import Samples
from pdrouter.load.served_tokens import ServedTokens
from pdrouter.load.turn_claims import TurnClaims
from pdrouter.load.usage_news import UsageNews
from pdrouter.load.virtual_tokens import VirtualTokens
from pdrouter.load.whole_serving import WholeServing
from pdrouter.openai.kind import RequestKind
from pdrouter.serving.unsplittable import UnsplittableKinds
from pdrouter.users.places import Places
from pdrouter.users.window_counts import WindowCounts

_M = TypeVar("_M")

_OF_A_KIND = {"subject": RequestKind | None}

LANGUAGE = Language(
    {
        PrefillRates: (Call("note_buckets"), Call("note_kind")),
        Ledger: (Call("note_others"),),
        PrefixIndex: (Call("add"), Call("confirm"), Call("discard")),
        FailureMemory: (
            Call("note_success"),
            Call("note_failure", types=_OF_A_KIND),
            Call("note_worthless"),
            Call("note_timeout"),
            Call("note_silence"),
            Call("hold"),
            Call("note_scrape"),
            Call("take_due", matters=bool),
            Call("note_asked"),
            Call("forgive", types=_OF_A_KIND),
        ),
        PeerKnowledge: (Call("learn"), Call("doubt"), Call("note_unreachable")),
        PriorityKnowledge: (Call("note"), Call("note_unreachable")),
        WholeServing: (
            Call("observe_handover"),
            Call("begin"),
            Call("observe"),
            Call("note_answer"),
            Call("wants_handover", matters=bool),
            Call("wants_whole", matters=bool),
        ),
        DecodedPrompts: (Call("add"), Call("expect", matters=bool), Call("discard")),
        RecentPrompts: (Call("add"),),
        Samples: (Call("put"), Call("drop")),
        OutputLengths: (Call("observe"),),
        Proofs: (
            Call("note_served", matters=bool),
            Call("note_handle", matters=bool),
            Call("note_told", matters=bool),
        ),
        TokenRatios: (Call("observe"),),
        UnsplittableKinds: (Call("note_served"), Call("note_failed")),
        RetryBudget: (Call("count_request"), Call("take_retry", matters=bool)),
        Places: (),  # They are held, and let go.
        WindowCounts: (Call("add"), Call("subtract")),
        ServedTokens: (Call("count"),),
        TurnClaims: (Call("put"), Call("drop")),
        UsageNews: (Call("want", matters=bool), Call("tell")),
        VirtualTokens: (Call("lift"), Call("charge"), Call("correct")),
    }
)
"""The calls that change what is known. All that these memories hold follows from them."""


class Sharing:
    """How the memories of this process become those of all workers, if there are others.

    Attributes:
        clock: gives the time in seconds; while a change is made, that at which it was made first.
        catch_up: takes over what others have changed until now.
    """

    def __init__(
        self, journal: Journal | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set up.

        Args:
            journal: where changes are noted; None for the only worker: its memories are its own.
            clock: gives the time to that one.
        """
        self._journal = journal
        self.clock = clock if journal is None else journal.clock
        self.catch_up: Callable[[], None] = _know_all if journal is None else journal.catch_up

    def share(self, memory: type[_M]) -> type[_M]:
        """Return a class of memories of which all workers know the same; there is one of it."""
        return memory if self._journal is None else share(memory, self._journal)

    def create_random(self) -> Random:
        """Return a source of randomness for memories: all workers draw the same for a change."""
        return _RandomOfTime(self.clock)


def _know_all() -> None:
    """Do nothing: there is no other worker."""


class _RandomOfTime(Random):
    """Draws what follows from the time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._at: float | None = None

    def uniform(self, a: float, b: float) -> float:
        """Return a number between two others."""
        at = self._clock()
        if at != self._at:
            self._at = at
            self.seed(at)
        return super().uniform(a, b)
