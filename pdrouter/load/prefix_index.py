"""Which pods have probably cached which prefixes, as far as this router has sent them there."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from pdrouter.load.cache_mirrors import BYTES_PER_BLOCK, CacheMirrors

_CAPACITY_CHECK = 16
_CAPACITY_SHARE = 0.75
"""Share of what the pods' caches hold that is computed within one generation: what is in use moves
on to the next one, so that half of it would forget too early (`make bench-routing`)."""
_GROUPS = 256
"""Groups of pods whose names are kept."""
_BYTES_PER_ENTRY = 120
"""Memory of one entry: two integers and its place in a dictionary, measured."""


class PrefixIndex:
    """Blocks of prompts, and the pods that have computed them.

    A block is known by a hash of itself and of all before it, so that one look-up per block finds
    the pods that share a prefix, however many pods there are: each entry is a set of pods, kept as
    the bits of one number. All blocks before one that a pod gets are written down as well: so a
    prompt is written from its end to the first block that is there, and how much of it was known
    does not matter.

    Entries live in two generations, each in one of them. A new or used one goes to the young
    generation; when that is full, or half the time to live is over, or the pods have computed most
    of what their caches hold, it becomes the old one and the old one is dropped. That bounds memory
    and age, forgets as fast as engines do, and costs nothing per entry.

    Engines that say what they had cached of a prompt put it right, pod by pod (`confirm`).
    """

    def __init__(
        self,
        max_bytes: int,
        ttl_s: float,
        clock: Callable[[], float],
        count_capacity: Callable[[Collection[str]], float | None] = lambda uids: None,
    ) -> None:
        """Start empty.

        Args:
            max_bytes: memory to use at the most.
            ttl_s: seconds after which a prefix that nobody used is forgotten.
            clock: gives the time in seconds.
            count_capacity: gives the tokens that the caches of these pods hold together; None if
                that is not known.
        """
        self._count_capacity = count_capacity
        self._computed = 0
        self._added = 0
        self._generation_size = max(1, max_bytes // (2 * _BYTES_PER_ENTRY + BYTES_PER_BLOCK))
        self._mirrors = CacheMirrors(self._generation_size)
        self._generation_s = ttl_s / 2
        self._clock = clock
        self._young: dict[int, int] = {}
        self._old: dict[int, int] = {}
        self._turned = clock()
        self._bits: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._groups: dict[int, Sequence[str]] = {}
        self._alive = 0
        # Of these pods, blocks are missing before some that are in a generation, young or old.
        self._torn = self._torn_old = 0
        # Bits of pods that are gone, by the number of turns after which no entry has them.
        self._retired: list[tuple[int, int]] = []
        self._turns = 0

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def match(self, hashes: Sequence[int]) -> Mapping[str, int]:
        """Return how many blocks, from the first on, each pod has; pods without any are absent."""
        self._turn_if_due()
        holders = previous = self._alive
        leaving: list[tuple[int, int]] = []
        length = 0
        for known in map(self._young.get, hashes):
            # Neighbouring blocks usually have the same pods.
            if known != previous:
                previous = self._old.get(hashes[length], 0) if known is None else known
                remaining = holders & previous
                if remaining != holders:
                    leaving.append((length, holders ^ remaining))
                    holders = remaining
                    if not holders:
                        break
            length += 1
        leaving.append((length, holders))
        matches: dict[str, int] = {}
        for blocks, those in leaving:
            if blocks:
                uid = self._names.get(those)
                if uid is None:
                    matches.update(dict.fromkeys(self._list_group(those), blocks))
                else:
                    matches[uid] = blocks
        return matches

    def add(self, hashes: Sequence[int], uid: str, tokens: int = 0) -> list[int]:
        """Note that a pod has these blocks, or will have them when it comes to a later request.

        Args:
            hashes: the blocks.
            uid: the pod.
            tokens: prompt tokens that it computes for them.

        Returns:
            The blocks that it was not known to have, for `discard`.
        """
        self._turn_if_due()
        self._computed += tokens
        self._added += 1
        if self._added % _CAPACITY_CHECK == 0:
            capacity = self._count_capacity(self._bits.keys())
            if capacity is not None and self._computed >= capacity * _CAPACITY_SHARE:
                self._turn()
        bit = self._bits.get(uid)
        if bit is None:
            bit = self._add_pod(uid)
        return self._put(hashes, bit)

    def recall(self, hashes: Sequence[int], uid: str) -> Sequence[int]:
        """Return what a pod is known to have of a prompt that is about to be sent there."""
        return self._mirrors.recall(hashes, uid)

    def confirm(self, hashes: Sequence[int], uid: str, recalled: Sequence[int], found: int) -> int:
        """Take what a pod has had of a prompt that it has computed, all of which it has now.

        Args:
            hashes: the blocks of the prompt.
            uid: the pod.
            recalled: what it was known to have when the prompt was sent.
            found: how many blocks, from the first on, it has had at the least.

        Returns:
            How many blocks are gone with those that it has not had any more.
        """
        gone = self._mirrors.note(hashes, uid, recalled, found)
        if gone:
            self.discard(gone, uid)
        # While it was computed there, it may have been taken for gone, its end in any case.
        if hashes and not self._has(hashes[-1], uid):
            self.add(hashes, uid)
        return len(gone)

    def discard(self, hashes: Iterable[int], uid: str) -> None:
        """Note that a pod does not have these blocks: it did not carry out what was expected."""
        bit = self._bits.get(uid, 0)
        for generation in (self._young, self._old):
            for block in hashes:
                if generation.get(block, 0) & bit:
                    generation[block] ^= bit
                    self._torn |= bit
                    self._torn_old |= bit

    def forget(self, uid: str) -> None:
        """Forget a pod that is gone; its bit is used again once no entry can have it."""
        self._mirrors.forget(uid)
        bit = self._bits.pop(uid, None)
        if bit is not None:
            del self._names[bit]
            self._groups.clear()
            self._alive &= ~bit
            self._retired.append((self._turns + 2, bit))

    def _put(self, hashes: Sequence[int], bit: int) -> list[int]:
        """Add a pod to these blocks; return those that it was not known to have."""
        hashes = hashes[: self._generation_size]
        room = self._generation_size - len(self._young)
        if len(hashes) > room and sum(block not in self._young for block in hashes) > room:
            self._turn()
        young, old, alive, whole = self._young, self._old, self._alive, not self._torn & bit
        known = len(hashes)
        if known and hashes[-1] not in young:
            known = self._count_known(hashes)
        new: list[int] = []
        for block in reversed(hashes[:known]):
            holders = young.get(block)
            if holders is None:
                holders = old.pop(block, 0) & alive
                # Others' bits come along, and those of theirs that are missing do not.
                self._torn |= holders & self._torn_old & ~bit
            elif holders & bit:
                if whole:
                    break
                continue
            if not holders & bit:
                new.append(block)
            young[block] = holders | bit
        new.reverse()
        if known < len(hashes):
            fresh = hashes[known:]  # No other pod has them.
            new += fresh
            for block in fresh:
                young[block] = bit
        return new

    def _count_known(self, hashes: Sequence[int]) -> int:
        """Return how many of these blocks are in a generation: all before one that is there."""
        young, old = self._young, self._old
        least, most = 0, len(hashes)
        while least < most:
            middle = (least + most) // 2
            if hashes[middle] in young or hashes[middle] in old:
                least = middle + 1
            else:
                most = middle
        return least

    def _has(self, block: int, uid: str) -> bool:
        known = self._young.get(block)
        holders = self._old.get(block, 0) if known is None else known
        return bool(holders & self._bits.get(uid, 0))

    def _add_pod(self, uid: str) -> int:
        if self._retired and self._retired[0][0] <= self._turns:
            _, bit = self._retired.pop(0)
        else:
            used = self._alive
            for _, retired in self._retired:
                used |= retired
            bit = 1 << used.bit_length()
        self._bits[uid] = bit
        self._names[bit] = uid
        self._alive |= bit
        return bit

    def _list_group(self, bits: int) -> Sequence[str]:
        """Return the pods of these bits; the same groups come again, those with a system prompt."""
        group = self._groups.get(bits)
        if group is None:
            if len(self._groups) >= _GROUPS:
                self._groups.clear()
            group, left = [], bits
            while left:
                bit = left & -left
                group.append(self._names[bit])
                left ^= bit
            self._groups[bits] = group
        return group

    def _turn_if_due(self) -> None:
        if self._clock() - self._turned >= self._generation_s:
            self._turn()

    def _turn(self) -> None:
        self._old, self._young = self._young, {}
        self._turned = self._clock()
        self._computed = 0
        self._torn_old, self._torn = self._torn, 0
        self._turns += 1
