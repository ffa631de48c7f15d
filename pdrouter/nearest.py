"""What somebody may have meant who wrote a name that nobody knows."""

from collections.abc import Iterable
from difflib import SequenceMatcher

_ALIKE = 0.8
_SAME = str.maketrans("_. ", "---")


def find_nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name that is most like a word; None if none is.

    Case, and which of `-`, `_` and `.` stands between parts, make no difference. A name that is
    written as the word is its own nearest.

    Args:
        word: what was written.
        names: what is known; of equals the first counts.
    """
    wanted = _fold(word)
    scores = {name: _compare(wanted, _fold(name)) for name in names}
    best = max(scores, key=lambda name: (name == word, scores[name]), default=None)
    return best if best is not None and scores[best] >= _ALIKE else None


def _fold(word: str) -> str:
    return word.lower().translate(_SAME)


def _compare(one: str, other: str) -> float:
    if one == other:
        return 1.0
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    # Only words of about the same length can be alike: most need not be compared.
    return matcher.ratio() if matcher.real_quick_ratio() >= _ALIKE else 0.0
