"""How many tokens an answer will have, from those that its model has given."""

from pdrouter.bounded import make_room

_FORGET = 0.98
_PRIOR_ANSWERS = 10.0
_MOST_TOKENS = 1_000_000
_MOST_MODELS = 4096
"""Models and adapters of which anything is known; adapters may come and go for ever."""


class OutputLengths:
    """Mean length of each model's answers, learnt where they are counted.

    Recent answers weigh more. Until many have been seen, what the operator expects weighs as much
    as ten answers.
    """

    __slots__ = ("_expected", "_sums")

    def __init__(self, expected: int) -> None:
        """Start with nothing seen.

        Args:
            expected: length in tokens that the operator expects, of any model.
        """
        self._expected = expected
        # Tokens and answers seen, by model; sums that fade.
        self._sums: dict[str, tuple[float, float]] = {}

    def expect(self, model: str) -> int:
        """Return the length to expect, in tokens."""
        sums = self._sums.get(model)
        return self._expected if sums is None else max(1, round(sums[0] / sums[1]))

    def observe(self, model: str, tokens: int) -> None:
        """Learn from an answer of a served model, of so many tokens."""
        seen, answers = self._sums.get(model, (self._expected * _PRIOR_ANSWERS, _PRIOR_ANSWERS))
        length = min(max(0, tokens), _MOST_TOKENS)
        make_room(self._sums, model, _MOST_MODELS)
        self._sums[model] = (seen * _FORGET + length, answers * _FORGET + 1)
