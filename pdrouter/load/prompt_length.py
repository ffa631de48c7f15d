"""How many tokens a prompt has, from its size in bytes."""

from pdrouter.bounded import make_room

_GUESS = 4.0
_FORGET = 0.98
_PRIOR_BYTES = 4096.0
_TOKENS_OF_MEDIUM = 1000
"""A picture of a megapixel takes about that, and half a minute of sound, whatever their bytes."""
_MOST_MODELS = 4096
"""Models and adapters of which anything is known; adapters may come and go for ever."""


class TokenRatios:
    """Bytes per token of each model's prompts, learnt from what engines say in `usage`."""

    __slots__ = ("_sums",)

    def __init__(self) -> None:
        # Bytes and tokens seen, by model; sums that fade.
        self._sums: dict[str, tuple[float, float]] = {}

    def estimate(self, model: str, size: int, media: int = 0) -> int:
        """Return the tokens of a prompt of so many bytes, and so many images, sounds and videos."""
        seen, tokens = self._sums.get(model, (_GUESS, 1.0))
        return max(1, round(size * tokens / seen)) + media * _TOKENS_OF_MEDIUM

    def observe(self, model: str, size: int, tokens: int) -> None:
        """Learn from a prompt of a served model, of so many bytes and tokens."""
        seen, known = self._sums.get(model, (_PRIOR_BYTES, _PRIOR_BYTES / _GUESS))
        make_room(self._sums, model, _MOST_MODELS)
        self._sums[model] = (seen * _FORGET + size, known * _FORGET + tokens)
